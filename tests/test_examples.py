"""The seven examples: their samples, what is held out, what judges them; trained in the slow tests."""

import math

import numpy as np
import pytest
import torch

from executor.axes.optimizer import LEARNING_RATE
from executor.examples import dialogue, locales, object_detection, question_answering, segmentation, texts, translation
from executor.examples.digits import digits, scene
from executor.examples.quality import Quality
from executor.examples.run import NAMES, SAME, compare_own_loop, compare_training, example, run_example
from profiles.artifacts import dump
from profiles.models.profile import WorkloadSpec
from profiles.terminal.console import console
from profiles.workloads.task_loading import load_task
from tests.machine_builders import machine

pytest.importorskip("sklearn")
pytest.importorskip("django")


def loaded(name):
    factory = f"executor.examples.{name}:task"
    spec = WorkloadSpec(kind="module", name="task", factory=factory, task="module")
    return load_task(spec, trusted=(spec.module,))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_has_the_same_samples_wherever_they_are_drawn_and_another_has_others(name):
    task = loaded(name)
    first, again, later = (task.collate(task.batches(step, 4)) for step in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], later[key]) for key in first)
    assert {key: value.shape[1:] for key, value in first.items()} == {
        key: value.shape[1:] for key, value in task.example(3, task.size).items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_halves(name):
    # Where it is not, ranks that share a batch would learn something else than one device does.
    task = loaded(name)
    torch.manual_seed(0)
    module = task.build().eval()
    samples = task.batches(0, 4)
    whole, *halves = (task.loss(module, task.collate(part)) for part in (samples, samples[:2], samples[2:]))
    assert whole.requires_grad
    assert whole.item() == pytest.approx(sum(half.item() for half in halves) / 2, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_that_learnt_nothing_is_no_better_than_a_trivial_answer(name):
    module = example(name)
    torch.manual_seed(0)
    found = module.quality(module.task().build())
    assert math.isfinite(found.value)
    assert not found.beats_baseline
    assert "NO BETTER THAN" in str(found)


def train(task, num_steps, num_samples):
    """In one process with plain torch, as every plan must."""
    torch.manual_seed(0)
    module = task.build().train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE)
    for step in range(num_steps):
        task.loss(module, task.collate(task.batches(step, num_samples))).backward()
        optimizer.step()
        optimizer.zero_grad()
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_training_is_better_than_a_trivial_answer(name):
    module = example(name)
    found = module.quality(train(module.task(), module.STEPS, module.SAMPLES))
    assert found.beats_baseline, str(found)


@pytest.mark.slow
@pytest.mark.gloo
def test_an_example_is_planned_executed_and_judged(tmp_path):
    file = tmp_path / "machine.json"
    file.write_text(dump("machine-profile", machine()))
    found = run_example("dialogue", tmp_path, console(), machine=file, steps=5)
    assert not found.quality.beats_baseline
    assert compare_own_loop("dialogue", tmp_path, console()) <= SAME
    assert compare_training("dialogue", tmp_path, console()) <= SAME


def test_what_is_held_out_is_not_learnt_from():
    known, unseen = (digits(held_out) for held_out in (False, True))
    assert len(known[1]) + len(unseen[1]) == 1797
    paragraphs = [
        {part for text in texts.topics(held_out) for part in text.split("\n\n")} for held_out in (False, True)
    ]
    assert paragraphs[0].isdisjoint(paragraphs[1])
    english = [{one for one, _ in locales.pairs("de", held_out)} for held_out in (False, True)]
    assert len(english[0]) > 300
    assert len(english[1]) > 30
    assert english[0].isdisjoint(english[1])
    told = [
        {
            frozenset(turn.split()[-1] for turn, _ in dialogue.dialogue(generator, held_out)[: dialogue.TOLD])
            for generator in [torch.Generator().manual_seed(seed) for seed in range(200)]
        }
        for held_out in (False, True)
    ]
    assert told[0].isdisjoint(told[1])


def test_scenes_have_boxes_that_fit_their_ink():
    for seed in range(20):
        made = scene(seed, held_out=False)
        for (left, top, right, bottom), mask in zip(made.boxes, made.masks, strict=True):
            assert mask[top:bottom, left:right].sum() == mask.sum() > 0
            assert mask[top, left:right].any()
            assert mask[bottom - 1, left:right].any()
        assert made.masks.sum(0).max() == 1


def test_a_right_answer_to_a_question_stands_where_its_sample_says():
    one = question_answering.sample(torch.Generator().manual_seed(0), held_out=True)
    first, last = question_answering.span(one)
    tokens = one["input_ids"].tolist()
    around = question_answering.AROUND
    asked = tokens[1 : 2 + 2 * around]
    assert asked == [*tokens[first - around : first], question_answering.GAP, *tokens[last + 1 : last + 1 + around]]


def test_only_turns_of_the_assistant_are_labelled():
    turns = [("i like tea", "noted"), ("what do i like", "you like tea")]
    one = dialogue.sample(turns)
    names = {number: word for word, number in dialogue.NUMBERS.items()}
    labels = [names[label] for label in one["labels"].tolist() if label != dialogue.IGNORED]
    assert labels == ["noted", dialogue.END, "you", "like", "tea", dialogue.END]


def test_measures_are_those_of_the_field():
    assert question_answering.mean_f1([(3, 4)], [(4, 4)]) == pytest.approx(2 / 3)
    assert question_answering.mean_f1([(3, 4)], [(5, 6)]) == 0
    assert translation.chrf(["Sichern"], ["Sichern"]) == pytest.approx(1)
    assert translation.chrf(["abc"], ["xyz"]) == 0
    # One class of two right everywhere it is, found nowhere else; of the other half is found.
    wanted = np.array([[0, 0, 1, 1]])
    found = np.array([[0, 0, 1, 2]])
    assert segmentation.mean_iou(found, wanted) == pytest.approx((1 + 0.5) / (segmentation.NUM_CLASSES + 1))


def test_average_precision_counts_a_digit_once_and_the_surest_first():
    made = scene(1, held_out=False)
    label, box = int(made.labels[0]), torch.from_numpy(made.boxes[:1]).float()
    total = int((made.labels == label).sum())

    def precision(boxes, scores):
        found = (boxes, torch.full((len(boxes),), label), torch.tensor(scores))
        return object_detection.average_precision([found], [made], label) * total

    assert precision(box, [0.9]) == 1
    assert precision(torch.cat([box, box]), [0.9, 0.8]) == 1
    assert precision(torch.cat([box + 100, box]), [0.9, 0.8]) == pytest.approx(0.5)


@pytest.mark.parametrize(("value", "higher", "verdict"), [(1.0, True, False), (2.0, True, True), (0.5, False, True)])
def test_a_verdict_follows_the_direction_of_the_measure(value, higher, verdict):
    found = Quality(measure="m", value=value, baseline="b", baseline_value=1.0, higher_is_better=higher)
    assert found.beats_baseline == verdict
    nan = Quality(measure="m", value=math.nan, baseline="b", baseline_value=1.0, higher_is_better=higher)
    assert not nan.beats_baseline
