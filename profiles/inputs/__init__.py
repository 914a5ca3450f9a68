"""What comes from outside, read with care: files of a foreign hand and numbers of a command line."""
