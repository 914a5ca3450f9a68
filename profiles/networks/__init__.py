"""Small definitions of networks that others measured, for the kernels of their steps; nothing here is trained."""
