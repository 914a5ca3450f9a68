"""What `plan` prints, and how far it is."""
