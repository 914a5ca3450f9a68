"""`python -m profiles` is `profile`."""

from profiles.terminal.entries import profile

if __name__ == "__main__":
    profile()
