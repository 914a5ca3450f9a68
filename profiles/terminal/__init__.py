"""What is shown and asked in a terminal, alike in all four commands."""
