"""The datasets that torchvision can download: MNIST, FashionMNIST, CIFAR10, CIFAR100 and SVHN."""

import logging
import pickle
import tempfile
import zlib
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from filelock import FileLock

from lmc.dataset.images import Images
from lmc.dataset.source import Raw, Source
from lmc.errors import UserError

log = logging.getLogger(__name__)

_BROKEN = (
    RuntimeError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    AssertionError,
    pickle.UnpicklingError,
    zlib.error,
)


@dataclass(frozen=True, kw_only=True)
class TorchvisionSource(Source):
    """One of torchvision's datasets, where torchvision keeps it; its own training and test split.

    Args:
        root: the folder that torchvision calls root; the files lie in it or in a folder of it.
        download: fetch the files when they are not there.
    """

    outside_key: ClassVar[frozenset[str]] = frozenset({"root", "download"})
    name: ClassVar[str]
    folder: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    classes: ClassVar[int] = 10

    root: str = "data"
    download: bool = True

    def read(self) -> Raw:
        """Return both splits, downloaded first where they are absent.

        Raises:
            UserError: the files are absent and may not or cannot be downloaded, or they are damaged.
        """
        self._provide()
        return Raw(self.name, self._images(train=True), self._images(train=False), self.classes)

    def _provide(self) -> None:
        """Download into a folder beside the target and move the files in one by one: nobody sees half a file."""
        home = Path(self.root) / self.folder
        if self._is_present():
            return
        if not self.download:
            raise UserError(
                f"dataset {self.name} is not in {home}; put {self._listing()} there, set dataset.root to the folder "
                "that has it, or set dataset.download=true"
            )
        try:
            home.mkdir(parents=True, exist_ok=True)
            with FileLock(Path(self.root) / f".{self.name}.lock"):
                if self._is_present():  # another process was quicker
                    return
                log.info("downloading %s to %s", self.name, home)
                with tempfile.TemporaryDirectory(dir=self.root, prefix=f".{self.name}-") as scratch:
                    for train in (True, False):
                        self._open(scratch, train, download=True)
                    for file in self.files:
                        (Path(scratch) / self.folder / file).replace(home / file)
        except _BROKEN as error:
            raise UserError(
                f"dataset {self.name} is not in {home} and cannot be downloaded ({_reason(error)}); put "
                f"{self._listing()} there by hand, or set dataset.root to the folder that has it"
            ) from None

    def _is_present(self) -> bool:
        return all((Path(self.root) / self.folder / file).is_file() for file in self.files)

    def _listing(self) -> str:
        return ", ".join(self.files)

    def _images(self, train: bool) -> Images:
        try:
            pixels, labels = self._arrays(self._open(self.root, train, download=False))
            return Images(pixels.contiguous(), torch.as_tensor(labels, dtype=torch.int64))
        except _BROKEN as error:
            split = "training" if train else "test"
            raise UserError(
                f"dataset {self.name}: the {split} files in {Path(self.root) / self.folder} are damaged "
                f"({_reason(error)}); delete them and start again, or put good copies of {self._listing()} there"
            ) from None

    def _open(self, root: str, train: bool, download: bool) -> Any:
        import torchvision

        return getattr(torchvision.datasets, type(self).__name__)(root, train=train, download=download)

    @abstractmethod
    def _arrays(self, opened: Any) -> tuple[torch.Tensor, Any]:
        """The pixels (N, C, H, W) uint8 and the labels (N,) of an opened split."""


class _Idx(TorchvisionSource):
    """Four IDX files, one channel."""

    files: ClassVar[tuple[str, ...]] = tuple(
        f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
    )

    def _arrays(self, opened: Any) -> tuple[torch.Tensor, Any]:
        return opened.data.unsqueeze(1), opened.targets


@dataclass(frozen=True, kw_only=True)
class MNIST(_Idx):
    """Handwritten digits, 60,000 + 10,000 of 28 x 28 grey pixels (LeCun et al. 1998)."""

    name: ClassVar[str] = "mnist"
    folder: ClassVar[str] = "MNIST/raw"


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(_Idx):
    """Pieces of clothing in MNIST's format (Xiao et al. 2017)."""

    name: ClassVar[str] = "fashion_mnist"
    folder: ClassVar[str] = "FashionMNIST/raw"


class _Cifar(TorchvisionSource):
    """Pickled batches; torchvision compares their MD5 with the published one before it opens any."""

    def _arrays(self, opened: Any) -> tuple[torch.Tensor, Any]:
        return torch.from_numpy(opened.data).permute(0, 3, 1, 2), opened.targets


@dataclass(frozen=True, kw_only=True)
class CIFAR10(_Cifar):
    """Photographs of ten kinds of things, 50,000 + 10,000 of 32 x 32 pixels (Krizhevsky 2009)."""

    name: ClassVar[str] = "cifar10"
    folder: ClassVar[str] = "cifar-10-batches-py"
    files: ClassVar[tuple[str, ...]] = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")


@dataclass(frozen=True, kw_only=True)
class CIFAR100(_Cifar):
    """As CIFAR-10 with a hundred kinds of things; the fine labels (Krizhevsky 2009)."""

    name: ClassVar[str] = "cifar100"
    folder: ClassVar[str] = "cifar-100-python"
    files: ClassVar[tuple[str, ...]] = ("train", "test", "meta")
    classes: ClassVar[int] = 100


@dataclass(frozen=True, kw_only=True)
class SVHN(TorchvisionSource):
    """House numbers cut to single digits, 73,257 + 26,032 of 32 x 32 pixels (Netzer et al. 2011).

    Without the extra training split.
    """

    name: ClassVar[str] = "svhn"
    folder: ClassVar[str] = "."
    files: ClassVar[tuple[str, ...]] = ("train_32x32.mat", "test_32x32.mat")

    def _open(self, root: str, train: bool, download: bool) -> Any:
        import torchvision

        return torchvision.datasets.SVHN(root, split="train" if train else "test", download=download)

    def _arrays(self, opened: Any) -> tuple[torch.Tensor, Any]:
        return torch.from_numpy(np.ascontiguousarray(opened.data)), opened.labels


def _reason(error: BaseException) -> str:
    """The first line of what went wrong, without a closing full stop."""
    lines = str(error).splitlines()
    return lines[0].rstrip(" .:") if lines else type(error).__name__
