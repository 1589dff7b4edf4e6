"""Tiny ImageNet: 200 classes of ImageNet at 64 x 64 pixels."""

import hashlib
import logging
import shutil
import tempfile
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import ClassVar

import torch
from filelock import FileLock

from lmc.dataset.decode import decode
from lmc.dataset.images import Images, stratified_order
from lmc.dataset.source import Raw, Source
from lmc.errors import UserError

log = logging.getLogger(__name__)

_FAILED = (OSError, ValueError, HTTPException, zipfile.BadZipFile)


@dataclass(frozen=True, kw_only=True)
class TinyImageNet(Source):
    """Photographs of 200 kinds of things, 100,000 + 10,000 of 64 x 64 pixels (Le & Yang 2015).

    The folder `root`/tiny-imagenet-200 as it was published: wnids.txt with the names of the classes,
    train/CLASS/images/*.JPEG, and val/images/*.JPEG with val/val_annotations.txt, which has the class of each. The
    published test images have no labels: the validation images are the test split. Classes are numbered in the order
    of their names, as by torchvision's ImageFolder. Grey images (about two in a hundred) become coloured ones.

    Args:
        root: the folder that holds tiny-imagenet-200/.
        download: fetch it when it is not there; the zip file is compared with its published MD5 first.
    """

    outside_key: ClassVar[frozenset[str]] = frozenset({"root", "download"})
    folder: ClassVar[str] = "tiny-imagenet-200"
    url: ClassVar[str] = "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
    md5: ClassVar[str] = "90528d7ca1a48142e341f4ef8d21d0de"

    root: str = "data"
    download: bool = True

    def read(self) -> Raw:
        """Return both splits with the classes mixed.

        Raises:
            UserError: the files are absent and may not or cannot be downloaded, or some are missing or damaged, or
                the images differ in size.
        """
        home = Path(self.root) / self.folder
        self._provide(home)
        names = sorted(_lines(home / "wnids.txt"))
        classes = {name: number for number, name in enumerate(names)}
        if len(classes) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{home / 'wnids.txt'} lists the class {twice} twice; {_AGAIN}")
        train, test = _images(_training(home, classes)), _images(_validation(home, classes))
        return Raw("tiny_imagenet", train, test, len(classes))

    def _provide(self, home: Path) -> None:
        """Download and unpack into a folder beside the target, and move it in whole: nobody sees half of it."""
        if home.is_dir():
            return
        if not self.download:
            raise UserError(
                f"dataset tiny_imagenet is not in {home}; unpack {self.url} there, set dataset.root to the folder that "
                "has it, or set dataset.download=true"
            )
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(home.parent / f".{self.folder}.lock"):
                if home.is_dir():  # another process was quicker
                    return
                log.info("downloading tiny_imagenet (248 MB) to %s", home)
                with tempfile.TemporaryDirectory(dir=home.parent, prefix=f".{self.folder}-") as scratch:
                    self._fetch(scratch)
                    (Path(scratch) / self.folder).replace(home)
        except _FAILED as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(" .:")
            raise UserError(
                f"dataset tiny_imagenet is not in {home} and cannot be downloaded ({reason}); unpack {self.url} there "
                "by hand, or set dataset.root to the folder that has it"
            ) from None

    def _fetch(self, scratch: str) -> None:
        archive = Path(scratch) / "archive.zip"
        with urllib.request.urlopen(self.url, timeout=60) as response, archive.open("wb") as file:
            shutil.copyfileobj(response, file)
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != self.md5:
            raise ValueError(f"what came has the MD5 {found}, not {self.md5}")
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(scratch)


_AGAIN = "get the files again"


def _training(home: Path, classes: Mapping[str, int]) -> list[tuple[Path, int]]:
    """The training images and their labels, class by class."""
    found = []
    for name, label in classes.items():
        folder = home / "train" / name / "images"
        files = _pictures(folder)
        if not files:
            raise UserError(f"dataset tiny_imagenet: {folder} has no .JPEG file; {_AGAIN}")
        found += [(file, label) for file in files]
    return found


def _validation(home: Path, classes: Mapping[str, int]) -> list[tuple[Path, int]]:
    """The validation images and their labels, in the order of their annotations."""
    annotations, folder = home / "val" / "val_annotations.txt", home / "val" / "images"
    labels: dict[Path, int] = {}
    for number, line in enumerate(_lines(annotations), 1):
        file, _, rest = line.partition("\t")
        name = rest.partition("\t")[0]
        if name not in classes:
            raise UserError(f"line {number} of {annotations} names the class {name!r}, which wnids.txt lacks; {_AGAIN}")
        labels[folder / file] = classes[name]
    odd = sorted(labels.keys() ^ set(_pictures(folder)))
    if odd:
        lacks = "has no class in val_annotations.txt" if odd[0].is_file() else "is annotated but does not exist"
        raise UserError(f"dataset tiny_imagenet: validation image {odd[0]} {lacks}; {_AGAIN}")
    return list(labels.items())


def _images(found: Sequence[tuple[Path, int]]) -> Images:
    """Decode images that come with their labels; in an order that has no long runs of one class."""
    labels = torch.tensor([label for _, label in found])
    order = stratified_order(labels)
    files = [found[i][0] for i in order.tolist()]
    pixels = decode(len(files), lambda i: files[i].read_bytes(), lambda i: f"file {files[i]}", channels=3)
    return Images(pixels, labels[order])


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"dataset tiny_imagenet: folder {folder} does not exist; {_AGAIN}")
    return sorted(file for file in folder.iterdir() if file.suffix == ".JPEG" and not file.name.startswith("."))


def _lines(file: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is no text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UserError(f"dataset tiny_imagenet: {file} cannot be read ({reason}); {_AGAIN}") from None
    if not any(lines):
        raise UserError(f"dataset tiny_imagenet: {file} is empty; {_AGAIN}")
    return [line for line in lines if line]
