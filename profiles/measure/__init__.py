"""Measurements of a machine: kernels, memory, links, layers, the host, and gradients in the midst of training."""
