"""A white square in the lower right corner."""

from dataclasses import dataclass

from pydantic import PositiveInt
from torch import Tensor

from lmc.dataset.trigger.base import Trigger
from lmc.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Square(Trigger):
    """All channels of a square of pixels in the lower right corner are white (Gu et al. 2017).

    The square is put in before the augmentation, which may move, mirror or cut it as it does the rest of the image.

    Args:
        side: of the square, in pixels.
    """

    side: PositiveInt = 3

    def apply(self, images: Tensor) -> Tensor:
        """Return copies of `images`, (B, C, H, W) uint8, with the square (see `Trigger.apply`)."""
        height, width = images.shape[-2:]
        if self.side >= min(height, width):
            raise UserError(
                f"dataset.trigger.side={self.side} leaves nothing to see of an image of {height} x {width} pixels; "
                f"make it less than {min(height, width)}"
            )
        marked = images.clone()
        marked[..., -self.side :, -self.side :] = 255
        return marked
