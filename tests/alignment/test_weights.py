import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lmc.alignment.assignment import matched
from lmc.alignment.similarity.weights import WeightSimilarity
from lmc.state import State
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry

Draw = Callable[[Symmetry, int], State]
CPU = torch.device("cpu")
NAMES = ["mlp", "conv", "channels last", "residual", "concatenation", "self-coupled", "three groups", "heads"]


def inner_product(fixed: State, moving: State, permutation: Permutation) -> float:
    """<fixed, P moving> by numpy, through the permuted state dict."""
    aligned = permutation.apply(moving)
    return sum(
        float(np.sum(fixed[name].numpy().astype(np.float64) * aligned[name].numpy().astype(np.float64)))
        for name in permutation.symmetry.axes_of
    )


def random(symmetry: Symmetry, seed: int) -> Permutation:
    return Permutation.random(symmetry, torch.Generator().manual_seed(seed))


def every(size: int) -> list[Tensor]:
    return [torch.tensor(order) for order in itertools.permutations(range(size))]


@pytest.mark.parametrize("name", NAMES)
def test_objective_is_the_inner_product_of_the_permuted_weights(
    symmetries: dict[str, Symmetry], draw: Draw, name: str
) -> None:
    symmetry = symmetries[name]
    fixed, moving = draw(symmetry, 1), draw(symmetry, 2)
    weights = WeightSimilarity(fixed, moving, symmetry, CPU)
    for seed in range(3):
        permutation = random(symmetry, seed)
        assert weights.objective(permutation) == pytest.approx(inner_product(fixed, moving, permutation), rel=1e-5)
        assert abs(weights.objective(permutation)) <= weights.bound


def test_tensors_that_nothing_moves_and_buffers_are_left_out(symmetries: dict[str, Symmetry], draw: Draw) -> None:
    plain = symmetries["residual"]
    symmetry = Symmetry(plain.groups, {**plain.shapes, "loose": (7,)}, plain.parameters - {"norm"} | {"loose"})
    fixed, moving = draw(symmetry, 1), draw(symmetry, 2)
    weights = WeightSimilarity(fixed, moving, symmetry, CPU)
    identity = Permutation.identity(symmetry)
    expected = sum(float((fixed[n] * moving[n]).sum()) for n in symmetry.shapes if n not in ("loose", "norm"))
    assert weights.objective(identity) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gain_is_the_change_of_the_objective(symmetries: dict[str, Symmetry], draw: Draw, name: str) -> None:
    symmetry = symmetries[name]
    fixed, moving = draw(symmetry, 1), draw(symmetry, 2)
    weights = WeightSimilarity(fixed, moving, symmetry, CPU)
    before, after = random(symmetry, 3), random(symmetry, 4)
    for group in symmetry.groups:
        changed = Permutation(symmetry, {**before, group: after[group]})
        gain = weights.gain(group, weights.of(group, before), before, after[group])
        truth = inner_product(fixed, moving, changed) - inner_product(fixed, moving, before)
        assert gain == pytest.approx(truth, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_similarity_after_many_moves_is_that_of_a_fresh_start(
    symmetries: dict[str, Symmetry], draw: Draw, name: str
) -> None:
    symmetry = symmetries[name]
    fixed, moving = draw(symmetry, 1), draw(symmetry, 2)
    weights = WeightSimilarity(fixed, moving, symmetry, CPU)
    permutation = dict(random(symmetry, 0))
    generator = torch.Generator().manual_seed(0)
    for step in range(30):
        group = sorted(symmetry.groups)[step % len(symmetry.groups)]
        value = permutation[group].clone()
        pair = torch.randperm(len(value), generator=generator)[:2]
        value[pair] = value[pair.flip(0)]
        permutation[group] = value
        looked = sorted(symmetry.groups)[int(torch.randint(len(symmetry.groups), (), generator=generator))]
        fresh = WeightSimilarity(fixed, moving, symmetry, CPU).of(looked, permutation)
        torch.testing.assert_close(weights.of(looked, permutation), fresh, rtol=1e-4, atol=1e-4)


def test_small_moves_are_brought_up_to_date_by_their_columns(
    build: Callable[..., Symmetry], draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmc.alignment.similarity.blocks import Block

    symmetry = build({"a": 20, "b": 30}, {"1.w": ("a", 3), "2.w": ("b", "a", 3, 3), "3.w": (2, "b")})
    fixed, moving = draw(symmetry, 1), draw(symmetry, 2)
    weights = WeightSimilarity(fixed, moving, symmetry, CPU)
    permutation = dict(Permutation.identity(symmetry))
    weights.of("a", permutation)
    swapped = permutation["b"].clone()
    swapped[[3, 8]] = swapped[[8, 3]]
    permutation["b"] = swapped
    columns: list[int] = []
    update = Block.update
    monkeypatch.setattr(Block, "update", lambda *args: (columns.append(len(args[-1])), update(*args))[1])
    found = weights.of("a", permutation)
    assert columns == [2]
    torch.testing.assert_close(found, WeightSimilarity(fixed, moving, symmetry, CPU).of("a", permutation))


def test_neighbours_share_a_tensor_across_its_dimensions(symmetries: dict[str, Symmetry], draw: Draw) -> None:
    def neighbours(name: str) -> dict[str, frozenset[str]]:
        state = draw(symmetries[name], 0)
        return WeightSimilarity(state, state, symmetries[name], CPU).neighbours

    assert neighbours("mlp") == {"a": {"b"}, "b": {"a"}}
    assert neighbours("residual") == {"s": {"i", "j"}, "i": {"s"}, "j": {"s"}}
    assert neighbours("concatenation") == {"a": {"c"}, "b": {"c"}, "c": {"a", "b"}}
    assert neighbours("self-coupled") == {"s": {"s", "i"}, "i": {"s"}}
    assert neighbours("heads") == {"h": {"d"}, "d": {"h"}}


@pytest.mark.parametrize(
    ("name", "unmatched"),
    [
        ("mlp", "a"), ("mlp", "b"), ("conv", "a"), ("conv", "b"), ("channels last", "b"), ("residual", "s"),
        ("concatenation", "a"), ("concatenation", "c"), ("three groups", "b"), ("heads", "h"), ("heads", "d"),
    ],
)  # fmt: skip
def test_an_unmatched_group_stands_for_the_mean_of_its_permutations(
    symmetries: dict[str, Symmetry], draw: Draw, name: str, unmatched: str
) -> None:
    symmetry = symmetries[name]
    fixed, moving = draw(symmetry, 1), draw(symmetry, 2)
    weights = WeightSimilarity(fixed, moving, symmetry, CPU)
    known = dict(random(symmetry, 5))
    del known[unmatched]
    complete = [{**known, unmatched: value} for value in every(symmetry.groups[unmatched].size)]
    mean = np.mean([inner_product(fixed, moving, Permutation(symmetry, p)) for p in complete])
    assert weights.objective(known) == pytest.approx(mean, rel=1e-4, abs=1e-4)
    for group in known:
        similarity = torch.stack([weights.of(group, permutation) for permutation in complete]).mean(0)
        torch.testing.assert_close(weights.of(group, known), similarity, rtol=1e-4, atol=1e-4)
    value = complete[7 % len(complete)][unmatched]
    gain = weights.gain(unmatched, weights.of(unmatched, known), known, value)
    truth = inner_product(fixed, moving, Permutation(symmetry, {**known, unmatched: value})) - mean
    assert gain == pytest.approx(truth, rel=1e-4, abs=1e-4)


def test_matching_a_self_coupled_group_from_the_centre_counts_its_gain_exactly(
    symmetries: dict[str, Symmetry], draw: Draw
) -> None:
    symmetry = symmetries["self-coupled"]
    weights = WeightSimilarity(draw(symmetry, 1), draw(symmetry, 2), symmetry, CPU)
    value = random(symmetry, 0)["s"]
    gain = weights.gain("s", weights.of("s", {}), {}, value)
    assert gain == pytest.approx(weights.objective({"s": value}) - weights.objective({}), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_precision_is_float32_or_that_of_the_networks(
    symmetries: dict[str, Symmetry], draw: Draw, dtype: torch.dtype
) -> None:
    symmetry = symmetries["conv"]
    fixed, moving = ({n: t.to(dtype) for n, t in draw(symmetry, seed).items()} for seed in (1, 2))
    weights = WeightSimilarity(fixed, moving, symmetry, CPU)
    permutation = random(symmetry, 0)
    widened = [{name: tensor.double() for name, tensor in state.items()} for state in (fixed, moving)]
    precision = 1e-12 if dtype == torch.float64 else 1e-5
    assert weights.objective(permutation) == pytest.approx(inner_product(*widened, permutation), rel=precision)
    assert weights.of("a", permutation).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_similarity_of_one_group_is_the_sum_over_its_axes(symmetries: dict[str, Symmetry], draw: Draw) -> None:
    """Against the formula of Git Re-Basin's Algorithm 1, for the middle layer of a perceptron."""
    symmetry = symmetries["mlp"]
    fixed, moving = draw(symmetry, 1), draw(symmetry, 2)
    p = random(symmetry, 0)
    a, b = ({name: tensor.numpy() for name, tensor in state.items()} for state in (fixed, moving))
    before = np.eye(5)[p["a"]]
    expected = a["2.w"] @ before @ b["2.w"].T + np.outer(a["2.b"], b["2.b"]) + a["3.w"].T @ b["3.w"]
    found = WeightSimilarity(fixed, moving, symmetry, CPU).of("b", p)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert matched(found, p["b"]).shape == (4,)
