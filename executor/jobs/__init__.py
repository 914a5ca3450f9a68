"""Job files: a plan for whoever starts the ranks of a cluster."""
