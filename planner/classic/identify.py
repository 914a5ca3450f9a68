"""Which network a row of a table trains, as the name and sizes under which its operators are listed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from planner.published.cells import EMPTY, Refused
from profiles.inputs import limits

Row = Mapping[str, str | None]
Sizes = tuple[int, ...]
# Sides to which detection's images of 800 x 1333 come on average once a batch is padded, for time; memory takes the
# most.
DETECTION_MEAN, DETECTION_MOST = (800, 1088), (800, 1344)
DETECTORS = {
    "faster_rcnn": (1, 0), "mask_rcnn": (1, 1), "keypoint_rcnn": (1, 1), "cascade_rcnn": (3, 0), "rpn": (0, 0),
    "cascade_mask_rcnn": (3, 3), "htc": (3, 3), "fast_rcnn": (1, 0), "panoptic_fpn": (1, 1),
}  # fmt: skip
SCALING = ("detectron2", "maskrcnn_benchmark", "torchvision")
TRANSFORMER_XL = {"base": ("16,512,8,2048,1", 192), "large": ("18,1024,16,4096,4", 384)}
RECOMMENDERS = {"NCF": "ncf", "DLRM": "dlrm:100000", "DCNv2": "dlrm:100000", "VAE-CF": "autoencoder"}
HEADS = tuple(
    f"AutoModelFor{task}"
    for task in ("ImageClassification", "QuestionAnswering", "SequenceClassification", "TokenClassification",
                 "PreTraining", "MaskedLM", "Seq2SeqLM", "CausalLM")
)  # fmt: skip
BACKBONE = re.compile(r"(se_)?resne(x)?t(50|101|152)(_\d{1,3}x\d{1,3}d)?")


def cell(row: Row, name: str) -> str:
    """A cell's text, empty where it says nothing."""
    text = (row.get(name) or "").strip()
    return "" if text.lower() in EMPTY else text


def number(row: Row, name: str, most: float) -> float | None:
    """A cell's number above 0, None where it is empty.

    Raises: Refused where it is none, or beyond `most`.
    """
    text = cell(row, name)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise Refused(f"{name} is '{text}', not a number") from None
    if not 0 < value <= most:
        raise Refused(f"{name} is {text}; it must be above 0 and at most {most:g}")
    return value


def length(row: Row, name: str) -> int | None:
    """The length of a sequence, None where it is not told.

    Raises: Refused.
    """
    value = number(row, name, limits.SEQUENCE)
    if value is not None and value < 1:
        raise Refused(f"{name} is {value:g}; it must be at least 1")
    return None if value is None else int(value)


def image_size(row: Row) -> Sizes:
    """The sides of images, () where they are not told: one number is a square.

    Raises: Refused.
    """
    numbers = [int(text) for text in re.findall(r"\d+", cell(row, "image_size"))]
    if not all(0 < side <= limits.PIXELS for side in numbers):
        raise Refused(f"image_size is {cell(row, 'image_size')}; sides have 1 to {limits.PIXELS:,} pixels")
    return tuple(numbers * 2) if len(numbers) == 1 else tuple(numbers)


def identify(row: Row, *, for_memory: bool = False) -> tuple[str, Sizes]:
    """Name and sizes of a row's network.

    Raises: Refused with the reason where it is of no kind that can be built.
    """
    found = _detector(row, for_memory) or _named(row) or _hugging_face(row)
    if found is None:
        name = cell(row, "model") or "nothing"
        raise Refused(f"{cell(row, 'task') or 'no task'}: no network that can be built is called {name!r}")
    return found


def _detector(row: Row, for_memory: bool) -> tuple[str, Sizes] | None:
    detector, backbone, neck = (cell(row, name) for name in ("detector", "backbone", "neck"))
    size = image_size(row)
    if not BACKBONE.fullmatch(backbone):
        return None
    if detector == "ssd300":
        return f"ssd:{backbone}", size or (300, 300)
    if size[:2] in ((800, 1333), (800, 800), ()):
        size = DETECTION_MOST if for_memory else DETECTION_MEAN
    # Pyramids need whole numbers of their coarsest cells.
    size = tuple(-(-side // 32) * 32 for side in size)
    # Norms are fixed; these compute them as a product and a sum, which keep nothing for backward.
    own = cell(row, "engine") == "deeplearning_examples" and cell(row, "stack") == "torch"
    scale = ",scale" if own or cell(row, "engine") in SCALING else ""
    if detector == "retinanet":
        return f"retina:{backbone}{scale}", size
    if detector in DETECTORS:
        boxes, masks = DETECTORS[detector]
        fast = ",fast" if detector == "fast_rcnn" else ""
        return f"rcnn:{backbone},{neck or 'fpn'},{boxes},{masks}{fast}{scale}", size
    return None


def _named(row: Row) -> tuple[str, Sizes] | None:
    model = cell(row, "model")
    plain = model.lower()
    size = image_size(row)
    if BACKBONE.fullmatch(plain):
        return f"classifier:{plain}", size or (224, 224)
    if plain.startswith("transformer-xl"):
        options, usual = TRANSFORMER_XL["large" if "large" in plain else "base"]
        # Described by its layers alone it is run with the whole softmax, over vectors as wide as the layers: the
        # scripts of lambdal/deeplearning-benchmark.
        options = f"{options[:-1]}1,whole" if "layers" in plain else options
        return f"transformer-xl:{options}", (length(row, "seq_len") or usual,)
    if plain.startswith("waveglow"):
        return "waveglow:512", (length(row, "seq_len") or 8000,)
    if plain.startswith("gnmt"):
        return "gnmt", (length(row, "seq_len") or 50,)
    if plain.startswith("u-net") and size:
        return ("unet:industrial" if "industrial" in plain else "unet:image"), size
    if plain.startswith("3d u-net") and size:
        return "unet:volume", size
    if plain.startswith("v-net") and size:
        return "vnet", size
    for name, network in RECOMMENDERS.items():
        if model.startswith(name):
            return network, ()
    return None


def _hugging_face(row: Row) -> tuple[str, Sizes] | None:
    kind, head, text = cell(row, "hf_model_type"), cell(row, "hf_auto_class"), cell(row, "model_config")
    if not kind or head not in HEADS:
        return None
    try:
        config = json.loads(text or "{}")
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise Refused("model_config is not a JSON object")
    kernel = cell(row, "attention_kernel")
    attention = {"attention": "sdpa"} if kernel not in ("", "unfused", "eager", "math") else {}
    description = {"type": kind, "config": config, "head": head, **attention}
    if "ImageClassification" in head:
        size = image_size(row)
        if not size:
            return None
        if kind in ("vit", "deit", "swin", "swinv2", "beit", "levit", "dinov2"):
            config.setdefault("image_size", size[0])
        return f"hf:{json.dumps(description, sort_keys=True)}", size
    words = length(row, "seq_len")
    if words is None:
        return None
    return f"hf:{json.dumps(description, sort_keys=True)}", (words, length(row, "decoder_seq_len") or words)
