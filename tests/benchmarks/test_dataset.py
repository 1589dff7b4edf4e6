"""What loading CIFAR-10 from JPEGs and augmenting a batch cost."""

import io
import os
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lmc.dataset import huggingface
from lmc.dataset.augmentation import Augmentation

TRAINING = 1_500  # images/s of ResNet20 at batch 128 on two cores, bfloat16 and channels last
AUGMENTATIONS = {
    "flip and crop": (Augmentation(flip=True, crop_padding=4), 30),
    "affine, flip and crop": (Augmentation(flip=True, crop_padding=4, rotation_degrees=15, scale=(0.8, 1.2)), 5),
}


@pytest.fixture
def say(request):
    """Write a line to the terminal, captured or not."""
    return request.config.pluginmanager.get_plugin("terminalreporter").write_line


def test_loading_60000_jpegs_against_a_plain_loop(benchmark, say):
    """The plain loop decodes 5,000 of the same images with PIL and numpy, one after another."""
    if "LMC_TEST_DATA" not in os.environ:
        pytest.skip("LMC_TEST_DATA names no folder with cifar10-jpeg/")
    folder = Path(os.environ["LMC_TEST_DATA"]) / "cifar10-jpeg"
    source = huggingface.HuggingFace(path=str(folder))
    dataset = benchmark.pedantic(source.load, setup=huggingface.read_images.cache_clear, rounds=2)

    blobs = pq.read_table(folder / "test.parquet")["img"].slice(0, 5_000).to_pylist()
    start = time.perf_counter()
    plain = [np.asarray(Image.open(io.BytesIO(blob["bytes"]))) for blob in blobs]
    ratio = benchmark.stats.stats.min / ((time.perf_counter() - start) * 60_000 / 5_000)
    again = time.perf_counter()
    source.load()
    again = time.perf_counter() - again
    benchmark.extra_info |= {"ratio_to_plain_loop": ratio, "second_load_s": again}
    say(f"\n60,000 JPEGs: {benchmark.stats.stats.min:.1f} s, {ratio:.2f} of a plain loop; loaded again {again:.2f} s")

    assert np.array_equal(dataset.test.images[:5_000].permute(0, 2, 3, 1).numpy(), np.stack(plain))
    assert ratio < 1.5  # everything included: Parquet, splits, statistics, checksum
    assert again < benchmark.stats.stats.min / 2


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_augmentation_is_far_quicker_than_training(benchmark, say, kind):
    augmentation, factor = AUGMENTATIONS[kind]
    batch = torch.randint(0, 256, (128, 3, 32, 32), dtype=torch.uint8)
    benchmark(augmentation, batch, torch.Generator().manual_seed(0))
    rate = 128 / benchmark.stats.stats.min
    benchmark.extra_info["images_per_second"] = rate
    say(f"\n{kind}: {rate:,.0f} images/s, {rate / TRAINING:.0f} times the training of ResNet20")
    assert rate > factor * TRAINING
