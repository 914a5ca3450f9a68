"""Jobs on anybody's cluster, priced in columns from their configuration: sizes, layout, hardware, software."""
