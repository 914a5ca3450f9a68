"""A module that takes longer than anybody has."""

import time

if __name__ == "__main__":
    print("begun", flush=True)
    time.sleep(600)
