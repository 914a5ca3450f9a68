"""Gradient compression: what a codec sends, how it is written, and its hooks for DDP."""
