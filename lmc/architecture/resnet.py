"""Residual networks for small images."""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from lmc.architecture.initialise import draw_weights
from lmc.architecture.norm import Norm, conv, norm2d, scaled
from lmc.errors import UserError

CHANNELS = (16, 32, 64)


class ResNet(nn.Module):
    """ResNet of He et al. (2016) for small images.

    A 3 x 3 convolution, stages of as many residual blocks each, the mean over positions, a linear layer. Three stages
    with 16, 32 and 64 channels are the networks for CIFAR (section 4.2: ResNet20, 32, 44, ...); four with 64 to 512 and
    two blocks each are ResNet18 (section 3.4) without what shrinks large images at its start.

    A block is conv-norm-ReLU-conv-norm, the shortcut is added, then ReLU. The first block of every stage but the first
    halves the feature map; its shortcut is a convolution with a normalisation, 1 x 1 (option B) as in Tatro et al.
    (2020), or 3 x 3 as in the code of Git Re-Basin and REPAIR. (Option A of the original pads with zeros and has no
    parameter.) Weights are drawn as He et al. (2015) do for ReLU (normal, variance 2 / fan out; 1 / inputs in the last
    layer), biases are 0. Without a normalisation the last convolution of each of the L blocks starts L**(-1/2) times
    smaller, which keeps the variance bounded (Hayou et al. 2021, "Stable ResNet").

    Args:
        input_shape: (C, H, W) of an image.
        classes: number of outputs.
        depth: 2 s n + 2 for s stages of n blocks: with three stages 20, 32, 44, ...
        width: multiplier of all channels.
        norm: after each convolution.
        channels: of each stage; the first convolution has those of the first stage.
        shortcut_kernel: side of the convolution in the shortcuts that halve the feature map.

    Raises:
        UserError: `depth` is not 2 s n + 2, or there is no stage.
    """

    absent_at_default: ClassVar[frozenset[str]] = frozenset({"channels", "shortcut_kernel"})

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        depth: PositiveInt = 20,
        width: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0,
        norm: Norm = "batch",
        channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = CHANNELS,
        shortcut_kernel: Literal[1, 3] = 1,
    ) -> None:
        super().__init__()
        blocks = blocks_of_a_stage(depth, each=2 * len(channels), rest=2, kind="ResNet")
        inputs = scaled(channels[0], width)
        self.conv = conv(input_shape[0], inputs, 3, norm, padding=1)
        self.norm = norm2d(norm, inputs)
        stack: list[Block] = []
        for stage, base in enumerate(channels):
            outputs = scaled(base, width)
            for block in range(blocks):
                halve = stage > 0 and block == 0
                kernel = shortcut_kernel if halve else None
                stack.append(Block(inputs, outputs, norm, stride=2 if halve else 1, shortcut_kernel=kernel))
                inputs = outputs
        self.blocks = nn.ModuleList(stack)
        self.classifier = nn.Linear(inputs, classes)
        draw_weights(self, self.classifier, "fan_out")
        if norm == "none":
            shrink_branches([unit.conv2 for unit in stack])

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes) of normalised images (B, C, H, W)."""
        x = functional.relu(self.norm(self.conv(images)))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def blocks_of_a_stage(depth: int, *, each: int, rest: int, kind: str) -> int:
    """Return n of `depth` = `each` n + `rest`, at least 1; `kind` names such a network.

    Raises:
        UserError: there is no such n.
    """
    blocks, left = divmod(depth - rest, each)
    if blocks < 1 or left:
        fitting = ", ".join(str(each * n + rest) for n in range(1, 6))
        raise UserError(f"architecture.depth={depth}: a {kind} has {each} n + {rest} layers; give {fitting}, ...")
    return blocks


def shrink_branches(last: Sequence[nn.Conv2d]) -> None:
    """Divide the weights of the `last` convolutions of all L residual branches by L**(1/2).

    Without a normalisation that keeps the variance of their sum bounded (Hayou et al. 2021, "Stable ResNet").
    """
    with torch.no_grad():
        for layer in last:
            layer.weight /= math.sqrt(len(last))


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: the identity, or a convolution of side `shortcut_kernel` and its norm."""

    def __init__(self, inputs: int, outputs: int, norm: Norm, *, stride: int, shortcut_kernel: int | None) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, norm, stride=stride, padding=1)
        self.norm1 = norm2d(norm, outputs)
        self.conv2 = conv(outputs, outputs, 3, norm, padding=1)
        self.norm2 = norm2d(norm, outputs)
        self.shortcut: nn.Module = nn.Identity()
        if shortcut_kernel is not None:
            layer = conv(inputs, outputs, shortcut_kernel, norm, stride=stride, padding=shortcut_kernel // 2)
            self.shortcut = nn.Sequential(layer, norm2d(norm, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's feature map: (B, inputs, H, W) to (B, outputs, H / stride, W / stride), rounded up."""
        branch = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(branch + self.shortcut(x))
