"""`python -m reports` is `compare`."""

from reports.command import main

if __name__ == "__main__":
    main()
