"""Which images a network sees."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lmc.dataset.digits import Digits
from lmc.dataset.images import Dataset
from lmc.endpoints.base import Ingredients
from lmc.endpoints.independent import Independent
from lmc.endpoints.split_data import SplitData
from lmc.errors import UserError
from tests.endpoints.small import contents, data, make, mlp, sgd


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return Digits().load()


def counts(dataset: Dataset, part: torch.Tensor) -> torch.Tensor:
    return torch.bincount(dataset.train.labels[part], minlength=dataset.classes)


@pytest.mark.parametrize("kind", ["classes", "skewed", "images"])
@pytest.mark.parametrize("classes", ["in_order", "random"])
@pytest.mark.parametrize("networks", [2, 3, 10])
def test_the_parts_are_disjoint_and_leave_nothing_out(digits: Dataset, kind: str, classes: str, networks: int):
    parts = SplitData(split=kind, classes=classes).parts(digits, networks)
    assert len(parts) == networks
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(digits.train)))


def test_skewed_is_the_split_of_git_rebasin(digits: Dataset):
    first, second = SplitData(split="skewed", share=0.8).parts(digits, 2)
    whole = torch.bincount(digits.train.labels)
    share = torch.tensor([0.8] * 5 + [0.2] * 5)
    assert (counts(digits, first) - share * whole).abs().max() <= 1
    assert (counts(digits, second) - (1 - share) * whole).abs().max() <= 1


def test_more_networks_share_the_rest_of_the_others_classes(digits: Dataset):
    parts = SplitData(split="skewed", share=0.7).parts(digits, 5)
    whole = torch.bincount(digits.train.labels)
    for place, part in enumerate(parts):
        share = torch.full((10,), 0.3 / 4)
        share[2 * place : 2 * place + 2] = 0.7
        assert (counts(digits, part) - share * whole).abs().max() <= 1


def test_classes_are_disjoint_and_equally_many(digits: Dataset):
    for classes in ("in_order", "random"):
        parts = SplitData(split="classes", classes=classes).parts(digits, 3)
        seen = [set(digits.train.labels[part].tolist()) for part in parts]
        assert sorted(map(len, seen)) == [3, 3, 4]
        assert set.union(*seen) == set(range(10))
        assert (seen == [{0, 1, 2, 3}, {4, 5, 6}, {7, 8, 9}]) == (classes == "in_order")


def test_images_are_equally_many_and_another_seed_draws_others(digits: Dataset):
    one, other = (SplitData(split="images", split_seed=seed).parts(digits, 2) for seed in (0, 1))
    assert sorted(map(len, one)) == [718, 719]
    assert not torch.equal(one[0], other[0])


def test_a_network_is_trained_on_its_part_alone(tmp_path: Path):
    made_of = Ingredients(mlp, data(), sgd(), (5, 7))
    kind = SplitData()
    found, _ = make(kind, 7, made_of, tmp_path / "split")
    part = kind.parts(made_of.dataset, 2)[1]
    alone = replace(made_of.dataset, train=made_of.dataset.train.select(part))
    expected, _ = make(Independent(), 7, replace(made_of, dataset=alone), tmp_path / "alone")
    assert contents(found) == contents(expected)


def test_the_key_tells_the_place_and_only_what_matters():
    kind = SplitData()
    assert kind.identity(7, (5, 7)) != kind.identity(7, (7, 5))
    assert kind.identity(7, (5, 7)) == kind.identity(7, (6, 7))
    assert kind.identity(7, (5, 7)) != kind.identity(7, (5, 7, 8))
    same = [SplitData(split="classes", share=share).identity(7, (5, 7)) for share in (0.6, 0.7)]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("kind", "networks", "message"),
    [
        (SplitData(split="classes"), 5, "5 networks cannot each have classes of their own, as dataset patterns has 4"),
        (SplitData(split="skewed"), 5, "5 networks cannot each have classes of their own"),
        (SplitData(split="images"), 60, "training needs at least 2"),
    ],
)
def test_too_many_networks_are_refused(kind: SplitData, networks: int, message: str):
    with pytest.raises(UserError, match=message):
        kind.check(mlp(), data(), sgd(), range(networks))
