"""Ranks of any job carried out alone, without the others and without devices."""
