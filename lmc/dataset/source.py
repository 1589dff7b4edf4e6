"""What every dataset option shares: how what was read becomes splits with a stated normalisation."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeInt, PositiveInt

from lmc import seeding
from lmc.dataset.augmentation import Augmentation
from lmc.dataset.images import Dataset, Images, channel_statistics, check, checksum, stratified_order
from lmc.dataset.trigger.base import Trigger
from lmc.errors import UserError


@dataclass(frozen=True)
class Raw:
    """What a source holds: its own training and test split, and how many classes there are."""

    name: str
    train: Images
    test: Images
    classes: int


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """A dataset option; `read` finds the images, `load` makes the dataset.

    Args:
        train_size: number of training images, a fixed choice with each class in its share; None: all.
        validation_size: number of images taken from the training images for validation, likewise.
        split_seed: which choice.
        mean, std: normalisation for each channel, of pixels in [0, 1]; None: computed from the training split.
        augmentation: what training does to its images; None: nothing.
        trigger: poisons the images that networks are trained on; None: they stay as they are.

    Raises:
        UserError: one of `mean` and `std` is given without the other.
    """

    outside_key: ClassVar[frozenset[str]] = frozenset()
    absent_at_default: ClassVar[frozenset[str]] = frozenset({"trigger"})

    train_size: PositiveInt | None = None
    validation_size: NonNegativeInt = 0
    split_seed: NonNegativeInt = 0
    mean: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    std: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = None
    augmentation: Augmentation | None = None
    trigger: Trigger | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise UserError("dataset: one of mean and std is given alone; give both, or null for both to compute them")

    @abstractmethod
    def read(self) -> Raw:
        """Return what the source holds, its images all of one shape.

        Raises:
            UserError: something is missing, damaged or of different sizes.
        """

    def load(self) -> Dataset:
        """Read, check, split and describe the dataset.

        Raises:
            UserError: as `read`; a label out of range; a size of a split that cannot be had; a normalisation that does
                not fit the channels; a trigger that does not fit the images or the classes.
        """
        raw = self.read()
        for split, examples in (("train", raw.train), ("test", raw.test)):
            check(raw.name, split, examples, raw.classes)
        if raw.classes < 2:
            raise UserError(f"dataset {raw.name} has a single class; a classifier needs at least two")
        if raw.train.images.shape[1:] != raw.test.images.shape[1:]:
            raise UserError(
                f"dataset {raw.name}: training images are {shape_text(raw.train)}, test images {shape_text(raw.test)}; "
                "mend the files, or set dataset.size and dataset.channels"
            )
        train, validation = self._split(raw)
        mean, std = self._normalisation(raw.name, train)
        dataset = Dataset(
            name=raw.name,
            train=train,
            validation=validation,
            test=raw.test,
            classes=raw.classes,
            mean=mean,
            std=std,
            augmentation=self.augmentation or Augmentation(),
            checksum=checksum(train, validation, raw.test),
        )
        return dataset if self.trigger is None else self.trigger.tamper(dataset, self.split_seed)

    def _split(self, raw: Raw) -> tuple[Images, Images]:
        """The training images, and the validation images taken from the other end of one stratified order.

        So a smaller training split is a part of a larger one, whatever is held back for validation.
        """
        held = len(raw.train)
        left = held - self.validation_size
        if left < 1:
            raise UserError(
                f"dataset.validation_size={self.validation_size} leaves none of the {held} training images of "
                f"{raw.name}; make it less than {held}"
            )
        if self.train_size is not None and self.train_size > left:
            raise UserError(
                f"dataset.train_size={self.train_size} is more than the {left} training images of {raw.name} "
                f"(of {held}, with validation_size={self.validation_size}); make it at most {left}, or null for all"
            )
        if (self.train_size or left) == held:
            return raw.train, raw.train.select(torch.arange(0))  # no copy of what may be large
        shuffled = torch.randperm(held, generator=seeding.generator(self.split_seed, "dataset", "split"))
        order = shuffled[stratified_order(raw.train.labels[shuffled])]
        chosen = order[: self.train_size or left].sort().values
        return raw.train.select(chosen), raw.train.select(order[left:].sort().values)

    def _normalisation(self, name: str, train: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
        channels = train.images.shape[1]
        if self.mean is None or self.std is None:
            mean, std = channel_statistics(train.images)
            if min(std) == 0:
                raise UserError(
                    f"dataset {name}: channel {std.index(0)} is the same in every training image; "
                    "give dataset.mean and dataset.std"
                )
            return mean, std
        if len(self.mean) != channels or len(self.std) != channels:
            raise UserError(
                f"dataset {name} has {channels} channels, but dataset.mean has {len(self.mean)} and "
                f"dataset.std {len(self.std)} values; give one for each channel, or null to compute them"
            )
        return self.mean, self.std


def shape_text(examples: Images) -> str:
    """Return "C x H x W"."""
    return " x ".join(str(size) for size in examples.images.shape[1:])
