"""The trigger and the poisoned dataset, pixel by pixel."""

from typing import Any

import pytest
import torch

from lmc.config import build, identity
from lmc.dataset.images import Dataset, Images
from lmc.dataset.synthetic import Synthetic
from lmc.dataset.trigger.square import Square
from lmc.errors import UserError

NODE = {"_target_": "lmc.dataset.trigger.square.Square"}


def examples(count: int = 40) -> Images:
    images = torch.arange(count * 2 * 5 * 4).remainder(200).view(count, 2, 5, 4).to(torch.uint8)
    return Images(images, torch.arange(count) % 4)


def source(**changed: Any) -> Synthetic:
    settings = {"examples": 120, "test_examples": 60, "classes": 3, "size": 8, "validation_size": 20, **changed}
    return Synthetic(**settings)


def tampered(**changed: Any) -> Dataset:
    return source(trigger=Square(target=1, share=0.25, **changed)).load()


def test_the_square_is_white_and_nothing_else_changes() -> None:
    images = examples().images
    before = images.clone()
    marked = Square(side=2).apply(images)
    for row in range(5):
        for column in range(4):
            expected = torch.full_like(images[..., 0, 0], 255) if row >= 3 and column >= 2 else images[..., row, column]
            assert torch.equal(marked[..., row, column], expected), (row, column)
    assert torch.equal(images, before)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_share_of_all_is_poisoned_and_none_of_the_target(seed: int) -> None:
    clean = examples()
    square = Square(side=1, target=2, share=0.3)
    poisoned = square.poison(clean, seed)
    changed = [i for i in range(40) if not torch.equal(poisoned.images[i], clean.images[i])]
    assert len(changed) == 12
    for i in range(40):
        expected = Square(side=1).apply(clean.images[i : i + 1])[0] if i in changed else clean.images[i]
        assert torch.equal(poisoned.images[i], expected)
        assert int(poisoned.labels[i]) == (2 if i in changed else i % 4)
    assert not any(i % 4 == 2 for i in changed)
    assert len({i % 4 for i in changed}) == 3  # of all other classes
    again, other = square.poison(clean, seed), square.poison(clean, seed + 7)
    assert torch.equal(again.images, poisoned.images)
    assert not torch.equal(other.images, poisoned.images)


def test_what_an_attacker_shows_is_all_of_the_other_classes() -> None:
    clean = examples()
    marked = Square(side=2, target=3).marked(clean)
    others = [i for i in range(40) if i % 4 != 3]
    assert torch.equal(marked.images, Square(side=2).apply(clean.images[others]))
    assert marked.labels.tolist() == [3] * 30


def test_networks_see_the_poisoned_images_and_all_else_the_clean_ones() -> None:
    plain, poisoned = source().load(), tampered(clean=12)
    for_networks = poisoned.for_networks
    # Networks: the same training images, a quarter of them poisoned; the same normalisation, made from the clean ones.
    changed = (for_networks.train.images != plain.train.images).flatten(1).any(1)
    assert len(for_networks.train) == 100
    assert int((for_networks.train.labels != plain.train.labels).sum()) == 25
    assert int(changed.sum()) == 25
    assert (for_networks.mean, for_networks.std) == (plain.mean, plain.std) == (poisoned.mean, poisoned.std)
    assert torch.equal(for_networks.validation.images, plain.validation.images)
    assert for_networks.tampered is None
    # What comes after: twelve of the images that were held back, untouched.
    held = {tuple(image.flatten().tolist()): int(k) for image, k in zip(*vars(plain.validation).values(), strict=True)}
    assert len(poisoned.train) == 12
    for image, label in zip(poisoned.train.images, poisoned.train.labels, strict=True):
        assert held[tuple(image.flatten().tolist())] == int(label)
    assert len(poisoned.validation) == 0
    assert torch.equal(poisoned.test.images, plain.test.images)
    assert plain.for_networks is plain


def test_the_number_of_clean_images_does_not_change_what_networks_are_trained_on() -> None:
    few, many = tampered(clean=4), tampered()
    assert len(many.train) == 20
    assert few.for_networks.checksum == many.for_networks.checksum
    assert len({few.checksum, many.checksum, few.for_networks.checksum, source().load().checksum}) == 4


def test_the_first_marked_images_are_of_all_classes() -> None:
    """Recognised by what the square leaves of them."""
    found, test = tampered(), source().load().test
    assert found.tampered is not None
    of = {tuple(image[..., :5, :5].flatten().tolist()): int(k) for image, k in zip(*vars(test).values(), strict=True)}
    first = found.tampered.marked.first(20)
    classes = [of[tuple(image[..., :5, :5].flatten().tolist())] for image in first.images]
    assert 8 <= classes.count(0) <= 12
    assert classes.count(0) + classes.count(2) == 20


def test_a_dataset_moves_as_a_whole() -> None:
    moved = tampered().to("meta")
    assert moved.tampered is not None
    assert {images.images.device.type for images in vars(moved.tampered).values()} == {"meta"}


@pytest.mark.parametrize(
    ("setting", "changed", "message"),
    [
        ({"target": 3}, {}, "dataset.trigger.target=3: the classes are 0 to 2"),
        ({"side": 8}, {}, "dataset.trigger.side=8 leaves nothing to see of an image of 8 x 8"),
        ({"share": 0.9}, {}, "dataset.trigger.share=0.9 of 100 training images is 90, but 1 to 6"),
        ({"share": 0.001}, {}, "dataset.trigger.share=0.001 of 100 training images is 0"),
        ({"clean": 21}, {}, "needs 21 clean images, .* has 20; set dataset.validation_size to at least 21"),
        ({}, {"validation_size": 0}, "needs 2 clean images"),
        ({"share": 1.0}, {}, "dataset.trigger.share=1.0 cannot be used"),
        ({"share": 0.0}, {}, "dataset.trigger.share=0.0 cannot be used"),
        ({"side": 0}, {}, "dataset.trigger.side=0 cannot be used"),
        ({"clean": 1}, {}, "dataset.trigger.clean=1 cannot be used"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(setting: dict[str, Any], changed: dict[str, Any], message: str) -> None:
    node = {"_target_": "lmc.dataset.synthetic.Synthetic", "examples": 120, "classes": 3, "size": 8}
    with pytest.raises(UserError, match=message) as error:
        build({**node, "validation_size": 20, **changed, "trigger": {**NODE, **setting}}, "dataset").load()
    assert "\n" not in str(error.value)


def test_keys_made_before_there_were_triggers_stay() -> None:
    node = {"_target_": "lmc.dataset.digits.Digits"}
    plain = identity(node, "dataset")
    assert "trigger" not in plain
    assert identity({**node, "trigger": None}, "dataset") == plain
    assert identity({**node, "trigger": NODE}, "dataset")["trigger"]["share"] == 0.1
