"""One profile of hypothesis for the whole suite: no deadlines on shared machines, the same examples each time in CI."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.browser import Browser
from tests.environment import TRACES_VARIABLE
from tests.warm_ranks import servers, starting_from

settings.register_profile(
    "suite",
    deadline=None,
    # Where a test does not say otherwise.
    max_examples=40,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of torch that wait for one whose core another test has spin: a step of a small model takes 18 times the
    # CPU. Ranks have one thread each anyway.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _folder_of_this_run(prefix: str) -> str:
    """A temporary folder that goes with this process, but not with those that it forks."""
    folder, process = tempfile.mkdtemp(prefix=prefix), os.getpid()

    def remove() -> None:
        if os.getpid() == process:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


# What commands keep from one to the next is no part of whoever runs the tests.
if "TRAINWRIGHT_HOME" not in os.environ:
    os.environ["TRAINWRIGHT_HOME"] = _folder_of_this_run("trainwright-tests-")
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Else it is that of all workers.
    os.environ[TRACES_VARIABLE] = _folder_of_this_run("trainwright-traces-")


@pytest.fixture(scope="session")
def rank_servers() -> Iterator[Path]:
    """Servers that fork ranks, started when a test first asks for them."""
    with servers() as folder:
        yield folder


@pytest.fixture
def warm_ranks(rank_servers: Path) -> Iterator[None]:
    """The ranks that a test starts are forked from servers that have loaded torch."""
    with starting_from(rank_servers):
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser without a window."""
    with Browser() as started:
        yield started
