"""Hardware named on the command line as columns of a table of runs."""

from __future__ import annotations

from pathlib import Path

BITS = 8


def hardware_columns(device: str | None, cluster: str | None) -> tuple[dict[str, str], list[str]]:
    """What fills empty columns, and notes that say so.

    Raises: InputError where the two are of different devices, or one cannot be read.
    """
    from profiles.errors import InputError

    fill: dict[str, str] = {}
    notes: list[str] = []
    if cluster is not None:
        fill |= columns_of_cluster(cluster)
        notes.append(f"Empty hardware columns are those of {cluster}.")
    if device is not None:
        named = columns_of_device(device)["gpu_type"]
        if fill.get("gpu_type", named) != named:
            raise InputError(f"--cluster {cluster} has {fill['gpu_type']}, not {named}: give one of the two")
        fill["gpu_type"] = named
        notes.append(f"Where gpu_type is empty, it is {named}.")
    return fill, notes


def columns_of_device(name: str) -> dict[str, str]:
    """The column that a device fills.

    Raises: UnknownNameError with the nearest name.
    """
    from profiles.machines.devices import find_device

    return {"gpu_type": find_device(name).name}


def columns_of_cluster(name_or_file: str) -> dict[str, str]:
    """The columns that a shipped cluster, or one described in a file, fills.

    Raises: UnknownNameError with the nearest name; ArtifactError where a file is no cluster.
    """
    from profiles.artifacts import read_toml
    from profiles.machines.clusters import Cluster, load_cluster

    path = Path(name_or_file)
    is_file = path.suffix.lower() == ".toml" or len(path.parts) > 1
    cluster = read_toml(path, Cluster) if is_file else load_cluster(name_or_file)
    return {
        **columns_of_device(cluster.device),
        "gpus_per_node": str(cluster.devices_per_node),
        "nvlink_domain_gpus": str(cluster.fast_domain),
        "nic_gbit_per_s_per_gpu": f"{cluster.network_gb_per_second * BITS:.12g}",
    }
