"""Every layout of a training job on anybody's cluster: the space, its price on arrays, and the best of it."""
