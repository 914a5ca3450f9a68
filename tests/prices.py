"""The prices of plans drawn from the space and of all published runs, as a file: what a change of structure must keep.

`python -m tests.prices` compares what is priced now with `tests/golden/prices.csv` and says what differs; with
`--record` it writes the file anew, which belongs into a commit that changes prices on purpose and says why.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from planner.published.predict import forecast
from planner.space.explore import Place, Space, explore
from planner.space.layouts import Options, legal_layouts
from planner.space.predictions import predictions
from planner.space.question import Setting, setting
from planner.space.to_plans import best_places, plan_of
from profiles.library import load_sizes
from profiles.machines.clusters import Cluster, find_cluster
from profiles.machines.devices import load_device
from tests.accuracy_rows import shipped_rows

GOLDEN = Path(__file__).parent / "golden" / "prices.csv"
COLUMNS = ("question", "plan", "step_seconds", "peak_bytes", "low_seconds", "high_seconds", "largest_part")
RELATIVE = 1e-9
# Model, devices, device or cluster, global batch, sequence, stack, precision, codec: every family, kind of link,
# generation and schedule set that the laws tell apart.
QUESTIONS = (
    ("llama-3.1-8b", 8, "h100-sxm", 64, 4096, "trainwright", "bf16", "none"),
    ("llama-3.1-8b", 64, "dgx-h100", 512, 8192, "trainwright", "bf16", "bf16"),
    ("llama-3.1-70b", 64, "h100-sxm", 512, 8192, "trainwright", "bf16", "none"),
    ("llama-3.1-70b", 256, "b200-sxm", 512, 8192, "trainwright", "fp8", "none"),
    ("gpt3-175b", 512, "a100-sxm-80gb", 1536, 2048, "megatron-core", "bf16", "none"),
    ("gpt2-xl", 16, "v100-sxm-32gb", 512, 1024, "fsdp", "fp16", "none"),
    ("mixtral-8x7b", 64, "h100-sxm", 512, 4096, "trainwright", "bf16", "none"),
    ("deepseek-v3", 512, "h800-sxm", 4096, 4096, "megatron-core", "fp8", "none"),
    ("qwen3-8b", 16, "l40s", 128, 4096, "trainwright", "bf16", "powersgd-4"),
    ("mistral-7b", 32, "mi300x", 256, 4096, "fsdp2", "bf16", "none"),
)
# Plans by the closed form and by the whole way, and layouts that are tried for the former: not all are priced.
NUM_CLOSED, NUM_FULL, MOST_TRIED = 160, 40, 400


def _setting(question: tuple) -> Setting:
    model, count, where, batch, sequence, stack, precision, codec = question
    cluster = None
    if where.startswith("dgx"):
        cluster = find_cluster(where)
        assert isinstance(cluster, Cluster)
    device = load_device(cluster.device if cluster else where)
    return setting(load_sizes(model), device, count, batch, sequence, stack, precision, cluster, codec)


def _drawn(at: Setting) -> tuple[Space, list[tuple[Place, float, float]]]:
    """The space, and one plan each of layouts drawn evenly: place, seconds by the closed form, bytes."""
    layouts, _ = legal_layouts(at, Options())
    wanted = set(np.random.default_rng(0).permutation(len(layouts))[:MOST_TRIED].tolist())
    kept = {}

    def look(_num_legal, chosen, choices, seconds, held) -> None:
        for row, layout in enumerate(chosen.tolist()):
            places = np.argwhere(np.isfinite(held[row])) if layout in wanted else ()
            if len(places):
                # Of the layout alone, so that it does not matter with which others it is priced.
                place = tuple(places[np.random.default_rng(layout).integers(len(places))].tolist())
                kept[layout] = (Place(layout, *place), seconds[row][place], held[row][place])

    space = explore(at, Options(), seen=look)
    return space, [kept[layout] for layout in sorted(kept)][:NUM_CLOSED]


def of_question(number: int) -> Iterator[dict[str, object]]:
    """Prices of one question: plans by the closed form, then some of those that fit by the whole way."""
    space, drawn = _drawn(_setting(QUESTIONS[number]))
    for place, seconds, held in drawn:
        row = {"question": number, "plan": f"{_name(space, place)} closed"}
        yield row | {"step_seconds": float(seconds), "peak_bytes": float(held)}
    count = len(space.best)
    ranks = np.unique(np.geomspace(1, count, NUM_FULL).astype(int)) - 1 if count else []
    every = best_places(space, count)
    places = [every[rank] for rank in ranks]
    for place, found in zip(places, predictions(space, places) if places else [], strict=True):
        yield {
            "question": number,
            "plan": _name(space, place),
            "step_seconds": found.step_seconds,
            "peak_bytes": found.peak_bytes,
            "low_seconds": found.low_seconds,
            "high_seconds": found.high_seconds,
            "largest_part": max(found.seconds.values()),
        }


def _name(space: Space, place: Place) -> str:
    """The plan's name, with what it leaves out: the layout and where its stages begin."""
    return f"{plan_of(space, place).id} #{place.layout}"


def of_runs() -> Iterator[dict[str, object]]:
    """Prices of the published runs."""
    for run in forecast(shipped_rows()):
        if run.refused is None:
            yield {
                "question": "run",
                "plan": run.row_id,
                "step_seconds": run.step_seconds,
                "peak_bytes": run.allocated_bytes,
                "low_seconds": run.low_seconds,
                "high_seconds": run.high_seconds,
                "largest_part": max(run.seconds.values()),
            }


def recorded() -> dict[tuple[str, str], list[dict[str, str]]]:
    """The recorded rows by question and plan."""
    rows: dict[tuple[str, str], list[dict[str, str]]] = {}
    with GOLDEN.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            rows.setdefault((row["question"], row["plan"]), []).append(row)
    return rows


def differences(rows: Iterator[dict[str, object]]) -> Iterator[str]:
    """What differs from the record by more than RELATIVE, in a line each."""
    known = recorded()
    for row in rows:
        key = str(row["question"]), str(row["plan"])
        before = known.get(key) or [{}]
        one = before.pop(0)
        for name in COLUMNS[2:]:
            was, now = one.get(name, ""), row.get(name)
            if (was == "") != (now is None) or (now is not None and abs(float(was) / float(now) - 1) > RELATIVE):
                yield f"{key[0]} {key[1]}: {name} was {was or 'not recorded'}, is {now}"


def everything() -> Iterator[dict[str, object]]:
    for number in range(len(QUESTIONS)):
        yield from of_question(number)
    yield from of_runs()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true")
    if parser.parse_args().record:
        with GOLDEN.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            for row in everything():
                writer.writerow({k: f"{v:.12g}" if isinstance(v, float) else v for k, v in row.items()})
        return 0
    changed = list(differences(everything()))
    print("\n".join(changed[:40]) or "all prices are those recorded")
    print(f"{len(changed)} differ")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
