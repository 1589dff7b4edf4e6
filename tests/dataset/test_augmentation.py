import math

import pytest
import torch
from torchvision.transforms import functional as reference
from torchvision.transforms.functional import InterpolationMode

from lmc import config
from lmc.dataset.augmentation import Augmentation, affine, crop, flip
from lmc.errors import UserError

FULL = Augmentation(flip=True, crop_padding=3, rotation_degrees=20, translate=0.1, scale=(0.8, 1.2))
PARTS = {
    "flip": Augmentation(flip=True),
    "crop": Augmentation(crop_padding=4),
    "rotation": Augmentation(rotation_degrees=15),
    "translation": Augmentation(translate=0.2),
    "scale": Augmentation(scale=(0.5, 1.5)),
    "all": FULL,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.randint(0, 256, (6, 3, 12, 9), dtype=torch.uint8, generator=seeded())


def test_crop_is_torchvisions_for_each_image(batch):
    top, left = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([4, 3, 0, 2, 1, 0])
    expected = [
        reference.crop(reference.pad(image, [2]), row, column, 12, 9)
        for image, row, column in zip(batch, top.tolist(), left.tolist(), strict=True)
    ]
    assert torch.equal(crop(batch, top, left, 2), torch.stack(expected))


def test_flip_is_torchvisions_for_the_chosen_images(batch):
    chosen = torch.tensor([True, False, False, True, True, False])
    expected = [reference.hflip(image) if it else image for image, it in zip(batch, chosen, strict=True)]
    assert torch.equal(flip(batch, chosen), torch.stack(expected))


def test_affine_is_torchvisions_for_each_image(batch):
    degrees = torch.tensor([0.0, 30.0, -75.0, 180.0, 10.0, 0.0])
    shift = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -2.0], [3.0, 1.0], [0.0, 0.0], [-2.5, 1.5]])
    scale = torch.tensor([1.0, 1.0, 0.7, 1.3, 1.6, 1.0])
    expected = [
        reference.affine(image, a, [x, y], s, [0.0, 0.0], InterpolationMode.BILINEAR)
        for image, a, (x, y), s in zip(batch, degrees.tolist(), shift.tolist(), scale.tolist(), strict=True)
    ]
    difference = affine(batch, degrees, shift, scale).int() - torch.stack(expected).int()
    assert difference.abs().max() <= 1  # a half is rounded up here and down there
    assert (difference == 0).float().mean() > 0.99


def test_affine_without_change_changes_nothing(batch):
    none = torch.zeros(6)
    assert torch.equal(affine(batch, none, torch.zeros(6, 2), torch.ones(6)), batch)


@pytest.mark.parametrize("augmentation", PARTS.values(), ids=PARTS)
class TestEveryAugmentation:
    def test_same_generator_state_gives_the_same_images(self, batch, augmentation):
        before = batch.clone()
        first, again, other = (augmentation(batch, seeded(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(batch, before)

    def test_gives_uint8_of_the_same_shape(self, batch, augmentation):
        changed = augmentation(batch, seeded())
        assert changed.dtype == torch.uint8
        assert changed.shape == batch.shape

    def test_images_are_changed_one_by_one(self, augmentation):
        image = torch.randint(0, 256, (1, 1, 8, 8), dtype=torch.uint8, generator=seeded())
        changed = augmentation(image.expand(64, -1, -1, -1), seeded())
        assert len({tuple(one.flatten().tolist()) for one in changed}) >= 2

    def test_draws_nothing_from_the_global_generator(self, batch, augmentation):
        before = torch.random.get_rng_state()
        augmentation(batch, seeded())
        assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.gpu
@pytest.mark.parametrize("augmentation", PARTS.values(), ids=PARTS)
def test_a_gpu_gives_what_the_cpu_gives_for_the_same_numbers(batch, augmentation):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    difference = augmentation(batch.cuda(), seeded()).cpu().int() - augmentation(batch, seeded()).int()
    assert difference.abs().max() <= 1
    on_device = augmentation(batch.cuda(), torch.Generator("cuda").manual_seed(0))
    again = augmentation(batch.cuda(), torch.Generator("cuda").manual_seed(0))
    assert torch.equal(on_device, again)


def test_off_by_default(batch):
    generator = seeded()
    state = generator.get_state()
    assert Augmentation()(batch, generator) is batch
    assert torch.equal(generator.get_state(), state)


def test_half_of_the_images_are_mirrored():
    image = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4).expand(4000, -1, -1, -1)
    mirrored = (Augmentation(flip=True)(image, seeded())[:, 0, 0, 0] == 3).float().mean()
    assert abs(mirrored - 0.5) < 4 * math.sqrt(0.25 / 4000)  # four standard deviations


def test_every_place_of_the_crop_is_equally_likely():
    """One white pixel in the middle ends in each of the 25 places that a padding of 2 allows."""
    image = torch.zeros(10_000, 1, 5, 5, dtype=torch.uint8)
    image[:, 0, 2, 2] = 255
    places = Augmentation(crop_padding=2)(image, seeded()).flatten(1).argmax(1).bincount(minlength=25)
    expected = 10_000 / 25
    assert ((places - expected).square() / expected).sum() < 51.2  # 0.999 quantile of chi-square with 24 degrees


def test_angles_shifts_and_scales_fill_their_ranges(monkeypatch):
    drawn = {}

    def note(images, degrees, shift, scale):
        drawn.update(degrees=degrees, right=shift[:, 0], down=shift[:, 1], scale=scale)
        return images

    monkeypatch.setattr("lmc.dataset.augmentation.affine", note)
    FULL(torch.zeros(2000, 1, 20, 40, dtype=torch.uint8), seeded())
    ranges = {"degrees": (-20, 20), "right": (-4, 4), "down": (-2, 2), "scale": (0.8, 1.2)}
    for name, (low, high) in ranges.items():
        edge = 0.01 * (high - low)
        assert low <= drawn[name].min() < low + edge, name
        assert high - edge < drawn[name].max() <= high, name
        assert drawn[name].mean() == pytest.approx((low + high) / 2, abs=3 * edge), name


@pytest.mark.parametrize("scale", [(1.2, 0.8), (0.0, 1.0), (-1.0, 1.0), (1.0, math.inf)])
def test_a_scale_that_is_no_range_is_refused(scale):
    with pytest.raises(UserError, match=r"augmentation\.scale=.* is no range; give \[LOW, HIGH\]"):
        Augmentation(scale=scale)


@pytest.mark.parametrize(
    "setting", [{"crop_padding": -1}, {"rotation_degrees": 270}, {"translate": 2}, {"scale": [1]}, {"flip": "maybe"}]
)
def test_settings_out_of_range_are_refused(setting):
    node = {"_target_": "lmc.dataset.augmentation.Augmentation"} | setting
    with pytest.raises(UserError, match=f"dataset.augmentation.{next(iter(setting))}"):
        config.build(node, "dataset.augmentation")
