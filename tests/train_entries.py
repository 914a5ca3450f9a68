"""Trainings of ours, as the ranks of their tests run them."""

import gc
from dataclasses import asdict
from typing import Any

from executor.mesh import Meshes
from executor.run.checkpoint import Checkpoints
from executor.run.session import NOT_CHECKED, Order, Session
from executor.run.subject import load_subject
from executor.train.session import Peak, begun, train
from executor.train.settings import TrainSettings
from planner.prediction import PlanFile
from profiles.artifacts import validate
from profiles.errors import TrainwrightError
from profiles.ranks.rank import Rank, join_group


def trainings(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Per case, the measurement, or the sentence that it ended in."""
    with join_group("cpu") as rank:
        meshes = Meshes("cpu")
        found = []
        for case in payload["cases"]:
            try:
                found.append(one(case, rank, meshes))
            except TrainwrightError as error:
                found.append({"error": str(error)})
            gc.collect()
    return found


def one(case: dict[str, Any], rank: Rank, meshes: Meshes) -> dict[str, Any]:
    """One training, going on where its folder has a checkpoint."""
    file = validate(case["file"], PlanFile, "the test")
    settings = validate(case["settings"], TrainSettings, "the test")
    checkpoints = Checkpoints(folder=case["folder"], every=case["every"], resume=True) if case["folder"] else None
    order = Order(
        chosen=(0,), num_steps=0, num_warmup_steps=0, seed=case["seed"], data_file="", device_kind="cpu",
        checkpoints=checkpoints,
    )  # fmt: skip
    workload = load_subject(file)
    # What is trained on comes from the settings, what a run is checked on is not asked for here.
    session = Session(file=file, order=order, workload=workload, samples=None, rank=rank, meshes=meshes)  # type: ignore[arg-type]
    if "stops" in case:
        # As if it had been stopped there: rates are those of the whole training.
        loop = begun(session, settings, Peak(session))
        loop.run(case["stops"])
        loop.finish()
        evaluations = [asdict(each) for each in loop.evaluations]
        return {"losses": loop.losses, "evaluations": evaluations, "first_step": loop.first_step}
    return asdict(train(session, settings, NOT_CHECKED))
