"""Job files against the schemas that Kubeflow Trainer and SkyPilot publish: `python -m tests.stacks.clusters [NAME]`.

TRAINJOB_CRD is `manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml` of a checkout of kubeflow/trainer; SkyPilot's
schema comes with its package, asked of SKYPILOT_PYTHON, or of this Python where that is not set. Both need jsonschema.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from executor.emit import JobOptions, emit
from planner.plans import Plan
from planner.prediction import PlanFile
from tests.plan_builders import GPT2, LLAMA, make_plan_file

PLANS = (
    Plan(data_parallel=16, tensor_parallel=2, micro_batch_size=1, vocab_parallel=True),
    Plan(data_parallel=2, micro_batch_size=4),
    Plan(data_parallel=8, zero_stage=3, micro_batch_size=4, precision="bf16"),
)
INSTALL = "git+https://host/ours.git@0123abc"
SKYPILOT = """
import json, sys
from sky.utils import schemas, common_utils, validator
import jsonschema, sky
for body in json.load(sys.stdin):
    try:
        validator.get_schema_validator()(schemas.get_task_schema()).validate(body)
        sky.Task.from_yaml_config(body)
        print(json.dumps(""))
    except Exception as error:
        print(json.dumps(f"{type(error).__name__}: {str(error)[:300]}"))
"""


def files() -> Iterator[PlanFile]:
    for plan in PLANS:
        for spec in (LLAMA, GPT2):
            yield make_plan_file(plan, spec=spec)
            yield make_plan_file(plan, spec=spec, machine_name="h100-sxm", machine_device_kind="cuda")


def emitted(kind: str) -> list[Any]:
    """Job files of several plans, with and without what a user may say."""
    image = "registry/ours:1"
    choices = [JobOptions(image=image), JobOptions(image=image, install=INSTALL, max_restarts=2)]
    choices += [JobOptions(install=INSTALL)] if kind == "skypilot" else []
    return [
        yaml.safe_load(emit(kind, file, file.candidates[0], "plan.json", options))
        for file in files()
        for options in choices
    ]


def unknown_fields(body: Any, schema: dict[str, Any], at: str = "") -> Iterator[str]:
    """Fields that a cluster would drop without a word, as its schema does not name them."""
    if isinstance(body, dict) and "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        for name, value in body.items():
            if name not in schema["properties"]:
                yield f"{at}.{name}"
            else:
                yield from unknown_fields(value, schema["properties"][name], f"{at}.{name}")
    elif isinstance(body, list) and "items" in schema:
        for index, value in enumerate(body):
            yield from unknown_fields(value, schema["items"], f"{at}[{index}]")


def kubeflow() -> tuple[int, int, str]:
    """How many TrainJobs the resource's definition allows, of how many, and the first objection."""
    import jsonschema

    definition = yaml.safe_load(Path(os.environ["TRAINJOB_CRD"]).read_text())
    (version,) = (one for one in definition["spec"]["versions"] if one["name"] == "v1alpha1")
    schema = version["schema"]["openAPIV3Schema"]
    # Kubernetes adds what a name and other data of an object may be.
    schema["properties"]["metadata"] = {"properties": {"name": {"type": "string", "maxLength": 63}}}
    validator = jsonschema.Draft202012Validator(schema)

    def objections(body: Any) -> list[str]:
        return [*(error.message for error in validator.iter_errors(body)), *unknown_fields(body, schema)]

    bodies = emitted("kubeflow")
    assert objections({**bodies[0], "spec": {**bodies[0]["spec"], "trainers": {}}}), "a broken one is accepted"
    wrong = [found[0] for body in bodies if (found := objections(body))]
    return len(bodies) - len(wrong), len(bodies), wrong[0] if wrong else ""


def skypilot() -> tuple[int, int, str]:
    """How many tasks SkyPilot's own schema and reader take, of how many, and the first objection."""
    bodies = emitted("skypilot")
    python = os.environ.get("SKYPILOT_PYTHON", sys.executable)
    done = subprocess.run(
        [python, "-P", "-c", SKYPILOT], input=json.dumps([*bodies, {**bodies[0], "num_node": 2}]), capture_output=True,
        text=True, check=True, cwd="/",
    )  # fmt: skip
    *said, broken = [json.loads(line) for line in done.stdout.splitlines()]
    assert broken, "a broken one is accepted"
    wrong = [one for one in said if one]
    return len(bodies) - len(wrong), len(bodies), wrong[0] if wrong else ""


def missing(name: str) -> str:
    """What is needed for the check of a kind of job file and is not here; "" where all is."""
    if name == "kubeflow":
        if "TRAINJOB_CRD" not in os.environ:
            return "TRAINJOB_CRD is not set"
        return "" if _imports(sys.executable, "jsonschema") else "jsonschema is not installed"
    return "" if _imports(os.environ.get("SKYPILOT_PYTHON", sys.executable), "sky") else "skypilot is not installed"


def _imports(python: str, name: str) -> bool:
    return subprocess.run([python, "-P", "-c", f"import {name}"], capture_output=True, check=False).returncode == 0


CHECKS = {"kubeflow": kubeflow, "skypilot": skypilot}


def main() -> int:
    failed = 0
    for name, check in CHECKS.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        if why := missing(name):
            print(f"{name}: {why}")
            continue
        accepted, total, objection = check()
        failed += accepted < total
        print(f"{name}: {accepted} of {total} accepted {objection}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
