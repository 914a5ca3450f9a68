"""Detectors on residual backbones: SSD, RetinaNet, and the R-CNN family with or without a feature pyramid."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from profiles.networks.residual import Residual, convolution, freeze

# Proposals of an image in training, the quarter of them that hold objects, and side of what is cut out of the features.
PROPOSALS, POSITIVES, BOX_SIDE, MASK_SIDE = 512, 128, 7, 14
PYRAMID = 256


def cut_out(features: Tensor, boxes: int, side: int) -> Tensor:
    """Cells of `boxes` proposals of each image below one another, read and written as RoIAlign does."""
    grid = torch.zeros(features.shape[0], boxes * side, side, 2)
    return functional.grid_sample(features.float(), grid, align_corners=False)


def apart(cells: Tensor, boxes: int) -> Tensor:
    """Rows of proposals, each with all of its cells, from cells below one another."""
    batch, channels, _, side = cells.shape
    return (
        cells.view(batch, channels, boxes, side * side).transpose(1, 2).reshape(batch * boxes, channels * side * side)
    )


class Pyramid(nn.Module):
    """A feature pyramid over the stages of a backbone; `extra` coarser levels by convolutions or by leaving out."""

    def __init__(self, channels: list[int], extra: int = 1, by_convolution: bool = False) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Conv2d(one, PYRAMID, 1) for one in channels)
        self.outer = nn.ModuleList(nn.Conv2d(PYRAMID, PYRAMID, 3, padding=1) for _ in channels)
        widths = [channels[-1] if i == 0 else PYRAMID for i in range(extra)] if by_convolution else []
        self.coarser = nn.ModuleList(nn.Conv2d(width, PYRAMID, 3, 2, 1) for width in widths)
        self.extra = extra

    def forward(self, stages: list[Tensor]) -> list[Tensor]:
        """Levels from fine to coarse."""
        levels = [inner(stage) for inner, stage in zip(self.inner, stages, strict=True)]
        for i in range(len(levels) - 2, -1, -1):
            wider = functional.interpolate(levels[i + 1], size=levels[i].shape[2:], mode="nearest")
            levels[i] = levels[i] + wider
        levels = [outer(level) for outer, level in zip(self.outer, levels, strict=True)]
        last = stages[-1]
        for i in range(self.extra):
            last = self.coarser[i](last) if len(self.coarser) else functional.max_pool2d(levels[-1], 1, 2)
            levels.append(last)
        return levels


class Proposer(nn.Module):
    """The head that proposes boxes on every level."""

    def __init__(self, channels: int, width: int, anchors: int) -> None:
        super().__init__()
        self.shared = nn.Conv2d(channels, width, 3, padding=1)
        self.score, self.move = nn.Conv2d(width, anchors, 1), nn.Conv2d(width, 4 * anchors, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """The loss of all anchors."""
        total = torch.zeros(())
        for level in levels:
            state = functional.relu(self.shared(level))
            scores, moves = self.score(state).float(), self.move(state).float()
            # Scores are sorted and the best boxes thinned out; overlaps with objects pass through memory a few times.
            best = scores.detach().flatten(1).sort(1, descending=True)[0]
            total = total + functional.binary_cross_entropy_with_logits(scores, torch.zeros_like(scores))
            total = total + functional.smooth_l1_loss(moves, torch.zeros_like(moves)) + 0 * best.sum()
        return total


class TwoLinears(nn.Module):
    """The head of boxes on a pyramid, and one stage of a cascade."""

    def __init__(self, classes: int, channels: int = PYRAMID) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(channels * BOX_SIDE**2, 1024), nn.Linear(1024, 1024)
        self.score, self.move = nn.Linear(1024, classes + 1), nn.Linear(1024, 4 * classes)

    def forward(self, cells: Tensor) -> Tensor:
        """The loss of cut-out proposals."""
        state = functional.relu(self.second(functional.relu(self.first(cells))))
        scores, moves = self.score(state).float(), self.move(state).float()
        target = torch.zeros(scores.shape[0], dtype=torch.long)
        return functional.cross_entropy(scores, target) + functional.smooth_l1_loss(moves, torch.zeros_like(moves))


class MaskHead(nn.Module):
    """Four convolutions, one that doubles the side, and a mask per class (or key points)."""

    def __init__(self, classes: int, channels: int = PYRAMID, layers: int = 4, width: int = 256) -> None:
        super().__init__()
        sizes = [channels, *[width] * layers]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes))
        self.twice, self.masks = nn.ConvTranspose2d(sizes[-1], width, 2, 2), nn.Conv2d(width, classes, 1)

    def forward(self, cells: Tensor) -> Tensor:
        """The loss of cut-out objects."""
        for layer in self.layers:
            cells = functional.relu(layer(cells))
        masks = self.masks(functional.relu(self.twice(cells))).float()
        return functional.binary_cross_entropy_with_logits(masks, torch.zeros_like(masks))


class Rcnn(nn.Module):
    """Faster, Mask, Keypoint and Cascade R-CNN: `neck` fpn, c4 or dc5; `boxes` False proposes only."""

    def __init__(
        self, backbone: Residual, neck: str = "fpn", classes: int = 80, boxes: int = 1, masks: int = 0,
        fixed_stages: int = 1, by_scale: bool = False, proposes: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.neck_name = neck
        self.backbone = freeze(backbone, fixed_stages, by_scale)
        last = backbone.channels[-1]
        self.neck = Pyramid(backbone.channels) if neck == "fpn" else nn.Identity()
        width = PYRAMID if neck == "fpn" else last
        inner = {"fpn": PYRAMID, "c4": 1024}.get(neck, 256)
        self.proposer = Proposer(width, inner, 3 if neck == "fpn" else 15)
        self.proposes = proposes
        self.tail = None
        if neck == "c4" and boxes:
            whole = freeze(Residual(50, early=True), 0, by_scale)
            self.tail = whole.stages[3]
            self.head = nn.Linear(2048, 5 * classes + 1)
        self.boxes = nn.ModuleList(TwoLinears(classes, width) for _ in range(boxes if neck != "c4" else 0))
        deep = (2048, 0) if neck == "c4" else (width, 4)
        self.masks = nn.ModuleList(MaskHead(classes, *deep) for _ in range(masks))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The loss of images, with as many proposals and objects as training takes at most."""
        stages = self.backbone(pixel_values)
        levels = self.neck(stages) if self.neck_name == "fpn" else [stages[-1]]
        total = self.proposer(levels) if self.proposes else torch.zeros(())
        if self.tail is not None:
            state = self.tail(cut_out(levels[0], PROPOSALS, 2 * BOX_SIDE))
            means = functional.avg_pool2d(state, BOX_SIDE).flatten(2).transpose(1, 2).flatten(0, 1)
            scores = self.head(means).float()
            total = total + functional.cross_entropy(scores, torch.zeros(scores.shape[0], dtype=torch.long))
            for head in self.masks:
                total = total + head(state[:, :, : state.shape[2] // 4])
            return total
        usable = levels[:4] if self.neck_name == "fpn" else levels
        for head in self.boxes:
            count = PROPOSALS // len(usable)
            rows = torch.cat([apart(cut_out(level, count, BOX_SIDE), count) for level in usable])
            total = total + head(rows)
        for head in self.masks:
            cells = torch.cat([cut_out(level, POSITIVES // len(usable), MASK_SIDE) for level in usable])
            total = total + head(cells)
        return total


class RetinaNet(nn.Module):
    """One-stage detector on a pyramid of five levels, two towers of four convolutions."""

    def __init__(self, backbone: Residual, classes: int = 80, anchors: int = 9, by_scale: bool = False) -> None:
        super().__init__()
        self.backbone = freeze(backbone, 1, by_scale)
        self.neck = Pyramid(backbone.channels[1:], 2, by_convolution=True)
        self.classes_tower, self.boxes_tower = (
            nn.Sequential(
                *(layer for _ in range(4) for layer in (nn.Conv2d(PYRAMID, PYRAMID, 3, padding=1), nn.ReLU()))
            )
            for _ in range(2)
        )
        self.score = nn.Conv2d(PYRAMID, anchors * classes, 3, padding=1)
        self.move = nn.Conv2d(PYRAMID, anchors * 4, 3, padding=1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The focal loss of all anchors."""
        total = torch.zeros(())
        for level in self.neck(self.backbone(pixel_values)[1:]):
            for tower, last in ((self.classes_tower, self.score), (self.boxes_tower, self.move)):
                result = last(tower(level)).float()
                share = torch.sigmoid(result)
                loss = functional.binary_cross_entropy_with_logits(result, torch.zeros_like(result), reduction="none")
                total = total + (loss * share**2).sum()
        return total


class Ssd(nn.Module):
    """SSD300 on a residual network cut after its third stage, which keeps stride 8."""

    def __init__(self, backbone: Residual, classes: int = 81) -> None:
        super().__init__()
        self.backbone = backbone
        self.extra = nn.ModuleList()
        plan = (
            (1024, 256, 512, 2, 1),
            (512, 256, 512, 2, 1),
            (512, 128, 256, 2, 1),
            (256, 128, 256, 1, 0),
            (256, 128, 256, 1, 0),
        )
        for inputs, inner, outputs, stride, pad in plan:
            self.extra.append(
                nn.Sequential(
                    convolution(inputs, inner),
                    nn.BatchNorm2d(inner),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(inner, outputs, 3, stride, pad, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(inplace=True),
                )
            )
        widths, anchors = (1024, 512, 512, 256, 256, 256), (4, 6, 6, 6, 4, 4)
        self.move = nn.ModuleList(nn.Conv2d(a, 4 * b, 3, padding=1) for a, b in zip(widths, anchors, strict=True))
        self.score = nn.ModuleList(
            nn.Conv2d(a, classes * b, 3, padding=1) for a, b in zip(widths, anchors, strict=True)
        )
        self.classes = classes

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The loss of 8,732 boxes, the worst negatives chosen by sorting."""
        levels = [self.backbone(pixel_values)[-1]]
        for block in self.extra:
            levels.append(block(levels[-1]))
        batch = pixel_values.shape[0]
        moves = torch.cat([head(level).view(batch, 4, -1) for head, level in zip(self.move, levels, strict=True)], 2)
        scored = [head(level).view(batch, self.classes, -1) for head, level in zip(self.score, levels, strict=True)]
        scores = torch.cat(scored, 2)
        target = torch.zeros(batch, scores.shape[2], dtype=torch.long)
        loss = functional.cross_entropy(scores.float(), target, reduction="none")
        ranks = loss.detach().sort(1, descending=True)[1].sort(1)[1]
        near = functional.smooth_l1_loss(moves.float(), torch.zeros_like(moves).float(), reduction="none").sum(1)
        return (loss * (ranks < 100)).sum() + near.sum()
