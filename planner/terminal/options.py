"""Which options of `plan` go together, beside what profiles/terminal/options checks for every command. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping

from profiles.errors import InputError

# The option that each of these says something about.
NEEDS = {
    "target": ("compress", ""),
    "export": ("output", ""),
    "rank": ("output", ""),
}
# What is read where the command explains itself instead of planning.
TAKES = {
    "list_kind": ("json_output",),
    "legend": ("json_output",),
    # A file says itself what trains, with what and how.
    "source": (
        "model", "gpus", "global_batch", "sequence_length", "device", "cluster", "attention_kernel", "tp_overlap",
        "top", "json_output", "output", "page", "export", "rank", "trust_module", "traceback",
    ),
}  # fmt: skip
# What is not answered across two kinds of devices, beside what planner/ask refuses there.
OF_ONE_KIND = ("samples", "headroom", "codecs", "compress", "attention_kernel", "tp_overlap", "peft", "quantised_base")


def check_pools(given: Mapping[str, str], cluster: str | None) -> None:
    """Check what is asked where a cluster may have two kinds of devices; `given` are options by parameter.

    Raises: InputError where it has, and something would be ignored.
    """
    from profiles.machines.clusters import MixedCluster, find_cluster

    if cluster is not None and isinstance(find_cluster(cluster), MixedCluster):
        for name in OF_ONE_KIND:
            if name in given:
                raise InputError(f"{given[name]} needs a cluster of one kind of device: ask about each pool by itself")
