"""VGG networks for small images."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt
from torch import Tensor, nn
from torch.nn import functional

from lmc.architecture.initialise import draw_weights
from lmc.architecture.norm import Norm, conv, norm2d, scaled
from lmc.errors import UserError

CHANNELS = (64, 128, 256, 512, 512)
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions in each stage, by depth (Simonyan & Zisserman 2015, Table 1: columns A, B, D, E)."""

SMALLEST = 32
"""Five poolings halve the side of an image down to 1."""


class VGG(nn.Module):
    """Five stages of 3 x 3 convolutions, each stage closed by a 2 x 2 max pooling, then linear layers.

    The classifier is one of those in use for small images: `classifier_depth` hidden linear layers with ReLU, as wide
    as the last convolution, and a linear layer. 2 of 512 is that of Garipov et al. (2018, without their dropout) and of
    Git Re-Basin's width ablation; 0 is that of REPAIR (Jordan et al. 2023). The feature map is flattened, channels
    first: an image of 64 x 64 gives four features for each channel. Weights are drawn as He et al. (2015) do for ReLU
    (normal, variance 2 / inputs; 1 / inputs in the last layer), biases are 0.

    Args:
        input_shape: (C, H, W) of an image.
        classes: number of outputs.
        depth: convolutions plus three, the name that the paper gives.
        width: multiplier of all channels and of the hidden linear layers.
        norm: between a convolution and its ReLU; the hidden linear layers have none.
        classifier_depth: number of hidden linear layers.

    Raises:
        UserError: the image is smaller than 32 x 32.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        depth: Literal[11, 13, 16, 19] = 16,
        width: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0,
        norm: Norm = "batch",
        classifier_depth: NonNegativeInt = 2,
    ) -> None:
        super().__init__()
        channels, height, side = input_shape
        if min(height, side) < SMALLEST:
            raise UserError(
                f"architecture vgg{depth} needs images of at least {SMALLEST} x {SMALLEST} pixels, these are "
                f"{height} x {side}; choose another dataset or architecture"
            )
        self.stages = nn.ModuleList()
        for base, count in zip(CHANNELS, STAGES[depth], strict=True):
            outputs = scaled(base, width)
            self.stages.append(Stage(channels, outputs, count, norm))
            channels = outputs
        features = channels * (height // 32) * (side // 32)
        sizes = [features, *[channels] * classifier_depth]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.classifier = nn.Linear(sizes[-1], classes)
        draw_weights(self, self.classifier, "fan_in")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes) of normalised images (B, C, H, W)."""
        x = images
        for stage in self.stages:
            x = stage(x)
        x = x.flatten(1)
        for layer in self.hidden:
            x = functional.relu(layer(x))
        logits: Tensor = self.classifier(x)
        return logits


class Stage(nn.Module):
    """`count` convolutions, each with a normalisation and ReLU, then 2 x 2 max pooling."""

    def __init__(self, inputs: int, outputs: int, count: int, norm: Norm) -> None:
        super().__init__()
        widths = [inputs, *[outputs] * count]
        self.convs = nn.ModuleList(conv(a, b, 3, norm, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(norm2d(norm, outputs) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled feature map: (B, inputs, H, W) to (B, outputs, H // 2, W // 2)."""
        for layer, norm in zip(self.convs, self.norms, strict=True):
            x = functional.relu(norm(layer(x)))
        return functional.max_pool2d(x, 2)
