"""Residual networks for small images."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from lmc.architecture.initialise import draw_normal
from lmc.architecture.norm import Norm, conv, norm2d, scaled
from lmc.errors import UserError

CHANNELS = (16, 32, 64)


class ResNet(nn.Module):
    """ResNet of He et al. (2016, section 4.2) for CIFAR.

    A 3 x 3 convolution, three stages of residual blocks with 16, 32 and 64 channels, the mean over positions, a linear
    layer.

    A block is conv-norm-ReLU-conv-norm, the shortcut is added, then ReLU. The first block of the second and of the
    third stage halves the feature map; its shortcut is a 1 x 1 convolution with a normalisation (option B), as in Tatro
    et al. (2020) and REPAIR. (Git Re-Basin has 3 x 3 there; the original, option A, pads with zeros and has no
    parameter.) Weights are drawn as He et al. (2015) do for ReLU (normal, variance 2 / fan out; 1 / inputs in the last
    layer), biases are 0. Without a normalisation the last convolution of each of the L blocks starts L**(-1/2) times
    smaller, which keeps the variance bounded (Hayou et al. 2021, "Stable ResNet").

    Args:
        input_shape: (C, H, W) of an image.
        classes: number of outputs.
        depth: 6 n + 2 for n blocks in each stage: 20, 32, 44, ...
        width: multiplier of all channels.
        norm: after each convolution.

    Raises:
        UserError: `depth` is not 6 n + 2.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        depth: Annotated[int, Field(ge=8)] = 20,
        width: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise UserError(f"architecture.depth={depth}: a ResNet has 6 n + 2 layers; give 8, 14, 20, 26, 32, ...")
        blocks = (depth - 2) // 6
        channels = scaled(CHANNELS[0], width)
        self.conv = conv(input_shape[0], channels, 3, norm, padding=1)
        self.norm = norm2d(norm, channels)
        stack: list[Block] = []
        for stage, base in enumerate(CHANNELS):
            outputs = scaled(base, width)
            for block in range(blocks):
                halve = stage > 0 and block == 0
                stack.append(Block(channels, outputs, norm, stride=2 if halve else 1, project=halve))
                channels = outputs
        self.blocks = nn.ModuleList(stack)
        self.classifier = nn.Linear(channels, classes)
        draw_normal(self, self.classifier, "fan_out")
        if norm == "none":
            with torch.no_grad():
                for unit in stack:
                    unit.conv2.weight /= math.sqrt(len(stack))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes) of normalised images (B, C, H, W)."""
        x = functional.relu(self.norm(self.conv(images)))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: the identity, or with `project` a 1 x 1 convolution and its norm."""

    def __init__(self, inputs: int, outputs: int, norm: Norm, *, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, norm, stride=stride, padding=1)
        self.norm1 = norm2d(norm, outputs)
        self.conv2 = conv(outputs, outputs, 3, norm, padding=1)
        self.norm2 = norm2d(norm, outputs)
        self.shortcut = (
            nn.Sequential(conv(inputs, outputs, 1, norm, stride=stride), norm2d(norm, outputs))
            if project
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's feature map: (B, inputs, H, W) to (B, outputs, H / stride, W / stride), rounded up."""
        branch = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(branch + self.shortcut(x))
