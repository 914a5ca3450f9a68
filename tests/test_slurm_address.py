"""Where ranks of Slurm meet: names that resolve, names that do not, and what Slurm says of a node."""

import os
from pathlib import Path

import pytest

from profiles.errors import EnvironmentFailure
from profiles.ranks import slurm_address
from profiles.ranks.environment import join_slurm
from profiles.ranks.preflight import differences, facts
from profiles.ranks.slurm_address import master_address, resolved

ADDRESSES = {"gpu3": "10.0.0.3", "self": "127.0.1.1", "10.0.0.7": "10.0.0.7", "127.0.0.1": "127.0.0.1"}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_address, "resolved", lambda name: ADDRESSES.get(name, ""))


def scontrol(folder: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """A stand-in for Slurm's tool that says this of any node."""
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "{said}"\n')
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.usefixtures("names")
def test_a_name_that_resolves_is_taken() -> None:
    assert master_address("gpu[3-9]", {}) == "10.0.0.3"


@pytest.mark.usefixtures("names")
def test_a_node_whose_name_is_no_hosts_is_asked_of_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol(tmp_path, monkeypatch, "NodeName=n0 Arch=x86_64 NodeAddr=10.0.0.7 NodeHostName=gpu3 Version=22.05")
    assert master_address("n[0-1]", {}) == "10.0.0.7"


@pytest.mark.usefixtures("names")
def test_loopback_is_the_last_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the node itself its name may stand for loopback, where no other node comes."""
    scontrol(tmp_path, monkeypatch, "NodeName=self NodeAddr=self NodeHostName=self")
    assert master_address("self,other", {"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"}) == "10.0.0.7"
    assert master_address("self,other", {}) == "127.0.1.1"


@pytest.mark.usefixtures("names")
def test_what_resolves_nowhere_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol(tmp_path, monkeypatch, "NodeName=n0 NodeAddr=elsewhere NodeHostName=n0")
    with pytest.raises(EnvironmentFailure, match=r"n0, elsewhere does not resolve; set MASTER_ADDR to one"):
        master_address("n[0-1]", {})


def test_an_address_that_was_given_is_checked_before_anything_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "2"}
    for name, value in {**slurm, "MASTER_ADDR": "no-such-host.invalid"}.items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EnvironmentFailure, match=r"MASTER_ADDR is 'no-such-host\.invalid', which does not resolve on"):
        join_slurm()


def test_names_become_numbers() -> None:
    assert resolved("localhost") in ("127.0.0.1", "::1")
    assert resolved("no-such-host.invalid") == ""


def test_nodes_that_differ_are_named(tmp_path: Path) -> None:
    same = {"python": "3.11.7", "torch": "2.13.0"}
    assert differences({"n0": same, "n1": dict(same)}) == ""
    said = differences({"n0": same, "n1": same | {"torch": "2.11.0"}, "n2": same})
    assert said == "torch is 2.13.0 on n0, n2 and 2.11.0 on n1: make them the same"
    (tmp_path / "plan.json").write_text("{}")
    found = facts([str(tmp_path / "plan.json")])
    assert len(found[str(tmp_path / "plan.json")]) == 12
    with pytest.raises(EnvironmentFailure, match=r"cannot read .*none.json: No such file"):
        facts([str(tmp_path / "none.json")])
