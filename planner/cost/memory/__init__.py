"""Bytes that a job holds: states of its parameters, tensors saved for backward, and the fullest moment."""
