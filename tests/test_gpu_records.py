"""What a run file tells of GPUs: memory beyond tensors, the attention kernel, settings. CUDA is made up."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from executor.observe.attention import AttentionWatch, kernels_of
from executor.observe.device_memory import DeviceMemory, device_memory
from executor.run import session
from executor.run.measurement import LossCheck, Measurement
from profiles import artifacts

GPU = torch.device("cuda", 0)


@pytest.fixture
def _made_up_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 100))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 40)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 50)


@pytest.mark.usefixtures("_made_up_memory")
def test_memory_is_told_as_allocated_reserved_and_in_use():
    told = device_memory(GPU)
    assert (told.allocated_bytes, told.reserved_bytes, told.in_use_bytes) == (40, 50, 70)
    assert device_memory(torch.device("cpu")) == DeviceMemory()


@pytest.mark.parametrize(("backend", "name"), [(SDPBackend.FLASH_ATTENTION, "flash"), (SDPBackend.MATH, "math")])
def test_the_attention_kernel_is_the_one_that_computed(backend, name):
    query = torch.randn(1, 2, 16, 8, requires_grad=True)
    with AttentionWatch() as watch, sdpa_kernel(backend):
        torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True).sum().backward()
    assert watch.kernels == (name,)


def test_a_step_without_attention_names_none_and_unknown_kernels_keep_their_names():
    with AttentionWatch() as watch:
        torch.ones(2, 2) @ torch.ones(2, 2)
    assert watch.kernels == ()
    own = ("aten::mm", "aten::_scaled_dot_product_cudnn_attention_backward", "aten::_scaled_dot_product_new")
    assert kernels_of(own) == ("cudnn", "new")


def test_ranks_on_gpus_are_told_together(monkeypatch):
    monkeypatch.setattr(session, "gpu_settings", lambda device: {"nccl": "2.28.9"})
    memory = tuple(DeviceMemory(reserved_bytes=size, in_use_bytes=size + 1) for size in (5.0, 6.0))
    found = SimpleNamespace(device_memory=memory, attention=("flash", "math"))
    told = session._of_gpus(SimpleNamespace(device=GPU), found)
    assert told == {
        "reserved_bytes": (5.0, 6.0), "in_use_bytes": (6.0, 7.0), "attention": ("flash", "math"),
        "settings": {"nccl": "2.28.9"},
    }  # fmt: skip
    assert session._of_gpus(SimpleNamespace(device=torch.device("cpu")), found) == {}
    check = LossCheck(status="passed", reason="", tolerance_fraction=0.0)
    fields = {
        "num_warmup_steps": 3, "step_seconds": (0.1,), "seconds": {}, "peak_bytes": (4.0, 5.0), "losses": (1.0,),
        "peak_kind": "", "loss_check": check, "tokens_per_second": 1.0,
    }  # fmt: skip
    # A file of before has none of these, and is read.
    for more in ({}, told):
        own = Measurement(**fields, **more)
        assert artifacts.validate(asdict(own), Measurement, "the test") == own
