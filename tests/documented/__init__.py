"""What the pages of documentation say, taken apart so that tests can hold it against the program."""
