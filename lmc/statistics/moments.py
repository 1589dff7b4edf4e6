"""Mean and variance of every channel, pooled over all batches: sums are divided once, variances never averaged."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.seeding import generator


@dataclass(frozen=True)
class Moments:
    """First two moments of a sample of `count` values in each of C channels.

    Attributes:
        count: values a channel (examples times positions).
        mean: (C,) float64.
        squares: (C,) float64, sum of squared deviations from the mean.
    """

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, values: Tensor, dim: int) -> "Moments":
        """Return the moments of `values`, whose dimension `dim` numbers the channels.

        The deviations are taken from the mean before they are squared, so nothing cancels (in float32; this is also
        five times as fast on a CPU as `torch.var_mean` over the dimensions of a feature map).
        """
        others = [d for d in range(values.ndim) if d != dim % values.ndim]
        mean = values.mean(others, keepdim=True)
        squares = (values - mean).square_().sum(others)
        return cls(values.numel() // values.shape[dim], wide(mean.flatten()), wide(squares))

    def __add__(self, other: "Moments") -> "Moments":
        """Return the moments of both samples together (Chan, Golub, LeVeque 1983)."""
        count = self.count + other.count
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        return Moments(count, mean, self.squares + other.squares + step**2 * (self.count * other.count / count))

    @property
    def deviation(self) -> Tensor:
        """(C,) standard deviation of the sample (squares divided by the count)."""
        return (self.squares / self.count).sqrt()


class Pool(dict[str, Moments]):
    """Moments by the name of the layer they were taken at."""

    def add(self, name: str, moments: Moments) -> None:
        """Pool `moments` with what is known of `name`."""
        self[name] = self[name] + moments if name in self else moments


def wide(values: Tensor) -> Tensor:
    """Return `values` as float64 for sums that run over a whole data set (on the CPU where the device has none)."""
    return values.to("cpu" if values.device.type == "mps" else values.device, torch.float64)


@dataclass(frozen=True)
class Calibration:
    """Training images in the batches of one pass; can be iterated any number of times, always with the same images.

    The order is random but always the same, so that a data set sorted by class still gives mixed batches. Batches
    differ by at most one image in size: a last batch of a few images would have statistics of its own.

    Args:
        dataset: where the images come from; batches lie on its device.
        examples: how many images, a fixed stratified subset; None: all.
        batch_size: images in a batch, at most.
        augment: whether the images are augmented as in training.

    Raises:
        UserError: fewer than two images, which have no variance; more than there are.
    """

    dataset: Dataset
    examples: int | None
    batch_size: int
    augment: bool = False

    def __post_init__(self) -> None:
        if len(self.images) < 2:
            raise UserError("statistics of activations need at least two training images; raise statistics.examples")

    @cached_property
    def images(self) -> Tensor:
        """The images of a pass, (N, C, H, W) uint8."""
        return self.dataset.train.first(self.examples).images

    @property
    def device(self) -> torch.device:
        """Where the batches lie."""
        return self.images.device

    def __iter__(self) -> Iterator[Tensor]:
        """Yield (B, C, H, W) float32 normalised images."""
        count = len(self.images)
        order = torch.randperm(count, generator=generator(0, "statistics", "order")).to(self.device)
        draws = generator(0, "statistics", "augment")
        # No batch has a single image: BatchNorm refuses to normalise that in a layer without positions.
        for chosen in torch.tensor_split(order, max(1, min(math.ceil(count / self.batch_size), count // 2))):
            images = self.images[chosen]
            yield self.dataset.normalise(self.dataset.augmentation(images, draws) if self.augment else images)


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The settings of the options that look at training images.

    Args:
        examples: how many training images a pass takes, a fixed stratified subset; None: all.
        augment: whether they are augmented as in training, with fixed draws. Networks are used to the statistics of
            such images: those of plain ones can differ by more than those of the merged network (black borders from
            padding), which costs accuracy even at the ends of a path.
        batch_size: images in a batch. Part of the key: while the moments of a layer are taken, the layers before it
            work with those of the batch, so the deeper ones depend on it a little.
    """

    examples: Annotated[int, Field(ge=2)] | None = None
    augment: bool = True
    batch_size: Annotated[int, Field(ge=2)] = 512

    def calibration(self, dataset: Dataset) -> Calibration:
        """Return the images of `dataset` that a pass goes through."""
        return Calibration(dataset, self.examples, self.batch_size, self.augment)
