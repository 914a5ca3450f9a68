"""A task's module over the tensor axis, by the split that is found for it.

Column-wise linears feed row-wise ones within a block, and everything around them stays whole on every rank: embeddings,
heads, experts, norms. Heads that are normed with one weight on every rank have gradients that add up over the ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from profiles.workloads.tensor_splits import COLUMNS, COLUMNS_GATHERED, ROWS, ROWS_OF_WHOLE, Split, library_split

STYLES: Mapping[str, Callable[[], ParallelStyle]] = {
    COLUMNS: ColwiseParallel,
    ROWS: RowwiseParallel,
    COLUMNS_GATHERED: lambda: ColwiseParallel(output_layouts=Replicate()),
    ROWS_OF_WHOLE: lambda: RowwiseParallel(input_layouts=Replicate()),
}


def split_module(module: nn.Module, mesh: DeviceMesh) -> Split:
    """Split a module over the one axis of `mesh`, and say how.

    Raises: PlanError where that is not known.
    """
    split = library_split(module, mesh.size())
    # Every rank has the same full weights already: nothing to broadcast.
    styles = {path: STYLES[style]() for path, style in split.styles.items()}
    parallelize_module(module, mesh, styles, src_data_rank=None)
    return split
