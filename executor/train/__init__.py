"""Training by a plan in our own loop, by a file of settings: optimizer, schedule, data, evaluation."""
