"""How many plans Megatron-LM's own checks accept: `python -m tests.stacks.megatron [PLANS]`.

Plans come from the planner's search with --stack, and at random from what the stack says that it can run. Each is
written out, and its arguments are given to Megatron's parse_args, validate_args, configurations and process groups.
MEGATRON_FOLDER is a checkout of Megatron-LM, MEGATRON_PYTHON a Python with torch that can import it.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

from planner.ask import answer_to
from planner.plans import Plan
from planner.prediction import PlanFile
from planner.request import Request
from planner.stacks.megatron.export import LAYERS, MOCK, TRAINING, argv, settings_of
from planner.stacks.registry import export
from profiles.errors import InputError, NoFeasiblePlanError
from profiles.machines.stacks import load_stack
from tests.stacks.megatron_plans import random_plans

MODELS = (
    ("llama-3.1-8b", 8192, 256), ("llama-3.1-70b", 8192, 512), ("gpt3-175b", 2048, 1024), ("mixtral-8x7b", 4096, 512),
    ("deepseek-v3", 4096, 2048), ("qwen3-8b", 4096, 256), ("qwen3-235b-a22b", 4096, 1024),
)  # fmt: skip
DEVICES = (8, 64, 256, 1024)
ANSWERS = Path(__file__).with_name("megatron_accepts.py")


class Megatron:
    """Megatron-LM's checks, in a process of their own."""

    def __init__(self) -> None:
        python, folder = os.environ["MEGATRON_PYTHON"], os.environ["MEGATRON_FOLDER"]
        self.process = subprocess.Popen(
            [python, "-P", str(ANSWERS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"PATH": os.environ["PATH"], "MEGATRON_FOLDER": folder, "HOME": os.environ.get("HOME", "/tmp")},
        )

    def objection(self, words: list[str], environment: dict[str, str], devices: int) -> str:
        """What Megatron says against the arguments, "" where it takes them."""
        asked = {"argv": words, "environment": environment, "devices": devices, "capability": [9, 0], "groups": True}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return str(json.loads(self.process.stdout.readline())["error"])

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


def searched(stack: str) -> Iterator[tuple[PlanFile, Plan]]:
    """Plans that the planner offers for a stack, of all models and sizes of jobs."""
    for (model, sequence, batch), devices, precision in product(MODELS, DEVICES, ("bf16", "fp8")):
        request = Request(
            model=model, num_devices=devices, device="h100-sxm", stack=stack, sequence_length=sequence,
            global_batches=(max(batch, devices),), precisions=(precision,), top=20,
        )  # fmt: skip
        try:
            file = answer_to(request).file
        except (InputError, NoFeasiblePlanError) as error:
            print(f"no plan: {model} on {devices} in {precision}: {str(error)[:100]}", file=sys.stderr)
            continue
        for candidate in file.candidates:
            yield file, candidate.plan


def draw(stack: str, count: int, seed: int = 0) -> list[tuple[PlanFile, Plan]]:
    """So many different plans of a stack, half of them searched, half of them random."""
    found = list(
        {(file.model_name, file.num_devices, plan.id): (file, plan) for file, plan in searched(stack)}.values()
    )
    chance = random.Random(seed)
    chance.shuffle(found)
    files = list({file.model_name: file for file, _ in found}.values())
    runs = load_stack(stack).runs
    assert runs is not None
    own = found[: count // 2]
    return own + random_plans(files, runs, count - len(own), chance)


def try_all(stack: str, count: int, megatron: Megatron) -> Counter[str]:
    """Outcomes of a draw: accepted, refused by the exporter with its reason, refused by Megatron with its own."""
    told, layers = load_stack(stack), LAYERS[stack]
    outcomes: Counter[str] = Counter()
    for file, plan in draw(stack, count):
        candidate = replace(file.candidates[0], plan=plan)
        try:
            handed = export(stack, file, candidate)
        except InputError as error:
            outcomes[f"not written: {error}"] += 1
            continue
        words = argv({**settings_of(told, layers, file, plan), **TRAINING, **MOCK})
        objection = megatron.objection(words, dict(handed.environment), plan.num_devices)
        outcomes[f"refused: {objection}" if objection else "accepted"] += 1
        if objection:
            print(plan.id, file.model_name, objection, file=sys.stderr)
    return outcomes


def main() -> int:
    """Try both stacks and say what came of it; 1 where not all plans were accepted."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    megatron, failed = Megatron(), False
    broken = megatron.objection(["--num-layers", "31", "--pipeline-model-parallel-size", "4"], {}, 8)
    print(f"a broken one is refused: {broken}")
    for stack in sys.argv[2:] or LAYERS:
        started = time.monotonic()
        outcomes = try_all(stack, count, megatron)
        for outcome, number in outcomes.most_common():
            print(f"{stack}: {number:4d} {outcome}")
        print(f"{stack}: {time.monotonic() - started:.0f} s")
        failed |= outcomes["accepted"] != sum(outcomes.values())
    megatron.close()
    return int(failed or not broken)


if __name__ == "__main__":
    sys.exit(main())
