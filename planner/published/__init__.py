"""Tables of runs of others: read, predicted, and what the factors learn from them."""
