"""Drawn images for tests and trials: a smooth pattern for each class, plus noise."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch.nn import functional

from lmc import seeding
from lmc.dataset.images import Images
from lmc.dataset.source import Raw, Source


@dataclass(frozen=True, kw_only=True)
class Synthetic(Source):
    """Images of a class are one smooth random pattern plus independent noise in each pixel; the classes are balanced.

    Args:
        examples: number of training images, before any are held back for validation.
        test_examples: number of test images, of the same patterns.
        classes: number of classes.
        channels: channels of an image.
        size: height and width in pixels.
        noise: standard deviation of the noise, as a part of the range from black to white.
        seed: which patterns and which noise.
    """

    examples: PositiveInt = 512
    test_examples: PositiveInt = 256
    classes: Annotated[int, Field(ge=2)] = 10
    channels: PositiveInt = 3
    size: PositiveInt = 16
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.2
    seed: NonNegativeInt = 0

    def read(self) -> Raw:
        """Return the drawn images, (N, channels, size, size)."""
        generator = seeding.generator(self.seed, "synthetic", "patterns")
        coarse = torch.rand(self.classes, self.channels, 4, 4, generator=generator)
        patterns = functional.interpolate(coarse, size=(self.size, self.size), mode="bilinear", align_corners=False)
        train, test = self._draw(patterns, self.examples, "train"), self._draw(patterns, self.test_examples, "test")
        return Raw("synthetic", train, test, self.classes)

    def _draw(self, patterns: torch.Tensor, count: int, split: str) -> Images:
        generator = seeding.generator(self.seed, "synthetic", split)
        labels = torch.arange(count)[torch.randperm(count, generator=generator)] % self.classes
        noise = self.noise * torch.randn(count, *patterns.shape[1:], generator=generator)
        pixels = ((patterns[labels] + noise) * 255).round().clamp(0, 255)
        return Images(pixels.to(torch.uint8), labels)
