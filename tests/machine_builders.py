"""Machines with round numbers, for predictions that can be checked by hand."""

from profiles.machines.profile import COLLECTIVES, KernelCurve, LinkCurve, MachineProfile, Overlap


def curve(kind: str, name: str = "", precision: str = "fp32", **numbers: float) -> KernelCurve:
    values = {"latency_seconds": 0.0, "error_fraction": 0.05, **numbers}
    return KernelCurve(kind=kind, name=name, precision=precision, origin="measured", **values)


def machine(
    *,
    bandwidth: float = 1e9,
    latency: float = 1e-4,
    flops: float = 1e11,
    memory_bytes: float = 16 * 2**30,
    slowdown: float = 0.0,
    devices_per_node: int = 8,
    **changes: object,
) -> MachineProfile:
    """A CPU-like machine; `bandwidth` (bytes/s) and `latency` (s) of every link, `flops` (1/s) of every product."""
    kernels = [curve(kind, flops_per_second=flops) for kind in ("matmul", "attention_forward", "attention_backward")]
    kernels += [curve("memory", bytes_per_second=1e10), curve("optimizer", bytes_per_second=1e10)]
    kernels += [curve("codec", bytes_per_second=1e10)]
    links = [
        LinkCurve(
            collective=collective,
            group_size=2,
            span=span,
            latency_seconds=latency,
            bytes_per_second=bandwidth,
            error_fraction=0.05,
            origin="measured",
        )
        for collective in COLLECTIVES
        for span in ("node", "network")
    ]
    fields = {
        "name": "round",
        "origin": "measured",
        "device_kind": "cpu",
        "device_name": "round numbers",
        "num_devices": 2,
        "devices_per_node": devices_per_node,
        "memory_bytes": float(memory_bytes),
        "peak_flops_per_second": {"fp32": flops, "bf16": flops},
        "peak_source": "made up",
        "memory_bytes_per_second": 1e10,
        "launch_seconds": 0.0,
        "parallel_linear_seconds": 0.0,
        "pipeline_action_seconds": 0.0,
        "oversubscription_factor": 2.0,
        "kernels": tuple(kernels),
        "links": tuple(links),
        "overlap": Overlap(compute_slowdown_fraction=slowdown, communication_slowdown_fraction=slowdown),
        **changes,
    }
    return MachineProfile(**fields)
