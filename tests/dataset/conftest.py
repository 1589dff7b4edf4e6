import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lmc.dataset.images import Images


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with MNIST and CIFAR-10 that LMC_TEST_DATA names."""
    folder = os.environ.get("LMC_TEST_DATA")
    if not folder:
        pytest.skip("LMC_TEST_DATA names no folder with mnist/ and cifar10-jpeg/")
    return Path(folder)


@pytest.fixture
def png() -> Callable[..., bytes]:
    """Code an array (H, W) or (H, W, 3) of uint8 without loss."""

    def code(pixels: np.ndarray, kind: str = "png") -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        return buffer.getvalue()

    return code


@pytest.fixture
def pictures() -> Callable[..., np.ndarray]:
    """Draw (count, H, W, 3) or, without channels, (count, H, W) random uint8 pixels."""

    def draw(count: int, *shape: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)

    return draw


@pytest.fixture
def labelled() -> Callable[..., Images]:
    """Images of 2 x 2 pixels with the given labels; the first pixel numbers the image."""

    def make(labels: list[int]) -> Images:
        pixels = torch.arange(len(labels)).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).to(torch.uint8).clone()
        return Images(pixels, torch.tensor(labels))

    return make


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., Path]:
    """Write a Parquet file as the hub does: a struct column `img` and a column `label`, or other columns."""

    def write(
        name: str, blobs: list[bytes | None], labels: list[int | None], columns: dict[str, pa.Array] | None = None
    ) -> Path:
        image = pa.array(
            [{"bytes": blob, "path": None} for blob in blobs], pa.struct({"bytes": pa.binary(), "path": pa.string()})
        )
        table = columns or {"img": image, "label": pa.array(labels, pa.int64())}
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), path)
        return path

    return write
