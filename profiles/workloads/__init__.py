"""What is trained: modules of known families or of the user's own, their batches and losses."""
