"""Mean and variance of every channel, pooled over all batches: sums are divided once, variances never averaged."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from lmc.dataset.images import Dataset, Images
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
    def variance(self) -> Tensor:
        """(C,) variance of the sample (squares divided by the count)."""
        return self.squares / self.count

    @property
    def deviation(self) -> Tensor:
        """(C,) standard deviation of the sample."""
        return self.variance.sqrt()


@dataclass(frozen=True)
class JointMoments:
    """First two moments of a sample of `count` values in each of C channels, of E networks on the same inputs.

    Attributes:
        count: values a channel (examples times positions).
        mean: (E, C) float64.
        products: (E, E, C) float64, sums of products of two networks' deviations from their means.
    """

    count: int
    mean: Tensor
    products: Tensor

    @classmethod
    def of(cls, values: Sequence[Tensor], dim: int) -> "JointMoments":
        """Return the moments of one tensor for each network, whose dimension `dim` numbers the channels."""
        shape = values[0].shape
        others = [d for d in range(len(shape)) if d != dim % len(shape)]
        means = [tensor.mean(others, keepdim=True) for tensor in values]
        steps = [tensor - mean for tensor, mean in zip(values, means, strict=True)]
        products = torch.stack([torch.stack([(one * two).sum(others) for two in steps]) for one in steps])
        count = values[0].numel() // shape[dim]
        return cls(count, wide(torch.stack([mean.flatten() for mean in means])), wide(products))

    def __add__(self, other: "JointMoments") -> "JointMoments":
        """Return the moments of both samples together (Chan, Golub, LeVeque 1983)."""
        count = self.count + other.count
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        between = step[:, None] * step * (self.count * other.count / count)
        return JointMoments(count, mean, self.products + other.products + between)

    def __iter__(self) -> Iterator[Moments]:
        """Yield the moments of each network."""
        for network, mean in enumerate(self.mean):
            yield Moments(self.count, mean, self.products[network, network])

    def interpolated(self, weights: Sequence[float]) -> Moments:
        """Return the moments of sum_i w_i x_i for the values x_i of the networks: the variance is w^T Cov w.

        For two networks and the weights (1 - a, a) that is Jordan et al.'s (1-a)^2 s0^2 + a^2 s1^2 + 2 a (1-a) s0 s1 c.
        """
        share = torch.tensor(weights, dtype=self.mean.dtype, device=self.mean.device)
        squares = torch.einsum("i,ijc,j->c", share, self.products, share)
        return Moments(self.count, share @ self.mean, squares.clamp(min=0))


Sample = TypeVar("Sample", Moments, JointMoments)


class Pool(dict[str, Sample]):
    """Moments by the name of the layer they were taken at."""

    def add(self, name: str, moments: Sample) -> None:
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
    def images(self) -> Images:
        """The images of a pass, with their labels."""
        return self.dataset.train.first(self.examples)

    @property
    def device(self) -> torch.device:
        """Where the batches lie."""
        return self.images.images.device

    def __iter__(self) -> Iterator[Tensor]:
        """Yield (B, C, H, W) float32 normalised images."""
        return (inputs for inputs, _ in self.labelled())

    def labelled(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (B, C, H, W) float32 normalised images, and their labels (B,) int64."""
        count = len(self.images)
        order = torch.randperm(count, generator=generator(0, "statistics", "order")).to(self.device)
        draws = generator(0, "statistics", "augment")
        # No batch has a single image: BatchNorm refuses to normalise that in a layer without positions.
        for chosen in torch.tensor_split(order, max(1, min(math.ceil(count / self.batch_size), count // 2))):
            images, labels = self.images.images[chosen], self.images.labels[chosen]
            images = self.dataset.augmentation(images, draws) if self.augment else images
            yield self.dataset.normalise(images), labels


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
