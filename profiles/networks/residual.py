"""Residual convolutional networks: ResNet, ResNeXt, with squeeze-and-excitation, whole or as a detector's backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

# Those that are made of bottlenecks.
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
EXPANSION = 4


def convolution(inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1, gap: int = 1) -> nn.Conv2d:
    """A convolution that keeps the image's size at stride 1, without bias."""
    padding = gap * (size // 2)
    return nn.Conv2d(inputs, outputs, size, stride, padding, groups=groups, dilation=gap, bias=False)


class Squeeze(nn.Module):
    """Channels scaled by what their means say."""

    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, narrow), nn.Linear(narrow, channels)

    def forward(self, image: Tensor) -> Tensor:
        """The scaled image."""
        mean = image.mean((2, 3))
        scale = torch.sigmoid(self.up(functional.relu(self.down(mean))))
        return image * scale[:, :, None, None]


class Bottleneck(nn.Module):
    """Three convolutions around a shortcut; `width` channels within; `early` strides in the first of them."""

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int,
        stride: int = 1,
        groups: int = 1,
        gap: int = 1,
        squeeze: bool = False, early: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.first, self.norm1 = convolution(inputs, width, 1, stride if early else 1), nn.BatchNorm2d(width)
        later = 1 if early else stride
        self.second, self.norm2 = convolution(width, width, 3, later, groups, gap), nn.BatchNorm2d(width)
        self.third, self.norm3 = convolution(width, outputs), nn.BatchNorm2d(outputs)
        self.squeeze = Squeeze(outputs, outputs // 16) if squeeze else nn.Identity()
        is_same = inputs == outputs and stride == 1
        other = nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if is_same else other

    def forward(self, image: Tensor) -> Tensor:
        """The block's result."""
        kept = self.shortcut(image)
        image = functional.relu(self.norm1(self.first(image)), inplace=True)
        image = functional.relu(self.norm2(self.second(image)), inplace=True)
        image = self.squeeze(self.norm3(self.third(image)))
        return functional.relu(image + kept, inplace=True)


class Residual(nn.Module):
    """A residual network of bottlenecks; returns the results of all stages.

    `width` is that of a group in the first stage; `strides` are those of the stages, 1 with gaps where it is dilated.
    """

    def __init__(
        self, depth: int = 50, groups: int = 1, width: int = 64, squeeze: bool = False,
        strides: Sequence[int] = (1, 2, 2, 2), stages: int = 4, gaps: Sequence[int] = (1, 1, 1, 1),
        early: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.stages = nn.ModuleList()
        channels = 64
        for stage, count in enumerate(DEPTHS[depth][:stages]):
            outputs, inner = 64 * EXPANSION * 2**stage, groups * width * 2**stage
            blocks = []
            for block in range(count):
                stride = strides[stage] if block == 0 else 1
                blocks.append(Bottleneck(channels, inner, outputs, stride, groups, gaps[stage], squeeze, early))
                channels = outputs
            self.stages.append(nn.Sequential(*blocks))
        self.channels = [64 * EXPANSION * 2**stage for stage in range(stages)]

    def forward(self, image: Tensor) -> list[Tensor]:
        """The results of the stages."""
        image = functional.max_pool2d(functional.relu(self.norm(self.stem(image)), inplace=True), 3, 2, 1)
        results = []
        for stage in self.stages:
            image = stage(image)
            results.append(image)
        return results


class Classifier(nn.Module):
    """A residual network with a head of classes; its loss of images and labels."""

    def __init__(self, backbone: Residual, classes: int = 1000) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(backbone.channels[-1], classes)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        """The loss."""
        return functional.cross_entropy(self.head(self.backbone(pixel_values)[-1].mean((2, 3))), labels)


class Scale(nn.Module):
    """A fixed norm as Detectron 2 computes it: times a scale, plus a shift."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.empty(1, channels, 1, 1))
        self.register_buffer("shift", torch.empty(1, channels, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """The scaled image."""
        return image * self.get_buffer("scale").to(image.dtype) + self.get_buffer("shift").to(image.dtype)


def freeze(backbone: Residual, stages: int, by_scale: bool = False) -> Residual:
    """The backbone with its stem and first stages fixed, and norms that only scale, as detectors train it."""
    for owner in list(backbone.modules()):
        for name, module in list(owner.named_children()):
            if not isinstance(module, nn.BatchNorm2d):
                continue
            if by_scale:
                setattr(owner, name, Scale(module.num_features))
                continue
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign,misc]
            for parameter in module.parameters():
                parameter.requires_grad_(False)
    fixed: list[nn.Module] = [backbone.stem, *backbone.stages[:stages]]
    for part in fixed:
        for parameter in part.parameters():
            parameter.requires_grad_(False)
    return backbone
