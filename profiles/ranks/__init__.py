"""Processes that compute together: how they are started, found and stopped."""
