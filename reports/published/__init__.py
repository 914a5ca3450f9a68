"""The report on a table of runs of others."""
