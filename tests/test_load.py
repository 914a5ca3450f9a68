"""Whether a machine is busy: from counters made by hand, from files as Linux writes them, and beside real processes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from profiles.artifacts import dump, validate
from profiles.machines.counters import Counters, Watch, available_memory_fraction, read_counters
from profiles.machines.load import MachineLoad, busiest, causes, load_of, look_before

TICKS = os.sysconf("SC_CLK_TCK")
BURN = "import time\nwhile time.process_time() < {seconds}: pass"


def ranks(
    count: int, cores: int, *, own: float, others: float, waited: float | None, host: str = "a", **seconds: float
) -> list[Counters]:
    """Counters of so many ranks over ten seconds: processor seconds of each rank, of all others, waited by the last."""
    busy = None if others is None else count * own + others
    counted = [
        Counters(
            host=host, cores=tuple(range(cores)), seconds=10.0, own_seconds=own, busy_seconds=busy,
            waited_seconds=None if waited is None else 0.2, **seconds,
        )
        for _ in range(count)
    ]  # fmt: skip
    return [*counted[:-1], replace(counted[-1], waited_seconds=waited)]


@pytest.mark.parametrize(
    ("counted", "is_busy"),
    [
        # Two ranks that have their two cores to themselves, with some percent of background.
        (ranks(2, 2, own=10.0, others=0.0, waited=0.2), False),
        (ranks(2, 2, own=9.5, others=0.8, waited=0.6), False),
        # They wait for the threads of their own messages, or share a core: no other process is in their way.
        (ranks(2, 2, own=9.8, others=0.3, waited=4.0), False),
        (ranks(4, 2, own=4.9, others=0.2, waited=5.0), False),
        # One endless process beside them, and two.
        (ranks(2, 2, own=6.7, others=6.6, waited=3.3), True),
        (ranks(2, 2, own=5.0, others=10.0, waited=5.0), True),
        # One of sixteen ranks shares its core with another process, and all wait for it.
        (ranks(16, 16, own=9.0, others=5.0, waited=5.0), True),
        # Many processes on cores that the ranks do not need.
        (ranks(2, 64, own=10.0, others=200.0, waited=0.1), False),
        # Where waiting is not counted: are there cores left for the others?
        (ranks(2, 64, own=10.0, others=200.0, waited=None), False),
        (ranks(2, 2, own=10.0, others=0.8, waited=None), False),
        (ranks(2, 2, own=7.0, others=6.0, waited=None), True),
        (ranks(64, 64, own=9.0, others=60.0, waited=None), False),
        (ranks(64, 64, own=9.0, others=70.0, waited=None), True),
        # The hypervisor, a container's limit, memory; none of it much, and each of it.
        (ranks(2, 2, own=9.0, others=0.1, waited=0.2, stolen_seconds=0.5, stalled_seconds=0.1), False),
        (ranks(2, 2, own=8.0, others=0.1, waited=0.2, stolen_seconds=4.0), True),
        (ranks(2, 2, own=8.0, others=0.1, waited=0.2, throttled_seconds=4.0), True),
        (ranks(2, 2, own=8.0, others=0.1, waited=0.2, stalled_seconds=2.0), True),
    ],
)
def test_what_a_rank_lost_to_others_makes_a_machine_busy(counted: list[Counters], is_busy: bool) -> None:
    load = load_of(counted)
    assert load.is_busy is is_busy, load
    assert validate({f: getattr(load, f) for f in MachineLoad.__slots__}, MachineLoad, "here") == load
    assert causes(load) or not is_busy


def test_causes_are_told_with_their_amounts() -> None:
    counted = ranks(
        2, 2, own=5.0, others=9.7, waited=4.0, stolen_seconds=3.0, throttled_seconds=2.0, stalled_seconds=0.1
    )
    assert causes(load_of(counted)) == (
        "0.97 of 2 cores taken by other processes, 15.0 % of the cores' time taken by the hypervisor, "
        "10.0 % of the time held back by the container's limit on processor time"
    )


def test_what_the_system_does_not_tell_is_unknown_and_not_zero() -> None:
    counted = [Counters(host="a", cores=(0, 1), seconds=10.0, own_seconds=9.0) for _ in range(2)]
    load = load_of(counted)
    shares = (load.other_cores, load.waited_fraction, load.stolen_fraction, load.lost_fraction)
    assert shares == (None,) * 4
    assert not load.is_busy
    assert busiest([None, load]) is None
    assert '"other_cores"' not in dump("machine-profile", load)
    known = replace(counted[0], stolen_seconds=5.0)
    assert load_of([known, known]).is_busy


def test_the_host_that_lost_most_is_named() -> None:
    quiet = ranks(2, 2, own=10.0, others=0.1, waited=0.2, host="quiet")
    noisy = ranks(2, 2, own=7.0, others=6.0, waited=3.0, host="noisy")
    load = load_of([*quiet, *noisy])
    assert (load.host, load.num_ranks, load.is_busy) == ("noisy", 2, True)
    assert causes(load) == "0.6 of 2 cores taken by other processes, on noisy"
    assert load_of(noisy).host == ""


def linux(root: Path, **files: str) -> Path:
    """A root folder with files under it, "/" in their names written as "__"."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_counters_are_read_of_the_cores_that_are_ours(tmp_path: Path) -> None:
    root = linux(
        tmp_path,
        proc__stat="".join(f"cpu{n} {n}00 20 3 7000 50 60 70 {n}0 0 0\n" for n in ("", 0, 1, 2, 3)) + "intr 5\n",
        **{"proc__thread-self__schedstat": "5000000000 250000000 17\n"},
        proc__pressure__memory="some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull avg10=0 total=1\n",
    )  # fmt: skip
    counters = read_counters((1, 3), root)
    assert counters.busy_seconds == pytest.approx((100 + 20 + 3 + 300 + 20 + 3) / TICKS)
    assert counters.stolen_seconds == pytest.approx((10 + 30) / TICKS)
    assert counters.waited_seconds == pytest.approx(0.25)
    assert counters.stalled_seconds == pytest.approx(1.5)
    assert counters.throttled_seconds is None
    later = replace(counters, busy_seconds=9.0, stolen_seconds=None)
    spent = later.plus(counters, -1)
    assert (spent.busy_seconds, spent.stolen_seconds) == (9.0 - (counters.busy_seconds or 0.0), None)


@pytest.mark.parametrize(
    "stat", [None, "cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\n", "cpu1 5 5 5 5 5 5 5 5\n"]
)
def test_a_sandbox_that_counts_nothing_is_unknown(tmp_path: Path, stat: str | None) -> None:
    linux(tmp_path, **{"proc__thread-self__schedstat": "0 0 0\n"}, **({} if stat is None else {"proc__stat": stat}))
    counters = read_counters((0,), tmp_path)
    assert {counters.busy_seconds, counters.stolen_seconds, counters.waited_seconds, counters.stalled_seconds} == {None}
    assert available_memory_fraction(tmp_path) is None


def test_swapping_stands_for_memory_pressure_where_the_kernel_does_not_count_it(tmp_path: Path) -> None:
    linux(tmp_path, proc__vmstat="pgmajfault 7\npswpin 20000\npswpout 3\n")
    assert read_counters((0,), tmp_path).stalled_seconds == pytest.approx(2.0)


@pytest.mark.parametrize("top", ["", "pod/job/"])
def test_a_containers_limits_count(tmp_path: Path, top: str) -> None:
    group = f"sys/fs/cgroup/{top}"
    files = {
        "proc/self/cgroup": f"0::/{top.rstrip('/')}\n",
        "proc/meminfo": "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 900 kB\n",
        f"{group}cpu.stat": "usage_usec 5\nnr_periods 10\nnr_throttled 4\nthrottled_usec 2500000\n",
        f"{group}memory.max": "1000\n",
        f"{group}memory.current": "980\n",
        f"{group}memory.stat": "anon 1\ninactive_file 30\n",
        f"{group}memory.pressure": "some avg10=0.00 total=4000000\n",
        "proc/pressure/memory": "some avg10=0.00 total=9000000\n",
    }
    linux(tmp_path, **{name.replace("/", "__"): text for name, text in files.items()})
    counters = read_counters((0,), tmp_path)
    assert (counters.throttled_seconds, counters.stalled_seconds) == (2.5, 4.0)
    assert available_memory_fraction(tmp_path) == pytest.approx(0.05)
    (tmp_path / group / "memory.max").write_text("max\n")
    assert available_memory_fraction(tmp_path) == pytest.approx(0.9)


def test_limits_of_the_older_control_groups_count(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/docker/1\n2:cpu,cpuacct:/docker/1\n1:name=systemd:/\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 3000000000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "400\n",
        "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 100\n",
    }
    linux(tmp_path, **{name.replace("/", "__"): text for name, text in files.items()})
    assert read_counters((0,), tmp_path).throttled_seconds == 3.0
    assert available_memory_fraction(tmp_path) == pytest.approx(0.7)


@pytest.fixture
def outsiders() -> Iterator[list[psutil.Popen]]:
    """Endless processes, a quarter as many as cores, which nobody here waits for."""
    count = -(-len(os.sched_getaffinity(0)) // 4)
    found = [psutil.Popen([sys.executable, "-S", "-c", BURN.format(seconds=1000)]) for _ in range(count)]
    yield found
    for process in found:
        process.kill()
        process.wait()


@pytest.mark.alone
def test_other_processes_are_counted_and_own_children_are_not(outsiders: list[psutil.Popen]) -> None:
    cores = os.sched_getaffinity(0)

    def outside() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in outsiders)

    with Watch(cores) as watch:
        start, before = outside(), psutil.cpu_times()
        subprocess.run([sys.executable, "-S", "-c", BURN.format(seconds=0.7)], check=True)
        burnt, after = outside() - start, psutil.cpu_times()
    load = load_of([watch.counted])
    all_seconds = sum(getattr(after, name) - getattr(before, name) for name in ("user", "nice", "system"))
    assert 0.7 <= watch.counted.own_seconds < 1.2
    assert load.other_cores is not None
    assert load.other_cores * load.seconds >= burnt - 0.1
    assert load.other_cores * load.seconds == pytest.approx(all_seconds - watch.counted.own_seconds, abs=0.3)


@pytest.mark.alone
def test_a_look_before_the_start_sees_a_busy_machine(
    outsiders: list[psutil.Popen], monkeypatch: pytest.MonkeyPatch
) -> None:
    load, warnings = look_before(len(os.sched_getaffinity(0)))
    assert load is not None
    assert load.is_busy
    assert load.waited_fraction is None
    assert any("busy before the start" in words and "taken by other processes" in words for words in warnings)
    # The other ranks of a job are starting at that moment, which says nothing.
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "0")
    assert look_before(2) == (None, [])
