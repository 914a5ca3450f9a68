"""How many plans Megatron-LM's own checks accept: `python -m tests.stacks.megatron [PLANS]`.

Plans come from the planner's search with --stack, and at random from what the stack says that it can run. Each is
written out, its arguments are given to Megatron's parse_args, validate_args, configurations and process groups, and the
files are read back.
MEGATRON_FOLDER is a checkout of Megatron-LM, MEGATRON_PYTHON a Python with torch that can import it.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

from planner.ask import answer_to
from planner.prediction import Candidate, PlanFile
from planner.request import Request
from planner.stacks.abilities import refusal
from planner.stacks.handover import Given
from planner.stacks.judge import priced
from planner.stacks.megatron.export import LAYERS, MOCK, TRAINING, argv, settings_of
from planner.stacks.registry import export, read
from profiles.errors import InputError, NoFeasiblePlanError
from profiles.machines.stacks import load_stack
from tests.stacks.megatron_plans import meant, random_plans

MODELS = (
    ("llama-3.1-8b", 8192, 256), ("llama-3.1-70b", 8192, 512), ("gpt3-175b", 2048, 1024), ("mixtral-8x7b", 4096, 512),
    ("deepseek-v3", 4096, 2048), ("qwen3-8b", 4096, 256), ("qwen3-235b-a22b", 4096, 1024),
)  # fmt: skip
DEVICES = (8, 64, 256, 1024)
PRICE_TOLERANCE = 0.005
ANSWERS = Path(__file__).with_name("megatron_accepts.py")


class Megatron:
    """Megatron-LM's checks, in a process of their own."""

    def __init__(self) -> None:
        python, folder = os.environ["MEGATRON_PYTHON"], os.environ["MEGATRON_FOLDER"]
        self.told = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [python, "-P", str(ANSWERS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.told,
            text=True,
            env={"PATH": os.environ["PATH"], "MEGATRON_FOLDER": folder, "HOME": os.environ.get("HOME", "/tmp")},
        )

    def ask(self, words: list[str], environment: dict[str, str], devices: int, **more: bool) -> tuple[str, str]:
        """What Megatron says against the arguments, "" where it takes them; and what it prints."""
        asked = {"argv": words, "environment": environment, "devices": devices, "capability": [9, 0], **more}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.told.seek(0)
            raise RuntimeError(f"Megatron ended: {' '.join(self.told.read().splitlines()[-1:])}")
        answer = json.loads(line)
        return str(answer["error"]), str(answer["shown"])

    def objection(self, words: list[str], environment: dict[str, str], devices: int) -> str:
        """What Megatron says against the arguments, "" where it takes them."""
        return self.ask(words, environment, devices)[0]

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)
        self.told.close()


def searched(stack: str) -> Iterator[tuple[PlanFile, Candidate]]:
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
            yield file, candidate


def draw(stack: str, count: int, seed: int = 0) -> list[tuple[PlanFile, Candidate, bool]]:
    """So many different plans of a stack, half of them searched (True), half of them random."""
    every = {(file.model_name, file.num_devices, one.plan.id): (file, one) for file, one in searched(stack)}
    found, chance = list(every.values()), random.Random(seed)
    chance.shuffle(found)
    files = list({file.model_name: file for file, _ in found}.values())
    runs = load_stack(stack).runs
    assert runs is not None
    own = [(file, one, True) for file, one in found[: count // 2]]
    drawn = random_plans(files, runs, count - len(own), chance)
    return own + [(file, replace(file.candidates[0], plan=plan), False) for file, plan in drawn]


def outcome(stack: str, file: PlanFile, candidate: Candidate, megatron: Megatron) -> str:
    """What comes of handing a plan over: "accepted", or why not."""
    told, plan = load_stack(stack), candidate.plan
    lacks = refusal(told, plan, file.num_layers)
    if lacks:
        return f"not offered: {lacks}"
    try:
        handed = export(stack, file, candidate)
    except InputError as error:
        return f"not written: {error}"
    words = argv({**settings_of(told, LAYERS[stack], file, plan), **TRAINING, **MOCK})
    objection = megatron.objection(words, dict(handed.environment), plan.num_devices)
    if objection:
        print(plan.id, file.model_name, objection, file=sys.stderr)
    return f"refused: {objection}" if objection else "accepted"


def round_trip(stack: str, file: PlanFile, candidate: Candidate, *, is_priced: bool) -> str:
    """Whether the written files are read as the same job, at the same price where that is known."""
    for name, text in export(stack, file, candidate).files.items():
        job = read(Path("drawn") / name, text, Given(num_devices=candidate.plan.num_devices))
        own = [meant(plan, file.num_layers) for plan in (candidate.plan, job.plan)]
        if own[0] != own[1] or job.stack != stack or job.sequence_length != file.sequence_length:
            return f"{name}: {candidate.plan.id} read as {job.plan.id}"
        if job.unread or job.unpriced:
            return f"{name}: not read: {(*job.unread, *job.unpriced)}"
        if is_priced:
            took = priced(job, Request(model="", num_devices=0, device="h100-sxm")).prediction.step_seconds
            off = abs(took / candidate.prediction.step_seconds - 1)
            if off > PRICE_TOLERANCE:
                return f"{name}: {candidate.plan.id} of {file.model_name}: price off by {off:.2%}"
    return "same"


def try_all(stack: str, count: int, megatron: Megatron) -> tuple[Counter[str], Counter[str]]:
    """Outcomes of a draw, and of reading back what was written."""
    outcomes, trips = Counter[str](), Counter[str]()
    for file, candidate, is_priced in draw(stack, count):
        came = outcome(stack, file, candidate, megatron)
        outcomes[came] += 1
        if came == "accepted":
            trips[round_trip(stack, file, candidate, is_priced=is_priced)] += 1
    return outcomes, trips


def main() -> int:
    """Try both stacks and say what came of it; 1 where not all plans were accepted."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    megatron, failed = Megatron(), False
    broken = megatron.objection(["--num-layers", "31", "--pipeline-model-parallel-size", "4"], {}, 8)
    print(f"a broken one is refused: {broken}")
    for stack in sys.argv[2:] or LAYERS:
        started = time.monotonic()
        outcomes, trips = try_all(stack, count, megatron)
        for one, number in (*outcomes.most_common(), *trips.most_common()):
            print(f"  {number:4d} {one}")
        accepted = f"{outcomes['accepted']} of {outcomes.total()} accepted"
        seconds = f"{time.monotonic() - started:.0f} s"
        print(f"{stack}: {accepted}, {trips['same']} read back the same, {seconds}")
        failed |= outcomes["accepted"] != outcomes.total() or trips["same"] != trips.total()
    megatron.close()
    return int(failed or not broken)


if __name__ == "__main__":
    sys.exit(main())
