"""Multilayer perceptron."""

import math
from itertools import pairwise
from typing import ClassVar

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from lmc.architecture.initialise import Initialisation, draw_weights
from lmc.architecture.norm import Norm, has_bias, norm1d


class MLP(nn.Module):
    """`depth` hidden layers of `width` ReLU units on the flattened image, then a linear layer.

    With width 512, depth 3, no normalisation and LeCun's initialisation it is the MLP of Git Re-Basin (Ainsworth et al.
    2023; flax's default, there truncated at two deviations).

    Args:
        input_shape: (C, H, W) of an image.
        classes: number of outputs.
        width: units in each hidden layer.
        depth: number of hidden layers.
        norm: between a hidden layer and its ReLU.
        initialisation: normal, of variance 2 / inputs ("he": He et al. 2015) or 1 / inputs ("lecun"), in the last layer
            1 / inputs, biases 0; or PyTorch's own ("torch"): uniform, of variance 1 / (3 inputs), biases too.
    """

    absent_at_default: ClassVar[frozenset[str]] = frozenset({"initialisation"})

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        width: PositiveInt = 512,
        depth: PositiveInt = 3,
        norm: Norm = "none",
        initialisation: Initialisation = "he",
    ) -> None:
        super().__init__()
        sizes = [math.prod(input_shape), *[width] * depth]
        self.hidden = nn.ModuleList(
            nn.Linear(inputs, outputs, bias=has_bias(norm)) for inputs, outputs in pairwise(sizes)
        )
        self.norms = nn.ModuleList(norm1d(norm, width) for _ in range(depth))
        self.classifier = nn.Linear(width, classes)
        draw_weights(self, self.classifier, "fan_in", initialisation)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes) of normalised images (B, C, H, W)."""
        x = images.flatten(1)
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            x = functional.relu(norm(layer(x)))
        logits: Tensor = self.classifier(x)
        return logits
