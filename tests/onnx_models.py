"""Small torch models and their ONNX files, for tests of the import; run it to try more models and both exporters.

python -m tests.onnx_models
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

LENGTH = 24


class Cnn(nn.Module):
    """Grouped and transposed convolutions, and a norm."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, groups=4)
        self.up = nn.ConvTranspose2d(16, 8, 4, stride=2, groups=2)
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.grouped(torch.relu(self.norm(self.first(images)))))
        return self.head(self.up(hidden).mean((2, 3)))


class Recurrent(nn.Module):
    """Two layers, both directions."""

    def __init__(self, kind: str):
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.layers = getattr(nn, kind)(16, 24, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(48, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(tokens))[0])


class Einsum(nn.Module):
    """A projection to heads by an equation."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 8, 12))

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.einsum("bsi,hio->bhso", hidden, self.weight)


class Output(nn.Module):
    """A model of transformers, of one input and one output."""

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, data: Tensor) -> Tensor:
        return self.model(**{self.name: data}, return_dict=False)[0]


def hugging_face(kind: str, **more) -> nn.Module:
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config, model, name = {
        "bert": ("BertConfig", "BertForSequenceClassification", "input_ids"),
        "vit": ("ViTConfig", "ViTForImageClassification", "pixel_values"),
        "llama": ("LlamaConfig", "LlamaForCausalLM", "input_ids"),
    }[kind]
    more |= {"use_cache": False} if kind == "llama" else {}
    return Output(getattr(transformers, model)(getattr(transformers, config)(**sizes, **more)), name)


def built(kind: str) -> tuple[nn.Module, Tensor]:
    """A model with weights that no exporter takes for equal, and two samples of its input."""
    torch.manual_seed(0)
    tokens, images = torch.zeros(2, LENGTH, dtype=torch.long), torch.zeros(2, 3, 32, 32)
    model, data = {
        "bert": lambda: (hugging_face("bert", vocab_size=100), tokens),
        "vit": lambda: (hugging_face("vit", image_size=32, patch_size=8), images),
        "llama": lambda: (hugging_face("llama", num_key_value_heads=2, vocab_size=100), tokens),
        "tied llama": lambda: (
            hugging_face("llama", vocab_size=100, use_cache=False, tie_word_embeddings=True),
            tokens,
        ),
        "cnn": lambda: (Cnn(), images),
        "lstm": lambda: (Recurrent("LSTM"), tokens),
        "gru": lambda: (Recurrent("GRU"), tokens),
        "rnn": lambda: (Recurrent("RNN"), tokens),
        "einsum": lambda: (Einsum(), torch.zeros(2, LENGTH, 8)),
    }[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    return model.eval(), data


def counted(model: nn.Module, data: Tensor) -> int:
    """FLOPs of one sample by torch's counter, every product written out."""
    plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fused = torch.backends.mkldnn.flags(enabled=False)
        with FlopCounterMode(display=False) as counter, fused, plain, torch.no_grad():
            model(data[:1])
    return counter.get_total_flops()


def export(model: nn.Module, data: Tensor, path: Path, *, dynamo: bool, opset: int = 0) -> Path:
    """The ONNX file of a model, for any batch and any length of tokens."""
    named = {0: "batch", 1: "sequence"} if not data.is_floating_point() else {0: "batch"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            dynamic = (dict.fromkeys(named, torch.export.Dim.DYNAMIC),)
            own = {"dynamo": True, "dynamic_shapes": dynamic, "external_data": False, "verbose": False}
        else:
            own = {"dynamo": False, "dynamic_axes": {"data": named}, "input_names": ["data"]}
        torch.onnx.export(model, (data,), str(path), opset_version=opset or (18 if dynamo else 17), **own)
    return path


def main() -> None:
    from profiles.onnx_files.counting import profile_onnx

    print("model, exporter, opset: FLOPs, torch's; parameters, the model's")
    with tempfile.TemporaryDirectory() as folder:
        for kind in sys.argv[1:] or ("bert", "vit", "llama", "tied llama", "cnn", "lstm", "gru", "rnn", "einsum"):
            model, data = built(kind)
            own = sum(parameter.numel() for parameter in model.parameters())
            for dynamo, opset in ((False, 17), (True, 18), (True, 23)):
                try:
                    path = export(model, data, Path(folder, "model.onnx"), dynamo=dynamo, opset=opset)
                except Exception as error:
                    print(
                        f"{kind}, dynamo {dynamo}, {opset}: not exported ({str(error).strip().splitlines()[-1][:80]})"
                    )
                    continue
                found, _ = profile_onnx(path, LENGTH, {})
                print(
                    f"{kind}, dynamo {dynamo}, {opset}: {found.flops:.0f} {counted(model, data)}; "
                    f"{found.num_parameters} {own}; {found.notes[1:]}"
                )


if __name__ == "__main__":
    main()
