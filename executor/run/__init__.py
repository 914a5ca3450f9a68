"""A plan carried out: what is checked first, the session, its data, checkpoints, faults and files."""
