"""What a training job takes on hardware whose figures are published: seconds of a step, bytes at its peak."""
