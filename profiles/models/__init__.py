"""A model without torch: the operators of each layer, its sizes, and the families they come in."""
