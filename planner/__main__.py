"""`python -m planner` is `plan`."""

from planner.command import main

if __name__ == "__main__":
    main()
