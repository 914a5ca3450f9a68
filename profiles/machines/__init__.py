"""A machine without torch: devices, clusters, the software on them, what was measured, and how busy it was."""
