"""One step played event by event: streams, links, stragglers."""
