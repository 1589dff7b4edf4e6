import itertools
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from scipy.stats import chisquare

from lmc import config, seeding, state
from lmc.alignment.random import RandomPermutation
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.discover import discover
from lmc.symmetry.structure import Group, Symmetry
from tests.symmetry.test_structures import CASES

Draw = Callable[[Symmetry, int], State]
Pose = Callable[..., object]


def test_every_element_of_a_wreath_product_is_as_likely(pose: Pose):
    symmetry = Symmetry({"h": Group("h", 2, ()), "d": Group("d", 2, (), outer=("h",))}, {}, frozenset())
    seen = Counter(RandomPermutation(draw=draw)({}, {}, pose(symmetry)).permutation for draw in range(800))
    assert len(seen) == 2 * 2**2
    assert chisquare(list(seen.values())).pvalue > 1e-3


@pytest.mark.parametrize("name", ["packed attention", "grouped convolution", "residual stream"])
def test_the_permuted_network_computes_the_same(pose: Pose, name: str):
    with seeding.isolated(0, "test"):
        model = CASES[name].make().double().eval()
        images = torch.randn(3, *CASES[name].shape).double()
    symmetry = discover(model.float(), torch.zeros(2, *CASES[name].shape))
    network = state.of_model(model.double())
    found = RandomPermutation(draw=1)(network, network, pose(symmetry))
    moved = found.permutation.apply(network)
    assert any(not torch.equal(moved[tensor], network[tensor]) for tensor in network)
    outputs = [torch.func.functional_call(model, each, (images,)) for each in (network, moved)]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)


def test_draws_are_independent_of_each_other_and_of_the_networks(
    build: Callable[..., Symmetry], draw: Draw, pose: Pose
):
    symmetry = build({"a": 24, "b": 16}, {"1.w": ("a", 3), "2.w": ("b", "a"), "3.w": (2, "b")})
    networks = [draw(symmetry, seed) for seed in range(3)]

    def drawn(number: int, seed: int = 0, pair: tuple[int, int] = (0, 1)) -> object:
        fixed, moving = (networks[place] for place in pair)
        return RandomPermutation(draw=number)(fixed, moving, pose(symmetry, seed)).permutation

    assert drawn(0) == drawn(0) == drawn(0, pair=(2, 1))
    assert len({drawn(number, seed) for number, seed in itertools.product(range(3), range(3))}) == 9


def test_nothing_is_measured_and_what_does_not_fit_is_refused(symmetries: dict[str, Symmetry], draw: Draw, pose: Pose):
    symmetry = symmetries["mlp"]
    fixed, moving = draw(symmetry, 1), draw(symmetry, 2)
    found = RandomPermutation()(fixed, moving, pose(symmetry))
    assert (found.objective, found.trace, found.complete) == (0.0, [], True)
    with pytest.raises(UserError, match=r"moving network has no tensor '1\.w'"):
        RandomPermutation()(fixed, {name: moving[name] for name in moving if name != "1.w"}, pose(symmetry))
    with pytest.raises(UserError, match=r"alignment\.draw"):
        config.build({"_target_": "lmc.alignment.random.RandomPermutation", "draw": -1}, "alignment")
