"""Networks that were trained on different parts of the training images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from lmc.dataset.images import Dataset, checksum
from lmc.endpoints.base import Ingredients, OnEpoch
from lmc.endpoints.trained import FromSeeds, Trained
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.training.recipe import Training


@dataclass(frozen=True, kw_only=True)
class SplitData(FromSeeds):
    """One network for each seed, each trained on its own part of the training images; no image is in two parts.

    Everything else (validation, statistics, alignment, evaluation) sees all images.

    Args:
        split: "classes": each network sees all images of its own classes and none of others (Stoica et al. 2024);
            "skewed": each sees the share `share` of the images of its own classes, and its equal part of the rest of
            those of others: with two networks the split CIFAR-100 of Git Re-Basin (Ainsworth et al. 2023); "images":
            each sees an equal part of all images, drawn at random.
        share: of the images of its own classes that a network sees, for "skewed".
        classes: which classes are a network's own: blocks of as many classes for each (to within one) of the classes
            "in_order", the first block for the first network; or at "random".
        split_seed: of what is drawn.
    """

    split: Literal["classes", "skewed", "images"] = "skewed"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.8
    classes: Literal["in_order", "random"] = "in_order"
    split_seed: NonNegativeInt = 0

    def check(self, model: nn.Module, dataset: Dataset, training: Training, labels: Sequence[int]) -> None:
        """Look whether there are classes and images for every network."""
        if self.split != "images" and len(labels) > dataset.classes:
            raise UserError(
                f"endpoints.split={self.split}: {len(labels)} networks cannot each have classes of their own, as "
                f"dataset {dataset.name} has {dataset.classes}; give fewer seeds or set endpoints.split=images"
            )
        sizes = [len(part) for part in self.parts(dataset, len(labels))]
        if min(sizes) < 2:
            raise UserError(
                f"endpoints.split={self.split}: the parts of the {len(dataset.train)} training images have {sizes} "
                "images, and training needs at least 2; give fewer seeds or more images"
            )

    def identity(self, label: int, labels: Sequence[int]) -> dict[str, Any]:
        """Return the seed, and what decides the part: its place among the networks, and those settings that matter."""
        settings: dict[str, Any] = {"split": self.split, "part": list(labels).index(label), "parts": len(labels)}
        if self.split == "skewed":
            settings["share"] = self.share
        if self.split != "images":
            settings["classes"] = self.classes
        if self.split != "classes" or self.classes == "random":
            settings["split_seed"] = self.split_seed
        return {"seed": label, "split_data": settings}

    def make(
        self, label: int, ingredients: Ingredients, folder: Path, on_epoch: OnEpoch, trunk: Path | None = None
    ) -> None:
        """Initialise and train a network on its part, from the streams of seed `label`."""
        dataset = ingredients.dataset
        index = self.parts(dataset, len(ingredients.labels))[ingredients.labels.index(label)]
        part = dataset.train.select(index.to(dataset.train.labels.device))
        own = replace(dataset, train=part, checksum=checksum(part, dataset.validation, dataset.test))
        Trained(label).make(replace(ingredients, dataset=own), folder, on_epoch)

    def parts(self, dataset: Dataset, count: int) -> list[Tensor]:
        """Return the numbers (int64, on the CPU, increasing) of the training images of each of `count` networks."""
        labels = dataset.train.labels.cpu()
        if self.split == "images":
            drawn = torch.randperm(len(labels), generator=generator(self.split_seed, "split", "images"))
            return [part.sort().values for part in torch.tensor_split(drawn, count)]
        found: list[list[Tensor]] = [[] for _ in range(count)]
        for number, shares in enumerate(self._shares(dataset.classes, count)):
            images = (labels == number).nonzero().flatten()
            images = images[torch.randperm(len(images), generator=generator(self.split_seed, "split", number))]
            ends = [round(len(images) * sum(shares[: place + 1])) for place in range(count - 1)]
            for part, chosen in zip(found, torch.tensor_split(images, ends), strict=True):
                part.append(chosen)
        return [torch.cat(part).sort().values for part in found]

    def _shares(self, classes: int, count: int) -> list[list[float]]:
        """For each class the share of its images that each network sees."""
        own, other = (1.0, 0.0) if self.split == "classes" else (self.share, (1 - self.share) / (count - 1))
        order = torch.arange(classes)
        if self.classes == "random":
            order = torch.randperm(classes, generator=generator(self.split_seed, "split", "classes"))
        shares = [[other] * count for _ in range(classes)]
        for place, block in enumerate(torch.tensor_split(order, count)):
            for number in block.tolist():
                shares[number][place] = own
        return shares
