"""Recipes that make a model smaller or faster, and what each would give."""
