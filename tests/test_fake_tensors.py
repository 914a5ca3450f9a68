"""Names of torch that are private, one test each: what fails here has moved or changed its meaning."""

import logging

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from profiles.workloads import fake_tensors
from profiles.workloads.fake_tensors import (
    FakeTensor,
    FakeTensorMode,
    fake_of,
    in_kernel_invocation_manager,
    schema_of,
    storage_of,
    told_by_the_error,
    unset_fake_temporarily,
    without_modes,
)

KERNELS = torch.ops.aten
CPU = torch.device("cpu")


class Counting(TorchDispatchMode):
    """Counts the kernels that a mode of dispatch sees."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_past_every_mode_a_kernel_is_seen_by_none() -> None:
    with Counting() as seen:
        torch.ones(2)
        before = seen.count
        with without_modes():
            torch.ones(2)
        assert seen.count == before > 0
        torch.ones(2)
        assert seen.count == 2 * before


def test_a_fake_tensor_is_made_of_one_on_meta_and_computes_as_its_mode_does() -> None:
    mode = FakeTensorMode()
    with without_modes():
        plain = torch.empty_strided((2, 3), (1, 2), dtype=torch.bfloat16, device="meta")
        made = fake_of(mode, plain, CPU)
    assert type(made) is FakeTensor
    assert (made.shape, made.stride(), made.dtype, made.device) == ((2, 3), (1, 2), torch.bfloat16, CPU)
    with mode:
        twice = made @ made.T
    assert (type(twice), twice.shape, twice.device) == (FakeTensor, (2, 2), CPU)


def test_a_kernel_that_is_asked_itself_gives_what_is_on_meta_and_no_mode_sees_it() -> None:
    mode = FakeTensorMode()
    value, other = mode.from_tensor(torch.ones(2, 3)), mode.from_tensor(torch.ones(3, 4))
    with mode, Counting() as seen, in_kernel_invocation_manager(mode):
        made = KERNELS.mm.default(value, other)
    assert (type(made), made.device.type, made.shape, seen.count) == (torch.Tensor, "meta", (2, 4), 0)
    assert value.device == CPU


@pytest.mark.parametrize("is_fake", [False, True])
def test_tensors_of_one_storage_have_its_number(is_fake: bool) -> None:
    with FakeTensorMode() if is_fake else torch.no_grad():
        first, other = torch.empty(4), torch.empty(4)
    assert storage_of(first) == storage_of(first[1:].view(3, 1)) == storage_of(first.detach())
    assert storage_of(first) != storage_of(other)


def test_numbers_of_real_values_are_computed_in_the_midst_of_fake_ones() -> None:
    with FakeTensorMode():
        assert isinstance(torch.ones(2), FakeTensor)
        with unset_fake_temporarily():
            assert torch.ones(2).sum().item() == 2


def test_a_schema_says_what_a_kernel_changes_and_what_it_gives_views_of() -> None:
    assert schema_of(KERNELS.add_.Tensor).is_mutable
    assert not schema_of(KERNELS.add.Tensor).is_mutable
    assert schema_of(KERNELS.view.default).returns[0].alias_info is not None
    assert schema_of(KERNELS.mul.Tensor).returns[0].alias_info is None
    assert schema_of(KERNELS.add_.Tensor).arguments[0].alias_info.is_write


def test_what_fails_under_fake_tensors_is_not_logged_beside_it() -> None:
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.level
    with told_by_the_error():
        assert not log.isEnabledFor(logging.ERROR)
    assert log.level == before


def test_all_that_is_private_there_is_named_to_others() -> None:
    assert all(hasattr(fake_tensors, name) for name in fake_tensors.__all__)
