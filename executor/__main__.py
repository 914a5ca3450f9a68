"""`python -m executor` is `execute`."""

from executor.command import main

if __name__ == "__main__":
    main()
