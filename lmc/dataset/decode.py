"""From coded images (PNG, JPEG, ...) to one uint8 tensor."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lmc.errors import UserError

Channels = Literal[1, 3]

_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_GREY = ("1", "L", "LA", "La")
_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_CHUNK = 256
_LARGE = 3 * 128 * 128
"""Values of an image from which on several threads are quicker than one."""


def decode(
    count: int,
    read: Callable[[int], bytes],
    place: Callable[[int], str],
    size: int | None = None,
    channels: Channels | None = None,
) -> torch.Tensor:
    """Return `count` coded images as one tensor (count, C, H, W) uint8.

    Threads share the work on large images: the codecs of PIL let others run while they decode. Transparency is dropped.

    Args:
        count: at least 1.
        read: the bytes of image i, called from any thread.
        place: where image i is, for messages ("file X", "row 3 of file Y").
        size: every image is resized to size x size (bilinear, antialiased); None: they must all be of one size.
        channels: 1 turns colours into grey, 3 grey into colours; None: as the first image, and the others must agree.

    Raises:
        UserError: an image that is damaged, of another size, of another number of channels, or of more than 8 bits.
    """
    first = _pixels(read(0), place(0), size, channels)
    out = np.empty((count, *first.shape), dtype=np.uint8)

    def fill(start: int) -> None:
        for i in range(start, min(start + _CHUNK, count)):
            pixels = _pixels(read(i), place(i), size, channels)
            if pixels.shape != first.shape:
                raise UserError(_disagreement(pixels.shape, place(i), first.shape, place(0)))
            out[i] = pixels

    # Opening a file holds the interpreter's lock; for small images that is most of the work, and threads cost 50 %.
    workers = min(8, os.cpu_count() or 1) if first.size >= _LARGE else 1
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(fill, range(0, count, _CHUNK)):
            pass
    return torch.from_numpy(out)


def _pixels(blob: bytes, where: str, size: int | None, channels: Channels | None) -> NDArray[np.uint8]:
    """One image, (C, H, W) uint8."""
    try:
        with Image.open(io.BytesIO(blob)) as image:
            if image.mode in _DEEP:
                raise UserError(
                    f"{where}: an image of mode {image.mode} has more than 8 bits a channel; convert it to 8"
                )
            mode = "L" if channels == 1 or (channels is None and image.mode in _GREY) else "RGB"
            plain = image if image.mode == mode else image.convert(mode)
            if size is not None:
                plain = plain.resize((size, size), Image.Resampling.BILINEAR)
            pixels = np.asarray(plain)
    except _DAMAGE as error:
        lines = str(error).splitlines() or [type(error).__name__]
        reason = "no known image format" if "cannot identify" in lines[0] else lines[0]
        raise UserError(f"{where}: the image is damaged or not an image ({reason}); replace or remove it") from None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _disagreement(shape: tuple[int, ...], where: str, first: tuple[int, ...], origin: str) -> str:
    if shape[0] != first[0]:
        return (
            f"{where}: the image has {shape[0]} channels where {origin} has {first[0]}; "
            "set dataset.channels=3 (colour) or dataset.channels=1 (grey)"
        )
    return (
        f"{where}: the image is {shape[1]} x {shape[2]} pixels where {origin} is {first[1]} x {first[2]}; "
        "set dataset.size=PIXELS to resize all of them"
    )
