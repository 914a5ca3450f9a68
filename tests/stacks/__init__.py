"""Plans handed over to other software, and its files read back: trials against that software itself."""
