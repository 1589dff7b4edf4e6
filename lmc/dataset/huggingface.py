"""Parquet files with an image and a label column, as the Hugging Face hub keeps image datasets."""

import importlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveInt

from lmc.dataset.decode import Channels, decode
from lmc.dataset.images import Images
from lmc.dataset.source import Raw, Source
from lmc.errors import UserError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Source):
    """A dataset of the hub, or local Parquet files.

    The images are coded (PNG, JPEG, ...), in a column of bytes or of structs with `bytes`.

    Args:
        path: a folder with Parquet files, one such file or several; None: download `hub`.
        hub: "OWNER/NAME" on the hub; needs the package huggingface_hub.
        revision: branch, tag or commit on the hub; None: its main branch.
        train_split, test_split: the word in the name of a file (or of its folder) that says which split it is.
        image_column, label_column: their names; None: the usual ones.
        classes: number of classes; None: as the file says, else the largest training label + 1.
        size: every image is resized to size x size pixels; None: they must all be of one size.
        channels: 1 for grey, 3 for colours; None: as the first image.
    """

    outside_key: ClassVar[frozenset[str]] = frozenset({"path"})

    path: str | list[str] | None = None
    hub: str | None = None
    revision: str | None = None
    train_split: Annotated[str, Field(min_length=1)] = "train"
    test_split: Annotated[str, Field(min_length=1)] = "test"
    image_column: str | None = None
    label_column: str | None = None
    classes: Annotated[int, Field(ge=2)] | None = None
    size: PositiveInt | None = None
    channels: Channels | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_split.lower() == self.test_split.lower():
            raise UserError(
                f"dataset.train_split and dataset.test_split are both {self.test_split!r}; make them differ"
            )

    def read(self) -> Raw:
        """Return both splits in the order of their files and rows.

        Raises:
            UserError: nothing to read is named; it is missing, damaged or cannot be downloaded; a column is missing or
                of another type; an image is damaged or of another size.
        """
        files = self._files()
        first = next(iter(files)) if isinstance(self.path, list) else Path(self.path or "")
        name = self.hub if self.path is None else (first.parent if first.is_file() else first.resolve()).name
        train, declared = self._read_split(files, self.train_split)
        test, _ = self._read_split(files, self.test_split)
        classes = self.classes or declared or int(train.labels.max()) + 1
        return Raw(name or "huggingface", train, test, classes)

    def _files(self) -> dict[Path, tuple[str, ...]]:
        if self.path is None:
            return listed([download(self.hub, self.revision)])
        return listed([Path(part) for part in ([self.path] if isinstance(self.path, str) else self.path)])

    def _read_split(self, files: dict[Path, tuple[str, ...]], split: str) -> tuple[Images, int | None]:
        words = (self.train_split.lower(), self.test_split.lower())
        chosen = [file for file, names in files.items() if split_of(names, words) == split.lower()]
        if not chosen:
            shown = ", ".join(file.name for file in list(files)[:5])
            raise UserError(
                f"no Parquet file of {split!r} among {shown}; name one {split}*.parquet, or set dataset.train_split "
                "and dataset.test_split to the words in the names"
            )
        folders = sorted({str(file.parent) for file in chosen})
        if len(folders) > 1:
            raise UserError(f"{split!r} files lie in several folders: {', '.join(folders)}; set dataset.path to one")
        stamps = tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in chosen)
        return read_images(stamps, self.image_column, self.label_column, self.size, self.channels)


def split_of(names: Sequence[str], words: Sequence[str]) -> str | None:
    """Return which of `words` is in the first of `names` that has any; None if none has, or if that one has several.

    A word counts if no letter is beside it: "train-00000-of-00002" has "train" in it, "constrained" has not.
    """
    for name in names:
        found = {word for word in words if re.search(rf"(?<![a-z]){re.escape(word)}(?![a-z])", name.lower())}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def download(hub: str | None, revision: str | None) -> Path:
    """Fetch the Parquet files of dataset `hub` into the hub's own cache and return their folder.

    Raises:
        UserError: no name, no huggingface_hub, or no success.
    """
    if hub is None:
        raise UserError("nothing to read: set dataset.path to a folder of Parquet files, or dataset.hub=OWNER/NAME")
    try:
        hub_package = importlib.import_module("huggingface_hub")
    except ImportError:
        raise UserError(
            f"dataset.hub={hub} needs the package huggingface_hub; run pip install huggingface_hub, or set "
            "dataset.path to a folder with its Parquet files"
        ) from None
    try:
        return Path(
            hub_package.snapshot_download(hub, repo_type="dataset", revision=revision, allow_patterns="*.parquet")
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"dataset.hub={hub} cannot be downloaded ({reason}); check the name and the network, or set "
            "dataset.path to a folder with its Parquet files"
        ) from None


def listed(paths: Sequence[Path]) -> dict[Path, tuple[str, ...]]:
    """Return the Parquet files in and among `paths`, each with the names that may say its split.

    Those are its own and then its folder's; but not the name of a folder that the user gave, which may say anything.

    Raises:
        UserError: there is none.
    """
    files: dict[Path, tuple[str, ...]] = {}
    for path in paths:
        if path.is_dir():
            found = sorted(path.rglob("*.parquet"))
            if not found:
                raise UserError(
                    f"dataset folder {path} holds no .parquet file; set dataset.path to the folder that does"
                )
            files |= {file: (file.stem, file.parent.name)[: 1 if file.parent == path else 2] for file in found}
        elif path.is_file():
            files[path] = (path.stem, path.parent.name)
        else:
            raise UserError(f"dataset path {path} does not exist; set dataset.path to a folder of Parquet files")
    if not files:
        raise UserError("dataset.path is an empty list; give a folder of Parquet files, or the files")
    return files


# The jobs of a sweep that share a process share the decoded images; the stamps tell a changed file from an old one.
@lru_cache(maxsize=2)
def read_images(
    stamps: tuple[tuple[Path, int, int], ...],
    image_column: str | None,
    label_column: str | None,
    size: int | None,
    channels: Channels | None,
) -> tuple[Images, int | None]:
    """The examples of some files, and the number of classes that the first of them declares."""
    blobs: list[bytes | None] = []
    origins: list[tuple[Path, int]] = []
    labels: list[torch.Tensor] = []
    declared = None
    for file, _, _ in stamps:
        coded, numbers, names = _read(file, image_column, label_column)
        declared = declared or names
        origins += [(file, row) for row in range(len(coded))]
        blobs += coded
        labels.append(numbers)
    if not blobs:
        raise UserError(f"{stamps[0][0]} holds no row; give a file with images")

    def place(i: int) -> str:
        return f"row {origins[i][1]} of {origins[i][0]}"

    def read(i: int) -> bytes:
        blob = blobs[i]
        if not blob:
            raise UserError(f"{place(i)} holds no image bytes; remove the row, or put the image into the file itself")
        return blob

    return Images(decode(len(blobs), read, place, size, channels), torch.cat(labels)), declared


def _read(
    file: Path, image_column: str | None, label_column: str | None
) -> tuple[list[bytes | None], torch.Tensor, int | None]:
    """The coded images, the labels and the declared number of classes of one file."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file)
        schema = opened.schema_arrow
        image = _column(file, schema.names, image_column, IMAGE_COLUMNS, "image")
        label = _column(file, schema.names, label_column, LABEL_COLUMNS, "label")
        coded = _bytes_type(file, schema.field(image))
        if not pa.types.is_integer(schema.field(label).type):
            raise UserError(
                f"{file}: label column {label!r} is of type {schema.field(label).type}, not whole numbers; set "
                "dataset.label_column to one that is"
            )
        table = opened.read(columns=[image, label])
    except (pa.ArrowException, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{file} is damaged or not a Parquet file ({reason}); get it again") from None
    if table[label].null_count:
        row = pc.index(pc.is_null(table[label]), True).as_py()
        raise UserError(f"row {row} of {file} has no label; remove the row or give it one")
    column = pc.struct_field(table[image], "bytes") if coded else table[image]
    blobs = [blob for chunk in column.chunks for blob in chunk.to_numpy(zero_copy_only=False)]
    numbers = torch.from_numpy(table[label].cast(pa.int64()).to_numpy().copy())
    return blobs, numbers, _declared_classes(schema.metadata, label)


def _column(file: Path, names: list[str], wanted: str | None, usual: Sequence[str], kind: str) -> str:
    for name in usual if wanted is None else (wanted,):
        if name in names:
            return name
    missing = f"none of {', '.join(usual)}" if wanted is None else f"no column {wanted!r}"
    raise UserError(f"{file} has {missing} for the {kind}; set dataset.{kind}_column to one of {', '.join(names)}")


def _bytes_type(file: Path, field: Any) -> bool:
    """Whether the images lie in the `bytes` of a struct (else they are plain bytes)."""
    import pyarrow as pa

    if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
        return False
    if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
        return True
    raise UserError(
        f"{file}: image column {field.name!r} is of type {field.type}, not bytes or a struct with bytes; set "
        "dataset.image_column to the coded images"
    )


def _declared_classes(metadata: dict[bytes, bytes] | None, label: str) -> int | None:
    """How many names the hub's own description in the file gives to the label column."""
    text = (metadata or {}).get(b"huggingface")
    if text is None:
        return None
    features = json.loads(text).get("info", {}).get("features", {})
    names = features.get(label, {}).get("names")
    return len(names) if isinstance(names, list) else None
