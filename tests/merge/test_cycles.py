"""The cycle error, against loops over units and against what is expected of random permutations."""

import itertools
from collections.abc import Callable

import pytest
import torch

from lmc.merge.cycles import cycle_error
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry

Build = Callable[..., Symmetry]


def of_pairs(symmetry: Symmetry, labels: tuple[int, ...], seed: int) -> dict[tuple[int, int], Permutation]:
    generator = torch.Generator().manual_seed(seed)
    return {pair: Permutation.random(symmetry, generator) for pair in itertools.combinations(labels, 2)}


def unit_ids(symmetry: Symmetry, permutation: Permutation) -> dict[str, list]:
    """Group to the units, as tuples of their own row and those of their blocks, that `permutation` puts in each row."""
    found = {}
    for name in symmetry.groups:
        chain = symmetry.chain(name)
        rows = itertools.product(*(range(symmetry.groups[each].size) for each in chain))
        found[name] = []
        for row in rows:
            place = dict(zip(chain, row, strict=True))
            found[name].append(
                tuple(
                    int(permutation[each][(*(place[outer] for outer in symmetry.groups[each].outer), place[each])])
                    for each in chain
                )
            )
    return found


@pytest.mark.parametrize("labels", [(0, 1, 2), (3, 1, 2, 0)])
@pytest.mark.parametrize("name", ["mlp", "residual", "packed attention", "grouped convolution"])
def test_it_counts_the_units_that_do_not_come_back(symmetries: dict[str, Symmetry], name: str, labels: tuple[int, ...]):
    """Every unit is followed by hand: to j, to i, and back."""
    symmetry = symmetries[name]
    shares = []
    for seed in range(5):
        permutations = of_pairs(symmetry, labels, seed)
        away = total = 0
        for i, j, k in itertools.combinations(labels, 3):
            steps = [unit_ids(symmetry, permutations[pair]) for pair in ((i, j), (j, k), (i, k))]
            for group in symmetry.groups:
                lattice = list(itertools.product(*(range(symmetry.groups[n].size) for n in symmetry.chain(group))))
                for unit in lattice:
                    at_j = lattice[steps[1][group].index(unit)]
                    at_i = lattice[steps[0][group].index(at_j)]
                    away += steps[2][group][lattice.index(at_i)] != unit
                    total += 1
        shares.append(away / total)
        assert cycle_error(permutations) == pytest.approx(shares[-1], abs=1e-12)
    assert 0 < min(shares) < 1


@pytest.mark.parametrize("name", ["mlp", "residual", "packed attention", "grouped convolution"])
def test_a_frame_has_none(symmetries: dict[str, Symmetry], name: str):
    symmetry = symmetries[name]
    generator = torch.Generator().manual_seed(1)
    into = [Permutation.random(symmetry, generator) for _ in range(4)]
    pairs = {(i, j): into[i].inverse().compose(into[j]) for i, j in itertools.combinations(range(4), 2)}
    assert cycle_error(pairs) == 0


def test_two_units_that_were_swapped_are_two_units(build: Build):
    symmetry = build({"a": 5}, {"1.w": ("a", 2), "2.w": (2, "a")})
    still = Permutation.identity(symmetry)
    swapped = Permutation(symmetry, {"a": torch.tensor([1, 0, 2, 3, 4])})
    for odd in ((0, 1), (0, 2), (1, 2)):
        pairs = {(0, 1): still, (0, 2): still, (1, 2): still, odd: swapped}
        assert cycle_error(pairs) == pytest.approx(2 / 5)


@pytest.mark.parametrize("size", [2, 5, 10])
def test_independent_random_permutations_bring_one_unit_back(build: Build, size: int):
    symmetry = build({"a": size}, {"1.w": ("a", 2), "2.w": (2, "a")})
    found = [cycle_error(of_pairs(symmetry, (0, 1, 2), seed)) for seed in range(400)]
    # The number that come back has mean and variance 1: five standard deviations of the mean.
    assert sum(found) / len(found) == pytest.approx(1 - 1 / size, abs=5 / size / 400**0.5)


def test_two_networks_make_no_cycle(build: Build):
    symmetry = build({"a": 5}, {"1.w": ("a", 2), "2.w": (2, "a")})
    assert cycle_error(of_pairs(symmetry, (0, 1), 0)) == 0
    assert cycle_error({}) == 0
