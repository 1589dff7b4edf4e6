import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmc.dataset.augmentation import Augmentation
from lmc.dataset.images import Dataset, Images, channel_statistics, check, checksum, stratified_order
from lmc.errors import UserError


@pytest.fixture
def dataset() -> Dataset:
    pixels = torch.randint(0, 256, (10, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Images(pixels, torch.arange(10) % 3)
    none = split.select(torch.arange(0))
    return Dataset("drawn", split, none, split.first(4), 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), Augmentation(), "")


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_every_beginning_of_the_order_has_every_class_in_its_share(labels):
    order = stratified_order(torch.tensor(labels)).tolist()
    assert sorted(order) == list(range(len(labels)))
    for end in range(1, len(labels) + 1):
        chosen = [labels[i] for i in order[:end]]
        for label in set(labels):
            share = end * labels.count(label) / len(labels)
            # each of the 5 classes is rounded by at most a half, which moves every other by its part of the sum
            assert abs(chosen.count(label) - share) <= 0.5 + 5 / 2


def test_equally_frequent_classes_take_turns(labelled):
    examples = labelled([2, 2, 2, 0, 0, 0, 1, 1, 1])
    assert examples.first(6).labels.bincount().tolist() == [2, 2, 2]
    assert examples.first(3).images[:, 0, 0, 0].tolist() == [0, 3, 6]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.data())
def test_a_smaller_choice_is_the_beginning_of_a_larger_one(labels, data):
    pixels = torch.arange(len(labels)).view(-1, 1, 1, 1).to(torch.uint8)
    examples = Images(pixels, torch.tensor(labels))
    large = data.draw(st.integers(1, len(labels)))
    small = data.draw(st.integers(1, large))
    assert torch.equal(examples.first(small).images, examples.first(large).images[:small])
    assert examples.first(None) is examples


@pytest.mark.parametrize("count", [0, 10, -1])
def test_a_choice_that_cannot_be_had_is_refused(labelled, count):
    with pytest.raises(UserError, match=f"{count} examples were asked for, but there are 9; ask for 1 to 9"):
        labelled([0] * 9).first(count)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2)),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
    ],
)
def test_other_types_and_shapes_are_no_images(images, labels):
    with pytest.raises(ValueError, match="not"):
        Images(images, labels)


def test_checksum_is_the_sha256_of_pixels_and_labels():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 1, 2, 2), dtype=np.uint8)
    labels = np.array([1, 0, 2], dtype="<i8")
    text = b"(3, 1, 2, 2)" + pixels.tobytes() + labels.tobytes()
    found = checksum(Images(torch.from_numpy(pixels), torch.from_numpy(labels)))
    assert found == hashlib.sha256(text).hexdigest()


def test_checksum_sees_one_pixel_one_label_the_order_and_the_split(labelled):
    base = labelled([0, 1, 2])
    pixel, label = base.images.clone(), base.labels.clone()
    pixel[1, 0, 1, 1] += 1
    label[2] = 1
    others = [
        checksum(Images(pixel, base.labels)),
        checksum(Images(base.images, label)),
        checksum(base.select(torch.tensor([1, 0, 2]))),
        checksum(base.select(torch.tensor([0])), base.select(torch.tensor([1, 2]))),
        checksum(base.select(torch.tensor([0, 1])), base.select(torch.tensor([2]))),
    ]
    assert len({checksum(base), *others}) == 6
    assert checksum(base) == checksum(labelled([0, 1, 2]))


def test_statistics_are_those_of_numpy():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 3, 5, 4), dtype=np.uint8)
    mean, std = channel_statistics(torch.from_numpy(pixels))
    np.testing.assert_allclose(mean, (pixels / 255).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, (pixels / 255).std((0, 2, 3)), rtol=1e-12)


def test_normalise_shifts_and_scales_each_channel_of_pixels_in_0_to_1(dataset):
    before = dataset.train.images.clone()
    found = dataset.normalise(dataset.train.images)
    pixels = before.numpy().astype(np.float64) / 255
    expected = (pixels - np.reshape(dataset.mean, (3, 1, 1))) / np.reshape(dataset.std, (3, 1, 1))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert torch.equal(dataset.train.images, before)


def test_normalise_keeps_channels_last(dataset):
    images = dataset.train.images.contiguous(memory_format=torch.channels_last)
    assert dataset.normalise(images).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 99])
def test_batches_are_the_split_in_order(dataset, batch_size):
    batches = list(dataset.batches(dataset.train, batch_size))
    assert {len(images) for images, _ in batches[:-1]} <= {batch_size}
    assert torch.equal(torch.cat([images for images, _ in batches]), dataset.normalise(dataset.train.images))
    assert torch.equal(torch.cat([labels for _, labels in batches]), dataset.train.labels)
    assert list(dataset.batches(dataset.validation, batch_size)) == []


def test_to_moves_every_split(dataset):
    moved = dataset.to("meta")
    assert {split.images.device.type for split in (moved.train, moved.validation, moved.test)} == {"meta"}
    assert {split.labels.device.type for split in (moved.train, moved.validation, moved.test)} == {"meta"}
    assert dataset.train.images.device.type == "cpu"
    assert moved.input_shape == (3, 4, 5)


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_out_of_range_is_named(labelled, label):
    with pytest.raises(
        UserError, match=rf"toy: test example 1 has the label {label}, out of range for 3 classes \(0 to 2\)"
    ):
        check("toy", "test", labelled([0, label, 2]), 3)


def test_an_empty_split_is_refused(labelled):
    with pytest.raises(UserError, match="toy: the test split holds no image"):
        check("toy", "test", labelled([0]).select(torch.arange(0)), 3)
