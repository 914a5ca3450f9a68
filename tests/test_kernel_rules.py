"""Kernels that are asked themselves what they give for fake tensors: all of them say what torch's rules say."""

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from profiles.tracing.kernel_rules import ASKED, asked
from profiles.workloads.fake_tensors import FakeTensor, FakeTensorMode

MEAN, NORMAL = 1, [2, 6, 8]
# By name what a kernel is given: lists are shapes of tensors, pairs a shape and a type, others are what they are.
UNARY = (
    "alias", "bitwise_not", "clone", "cos", "detach", "exp", "floor", "gelu", "log", "neg", "relu", "rsqrt", "sigmoid",
    "silu", "sin", "sqrt", "sum", "tanh",
)  # fmt: skip
BINARY = (
    "add.Tensor", "bitwise_and.Tensor", "div.Tensor", "eq.Tensor", "gelu_backward", "gt.Tensor", "le.Tensor",
    "lt.Tensor", "maximum", "minimum", "mul.Tensor", "sigmoid_backward", "silu_backward", "sub.Tensor", "tanh_backward",
)  # fmt: skip
SCALAR = (
    "add.Scalar", "clamp", "div.Scalar", "eq.Scalar", "ge.Scalar", "gt.Scalar", "le.Scalar", "lt.Scalar", "mul.Scalar",
    "ne.Scalar", "pow.Tensor_Scalar", "rsub.Scalar",
)  # fmt: skip
WHOLE, FLAGS = torch.int64, torch.bool
GIVEN = {
    **dict.fromkeys(UNARY, (NORMAL,)),
    **{name: (NORMAL, [2, 6, 8]) for name in BINARY},
    **dict.fromkeys(SCALAR, (NORMAL, 2)),
    "bitwise_not": (([2, 6], FLAGS),),
    "bitwise_and.Tensor": (([2, 6], FLAGS), ([6], FLAGS)),
    "mm": ([4, 6], [6, 8]),
    "bmm": ([2, 4, 6], [2, 6, 8]),
    "addmm": ([8], [4, 6], [6, 8]),
    "baddbmm": ([2, 4, 8], [2, 4, 6], [2, 6, 8]),
    "_scaled_dot_product_flash_attention_for_cpu": ([2, 4, 6, 8], [2, 4, 6, 8], [2, 4, 6, 8]),
    "_scaled_dot_product_flash_attention_for_cpu_backward": (
        *([[2, 4, 6, 8]] * 5), ([2, 6, 4], torch.float32), 0.0, False,
    ),
    "expand": ([2, 1, 8], (2, 5, 8)),
    "permute": (NORMAL, (2, 0, 1)),
    "select.int": (NORMAL, 1, 2),
    "slice.Tensor": (NORMAL, 1, 1, 5),
    "split.Tensor": (NORMAL, 3, 1),
    "split_with_sizes": (NORMAL, (2, 4), 1),
    "squeeze.dim": ([2, 1, 8], 1),
    "t": ([4, 6],),
    "transpose.int": (NORMAL, 0, 2),
    "unbind.int": (NORMAL, 1),
    "unsqueeze": (NORMAL, 1),
    "view": (NORMAL, (2, 48)),
    "_unsafe_view": (NORMAL, (12, 8)),
    "cat": ([NORMAL, NORMAL], 1),
    "stack": ([NORMAL, NORMAL], 1),
    "constant_pad_nd": (NORMAL, (1, 2), 0.0),
    "roll": (NORMAL, (1,), (1,)),
    "select_backward": ([2, 8], (2, 6, 8), 1, 2),
    "slice_backward": ([2, 4, 8], (2, 6, 8), 1, 1, 5, 1),
    "_to_copy": (NORMAL,),
    "masked_fill.Scalar": (NORMAL, ([2, 6, 1], FLAGS), 0.0),
    "threshold_backward": (NORMAL, NORMAL, 0.0),
    "where.self": (([6, 8], FLAGS), NORMAL, NORMAL),
    "_log_softmax": (NORMAL, 2, False),
    "_log_softmax_backward_data": (NORMAL, NORMAL, 2, torch.float32),
    "_safe_softmax": (NORMAL, 2),
    "_softmax": (NORMAL, 2, False),
    "_softmax_backward_data": (NORMAL, NORMAL, 2, torch.float32),
    "cumsum": (([2, 6], WHOLE), 1),
    "embedding": ([9, 8], ([2, 6], WHOLE)),
    "embedding_dense_backward": (NORMAL, ([2, 6], WHOLE), 9, -1, False),
    "gather": (NORMAL, 2, ([2, 6, 3], WHOLE)),
    "mean.dim": (NORMAL, (1,), True),
    "native_batch_norm_backward": (
        [2, 6, 4, 4], [2, 6, 4, 4], [6], [6], [6], [6], [6], True, 1e-5, (True, True, True),
    ),
    "native_layer_norm_backward": (NORMAL, NORMAL, (8,), [2, 6, 1], [2, 6, 1], [8], [8], (True, True, True)),
    "nll_loss_forward": ([6, 8], ([6], WHOLE), None, MEAN, -100),
    "nll_loss_backward": ([], [6, 8], ([6], WHOLE), None, MEAN, -100, []),
    "sum.dim_IntList": (NORMAL, (0, 1)),
    "upsample_bilinear2d": ([2, 3, 4, 4], (8, 8), False),
    "upsample_bilinear2d_backward": ([2, 3, 8, 8], (8, 8), (2, 3, 4, 4), False),
}  # fmt: skip


def tensors(given):
    """Tensors of the shapes among some arguments."""
    if isinstance(given, list) and all(isinstance(side, int) for side in given):
        return torch.randn(given)
    if isinstance(given, list):
        return [tensors(own) for own in given]
    if isinstance(given, tuple) and given and isinstance(given[0], list):
        return torch.zeros(given[0], dtype=given[1])
    return given


def kernel(name):
    packet, _, overload = name.removeprefix("aten.").partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


def looks(values):
    return [
        (own.shape, own.stride(), own.storage_offset(), own.dtype, own.device, own.untyped_storage().nbytes())
        for own in tree_leaves(values)
        if own is not None
    ]


@pytest.mark.parametrize("name", sorted(ASKED))
def test_a_kernel_says_what_torchs_rules_say(name):
    fake = FakeTensorMode()
    given = GIVEN[name.removeprefix("aten.").removesuffix(".default")]
    args = tree_map_only(torch.Tensor, fake.from_tensor, tuple(map(tensors, given)))
    func = kernel(name)
    kwargs = {"dtype": torch.bfloat16} if "_to_copy" in name else {}
    with torch.no_grad(), fake:
        wanted = func(*args, **kwargs)
    found = asked(fake, func, args, kwargs)
    assert found is not None
    assert type(found) is type(wanted)
    assert looks(found) == looks(wanted)
    assert all(type(own) is FakeTensor for own in tree_leaves(found) if own is not None)


def test_views_with_sides_of_one_and_other_devices_are_left_to_torch():
    fake = FakeTensorMode()
    value = fake.from_tensor(torch.randn(2, 6))
    assert asked(fake, torch.ops.aten.view.default, (value, (2, 1, -1)), {}) is None
    assert asked(fake, torch.ops.aten._to_copy.default, (value,), {"device": torch.device("meta")}) is None


def test_what_a_kernel_refuses_is_left_to_torch_too():
    fake = FakeTensorMode()
    value = fake.from_tensor(torch.randn(2, 6))
    assert asked(fake, torch.ops.aten.mm.default, (value, value), {}) is None
