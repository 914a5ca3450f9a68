"""A plan as a job file for whoever starts the ranks: torchrun on every host, Slurm, Kubeflow, SkyPilot, Ray Train.

Ranks are numbered node by node, as the plan's axes want them: neighbours on inner axes share a node. No file names this
program on an index or in a registry, where anybody may take its name: it comes from where the user says. Torch-free.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import yaml

from executor.jobs.job import USES_INSTALLED, Job, JobOptions, about, on_one_line, source_of, words_of_options
from executor.jobs.ray_train import ray_train
from executor.jobs.slurm import slurm, slurm_all, slurm_profile
from planner.prediction import Candidate, PlanFile
from profiles.artifacts import dump
from profiles.errors import InputError, UnknownNameError
from profiles.machines.devices import catalogue_names, load_device
from profiles.ranks.environment import LOOPBACK, NO_AGENT_STORE

PORT = 29500
# Names under which SkyPilot's catalogue has the cards. Source: docs.skypilot.co, "GPUs and Accelerators".
SKYPILOT_NAMES = {
    "h100-sxm": "H100", "h200-sxm": "H200", "a100-sxm-40gb": "A100", "a100-sxm-80gb": "A100-80GB", "gh200": "GH200",
    "v100-sxm-16gb": "V100", "v100-sxm-32gb": "V100-32GB", "l4": "L4", "l40s": "L40S", "a10g": "A10G", "a10": "A10",
}  # fmt: skip
LONGEST_NAME = 50
MEETS_IN_A_FILE = "The ranks of one host meet through a file: nothing listens beyond loopback."
LISTENS = "torchrun on node 0 listens there without a password: keep the nodes inside a network that you trust."
TO_COMPLETE = """\
# TO BE COMPLETED: install Trainwright here from where you have it (a path, a git URL with its commit), or write this
# file again with --install.
command -v execute > /dev/null || { echo "Trainwright is not installed: complete the setup of this job" >&2; exit 1; }
"""


def emit(kind: str, file: PlanFile, candidate: Candidate, plan_path: str, options: JobOptions) -> str:
    """The text of the job file.

    Raises: UnknownNameError for a kind that is none; InputError where ranks do not fill nodes evenly, or where the
    program or its container would come from a place that the user did not name.
    """
    if kind not in KINDS:
        raise UnknownNameError("job file", kind, list(KINDS))
    if options.install is not None and kind not in ("skypilot", "kubeflow"):
        raise InputError(f"--install: a job of {kind} runs what is installed on its nodes: install it there once")
    if options.image is not None and kind in ("torchrun", "ray"):
        raise InputError(f"--image: {kind} starts no container: start the script in one")
    if options.sbatch and not kind.startswith("slurm"):
        raise InputError(f"--sbatch does not apply to --emit {kind}: give it with --emit slurm")
    ranks_per_node = options.gpus_per_node
    own = ranks_per_node or _usual(file)
    own = min(own, file.num_devices)
    if file.num_devices % own:
        raise InputError(
            f"--gpus-per-node {own}: {file.num_devices} ranks do not fill nodes of {own} evenly: give a divisor"
        )
    name = re.sub(r"[^a-z0-9]+", "-", f"trainwright-{file.model_name}".lower()).strip("-")[:LONGEST_NAME].rstrip("-")
    job = Job(
        name=name,
        file=file,
        candidate=candidate,
        plan_path=plan_path,
        num_nodes=file.num_devices // own,
        ranks_per_node=own,
        arguments=options.arguments,
        image=options.image or "",
        install=source_of(options.install),
        max_restarts=options.max_restarts,
        sbatch=options.sbatch,
    )
    return KINDS[kind](job)


def _usual(file: PlanFile) -> int:
    """Devices of a node as the device is usually sold, else the most that divide the ranks, up to eight."""
    if file.machine_name in catalogue_names():
        return load_device(file.machine_name).devices_per_node
    return math.gcd(file.num_devices, 8)


def _torchrun(job: Job) -> str:
    if job.num_nodes == 1:
        return (
            f"#!/usr/bin/env bash\n# {about(job)}\n# {USES_INSTALLED}\n# {MEETS_IN_A_FILE}\nset -euo pipefail\n"
            f"export {NO_AGENT_STORE}=1\n"
            f"exec {job.torchrun} --rdzv-backend c10d --rdzv-conf store_type=file "
            f'--rdzv-endpoint "$(mktemp -d)/rendezvous" --local-addr {LOOPBACK} '
            f"--nproc-per-node {job.ranks_per_node} {job.command}\n"
        )
    return f"""#!/usr/bin/env bash
# {about(job)}
# {USES_INSTALLED}
# Start it on every node, with NODE_RANK from 0 to {job.num_nodes - 1} in the order of the cabling: neighbours stay
# neighbours. MASTER_ADDR is the address of node 0.
# {LISTENS}
set -euo pipefail
: "${{NODE_RANK:?the number of this node, 0 to {job.num_nodes - 1}}}" "${{MASTER_ADDR:?the address of node 0}}"
exec {job.torchrun} --nnodes {job.num_nodes} --nproc-per-node {job.ranks_per_node} --node-rank "$NODE_RANK" \\
    --master-addr "$MASTER_ADDR" --master-port "${{MASTER_PORT:-{PORT}}}" {job.command}
"""


def _kubeflow(job: Job) -> str:
    """A TrainJob of Kubeflow Trainer v2; the plans travel in the command, so that the image needs the program alone.

    Source: trainer.kubeflow.org/v1alpha1 as in its custom resource definition and the Trainer's documentation.
    """
    if not job.image:
        raise InputError(
            "--emit kubeflow needs --image NAME: a container image that has this program, or torch and --install"
        )
    # Timelines are long, and nothing that runs reads them.
    light = tuple(replace(own, prediction=replace(own.prediction, spans=())) for own in job.file.candidates)
    text = dump("plan", replace(job.file, candidates=light))
    marker = "END_OF_PLAN"
    arguments = shlex.join(job.arguments)
    script = (
        f'PLAN="${{TMPDIR:-/tmp}}/plan.json"\ncat > "$PLAN" <<\'{marker}\'\n{text.rstrip()}\n{marker}\n'
        f'{job.pip}exec {job.torchrun} -m executor "$PLAN" {arguments}\n'
    )
    trainer: dict[str, Any] = {
        "image": job.image,
        "numNodes": job.num_nodes,
        "numProcPerNode": job.ranks_per_node,
        "command": ["bash", "-c", script],
    }
    if job.file.machine_device_kind == "cuda":
        card = "amd.com/gpu" if job.file.machine_name.startswith("mi") else "nvidia.com/gpu"
        trainer["resourcesPerNode"] = {"limits": {card: job.ranks_per_node}}
    body = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": job.name},
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org", "kind": "ClusterTrainingRuntime", "name": "torch-distributed",
            },
            "trainer": trainer,
        },
    }  # fmt: skip
    has = "torch" if job.install else "Trainwright installed"
    return f"# {about(job)}\n# The image must have {has}.\n" + _yaml(body)


def _skypilot(job: Job) -> str:
    body: dict[str, Any] = {"name": job.name, "num_nodes": job.num_nodes, "workdir": "."}
    if job.file.machine_device_kind == "cuda":
        if job.file.machine_name not in SKYPILOT_NAMES:
            known = ", ".join(sorted(SKYPILOT_NAMES))
            raise InputError(f"SkyPilot's name for {job.file.machine_name} is not known: known are {known}")
        body["resources"] = {"accelerators": f"{SKYPILOT_NAMES[job.file.machine_name]}:{job.ranks_per_node}"}
    if job.image:
        body.setdefault("resources", {})["image_id"] = f"docker:{job.image}"
    body["setup"] = job.pip or TO_COMPLETE
    body["run"] = (
        'MASTER_ADDR=$(echo "$SKYPILOT_NODE_IPS" | head -n1)\n'
        f"{job.torchrun} --nnodes $SKYPILOT_NUM_NODES --nproc-per-node {job.ranks_per_node} "
        f'--node-rank $SKYPILOT_NODE_RANK --master-addr "$MASTER_ADDR" --master-port {PORT} {job.command}\n'
    )
    return f"# {about(job)}\n# Start it in a folder that has {on_one_line(job.plan_path)}.\n" + _yaml(body)


class _Readable(yaml.SafeDumper):  # type: ignore[misc]
    """YAML with several lines as they are."""


def _literal(dumper: yaml.SafeDumper, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _literal)


def _yaml(body: dict[str, Any]) -> str:
    return str(yaml.dump(body, Dumper=_Readable, sort_keys=False, width=10_000))


KINDS: dict[str, Callable[[Job], str]] = {
    "torchrun": _torchrun,
    "slurm": slurm,
    "slurm-profile": slurm_profile,
    "slurm-all": slurm_all,
    "kubeflow": _kubeflow,
    "skypilot": _skypilot,
    "ray": ray_train,
}

__all__ = ["KINDS", "JobOptions", "emit", "words_of_options"]
