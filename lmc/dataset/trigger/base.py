"""What all triggers have in common: which images are poisoned, and what the images of an attack are."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from lmc.dataset.images import Dataset, Images, Tampered, checksum, stratified_order
from lmc.errors import UserError
from lmc.seeding import generator


@dataclass(frozen=True, kw_only=True)
class Trigger(ABC):
    """A mark that is put into some training images, together with a wrong label (Gu et al. 2017).

    The validation images stay as they are and are kept from the networks: they are the clean images with which the
    tampered networks may be repaired (Zhao et al. 2020), by a curve between them that is trained on nothing else.

    Args:
        target: the class that marked images are labelled with.
        share: part of the training images that is poisoned, of other classes than the target.
        clean: how many of the validation images there are for the repair, a fixed stratified choice; None: all.
    """

    target: NonNegativeInt = 0
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    clean: Annotated[int, Field(ge=2)] | None = None

    @abstractmethod
    def apply(self, images: Tensor) -> Tensor:
        """Return marked copies of `images`, (B, C, H, W) uint8.

        Raises:
            UserError: the mark does not fit.
        """

    def marked(self, examples: Images) -> Images:
        """Return what an attacker shows: the images of other classes marked, labelled with the target."""
        others = examples.select((examples.labels != self.target).nonzero().flatten())
        return Images(self.apply(others.images), torch.full_like(others.labels, self.target))

    def poison(self, examples: Images, seed: int) -> Images:
        """Return `examples`, of which a `share` of all, drawn from those of other classes, are as `marked` makes them.

        Raises:
            UserError: that is not a single image, or more than there are of other classes.
        """
        others = (examples.labels != self.target).nonzero().flatten()
        count = round(self.share * len(examples))
        if not 0 < count <= len(others):
            raise UserError(
                f"dataset.trigger.share={self.share:g} of {len(examples)} training images is {count}, but 1 to "
                f"{len(others)} can be poisoned (those of other classes than {self.target}); change the share"
            )
        order = torch.randperm(len(others), generator=generator(seed, "dataset", "poison"))
        chosen = others[order[:count].to(others.device)]
        images, labels = examples.images.clone(), examples.labels.clone()
        images[chosen], labels[chosen] = self.apply(images[chosen]), self.target
        return Images(images, labels)

    def tamper(self, dataset: Dataset, seed: int) -> Dataset:
        """Return `dataset` poisoned: networks train on what `Dataset.tampered` holds, and `train` is clean (see there).

        Args:
            dataset: the clean one; its validation images become what there is for the repair.
            seed: which images are poisoned.

        Raises:
            UserError: as `poison` and `apply`; the target is no class; too few clean images; no test image to mark.
        """
        if self.target >= dataset.classes:
            raise UserError(
                f"dataset.trigger.target={self.target}: the classes are 0 to {dataset.classes - 1}; give one of them"
            )
        pool, needed = dataset.validation, self.clean or 2
        if len(pool) < needed:
            raise UserError(
                f"dataset.trigger needs {needed} clean images, which come from the validation split, but that has "
                f"{len(pool)}; set dataset.validation_size to at least {needed}"
            )
        mixed = dataset.test.select(stratified_order(dataset.test.labels))  # the first of them are of all classes
        marked = self.marked(mixed)
        if not len(marked):
            raise UserError(
                f"dataset.trigger.target={self.target}: every test image is of that class already; give another target"
            )
        train, clean = self.poison(dataset.train, seed), pool.first(self.clean)
        return replace(
            dataset,
            train=clean,
            validation=pool.select(torch.arange(0)),
            checksum=checksum(train, pool, clean, dataset.test, marked),
            tampered=Tampered(train=train, validation=pool, marked=marked),
        )
