"""How a rank starts: bound to the life of its launcher before anything large is loaded. Torch-free."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from profiles.ranks.processes import LAUNCHER_VARIABLE, birth, die_with_parent, process_path


def main() -> None:
    """Start one rank: arguments are the entry, the payload's file and the job's folder."""
    die_with_parent(int(os.environ[LAUNCHER_VARIABLE]))
    attempt, rank = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")), int(os.environ["RANK"])
    own = os.getpid()
    path = process_path(Path(sys.argv[3]), attempt, rank)
    # Whole or not there: half a number is that of another process.
    part = path.with_name(f".{path.name}")
    part.write_text(f"{own} {birth(own)}", encoding="utf-8")
    part.replace(path)
    # Seconds later: what it loads is large.
    from profiles.ranks.rank import main as run

    run()


if __name__ == "__main__":
    main()
