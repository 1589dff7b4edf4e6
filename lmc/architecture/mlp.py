"""Multilayer perceptron."""

import math
from itertools import pairwise

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from lmc.architecture.initialise import he_normal
from lmc.architecture.norm import Norm, has_bias, norm1d


class MLP(nn.Module):
    """`depth` hidden layers of `width` ReLU units on the flattened image, then a linear layer.

    With width 512, depth 3 and no normalisation it is the MLP of Git Re-Basin (Ainsworth et al. 2023). Weights are
    drawn as He et al. (2015) do for ReLU (normal, variance 2 / inputs; 1 / inputs in the last layer), biases are 0.

    Args:
        input_shape: (C, H, W) of an image.
        classes: number of outputs.
        width: units in each hidden layer.
        depth: number of hidden layers.
        norm: between a hidden layer and its ReLU.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        width: PositiveInt = 512,
        depth: PositiveInt = 3,
        norm: Norm = "none",
    ) -> None:
        super().__init__()
        sizes = [math.prod(input_shape), *[width] * depth]
        self.hidden = nn.ModuleList(
            nn.Linear(inputs, outputs, bias=has_bias(norm)) for inputs, outputs in pairwise(sizes)
        )
        self.norms = nn.ModuleList(norm1d(norm, width) for _ in range(depth))
        self.classifier = nn.Linear(width, classes)
        he_normal(self, self.classifier, "fan_in")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes) of normalised images (B, C, H, W)."""
        x = images.flatten(1)
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            x = functional.relu(norm(layer(x)))
        logits: Tensor = self.classifier(x)
        return logits
