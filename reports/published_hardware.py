"""Hardware named on the command line as columns of a table of runs."""

from __future__ import annotations

from pathlib import Path

BITS = 8


def columns_of_device(name: str) -> dict[str, str]:
    """The column that a device fills.

    Raises: UnknownNameError with the nearest name.
    """
    from profiles.devices import find_device

    return {"gpu_type": find_device(name).name}


def columns_of_cluster(name_or_file: str) -> dict[str, str]:
    """The columns that a shipped cluster, or one described in a file, fills.

    Raises: UnknownNameError with the nearest name; ArtifactError where a file is no cluster.
    """
    from profiles.artifacts import read_toml
    from profiles.clusters import Cluster, load_cluster
    from profiles.errors import InputError

    path = Path(name_or_file)
    is_file = path.suffix.lower() == ".toml" or len(path.parts) > 1
    try:
        cluster = read_toml(path, Cluster) if is_file else load_cluster(name_or_file)
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text, so it describes no cluster") from None
    return {
        **columns_of_device(cluster.device),
        "gpus_per_node": str(cluster.devices_per_node),
        "nvlink_domain_gpus": str(cluster.fast_domain),
        "nic_gbit_per_s_per_gpu": f"{cluster.network_gb_per_second * BITS:.12g}",
    }
