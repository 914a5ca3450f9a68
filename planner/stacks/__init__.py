"""Other software's words: what it can run, plans handed over to it, and its configurations and logs read back."""
