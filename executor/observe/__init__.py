"""What is noted while a step runs: events, time by part, tensors alive, FLOPs and bytes sent."""
