"""Clusters of two kinds of devices: pipelines whose stages, or replicas, stand on different kinds."""
