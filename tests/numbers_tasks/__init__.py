"""Thirty models of all kinds, predicted and run in turns on this machine."""
