"""Trainings of networks of any kind that others measured: read from a table's row, priced operator by operator."""
