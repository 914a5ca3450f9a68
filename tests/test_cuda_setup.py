"""Which device a rank takes and what it is told, on machines that are made up: no GPU is needed, and none is tried."""

import os
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from executor import apply_plan
from profiles.errors import EnvironmentFailure
from profiles.machines import fingerprint
from profiles.machines.fingerprint import current_device_kind, current_fingerprint
from profiles.ranks import cuda_setup, devices, environment, launcher
from profiles.ranks.environment import check_room
from profiles.ranks.rank import enter_group

ADDRESS = "0001:0a:00.0"
CUDA = "cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n"
ROCM = "cuda: Optional[str] = None\nhip: Optional[str] = '7.0.1'\n"
CPU = "cuda: Optional[str] = None\nhip: Optional[str] = None\n"


@pytest.fixture
def root(tmp_path):
    """A machine of two NUMA nodes, with a GPU and a network adapter at the second and an adapter at the first."""
    own = tmp_path / "machine"
    files = {
        f"sys/bus/pci/devices/{ADDRESS}/numa_node": "1\n",
        "sys/bus/pci/devices/0000:01:00.0/numa_node": "-1\n",
        "sys/devices/system/node/node1/cpulist": "4-6,9\n",
        "sys/class/infiniband/mlx5_0/device/numa_node": "0\n",
        "sys/class/infiniband/mlx5_1/device/numa_node": "1\n",
    }
    for name, text in files.items():
        (own / name).parent.mkdir(parents=True)
        (own / name).write_text(text)
    return own


def drive(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


@pytest.mark.parametrize(
    ("paths", "environ", "maker"),
    [
        ((), {}, ""),
        (("proc/driver/nvidia/version",), {}, "nvidia"),
        (("dev/nvidiactl",), {"CUDA_VISIBLE_DEVICES": "0,1"}, "nvidia"),
        (("dev/nvidiactl",), {"CUDA_VISIBLE_DEVICES": ""}, ""),
        (("dev/nvidiactl",), {"CUDA_VISIBLE_DEVICES": "-1"}, ""),
        (("dev/nvidiactl",), {"HIP_VISIBLE_DEVICES": ""}, "nvidia"),
        (("dev/kfd",), {}, "amd"),
        (("dev/kfd",), {"ROCR_VISIBLE_DEVICES": "-1"}, ""),
        (("dev/kfd", "dev/nvidiactl"), {"CUDA_VISIBLE_DEVICES": ""}, ""),
    ],
)
def test_the_driver_is_found_and_hidden_devices_are_left_alone(root, paths, environ, maker):
    drive(root, *paths)
    assert cuda_setup.loaded_driver(environ, root) == maker


def test_the_build_of_torch_is_read_without_loading_it():
    assert [cuda_setup.torch_build(text) for text in (CUDA, ROCM, CPU, "")] == ["cuda", "rocm", "cpu", ""]
    said = "rocm" if torch.version.hip else "cuda" if torch.version.cuda else "cpu"
    assert cuda_setup.torch_build() == said


@pytest.mark.parametrize(
    ("driver", "build", "kind"),
    [
        ("", "cuda", "cpu"), ("nvidia", "cuda", "cuda"), ("nvidia", "", "cuda"), ("amd", "rocm", "cuda"),
        ("amd", "cpu", "cpu"), ("amd", "cuda", "cpu"),
    ],
)  # fmt: skip
def test_the_kind_of_device_is_that_of_driver_and_torch(driver, build, kind):
    assert cuda_setup.device_kind(driver, build) == kind


@pytest.mark.parametrize(("build", "words"), [("cpu", "a build for CPUs"), ("rocm", "a build for ROCm")])
def test_a_driver_that_torch_is_not_built_for_is_told_at_once(monkeypatch, build, words):
    monkeypatch.setattr(fingerprint, "loaded_driver", lambda environ: "nvidia")
    monkeypatch.setattr(fingerprint, "torch_build", lambda: build)
    with pytest.raises(EnvironmentFailure, match=f"{words}: install its build for CUDA, or set CUDA_VISIBLE_DEVICES="):
        current_device_kind()


def test_a_board_of_amd_has_the_name_of_its_firmware(monkeypatch, tmp_path):
    monkeypatch.setattr(fingerprint, "loaded_driver", lambda environ: "amd")
    assert current_fingerprint("cuda").device == "AMD GPU"
    for card, name in (("card0", "\n"), ("card1", "AMD Instinct MI300X\n")):
        path = tmp_path / card / "device" / "product_name"
        path.parent.mkdir(parents=True)
        path.write_text(name)
    assert fingerprint._amd_name(tmp_path) == "AMD Instinct MI300X"


STEP = {"SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("environ", "is_per_task"),
    [
        ({}, False), (STEP, False), ({"SLURM_GPUS_PER_TASK": "1"}, False),
        (STEP | {"SLURM_GPUS_PER_TASK": "a100:1"}, True),
        (STEP | {"SLURM_TRES_PER_TASK": "cpu=4,gres/gpu=1"}, True), (STEP | {"SLURM_TRES_PER_TASK": "cpu=4"}, False),
        (STEP | {"SLURM_GPU_BIND": "single:1"}, True), (STEP | {"SLURM_GPU_BIND": "closest"}, False),
    ],
)  # fmt: skip
def test_tasks_that_see_their_own_gpu_alone(monkeypatch, environ, is_per_task):
    assert cuda_setup.gpus_are_per_task(environ) == is_per_task
    # Eight ranks of a host, of which each sees one GPU.
    reason = cuda_setup.too_few_gpus(8, 1, environ)
    assert bool(reason) != is_per_task
    for name in (*STEP, *cuda_setup.SLURM_PER_TASK):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    if is_per_task:
        check_room(8, "cuda")
    else:
        with pytest.raises(EnvironmentFailure, match="8 ranks need 8 GPUs, this machine has 1: ask for 1"):
            check_room(8, "cuda")


def test_a_rank_takes_the_gpu_of_its_number_among_those_it_sees(monkeypatch):
    assert [cuda_setup.gpu_index(rank, 8) for rank in range(8)] == list(range(8))
    assert [cuda_setup.gpu_index(rank, 1) for rank in range(8)] == [0] * 8
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert devices.own_device("cuda", 5) == torch.device("cuda", 0)
    assert devices.own_device("cpu", 5) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(EnvironmentFailure, match="this process sees no GPU"):
        devices.own_device("cuda", 0)


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_ranks_that_share_a_gpu_under_apply_are_said(monkeypatch, backend):
    store, device = dist.HashStore(), torch.device("cuda", 0)
    monkeypatch.setattr(apply_plan, "job_store", lambda: store)
    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    for key, first in (("host/GPU-1", 0), ("host/GPU-2", 2), ("", 3), ("", 4)):
        monkeypatch.setattr(apply_plan, "gpu_key", lambda device, own=key: own)
        apply_plan.check_own_gpu(device, first)
        apply_plan.check_own_gpu(device, first)
    monkeypatch.setattr(apply_plan, "gpu_key", lambda device: "host/GPU-2")
    words = "rank 5 computes on the GPU of rank 2, cuda:0 of this host: start one rank for each GPU"
    if backend == "nccl":
        with pytest.raises(EnvironmentFailure, match=words):
            apply_plan.check_own_gpu(device, 5)
    else:
        with pytest.warns(UserWarning, match=words):
            apply_plan.check_own_gpu(device, 5)
    apply_plan._ranks_on.cache_clear()


@pytest.mark.parametrize("own", [*cuda_setup.ALLOCATOR_VARIABLES, ""])
def test_memory_grows_in_place_unless_the_user_says_something(monkeypatch, tmp_path, own):
    for name in cuda_setup.ALLOCATOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(environment, "loaded_driver", lambda environ: "nvidia")
    if own:
        monkeypatch.setenv(own, "max_split_size_mb:64")
    given = launcher._rank_environment("cuda", tmp_path)
    assert given.get("PYTORCH_ALLOC_CONF") == (None if own else "expandable_segments:True")
    assert "PYTORCH_ALLOC_CONF" not in launcher._rank_environment("cpu", tmp_path)
    assert cuda_setup.segments_environment("amd", {}) == {}


def test_a_gpus_cores_are_those_of_its_numa_node(root):
    address = cuda_setup.pci_address(1, 10, 0)
    assert address == ADDRESS
    assert cuda_setup.cores_near(address, range(8), root) == (4, 5, 6)
    # Of a cgroup without any of these, of firmware that tells nothing, of a device that is not there: as it was.
    assert cuda_setup.cores_near(address, range(4), root) == (0, 1, 2, 3)
    assert cuda_setup.cores_near("0000:01:00.0", range(4), root) == (0, 1, 2, 3)
    assert cuda_setup.cores_near("0000:ff:00.0", range(4), root) == (0, 1, 2, 3)
    assert cuda_setup.adapters_near(address, root) == ("mlx5_1",)
    assert cuda_setup.adapters_near("0000:01:00.0", root) == ()


@pytest.mark.parametrize(("text", "cores"), [("0-2,7", {0, 1, 2, 7}), ("3", {3}), ("", set()), ("a-b", set())])
def test_lists_of_cores_are_read(text, cores):
    assert cuda_setup.cores_of(text) == cores


@pytest.fixture
def fake_cuda(monkeypatch):
    """A torch that has two GPUs, and notes what it is told."""
    noted = SimpleNamespace(device=None, switches={}, group={}, cores=set(range(8)))
    properties = SimpleNamespace(pci_domain_id=1, pci_bus_id=10, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(noted, "device", device))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(devices, "loaded_driver", lambda environ: "nvidia")
    for name in devices.ATTENTION_SWITCHES:
        monkeypatch.setitem(devices.ATTENTION_SWITCHES, name, lambda on, name=name: noted.switches.update({name: on}))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: noted.cores)
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: setattr(noted, "cores", set(cores)))
    for name in (*cuda_setup.ALLOCATOR_VARIABLES, cuda_setup.ATTENTION_VARIABLE):
        # Set first, so that what the code under test sets is taken away again.
        monkeypatch.setenv(name, "")
    return noted


def test_a_gpu_is_made_ready_before_cuda_starts(monkeypatch, root, fake_cuda):
    monkeypatch.setattr(devices, "cores_near", lambda address, own: cuda_setup.cores_near(address, own, root))
    devices.make_ready(torch.device("cuda", 1))
    assert fake_cuda.device == torch.device("cuda", 1)
    assert fake_cuda.cores == {4, 5, 6}
    assert fake_cuda.switches == {}
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


def test_the_attention_kernel_asked_for_is_the_only_fast_one(monkeypatch, fake_cuda):
    monkeypatch.setenv("TRAINWRIGHT_ATTENTION", "efficient")
    devices.make_ready(torch.device("cuda", 0))
    assert fake_cuda.switches == {"flash": False, "efficient": True, "cudnn": False}
    monkeypatch.setenv("TRAINWRIGHT_ATTENTION", "flahs")
    with pytest.raises(EnvironmentFailure, match="'flahs': it should be flash, efficient, cudnn, math"):
        devices.make_ready(torch.device("cuda", 0))


def test_the_group_is_made_on_the_ranks_own_gpu(monkeypatch, fake_cuda):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("profiles.ranks.rank.join_store", lambda seconds: {})
    monkeypatch.setattr("profiles.ranks.rank.life_signs", lambda seconds: None)
    monkeypatch.setattr("profiles.ranks.rank.Heart", lambda *told: SimpleNamespace(start=lambda: None))
    monkeypatch.setattr("profiles.ranks.rank._hearts", [])
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, **told: fake_cuda.group.update(told, backend=backend)
    )
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    assert enter_group("cuda", 7.0).device == torch.device("cuda", 1)
    assert fake_cuda.group["backend"] == "nccl"
    assert fake_cuda.group["device_id"] == torch.device("cuda", 1)
    assert fake_cuda.group["timeout"].total_seconds() == 7
    assert enter_group("cuda", 7.0, torch.device("cuda", 0)).device == torch.device("cuda", 0)


def test_what_decides_times_is_told(monkeypatch, fake_cuda):
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    monkeypatch.setenv("TORCH_NCCL_HIGH_PRIORITY", "1")
    monkeypatch.setenv("NCCLX", "no variable of NCCL")
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 28, 9))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    said = devices.gpu_settings(torch.device("cuda", 0))
    assert said["nccl"] == "2.28.9"
    assert said["NCCL_ALGO"] == "Ring"
    assert said["TORCH_NCCL_HIGH_PRIORITY"] == "1"
    assert said["cudnn.benchmark"] == "False"
    assert said["tf32 in products"] == "False"
    assert "tf32 in convolutions" in said
    assert "math" in said["attention allowed"]
    assert "NCCLX" not in said
    assert devices.gpu_settings(torch.device("cpu")) == {}
