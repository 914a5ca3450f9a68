"""`python -m reports` is `compare`."""

from profiles.terminal.entries import compare

if __name__ == "__main__":
    compare()
