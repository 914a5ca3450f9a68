"""The page of what to buy or rent: counts and kinds of devices side by side, as figures with their tables."""
