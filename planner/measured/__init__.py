"""What a training job takes on a machine that was measured, by its own kernels, layers and links."""
