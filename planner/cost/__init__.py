"""What a training job takes on hardware that was measured or is published: seconds of a step, bytes at its peak."""
