import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import nn

from lmc.alignment.problem import Matching, Problem, chosen_groups
from lmc.alignment.similarity.weights import WeightSimilarity
from lmc.alignment.weight_matching import WeightMatching, outwards
from lmc.errors import UserError
from lmc.seeding import isolated
from lmc.state import State, of_model
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry
from tests.alignment.conftest import all_permutations

Draw = Callable[[Symmetry, int], State]
Pose = Callable[..., Problem]
Plant = Callable[[Symmetry, State, int, float], tuple[State, Permutation]]
NAMES = ["mlp", "conv", "channels last", "residual", "concatenation", "self-coupled", "three groups", "heads"]
STARTS = ["centre", "identity", "random"]


def objective(fixed: State, moving: State, permutation: Permutation) -> float:
    aligned = permutation.apply(moving)
    return sum((fixed[n].double() * aligned[n].double()).sum().item() for n in permutation.symmetry.axes_of)


def with_group(permutation: Permutation, group: str, order: tuple[int, ...]) -> Permutation:
    return Permutation(permutation.symmetry, {**permutation, group: torch.tensor(order)})


@pytest.fixture(scope="module")
def perceptron(build: Callable[..., Symmetry]) -> Symmetry:
    return build(
        {"a": 32, "b": 24}, {"1.w": ("a", 10), "1.b": ("a",), "2.w": ("b", "a"), "2.b": ("b",), "3.w": (5, "b")}
    )


@pytest.fixture(scope="module")
def convolutional(build: Callable[..., Symmetry]) -> Symmetry:
    from lmc.symmetry.structure import Factor

    flat = ((Factor("b", 24), Factor(None, 4)),)
    return build({"a": 16, "b": 24}, {"1.w": ("a", 3, 3, 3), "2.w": ("b", "a", 3, 3), "2.n": ("b",), "3.w": (5, flat)})


@pytest.fixture(scope="module")
def residual(build: Callable[..., Symmetry]) -> Symmetry:
    """Six residual blocks of 30 units on a stream of 50 that touches 2 inputs and 2 outputs (git-re-basin issue 8)."""
    sizes = {"s": 30} | {f"i{block}": 50 for block in range(6)}
    tensors: dict[str, tuple[str | int, ...]] = {"in": ("s", 2), "out": (2, "s")}
    for block in range(6):
        tensors |= {f"{block}.1": (f"i{block}", "s"), f"{block}.2": ("s", f"i{block}")}
    return build(sizes, tensors)


@pytest.mark.parametrize("name", ["mlp", "conv", "self-coupled", "heads"])
def test_no_permutation_is_better_than_the_best_of_the_restarts(
    symmetries: dict[str, Symmetry], draw: Draw, pose: Pose, name: str
) -> None:
    symmetry = symmetries[name]
    optimal = 0
    for seed in range(3):
        fixed, moving = draw(symmetry, 2 * seed), draw(symmetry, 2 * seed + 1)
        best = max(objective(fixed, moving, choice) for choice in all_permutations(symmetry))
        found = WeightMatching(restarts=20, start="random")(fixed, moving, pose(symmetry, seed)).objective
        assert found <= best + 1e-4
        optimal += found > best - 1e-4
    assert optimal >= 2


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", NAMES)
def test_no_single_group_can_be_improved(
    symmetries: dict[str, Symmetry], draw: Draw, pose: Pose, name: str, start: str
) -> None:
    symmetry = symmetries[name]
    fixed, moving = draw(symmetry, 1), draw(symmetry, 2)
    matching = WeightMatching(restarts=1, start=start)(fixed, moving, pose(symmetry))
    assert matching.objective == pytest.approx(objective(fixed, moving, matching.permutation), rel=1e-5)
    for group in set(symmetry.groups) - ({"s"} if name == "self-coupled" else set()):  # "s" is not linear
        orders = itertools.permutations(range(symmetry.groups[group].size))
        best = max(objective(fixed, moving, with_group(matching.permutation, group, order)) for order in orders)
        assert best <= matching.objective + 1e-4


@pytest.mark.parametrize("order", ["random", "forward", "backward", "alternating"])
@pytest.mark.parametrize("start", STARTS)
def test_objective_never_falls_within_a_descent(
    residual: Symmetry, draw: Draw, pose: Pose, start: str, order: str
) -> None:
    fixed, moving = draw(residual, 1), draw(residual, 2)
    seen: list[dict[str, float]] = []
    restarts = 1 if start == "identity" and order != "random" else 3
    method = WeightMatching(restarts=restarts, start=start, order=order)
    matching = method(fixed, moving, pose(residual), lambda record: seen.append(dict(record)))
    assert seen == matching.trace
    ends = []
    for restart in range(restarts):
        records = [record for record in matching.trace if record["restart"] == restart]
        assert [record["sweep"] for record in records] == list(range(len(records)))
        values = [record["objective"] for record in records]
        assert values == sorted(values)
        # A sweep in which nothing moved leaves the objective alone; any other raises it.
        for before, after in itertools.pairwise(records):
            assert (after["moved"] > 0) == (after["objective"] > before["objective"])
        ends.append(values[-1])
    assert max(ends) == pytest.approx(matching.objective, rel=1e-6)
    assert matching.objective == pytest.approx(objective(fixed, moving, matching.permutation), rel=1e-6)


def test_the_first_of_several_descents_begins_at_the_identity(residual: Symmetry, draw: Draw, pose: Pose) -> None:
    fixed, moving = draw(residual, 1), draw(residual, 2)
    trace = WeightMatching(restarts=2)(fixed, moving, pose(residual)).trace
    assert trace[0]["objective"] == pytest.approx(objective(fixed, moving, Permutation.identity(residual)), rel=1e-5)
    alone = WeightMatching(restarts=1)(fixed, moving, pose(residual)).trace
    assert alone[0]["moved"] == len(residual.groups)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("network", ["perceptron", "convolutional", "residual"])
def test_planted_permutation_is_recovered(
    request: pytest.FixtureRequest, draw: Draw, pose: Pose, plant: Plant, network: str, noise: float
) -> None:
    symmetry = request.getfixturevalue(network)
    for seed in range(3):
        fixed = draw(symmetry, seed)
        moving, truth = plant(symmetry, fixed, seed, noise)
        # A single descent from the centre is enough, also on residual networks.
        assert WeightMatching(restarts=1)(fixed, moving, pose(symmetry, seed)).permutation == truth
        assert WeightMatching(restarts=3)(fixed, moving, pose(symmetry, seed)).permutation == truth


def test_the_centre_finds_what_other_starts_miss(residual: Symmetry, draw: Draw, pose: Pose, plant: Plant) -> None:
    share = dict.fromkeys(STARTS, 0)
    for seed in range(10):
        fixed = draw(residual, seed)
        moving, truth = plant(residual, fixed, seed, 0.05)
        for start in STARTS:
            found = WeightMatching(restarts=1, start=start)(fixed, moving, pose(residual, seed))
            share[start] += found.permutation == truth
    assert share["centre"] == 10
    assert min(share["identity"], share["random"]) < 10


@pytest.mark.parametrize("network", ["perceptron", "convolutional", "residual"])
def test_from_the_centre_the_order_of_the_units_does_not_matter(
    request: pytest.FixtureRequest, draw: Draw, pose: Pose, network: str
) -> None:
    symmetry = request.getfixturevalue(network)
    fixed, moving = ({n: t.double() for n, t in draw(symmetry, seed).items()} for seed in (1, 2))
    shuffle = Permutation.random(symmetry, torch.Generator().manual_seed(3))
    method = WeightMatching(restarts=1)
    found = method(fixed, moving, pose(symmetry)).permutation
    assert method(fixed, shuffle.apply(moving), pose(symmetry)).permutation == found.compose(shuffle.inverse())


def test_restarts_find_a_better_optimum(residual: Symmetry, draw: Draw, pose: Pose) -> None:
    fixed, moving = draw(residual, 1), draw(residual, 2)
    one, many = (WeightMatching(restarts=n, start="random")(fixed, moving, pose(residual)) for n in (1, 8))
    assert many.objective > one.objective


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_matched_with_itself_by_the_identity(
    symmetries: dict[str, Symmetry], draw: Draw, pose: Pose, name: str, start: str
) -> None:
    fixed = draw(symmetries[name], 1)
    matching = WeightMatching(restarts=2, start=start)(fixed, fixed, pose(symmetries[name]))
    assert matching.permutation == Permutation.identity(symmetries[name])
    assert matching.objective == pytest.approx(
        sum(fixed[n].square().sum().item() for n in symmetries[name].axes_of), rel=1e-5
    )


def test_units_without_weights_keep_their_place(perceptron: Symmetry, draw: Draw, pose: Pose) -> None:
    """Pruned units are equal to one another; nothing is gained by moving them."""
    fixed = draw(perceptron, 1)
    for name, dim in (("1.w", 0), ("1.b", 0), ("2.w", 1)):
        fixed[name].index_fill_(dim, torch.tensor([2, 3, 11]), 0.0)
    for restarts in (1, 3):
        matching = WeightMatching(restarts=restarts)(fixed, fixed, pose(perceptron))
        assert matching.permutation == Permutation.identity(perceptron)


def test_same_seed_gives_the_same_and_another_seed_other_descents(residual: Symmetry, draw: Draw, pose: Pose) -> None:
    fixed, moving = draw(residual, 1), draw(residual, 2)

    def run(seed: int) -> tuple[Matching, list[float]]:
        state = torch.random.get_rng_state()
        matching = WeightMatching(restarts=4)(fixed, moving, pose(residual, seed))
        assert torch.equal(state, torch.random.get_rng_state())
        return matching, [record["objective"] for record in matching.trace]

    assert run(0)[1] == run(0)[1]
    assert run(0)[0].permutation == run(0)[0].permutation
    assert run(0)[1] != run(1)[1]


def test_nothing_handed_in_is_changed(residual: Symmetry, draw: Draw, pose: Pose) -> None:
    fixed, moving = draw(residual, 1), draw(residual, 2)
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in (fixed, moving)]
    WeightMatching(restarts=3)(fixed, moving, pose(residual))
    for state, old in zip((fixed, moving), before, strict=True):
        assert all(torch.equal(state[name], old[name]) for name in old)


def test_descent_stops_at_the_limit_and_says_so(
    residual: Symmetry, draw: Draw, pose: Pose, caplog: pytest.LogCaptureFixture
) -> None:
    fixed, moving = draw(residual, 1), draw(residual, 2)
    matching = WeightMatching(restarts=1, start="identity", max_sweeps=1)(fixed, moving, pose(residual))
    assert [record["sweep"] for record in matching.trace] == [0, 1]
    assert "max_sweeps" in caplog.text
    assert matching.objective == pytest.approx(objective(fixed, moving, matching.permutation), rel=1e-5)


def test_a_gain_below_the_tolerance_moves_nothing(perceptron: Symmetry, draw: Draw, pose: Pose) -> None:
    fixed, moving = draw(perceptron, 1), draw(perceptron, 2)
    matching = WeightMatching(restarts=1, start="identity", tolerance=2.0)(fixed, moving, pose(perceptron))
    assert matching.permutation == Permutation.identity(perceptron)


def test_groups_are_matched_outwards_from_the_ends_of_the_network(
    residual: Symmetry, build: Callable[..., Symmetry]
) -> None:
    chain = build(dict.fromkeys("abcde", 2), {"1": ("a", 3), **{x + y: (y, x) for x, y in itertools.pairwise("abcde")}})
    neighbours = {"a": "b", "b": "ac", "c": "bd", "d": "ce", "e": "d"}
    links = {name: frozenset(near) for name, near in neighbours.items()}
    assert outwards("edcba", chain, links) == ["a", "b", "c", "d", "e"]
    ended = build(dict.fromkeys("abc", 2), {"1": ("a", 3), "ab": ("b", "a"), "bc": ("c", "b"), "2": (3, "c")})
    assert outwards("bca", ended, {"a": links["a"], "b": links["b"], "c": frozenset("b")}) == ["c", "b", "a"]
    # Nothing touches an end: the order is kept, and what is met first is known from then on.
    loose = build(dict.fromkeys("abc", 2), {"ab": ("b", "a"), "bc": ("c", "b")})
    assert outwards("acb", loose, {"a": links["a"], "b": links["b"], "c": frozenset("b")}) == ["a", "b", "c"]


def test_networks_that_do_not_fit_are_refused(perceptron: Symmetry, draw: Draw, pose: Pose) -> None:
    fixed, moving = draw(perceptron, 1), draw(perceptron, 2)
    with pytest.raises(UserError, match=r"moving network .*'2\.w' has shape \(24, 31\)"):
        WeightMatching()(fixed, {**moving, "2.w": moving["2.w"][:, :31]}, pose(perceptron))
    with pytest.raises(UserError, match=r"fixed network has no tensor '3\.w'"):
        WeightMatching()({n: t for n, t in fixed.items() if n != "3.w"}, moving, pose(perceptron))
    for bad in (float("nan"), float("inf")):
        broken = moving["1.b"].clone()
        broken[3] = bad
        with pytest.raises(UserError, match=r"moving network .*'1\.b' holds NaN or infinity"):
            WeightMatching()(fixed, {**moving, "1.b": broken}, pose(perceptron))


def test_a_network_without_groups_has_nothing_to_match(pose: Pose) -> None:
    symmetry = Symmetry({}, {"w": (3, 2)}, frozenset({"w"}))
    matching = WeightMatching()({"w": torch.ones(3, 2)}, {"w": torch.zeros(3, 2)}, pose(symmetry))
    assert len(matching.permutation) == 0
    assert matching.objective == 0.0


def test_descents_that_would_all_be_equal_are_refused() -> None:
    with pytest.raises(UserError, match=r"alignment\.restarts=2.*all descents are the same"):
        WeightMatching(restarts=2, start="identity", order="forward")
    assert WeightMatching(restarts=1, start="identity", order="forward").restarts == 1


def stack(symmetry: Symmetry, draw: Draw, plant: Plant, seed: int, noise: float, count: int) -> tuple:
    """Checkpoints of a network, noisy copies of them with one permutation, and what brings these back."""
    fixed = [draw(symmetry, 100 * seed + k) for k in range(count)]
    _, truth = plant(symmetry, fixed[0], seed, 0.0)
    generator = torch.Generator().manual_seed(seed)
    moving = [
        {n: t + noise * torch.randn(t.shape, generator=generator) for n, t in truth.inverse().apply(state).items()}
        for state in fixed
    ]
    return fixed, moving, truth


def test_a_stack_of_checkpoints_finds_what_none_of_them_shows(
    perceptron: Symmetry, draw: Draw, pose: Pose, plant: Plant
) -> None:
    alone = together = 0
    for seed in range(4):
        fixed, moving, truth = stack(perceptron, draw, plant, seed, 2.5, 8)
        pairs = list(zip(fixed, moving, strict=True))
        problem = replace(pose(perceptron, seed), earlier=pairs[1:])
        alone += sum(WeightMatching()(*pair, pose(perceptron, seed)).permutation == truth for pair in pairs)
        found = WeightMatching(stacked=7)(*pairs[0], problem)
        together += found.permutation == truth
        total = sum(objective(*pair, found.permutation) for pair in pairs)
        assert found.objective == pytest.approx(total, rel=1e-5)
    assert (alone, together) == (0, 4)


def test_the_last_of_the_earlier_checkpoints_are_stacked(perceptron: Symmetry, draw: Draw, pose: Pose) -> None:
    states = [draw(perceptron, seed) for seed in range(8)]
    (*earlier, (fixed, moving)) = zip(states[::2], states[1::2], strict=True)
    problem = replace(pose(perceptron), earlier=earlier)
    two = WeightMatching(stacked=2)(fixed, moving, problem)
    same = WeightMatching(stacked=2)(fixed, moving, replace(problem, earlier=earlier[1:]))
    assert two.permutation == same.permutation
    assert two.objective == same.objective
    total = sum(objective(*pair, two.permutation) for pair in (*earlier[1:], (fixed, moving)))
    assert two.objective == pytest.approx(total, rel=1e-5)
    none = WeightMatching()(fixed, moving, problem)
    assert none.objective == WeightMatching()(fixed, moving, pose(perceptron)).objective
    with pytest.raises(UserError, match=r"alignment\.stacked=4: there are 3 earlier checkpoints"):
        WeightMatching(stacked=4)(fixed, moving, problem)
    broken = {**states[0], "1.b": states[0]["1.b"] * float("nan")}
    with pytest.raises(UserError, match=r"'1\.b' holds NaN"):
        WeightMatching(stacked=1)(fixed, moving, replace(problem, earlier=[(states[2], broken)]))


@pytest.mark.parametrize("similarity", ["inner_product", "cosine"])
@pytest.mark.parametrize("name", ["mlp", "conv", "residual", "concatenation", "three groups"])
def test_no_single_group_can_be_improved_by_any_similarity(
    symmetries: dict[str, Symmetry], draw: Draw, pose: Pose, name: str, similarity: str
) -> None:
    symmetry = symmetries[name]
    fixed, moving = draw(symmetry, 1), draw(symmetry, 2)
    matching = WeightMatching(restarts=2, similarity=similarity)(fixed, moving, pose(symmetry))
    weights = WeightSimilarity(fixed, moving, symmetry, torch.device("cpu"), cosine=similarity == "cosine")
    for restart in (0, 1):
        values = [record["objective"] for record in matching.trace if record["restart"] == restart]
        assert values == sorted(values)
    for group in symmetry.groups:
        orders = itertools.permutations(range(symmetry.groups[group].size))
        best = max(weights.objective(with_group(matching.permutation, group, order)) for order in orders)
        assert best <= matching.objective + 1e-4


@pytest.mark.parametrize("network", ["perceptron", "convolutional", "residual"])
def test_cosines_recover_a_planted_permutation_whatever_the_length_of_the_units(
    request: pytest.FixtureRequest, draw: Draw, pose: Pose, plant: Plant, network: str
) -> None:
    symmetry = request.getfixturevalue(network)
    fixed = draw(symmetry, 1)
    moving, truth = plant(symmetry, fixed, 1, 0.1)
    assert WeightMatching(restarts=1, similarity="cosine")(fixed, moving, pose(symmetry)).permutation == truth
    shuffle = Permutation.random(symmetry, torch.Generator().manual_seed(3))
    again = WeightMatching(restarts=1, similarity="cosine")(fixed, shuffle.apply(moving), pose(symmetry)).permutation
    assert again == truth.compose(shuffle.inverse())


def test_strong_units_decide_inner_products_but_not_cosines(
    perceptron: Symmetry, draw: Draw, pose: Pose, plant: Plant
) -> None:
    """Rescaled units of a rectifier network: the same functions, of which inner products see the lengths."""
    fixed = draw(perceptron, 1)
    moving, truth = plant(perceptron, fixed, 1, 0.3)
    factor = torch.logspace(-2, 2, 32)[torch.randperm(32, generator=torch.Generator().manual_seed(0))]
    moving["1.w"], moving["1.b"] = moving["1.w"] * factor[:, None], moving["1.b"] * factor
    moving["2.w"] = moving["2.w"] / factor
    share = {
        similarity: (
            WeightMatching(restarts=1, similarity=similarity)(fixed, moving, pose(perceptron)).permutation["a"]
            == truth["a"]
        )
        .double()
        .mean()
        for similarity in ("inner_product", "cosine")
    }
    assert share["cosine"] == 1
    assert share["inner_product"] < 0.8


@pytest.mark.parametrize("start", STARTS)
def test_without_biases_and_normalisation_only_the_others_count(
    build: Callable[..., Symmetry], draw: Draw, pose: Pose, start: str
) -> None:
    symmetry = build(
        {"a": 12, "b": 9},
        {
            "1.weight": ("a", 4), "1.bias": ("a",), "norm.weight": ("a",), "norm.bias": ("a",),
            "2.weight": ("b", "a"), "2.bias": ("b",), "3.weight": (2, "b"),
        },
    )  # fmt: skip
    fixed, moving = draw(symmetry, 1), draw(symmetry, 2)
    parts = {"biases": {"1.bias", "2.bias"}, "normalisation": {"norm.weight", "norm.bias"}}
    for off in (["biases"], ["normalisation"], ["biases", "normalisation"]):
        gone = set().union(*(parts[kind] for kind in off))
        method = WeightMatching(restarts=1, start=start, **dict.fromkeys(off, False))
        found = method(fixed, moving, pose(symmetry))
        changed = {n: 100 * t if n in gone else t for n, t in moving.items()}
        assert method(fixed, changed, pose(symmetry)).permutation == found.permutation
        aligned = found.permutation.apply(moving)
        rest = symmetry.shapes.keys() - gone
        expected = sum((fixed[n].double() * aligned[n].double()).sum().item() for n in rest)
        assert found.objective == pytest.approx(expected, rel=1e-5)
    assert WeightMatching(restarts=1, start=start)(fixed, moving, pose(symmetry)).objective != found.objective


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "self-coupled"])  # there "s" is not linear
def test_a_chosen_group_gets_the_best_of_its_permutations(
    symmetries: dict[str, Symmetry], draw: Draw, pose: Pose, name: str, start: str
) -> None:
    symmetry = symmetries[name]
    fixed, moving = draw(symmetry, 1), draw(symmetry, 2)
    identity = Permutation.identity(symmetry)
    for group in symmetry.groups:
        found = WeightMatching(restarts=1, start=start, groups=[group])(fixed, moving, pose(symmetry))
        orders = itertools.permutations(range(symmetry.groups[group].size))
        best = max(objective(fixed, moving, with_group(identity, group, order)) for order in orders)
        assert found.objective == pytest.approx(best, rel=1e-5)
        assert objective(fixed, moving, found.permutation) == pytest.approx(best, rel=1e-5)
        assert all(torch.equal(found.permutation[n], identity[n]) for n in symmetry.groups if n != group)


def test_patterns_choose_groups(residual: Symmetry, draw: Draw, pose: Pose) -> None:
    fixed, moving = draw(residual, 1), draw(residual, 2)
    identity = Permutation.identity(residual)
    found = WeightMatching(groups=["i[0-2]", "s"])(fixed, moving, pose(residual)).permutation
    moved = {name for name in residual.groups if not torch.equal(found[name], identity[name])}
    assert moved == {"i0", "i1", "i2", "s"}
    whole, every = WeightMatching(restarts=2), WeightMatching(restarts=2, groups=["*"])
    assert every(fixed, moving, pose(residual)).permutation == whole(fixed, moving, pose(residual)).permutation
    with pytest.raises(UserError, match=r"no group fits 'x\*'; there are s, i0, i1, i2, i3, i4, i5"):
        WeightMatching(groups=["s", "x*"]).check(residual)
    with pytest.raises(UserError, match=r"alignment\.groups=\[\]"):
        WeightMatching(groups=[])
    WeightMatching(groups=["s"]).check(residual)


def test_a_name_with_brackets_fits_itself(build: Callable[..., Symmetry]) -> None:
    symmetry = build({"a[0]": 2, "a0": 2}, {"w": ("a[0]", "a0")})
    assert chosen_groups(symmetry, ["a[0]"]) == ["a[0]", "a0"]
    assert chosen_groups(symmetry, ["a0"]) == ["a0"]
    assert chosen_groups(symmetry, None) == ["a[0]", "a0"]


@pytest.mark.parametrize("similarity", ["inner_product", "cosine"])
def test_units_inside_blocks_are_matched_by_every_similarity_stacked_or_not(similarity: str, pose: Pose) -> None:
    """Heads, grouped convolutions, and what is shared between groups of two convolutions."""
    for make in (lambda: nn.Sequential(nn.Conv1d(2, 6, 1), nn.Tanh(), nn.Conv1d(6, 8, 1, groups=2), nn.Tanh()), Heads):
        with isolated(0, "test"):
            model = nn.Sequential(make(), nn.Flatten(), nn.LazyLinear(2)).eval()
            model(torch.zeros(1, 2, 4))
        symmetry = discover(model, torch.zeros(2, 2, 4))
        assert symmetry.outer
        generator = torch.Generator().manual_seed(0)
        shapes = {name: tensor.shape for name, tensor in of_model(model).items()}
        fixed = [{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(3)]
        planted = Permutation.random(symmetry, generator)
        pairs = [(state, planted.apply(state)) for state in fixed]
        for stacked in (0, 2):
            problem = replace(pose(symmetry), earlier=pairs[1:])
            found = WeightMatching(restarts=2, stacked=stacked, similarity=similarity)(*pairs[0], problem)
            assert found.permutation == planted.inverse()


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.attention = nn.Linear(4, 6), nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.enter(x))
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("after", [1, 4])
def test_an_interrupted_search_returns_the_best_so_far(residual: Symmetry, draw: Draw, pose: Pose, after: int) -> None:
    fixed, moving = draw(residual, 1), draw(residual, 2)
    seen: list[float] = []

    def stop(record: Mapping[str, float]) -> None:
        seen.append(record["objective"])
        if len(seen) == after:
            raise KeyboardInterrupt

    matching = WeightMatching(start="random", restarts=3)(fixed, moving, pose(residual), stop)
    assert not matching.complete
    assert len(matching.trace) == after
    assert matching.objective == pytest.approx(max(seen), rel=1e-5)
    assert matching.objective == pytest.approx(objective(fixed, moving, matching.permutation), rel=1e-5)
    assert WeightMatching(restarts=1)(fixed, moving, pose(residual)).complete
