"""A program that forks its ranks, as `execute` does: `python -m tests.forked_program ENTRY RESTARTS`."""

import atexit
import json
import signal
import sys

from profiles.errors import TrainwrightError
from profiles.ranks.forked import rank_server
from profiles.ranks.launcher import launch

# What only the program loads tells whether a rank was it once.
import colorsys  # noqa: F401  # isort: skip

if __name__ == "__main__":
    atexit.register(print, "the program ends")
    # As the commands do; its ranks are not to.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with rank_server("cpu") as server:
        assert server is not None
        print("forking", flush=True)
        try:
            print(json.dumps(launch(sys.argv[1], {}, 2, "cpu", server=server, max_restarts=int(sys.argv[2]))))
        except TrainwrightError as error:
            print(json.dumps(str(error)))
