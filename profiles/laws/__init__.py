"""Seconds of one kernel and of one message, and how their constants are fitted to tables of measurements."""
