"""Stands for one rank in the eyes of the launcher: a server that has loaded torch forks it (see forked.py).

It is killed by what is meant for the rank, and ends as the rank ends; where no server is left, it becomes the rank.
Only the standard library, for a quick start.
"""

import json
import os
import signal
import socket
import sys
from typing import NoReturn

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def main() -> NoReturn:
    """Ask for the rank, pass on signals, and end as it ends: arguments are the servers' folder and the rank's own."""
    # Until it is known whom to pass them to, signals wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    folder, *arguments = sys.argv[1:]
    connection = socket.socket(socket.AF_UNIX)
    try:
        # Ranks next to each other are of different servers, where there are several.
        servers = sorted(name for name in os.listdir(folder) if name.endswith(".socket"))
        connection.connect(os.path.join(folder, servers[int(os.environ["LOCAL_RANK"]) % len(servers)]))
    except OSError:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        os.execv(sys.executable, [sys.executable, *arguments])
    request = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    socket.send_fds(connection, [b"+"], [0, 1, 2])
    connection.sendall(json.dumps(request).encode() + b"\n")
    answers = connection.makefile()
    rank = int(answers.readline() or 0)
    for number in FORWARDED if rank else ():
        signal.signal(number, lambda number, _: os.kill(rank, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    # A server that is gone was killed, and its ranks with it.
    code = int(answers.readline() or -signal.SIGKILL)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
