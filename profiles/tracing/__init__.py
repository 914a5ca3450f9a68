"""A module run once with its operators noted: what a model profile is made of."""
