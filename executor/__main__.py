"""`python -m executor` is `execute`."""

from profiles.terminal.entries import execute

if __name__ == "__main__":
    execute()
