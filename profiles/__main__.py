"""`python -m profiles` is `profile`."""

from profiles.command import main

if __name__ == "__main__":
    main()
