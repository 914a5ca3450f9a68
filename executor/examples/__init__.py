"""Seven tasks to train offline, each short enough to be copied for data of your own."""
