"""`python -m planner` is `plan`."""

from profiles.terminal.entries import plan

if __name__ == "__main__":
    plan()
