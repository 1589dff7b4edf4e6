import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lmc.alignment.assignment import matched
from lmc.alignment.similarity.weights import WeightSimilarity, biases, normalisation, unit_length
from lmc.seeding import isolated
from lmc.state import State, of_model
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Axis, Factor, Symmetry

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


def widened(state: State) -> State:
    return {name: tensor.double() for name, tensor in state.items()}


@pytest.mark.parametrize("name", NAMES)
def test_stacked_pairs_add_their_inner_products(symmetries: dict[str, Symmetry], draw: Draw, name: str) -> None:
    symmetry = symmetries[name]
    pairs = [(draw(symmetry, 2 * k), draw(symmetry, 2 * k + 1)) for k in range(3)]
    weights = WeightSimilarity(*pairs[0], symmetry, CPU, earlier=pairs[1:])
    alone = [WeightSimilarity(*pair, symmetry, CPU) for pair in pairs]
    permutation = random(symmetry, 0)
    total = sum(inner_product(*pair, permutation) for pair in pairs)
    assert weights.objective(permutation) == pytest.approx(total, rel=1e-4, abs=1e-4)
    assert weights.bound >= abs(total)
    assert weights.neighbours == alone[0].neighbours
    for group in symmetry.groups:
        expected = sum(each.of(group, permutation) for each in alone)
        torch.testing.assert_close(weights.of(group, permutation), expected, rtol=1e-4, atol=1e-4)


def cosines(pairs: list[tuple[State, State]], permutation: Permutation) -> float:
    """The sum of the cosines of matched units, by loops over tensors, axes and units; groups act apart on an axis."""
    total = 0.0
    for tensor, axes in permutation.symmetry.axes_of.items():
        ours = np.stack([fixed[tensor].double().numpy() for fixed, _ in pairs])
        theirs = np.stack([permutation.apply(moving)[tensor].double().numpy() for _, moving in pairs])
        for axis in axes:
            units = []
            for group in sorted(axis.groups):
                owner = axis.unit_of(group).numpy()
                for unit in range(permutation.symmetry.groups[group].size):
                    positions = np.nonzero(owner == unit)[0]
                    units.append([np.take(side, positions, axis.dim + 1).ravel() for side in (ours, theirs)])
            if all(len(a) == len(pairs) for a, _ in units):
                size = len(units) / len(pairs)
                one, other = (np.stack([unit[side] for unit in units]) for side in (0, 1))
                total += size * len(pairs) * (one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other)
            else:
                total += sum(a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in units)
    return float(total)


@pytest.mark.parametrize("stacked", [1, 3])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "heads"])
def test_cosines_are_those_of_matched_units_along_every_axis(
    symmetries: dict[str, Symmetry], draw: Draw, name: str, stacked: int
) -> None:
    symmetry = symmetries[name]
    pairs = [(draw(symmetry, 2 * k), draw(symmetry, 2 * k + 1)) for k in range(stacked)]
    weights = WeightSimilarity(*pairs[0], symmetry, CPU, earlier=pairs[1:], cosine=True)
    for seed in range(2):
        permutation = random(symmetry, seed)
        assert weights.objective(permutation) == pytest.approx(cosines(pairs, permutation), rel=1e-4, abs=1e-4)
        after = random(symmetry, seed + 5)
        for group in symmetry.groups:
            changed = Permutation(symmetry, {**permutation, group: after[group]})
            gain = weights.gain(group, weights.of(group, permutation), dict(permutation), after[group])
            truth = cosines(pairs, changed) - cosines(pairs, permutation)
            assert gain == pytest.approx(truth, rel=1e-3, abs=1e-4)


def test_the_length_of_a_unit_does_not_matter_to_its_cosine(symmetries: dict[str, Symmetry], draw: Draw) -> None:
    symmetry = symmetries["conv"]
    fixed, moving = widened(draw(symmetry, 1)), widened(draw(symmetry, 2))
    scaled = {**moving, "1.w": moving["1.w"] * torch.tensor([1.0, 100.0, 0.01, 7.0, 3.0])[:, None, None, None]}
    one, other = (WeightSimilarity(fixed, state, symmetry, CPU, cosine=True) for state in (moving, scaled))
    permutation = random(symmetry, 0)
    assert one.objective(permutation) == pytest.approx(other.objective(permutation), rel=1e-12)
    same = WeightSimilarity(fixed, fixed, symmetry, CPU, cosine=True)
    # Units of "a": outgoing twice, incoming and in the bias once; of "b": incoming and outgoing.
    assert same.objective(Permutation.identity(symmetry)) == pytest.approx(5 * 3 + 4 * 2)


def attention_in_groups() -> nn.Module:
    """Heads with dimensions inside them, and channels inside the groups of a convolution that reads channels inside."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.grouped = nn.Conv1d(2, 6, 1), nn.Conv1d(6, 8, 3, padding=1, groups=2)
            self.attention, self.leave = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.grouped(torch.tanh(self.enter(x)))).transpose(1, 2)
            return self.leave(self.attention(x, x, x, need_weights=False)[0].mean(1))

    with isolated(0, "test"):
        return Network().eval()


@pytest.mark.parametrize("stacked", [1, 2])
def test_unit_vectors_of_blocks_have_length_one_and_move_with_the_units(stacked: int) -> None:
    model = attention_in_groups()
    symmetry = discover(model, torch.zeros(2, 2, 5))
    assert sum(bool(group.outer) for group in symmetry.groups.values()) >= 3
    shapes = {name: tensor.shape for name, tensor in of_model(model).items()}
    generator = torch.Generator().manual_seed(0)
    states = [{n: torch.randn(s, generator=generator).double() for n, s in shapes.items()} for _ in range(stacked)]
    permutation = Permutation.random(symmetry, generator)
    moved = [permutation.apply(state) for state in states]
    for tensor, axes in symmetry.axes_of.items():
        for axis in axes:
            whole = unit_length([state[tensor] for state in states], axis, axes, symmetry.outer)
            shifted = unit_length([state[tensor] for state in moved], axis, axes, symmetry.outer)
            for one, other in zip(whole, shifted, strict=True):
                torch.testing.assert_close(permutation.apply({tensor: one})[tensor], other)
            total = sum(one.square().sum().item() for one in whole)
            assert total == pytest.approx(round(total), abs=1e-9)
    weight, bias = "grouped.weight", "enter.bias"
    (units,) = (axis for axis in symmetry.axes_of[weight] if axis.dim == 1)
    (inside,) = unit_length([states[0][weight]], units, symmetry.axes_of[weight], symmetry.outer)
    # The second group of the convolution reads other channels than the first, with one and the same column.
    torch.testing.assert_close(inside.reshape(2, 4, 3, 3).square().sum((1, 3)), torch.ones(2, 3).double())
    (scaled,) = unit_length([states[0][bias]], *symmetry.axes_of[bias], symmetry.axes_of[bias], symmetry.outer)
    torch.testing.assert_close(scaled, states[0][bias] / states[0][bias].square().mean().sqrt())


def test_what_belongs_to_no_unit_and_units_of_zeros_have_no_direction() -> None:
    axis = Axis("w", 1, ((Factor("a", 2),), (Factor(None, 3),), (Factor("a", 2),)))
    tensor = torch.arange(14.0).reshape(2, 7)
    tensor[:, [1, 6]] = 0.0
    (found,) = unit_length([tensor], axis, [axis], {})
    joined = tensor[:, [0, 5]]
    torch.testing.assert_close(found[:, [0, 5]], joined / joined.norm())
    assert (found[:, [1, 2, 3, 4, 6]] == 0).all()


class Zoo(nn.Module):
    """Layers with vectors of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.bare = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 1, bias=False)
        self.batch, self.plain, self.instance = (
            nn.BatchNorm2d(3),
            nn.BatchNorm1d(3, affine=False),
            nn.InstanceNorm2d(3, affine=True),
        )
        self.layer, self.planes, self.rms = nn.LayerNorm(5), nn.LayerNorm((3, 4, 4)), nn.RMSNorm(5)
        self.group, self.linear, self.attention = nn.GroupNorm(1, 3), nn.Linear(5, 5), nn.MultiheadAttention(4, 2)
        self.recurrent, self.table, self.both = nn.LSTM(4, 5), nn.Embedding(7, 5), nn.Bilinear(3, 4, 5)
        self.token = nn.Parameter(torch.zeros(1, 1, 5))
        self.nested = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))


def test_vectors_are_told_apart_as_modules_do() -> None:
    model = Zoo()
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
    modules = dict(model.named_modules())
    of_norms = {n for n, _ in model.named_parameters() if isinstance(modules[n.rpartition(".")[0]], norms)}
    of_bias = {n for n, _ in model.named_parameters() if "bias" in n.rpartition(".")[2]} - of_norms
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    symmetry = Symmetry({}, shapes, frozenset(name for name, _ in model.named_parameters()))
    assert normalisation(symmetry) == of_norms
    assert biases(symmetry) == of_bias
    assert len(of_norms) == 13
    assert {"recurrent.bias_ih_l0", "attention.in_proj_bias", "nested.0.bias"} <= of_bias


def test_what_is_left_out_does_not_count(symmetries: dict[str, Symmetry], draw: Draw) -> None:
    symmetry = symmetries["residual"]
    fixed, moving = draw(symmetry, 1), draw(symmetry, 2)
    gone = frozenset({"norm", "1.w"})
    weights = WeightSimilarity(fixed, moving, symmetry, CPU, leave_out=gone)
    permutation = random(symmetry, 0)
    aligned = permutation.apply(moving)
    expected = sum(float((fixed[n] * aligned[n]).sum()) for n in symmetry.axes_of if n not in gone)
    assert weights.objective(permutation) == pytest.approx(expected, rel=1e-4)
    everything = WeightSimilarity(fixed, moving, symmetry, CPU, leave_out=symmetry.parameters)
    assert everything.objective(permutation) == 0.0
    assert (everything.of("s", permutation) == 0).all()
