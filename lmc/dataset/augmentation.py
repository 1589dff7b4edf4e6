"""Random changes of training images, one batch at a time on the device that holds it."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor
from torch.nn import functional

from lmc.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random affine map, then mirror image, then shifted crop, drawn anew for each image; everything is off by default.

    Args:
        flip: exchange left and right with probability 1/2.
        crop_padding: pixels of black added on each side before a crop of the old size is taken at random.
        rotation_degrees: rotate by an angle drawn from [-r, r].
        translate: shift by a part of the height and of the width, each drawn from [-t, t].
        scale: enlarge by a factor drawn from this range.

    Raises:
        UserError: `scale` is not a range of positive factors.
    """

    flip: bool = False
    crop_padding: NonNegativeInt = 0
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    translate: Annotated[float, Field(ge=0, le=1)] = 0.0
    scale: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high < math.inf:
            raise UserError(f"augmentation.scale={list(self.scale)} is no range; give [LOW, HIGH] with 0 < LOW <= HIGH")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed copies of `images`; the same for the same state of `generator`.

        Args:
            images: (B, C, H, W) uint8.
            generator: where the numbers are drawn; on the CPU or on the device of `images`.

        Returns:
            (B, C, H, W) uint8 on the device of `images`; `images` itself if everything is off.
        """
        count, _, height, width = images.shape

        def uniform(low: float, high: float) -> Tensor:
            drawn = torch.rand(count, generator=generator, device=generator.device).to(images.device)
            return low + (high - low) * drawn

        if self.rotation_degrees or self.translate or self.scale != (1.0, 1.0):
            degrees = uniform(-self.rotation_degrees, self.rotation_degrees)
            right = uniform(-self.translate, self.translate) * width
            down = uniform(-self.translate, self.translate) * height
            images = affine(images, degrees, torch.stack([right, down], dim=1), uniform(*self.scale))
        if self.flip:
            images = flip(images, uniform(0, 1) < 0.5)
        if self.crop_padding:
            places = 2 * self.crop_padding + 1
            top, left = (uniform(0, places).long().clamp_(max=places - 1) for _ in range(2))
            images = crop(images, top, left, self.crop_padding)
        return images


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Return `images` (B, C, H, W) with left and right exchanged where `mirrored` (B,) is True."""
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


def crop(images: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    """Return one window of the old size from each image after `padding` zeros were added on every side.

    Args:
        images: (B, C, H, W).
        top: (B,) int64 in [0, 2 * padding], the first row of each window in the padded image.
        left: (B,) int64, its first column.
        padding: in pixels.
    """
    height, width = images.shape[2:]
    padded = functional.pad(images, (padding, padding, padding, padding))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def affine(images: Tensor, degrees: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return `images` rotated and enlarged about their centre, then shifted; bilinear, black outside, rounded.

    Args:
        images: (B, C, H, W) uint8.
        degrees: (B,) clockwise angles.
        shift: (B, 2) to the right and downwards, in pixels.
        scale: (B,) factors; 2 shows everything twice as large.
    """
    height, width = images.shape[2:]
    cos, sin = torch.cos(torch.deg2rad(degrees)) / scale, torch.sin(torch.deg2rad(degrees)) / scale
    # grid_sample asks where each pixel comes from, in coordinates in which both sides of an image are 2 long.
    right, down = shift[:, 0] * 2 / width, shift[:, 1] * 2 / height
    across, along = sin * height / width, -sin * width / height
    inverse = torch.stack(
        [
            torch.stack([cos, across, -(cos * right + across * down)], dim=1),
            torch.stack([along, cos, -(along * right + cos * down)], dim=1),
        ],
        dim=1,
    )
    grid = functional.affine_grid(inverse, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images.to(grid.dtype), grid, mode="bilinear", align_corners=False)
    return moved.round_().clamp_(0, 255).to(torch.uint8)
