"""What a launcher tells a rank: taken where it is whole, refused in a sentence where it is half or makes no sense."""

import pytest

from profiles.errors import EnvironmentFailure
from profiles.ranks.environment import check_job, in_job

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SLURM = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7"}


def set_to(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in (*WHOLE, *SLURM, "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "is_rank"),
    [
        ({}, False),
        ({"MASTER_ADDR": "10.0.0.1"}, False),
        (WHOLE | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, True),
        (SLURM, True),
        (SLURM | {"MASTER_ADDR": "node1", "WORLD_SIZE": "2"}, True),
        # A batch script is no rank, though it has the number of one.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}, False),
    ],
)
def test_what_is_whole_is_taken(monkeypatch, variables, is_rank):
    set_to(monkeypatch, variables)
    check_job()
    assert in_job() == is_rank


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"RANK": "0"}, "RANK set without WORLD_SIZE, MASTER_ADDR"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE set without RANK"),
        ({"RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "set without WORLD_SIZE"),
        (WHOLE | {"RANK": ""}, "set without RANK"),
        (WHOLE | {"RANK": "x"}, "RANK is 'x'"),
        (WHOLE | {"RANK": "2"}, "RANK is 2: it is not one of WORLD_SIZE 2 ranks"),
        (WHOLE | {"RANK": "-1"}, "RANK is -1"),
        (WHOLE | {"WORLD_SIZE": "0"}, "WORLD_SIZE is 0"),
        (WHOLE | {"WORLD_SIZE": "1" * 5000}, "WORLD_SIZE is '11111111111111111111'"),
        (WHOLE | {"LOCAL_WORLD_SIZE": "2.0"}, "LOCAL_WORLD_SIZE is '2.0'"),
        (WHOLE | {"MASTER_PORT": "65536"}, "MASTER_PORT is 65536"),
        (WHOLE | {"MASTER_PORT": "\u00b2"}, "MASTER_PORT is"),
        (SLURM | {"SLURM_NTASKS": "x"}, "SLURM_NTASKS is 'x'"),
        (SLURM | {"SLURM_JOB_ID": "-7"}, "SLURM_JOB_ID is -7"),
    ],
)
def test_what_is_half_or_nonsense_is_named(monkeypatch, variables, named):
    set_to(monkeypatch, variables)
    with pytest.raises(EnvironmentFailure, match=named):
        check_job()
