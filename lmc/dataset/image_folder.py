"""Images in folders, one folder for each class, as torchvision's ImageFolder has them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import PositiveInt

from lmc.dataset.decode import Channels, decode
from lmc.dataset.images import Images, stratified_order
from lmc.dataset.source import Raw, Source
from lmc.errors import UserError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Source):
    """`root`/train/CLASS/IMAGE and `root`/test/CLASS/IMAGE; the classes are numbered in the order of their names.

    Args:
        root: the folder that holds train/ and test/.
        size: every image is resized to size x size pixels; None: they must all be of one size.
        channels: 1 for grey, 3 for colours; None: as the first image.
    """

    outside_key: ClassVar[frozenset[str]] = frozenset({"root"})

    root: str = "data/image_folder"
    size: PositiveInt | None = None
    channels: Channels | None = None

    def read(self) -> Raw:
        """Return both splits with the classes mixed.

        Raises:
            UserError: a folder is missing or empty, the test split has a class of its own, a file is no image or
                damaged, or the images differ in size or channels.
        """
        root = Path(self.root)
        for folder in (root, root / "train", root / "test"):
            if not folder.is_dir():
                raise UserError(
                    f"dataset folder {folder} does not exist; set dataset.root to a folder with train/CLASS/IMAGE and "
                    "test/CLASS/IMAGE"
                )
        names = _visible(root / "train")
        unknown = sorted(set(_visible(root / "test")) - set(names))
        if unknown:
            raise UserError(
                f"dataset folder {root / 'test' / unknown[0]} is a class that {root / 'train'} does not have; "
                "add training images of it or remove it"
            )
        train, test = (self._images(root / split, names) for split in ("train", "test"))
        return Raw(root.resolve().name, train, test, len(names))

    def _images(self, folder: Path, names: list[str]) -> Images:
        found = [(file, label) for label, name in enumerate(names) for file in _files(folder / name)]
        if not found:
            raise UserError(f"dataset folder {folder} holds no image; put images into {folder}/CLASS/")
        # A pass over the folders would give long runs of one class, and batches with nothing else in them.
        order = stratified_order(torch.tensor([label for _, label in found])).tolist()
        mixed = [found[i] for i in order]
        pixels = decode(
            len(mixed), lambda i: mixed[i][0].read_bytes(), lambda i: f"file {mixed[i][0]}", self.size, self.channels
        )
        return Images(pixels, torch.tensor([label for _, label in mixed]))


def _visible(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def _files(folder: Path) -> list[Path]:
    """The images of one class; a test split may lack the class."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise UserError(f"{folder} is a file where a folder of one class is expected; move it into such a folder")
    files = [folder / name for name in _visible(folder)]
    for file in files:
        if file.suffix.lower() not in _SUFFIXES or not file.is_file():
            raise UserError(f"{file} is not an image file ({', '.join(_SUFFIXES)}); remove it")
    return files
