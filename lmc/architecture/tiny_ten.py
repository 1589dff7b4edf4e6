"""TinyTen, the small convolutional network of Tatro et al. (2020)."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from lmc.architecture.norm import Norm, conv, norm2d, scaled
from lmc.errors import UserError

LAYERS = (
    (16, 3, 1, 1),
    (16, 3, 1, 1),
    (32, 3, 2, 1),
    (32, 3, 1, 1),
    (32, 3, 1, 1),
    (64, 3, 2, 1),
    (64, 3, 1, 0),
    (64, 1, 1, 0),
)
"""Channels, kernel, stride and padding of the convolutions (NeuronAlignment, models/tiny_ten.py)."""

SMALLEST = 9
"""The smallest side of an image that leaves a feature map of 3 x 3 to the seventh convolution, which does not pad."""


class TinyTen(nn.Module):
    """Ten layers: eight convolutions, each with a normalisation and ReLU, the mean over positions, a linear layer.

    The convolutions have 16, 16, 32, 32, 32, 64, 64, 64 channels; the third and the sixth halve the feature map;
    kernels are 3 x 3 but for the last, 1 x 1. 0.09 million parameters at width 1. The same for any number of classes:
    the published curve network differs from its endpoints at 200 classes (stride and padding of the seventh
    convolution); this one does not exist twice. Unlike there, a convolution before BatchNorm has no bias, which would
    not matter. Weights are drawn after Glorot & Bengio (2010; normal), biases are 0, as published.

    Args:
        input_shape: (C, H, W) of an image.
        classes: number of outputs.
        width: multiplier of all channels.
        norm: between a convolution and its ReLU; the published one is "batch".

    Raises:
        UserError: the image is smaller than 9 x 9.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        width: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        channels, *sides = input_shape
        if min(sides) < SMALLEST:
            raise UserError(
                f"architecture tiny_ten needs images of at least {SMALLEST} x {SMALLEST} pixels, these are "
                f"{sides[0]} x {sides[1]}; choose another dataset, or architecture=mlp"
            )
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for base, kernel, stride, padding in LAYERS:
            outputs = scaled(base, width)
            self.convs.append(conv(channels, outputs, kernel, norm, stride=stride, padding=padding))
            self.norms.append(norm2d(norm, outputs))
            channels = outputs
        self.classifier = nn.Linear(channels, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes) of normalised images (B, C, H, W)."""
        x = images
        for layer, norm in zip(self.convs, self.norms, strict=True):
            x = functional.relu(norm(layer(x)))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits
