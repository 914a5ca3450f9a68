"""The four commands tried as somebody clumsy or hostile would: every bad input and what must come of it, as data."""
