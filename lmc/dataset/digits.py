"""The handwritten digits that come with scikit-learn: 1,797 real images of 8 x 8 pixels, nothing to download."""

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import PositiveInt

from lmc import seeding
from lmc.dataset.images import Images, stratified_order
from lmc.dataset.source import Raw, Source
from lmc.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Digits(Source):
    """scikit-learn's `load_digits`; its grey values 0 to 16 become 0 to 255.

    Args:
        test_size: number of images held back as the test split: a fixed choice with each class in its share, whatever
            `split_seed` is. (The source has no split of its own.)
    """

    test_size: PositiveInt = 360

    def read(self) -> Raw:
        """Return the 1,797 images, (N, 1, 8, 8), in two parts.

        Raises:
            UserError: `test_size` leaves no image to train on.
        """
        from sklearn.datasets import load_digits

        bunch = load_digits()
        pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
        everything = Images(torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(bunch.target.astype(np.int64)))
        held = len(everything)
        if self.test_size >= held:
            raise UserError(f"dataset.test_size={self.test_size} leaves none of the {held} digits; make it less")
        shuffled = torch.randperm(held, generator=seeding.generator(0, "digits", "test"))
        order = shuffled[stratified_order(everything.labels[shuffled])]
        test, train = order[: self.test_size].sort().values, order[self.test_size :].sort().values
        return Raw("digits", everything.select(train), everything.select(test), classes=10)
