"""The page of a plan, and the figures that it shares with reports."""
