"""What a dataset is: a uint8 tensor of images with labels for each split, and how it becomes batches of floats."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmc.dataset.augmentation import Augmentation
from lmc.errors import UserError


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.

    Raises:
        ValueError: another type or shape.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images are {self.images.dtype} {tuple(self.images.shape)}, not uint8 (N, C, H, W)")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels are {self.labels.dtype} {tuple(self.labels.shape)}, not int64 (N,)")

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Tensor) -> "Images":
        """Return the examples at `index` (int64), in its order."""
        return Images(self.images[index], self.labels[index])

    def first(self, count: int | None) -> "Images":
        """Return a fixed, stratified choice of `count` examples (None: all), classes mixed.

        Every class has its share of the choice, to within one example where the classes are equally frequent. A
        smaller choice is the beginning of a larger one.

        Raises:
            UserError: `count` is not in 1 to N.
        """
        if count is None:
            return self
        if not 0 < count <= len(self):
            raise UserError(f"{count} examples were asked for, but there are {len(self)}; ask for 1 to {len(self)}")
        return self.select(stratified_order(self.labels)[:count])

    def to(self, device: str | torch.device) -> "Images":
        """Return the same examples on `device`."""
        return Images(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Tampered:
    """What belongs to the tampering with networks, and is kept from what comes after.

    Attributes:
        train: poisoned; what networks are trained on.
        validation: clean images that no network is trained on; those with which it may be repaired are among them.
        marked: test images of other classes than the attacker's target with the trigger, labelled with the target.
    """

    train: Images
    validation: Images
    marked: Images

    def to(self, device: str | torch.device) -> "Tampered":
        """Return the same with all images on `device`."""
        return Tampered(*(images.to(device) for images in (self.train, self.validation, self.marked)))


@dataclass(frozen=True)
class Dataset:
    """Three splits in memory with everything needed to train on them.

    Attributes:
        name: what it is called in messages and plots.
        train, validation, test: the splits; validation may be empty.
        classes: the number of classes; labels are 0 to classes - 1.
        mean, std: for each channel, of pixels scaled to [0, 1].
        augmentation: what training does to a batch before it is normalised.
        checksum: sha256 of all images and labels, split by split.
        tampered: what networks are trained on if it is not `train`; None: it is. `train` is then what there is for all
            that comes after: clean images, none of which a network was trained on.
    """

    name: str
    train: Images
    validation: Images
    test: Images
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    checksum: str
    tampered: Tampered | None = None

    @property
    def for_networks(self) -> "Dataset":
        """The dataset that networks are trained on: this one, or if it is tampered with, the poisoned one."""
        if self.tampered is None:
            return self
        train, validation = self.tampered.train, self.tampered.validation
        whole = checksum(train, validation, self.test)
        return replace(self, train=train, validation=validation, checksum=whole, tampered=None)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width

    def to(self, device: str | torch.device) -> "Dataset":
        """Return the same dataset with all splits on `device`."""
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
            tampered=None if self.tampered is None else self.tampered.to(device),
        )

    def normalise(self, images: Tensor) -> Tensor:
        """Return (x - mean) / std for the pixels x of `images` (B, C, H, W): float32 on the same device.

        Pixels are uint8, 255 x, or float32, x itself in [0, 1]; through the latter gradients flow.
        """
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        if images.is_floating_point():
            return (images - mean) / std
        return images.to(torch.float32, copy=True).mul_(1 / (255 * std)).sub_(mean / std)

    def batches(self, split: Images, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all of `split` in order: normalised images (B, C, H, W) float32 and labels (B,) int64."""
        for start in range(0, len(split), batch_size):
            yield self.normalise(split.images[start : start + batch_size]), split.labels[start : start + batch_size]


def stratified_order(labels: Tensor) -> Tensor:
    """Return an order (N,) int64 of the examples in which each class is spread evenly.

    Example k of the n of a class comes at the place (k + 1/2) / n of the whole, so every beginning of the order holds
    all classes in their shares. Examples of one class keep their order.
    """
    by_class = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    place = torch.empty(len(labels), dtype=torch.float64, device=labels.device)
    of = labels[by_class]
    place[by_class] = (torch.arange(len(labels), device=labels.device) - starts[of] + 0.5).double() / counts[of]
    return torch.argsort(place, stable=True)


def check(name: str, split: str, examples: Images, classes: int) -> None:
    """Raise a `UserError` unless `examples` is not empty and all labels are in [0, classes)."""
    if not len(examples):
        raise UserError(f"dataset {name}: the {split} split holds no image; give it at least one")
    wrong = ((examples.labels < 0) | (examples.labels >= classes)).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"dataset {name}: {split} example {row} has the label {int(examples.labels[row])}, out of range for "
            f"{classes} classes (0 to {classes - 1}); correct the label or the number of classes"
        )


def checksum(*splits: Images) -> str:
    """Return the sha256 (hexadecimal) of the shapes, pixels and labels of `splits`, on whatever device they are."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(tuple(split.images.shape)).encode())
        digest.update(split.images.cpu().contiguous().numpy().data)
        digest.update(split.labels.cpu().numpy().astype("<i8").data)
    return digest.hexdigest()


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel of `images` (N, C, H, W) uint8, scaled to [0, 1].

    Exact: from the histogram of each channel in float64.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        share = torch.bincount(images[:, channel].flatten(), minlength=256).cpu().double()
        share /= share.sum()
        mean = float(share @ levels)
        means.append(mean)
        deviations.append(float((share @ (levels - mean) ** 2).sqrt()))
    return tuple(means), tuple(deviations)
