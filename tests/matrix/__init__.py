"""Every architecture of the matrix, tried in each way that a user may go: one command makes the table."""
