"""Trainings of any network: read from a row, listed by operator, priced on the row's device."""

import json

import numpy as np
import pytest

from planner.classic.features import features_of, path_of
from planner.classic.forecast import forecast_trainings, input_seconds
from planner.classic.identify import identify
from planner.classic.lists import list_now, operator_list, pack, unpack
from planner.classic.step import load_learned, parts_of, step_seconds
from planner.classic.training import is_training, read_training
from planner.published.cells import Refused
from profiles.laws.convolutions import shape_of
from profiles.laws.kernel_tables import MEASURED
from profiles.models.operator_list import NUM_DIMS, at, columns
from reports.published.rows import predict, read_tables
from reports.published.summary import summarise

# ResNet-50 v1.5 in PyTorch on 8 A100 80 GB, amp, batch 256 each.
RESNET = {
    "row_id": "one", "task": "image_classification", "model": "resnet50", "image_size": "224",
    "precision_class": "fp16", "gpu_type": "A100-SXM4-80GB", "num_gpus": "8", "gpus_per_node": "8",
    "interconnect": "nvlink",
    "micro_batch_size": "256", "accumulation": "1", "optimizer": "sgd", "stack": "torch", "channels_last": "yes",
}  # fmt: skip
BERT_SIZES = {"hidden_size": 1024, "intermediate_size": 4096, "max_position_embeddings": 512, "num_attention_heads": 16,
              "num_hidden_layers": 24, "type_vocab_size": 2, "vocab_size": 30522}  # fmt: skip
BERT = RESNET | {
    "task": "question_answering", "model": "bert_large", "hf_model_type": "bert", "seq_len": "384",
    "hf_auto_class": "AutoModelForQuestionAnswering", "model_config": json.dumps(BERT_SIZES), "optimizer": "adam",
    "micro_batch_size": "32", "attention_kernel": "unfused",
}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "network", "sizes"),
    [
        (RESNET, "classifier:resnet50", (224, 224)),
        ({"model": "se_resnext101_32x4d"}, "classifier:se_resnext101_32x4d", (224, 224)),
        ({"detector": "ssd300", "backbone": "resnet50", "image_size": "300"}, "ssd:resnet50", (300, 300)),
        ({"detector": "mask_rcnn", "backbone": "resnet101", "neck": "fpn"}, "rcnn:resnet101,fpn,1,1", (800, 1088)),
        ({"detector": "retinanet", "backbone": "resnet50", "image_size": "800x1333"}, "retina:resnet50", (800, 1088)),
        ({"model": "Transformer-XL base"}, "transformer-xl:16,512,8,2048,1", (192,)),
        ({"model": "3D U-Net", "image_size": "128x128x128"}, "unet:volume", (128, 128, 128)),
    ],
)
def test_a_row_names_its_network(row, network, sizes):
    assert identify(row) == (network, sizes)


def test_a_network_that_nobody_knows_is_refused_by_its_name():
    with pytest.raises(Refused, match="'MoFlow'"):
        read_training(RESNET | {"model": "MoFlow"})
    made = forecast_trainings([RESNET, RESNET | {"gpu_type": "abacus"}])
    assert made[0].refused is None
    assert "abacus" in (made[1].refused or "")


def test_language_models_by_layers_are_no_rows_of_this_kind():
    assert is_training(RESNET)
    assert not is_training(RESNET | {"num_layers": "24"})
    assert not is_training({"num_layers": "24", "gpu_type": "A100"})


@pytest.mark.parametrize(("row", "seconds"), [(RESNET, 0.1232), (BERT, 0.3024)])
def test_published_steps_lie_in_the_band(row, seconds):
    """16,621 images and 846.7 sequences a second on 8 A100 80 GB: NVIDIA/DeepLearningExamples."""
    made = forecast_trainings([row])[0]
    assert made.low_seconds < seconds < made.high_seconds
    assert sum(made.seconds.values()) == pytest.approx(made.step_seconds)


def test_a_step_grows_with_its_batch_and_shrinks_on_a_faster_device():
    batches = [read_training(RESNET | {"micro_batch_size": str(2**power)}) for power in range(5, 9)]
    assert (np.diff(step_seconds(features_of(batches), load_learned())) > 0).all()
    cards = [
        read_training(RESNET | {"gpu_type": name}) for name in ("V100-SXM2-16GB", "A100-SXM4-80GB", "H100-SXM5-80GB")
    ]
    assert (np.diff(step_seconds(features_of(cards), load_learned())) < 0).all()


def test_gradients_are_exchanged_over_what_joins_the_cards():
    bridge = BERT | {"gpu_type": "RTX-3090-24GB", "interconnect": "nvlink_bridge"}
    rows = [BERT, BERT | {"num_gpus": "64"}, bridge | {"num_gpus": "2"}, bridge, BERT | {"num_gpus": "1"}]
    trainings = [read_training(row) for row in rows]
    assert [path_of(one) for one in trainings[:2]] == ["nvlink", "network"]
    seconds = features_of(trainings).exchange_seconds
    assert 0 == seconds[4] < seconds[0] < seconds[2] < seconds[3]


def test_reading_images_binds_where_the_host_is_slower():
    training = read_training(RESNET | {"data_loader": "real"})
    assert input_seconds(training) == pytest.approx(256 / 1200)
    made = forecast_trainings([RESNET | {"data_loader": "real"}])[0]
    assert made.step_seconds == pytest.approx(256 / 1200)
    assert any("input pipeline" in text for text in made.assumptions)


def test_a_shipped_list_has_the_network_s_operations():
    """Forward and backward of ResNet-50: three times 4.09 G multiply-adds an image, less the first data gradient."""
    listed = operator_list("classifier:resnet50", (224, 224), "fp32")
    assert listed.num_parameters == 25557032
    flops = 0.0
    for one in listed.operators:
        assert len(one.dims) == NUM_DIMS[one.kind]
        if one.kind == "convolution":
            flops += one.count * float(shape_of(columns((one,), 8)).flops[0])
    assert flops == pytest.approx(8 * (3 * 2 * 4.087e9 - 2 * 0.118e9), rel=0.01)
    assert unpack(json.loads(json.dumps(pack(listed)))) == listed


def test_a_list_made_now_is_the_one_that_is_shipped():
    assert list_now("ncf", (), "amp") == operator_list("ncf", (), "amp")


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"num_gpus": "8x"}, "num_gpus is '8x'"),
        ({"num_gpus": "-1"}, "num_gpus"),
        ({"micro_batch_size": "nan0"}, "micro_batch_size"),
        ({"precision_class": "int8"}, "precision_class is 'int8'"),
        ({"image_size": "0"}, "image_size"),
        ({"seq_len": "inf", "model": "GNMT"}, "seq_len"),
        ({"seq_len": "0.5", "model": "GNMT"}, "seq_len"),
        ({"detector": "retinanet", "backbone": "resnet18", "model": "RetinaNet"}, "'RetinaNet'"),
        (BERT | {"model_config": "[1]"}, "model_config"),
        (BERT | {"model_config": "[" * 20000}, "model_config"),
        (BERT | {"hf_auto_class": "BertForQuestionAnswering"}, "'bert_large'"),
    ],
)
def test_cells_that_say_nothing_usable_are_refused(cells, reason):
    with pytest.raises(Refused, match=reason):
        read_training(RESNET | cells)


def test_what_is_assumed_or_has_no_price_is_said():
    said = " ".join(read_training(RESNET | {"num_gpus": "-", "compiled": "yes"}).assumptions)
    assert "num_gpus: 1 assumed" in said
    assert "compiled: yes is not priced" in said


def test_the_memory_of_a_card_chooses_among_those_of_its_name():
    cards = [read_training(RESNET | {"gpu_type": "V100", "gpu_mem_gib": size}).device for size in ("", "16", "32")]
    assert [card.name for card in cards] == ["v100-sxm-16gb", "v100-sxm-16gb", "v100-sxm-32gb"]


UNLISTED = BERT | {"model_config": json.dumps(BERT_SIZES | {"hidden_size": 768, "num_hidden_layers": 1})}


def sized(**fields):
    return UNLISTED | {"model_config": json.dumps(BERT_SIZES | fields)}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (sized(num_hidden_layers=10**9), "num_hidden_layers"),
        (sized(num_attention_heads=7), "cannot be built"),
        (UNLISTED | {"hf_model_type": "bort"}, "configuration"),
        (UNLISTED | {"hf_auto_class": "AutoModelForPreTraining", "hf_model_type": "albert"}, "gives no loss"),
        (RESNET | {"model": "U-Net", "image_size": "10"}, "cannot be listed"),
        (RESNET | {"model": "3D U-Net", "image_size": "32x32x32"}, "cannot be listed"),
    ],
)
def test_a_network_that_cannot_be_listed_is_refused_with_the_reason(row, reason):
    assert reason in (forecast_trainings([row])[0].refused or "")


def test_a_table_runs_no_code_from_elsewhere(monkeypatch):
    """transformers asks whether to run what a configuration names, where it has no class of its own."""
    asked = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append(1) or "y")
    for where in ({}, {"hf_model_type": "vit"}):
        row = sized(num_hidden_layers=2, auto_map={"AutoModelForQuestionAnswering": "evil--modeling.Evil"}) | where
        made = forecast_trainings([row])[0]
        assert (made.refused is None) == (not where)
    assert not asked


def test_a_bug_of_ours_is_no_fault_of_the_row(monkeypatch):
    monkeypatch.setattr("profiles.tracing.operator_lists._merge", lambda *_: {}["a bug"])
    with pytest.raises(KeyError):
        list_now("ncf", (), "fp32")


def test_saved_bytes_are_those_of_a_real_step():
    import torch

    from profiles.networks.examples import subject

    made = subject("classifier:resnet50", (64, 64))
    listed = list_now("classifier:resnet50", (64, 64), "fp32")
    module, seen = made.build(), {}
    own = {one.untyped_storage().data_ptr() for one in (*module.parameters(), *module.buffers())}

    def keep(tensor):
        storage = tensor.untyped_storage()
        seen.update({} if storage.data_ptr() in own else {storage.data_ptr(): storage.nbytes()})
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made.loss(module, made.example(2))
    assert at(listed.saved_bytes, 2) == pytest.approx(sum(seen.values()), rel=0.05)


def test_parts_name_every_kind():
    parts = parts_of(features_of([read_training(RESNET)]), load_learned())
    assert {"convolution", "norm", "pass", "host", "optimizer", "exchange"} < set(parts)
    assert all((values >= 0).all() for values in parts.values())


def test_a_sample_of_published_trainings_is_predicted():
    """Two runs of each network, family and kind of units: the sample that ships, in sample."""
    runs = predict(read_tables([MEASURED / "trainings.csv"]))
    summary = summarise(runs)
    assert len(runs) > 400
    assert not summary.refusals
    assert summary.total.median_error_fraction < 0.2
    assert summary.total.p90_error_fraction < 0.45
    assert summary.total.inside_band_fraction > 0.85
    assert summary.total.median_memory_error_fraction < 0.2


FINE_TUNING = BERT | {"engine": "deeplearning_examples", "gpu_type": "RTX-A5000-24GB", "interconnect": "pcie"}


def test_gradients_that_are_summed_last_are_not_hidden():
    """BERT's scripts sum after backward; of others the table of words comes last, which Transformer-XL mostly is."""
    rows = [FINE_TUNING, FINE_TUNING | {"engine": ""}, RESNET, RESNET | {"model": "Transformer-XL base"}]
    features = features_of([read_training(row) for row in rows])
    words = 30522 * 1024
    assert features.last_bucket == pytest.approx(
        [1.0, (words + 2 * 1024 + 512 * 1024) / 334_094_338, 0.08, 0.71], abs=0.01
    )
    seconds = parts_of(features, load_learned())["exchange"]
    assert seconds[0] > seconds[1] > 0


def test_cards_that_read_each_other_exchange_faster():
    cards = [FINE_TUNING | {"num_gpus": "4", "gpu_type": name} for name in ("RTX-A5000-24GB", "RTX-3090-24GB")]
    direct, through_host = features_of([read_training(card) for card in cards]).exchange_seconds
    assert through_host == pytest.approx(direct * 0.8 / 0.5, rel=0.05)


def test_optimizers_are_priced_as_they_are_coded():
    """Fine-tuning in fp32 clips tensor by tensor, at 22 kernels and a wait each; in 16 bits it is fused."""
    rows = [FINE_TUNING | {"precision_class": name} for name in ("fp32", "fp16")]
    trainings = [read_training(row) for row in rows]
    assert [one.optimizer_code for one in trainings] == ["adam by tensor", "adam"]
    features = features_of(trainings)
    assert features.optimizer_waits.tolist() == [391, 0]
    seconds = parts_of(features, load_learned())["optimizer"]
    assert seconds[0] > 334e6 * 144 / 768e9 * load_learned().values["optimizer"] > seconds[1]
