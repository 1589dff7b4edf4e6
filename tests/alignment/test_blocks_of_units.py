"""Matching of blocks with what is inside them, against brute force over the whole wreath product and planted copies."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lmc import seeding, state
from lmc.alignment.activation_matching import ActivationMatching
from lmc.alignment.assignment import assign_family, flat
from lmc.alignment.problem import Problem
from lmc.alignment.similarity.correlation import PairMoments
from lmc.alignment.similarity.weights import WeightSimilarity
from lmc.alignment.weight_matching import WeightMatching
from lmc.symmetry.activations import Probe
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Group, Symmetry


class Attention(nn.Module):
    """Two key heads, each shared by two query heads, of three dimensions; grouped convolution before it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.grouped = nn.Conv1d(2, 6, 1), nn.Conv1d(6, 8, 1, groups=2)
        self.query, self.key, self.value = nn.Linear(8, 12), nn.Linear(8, 6), nn.Linear(8, 6)
        self.out, self.leave = nn.Linear(12, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.grouped(torch.tanh(self.enter(x)))).transpose(1, 2)
        query, key, value = (
            layer(x).unflatten(-1, (heads, 3)).transpose(1, 2)
            for layer, heads in ((self.query, 4), (self.key, 2), (self.value, 2))
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        return self.leave(torch.tanh(self.out(mixed.transpose(1, 2).flatten(2))).mean(1))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with seeding.isolated(0, "blocks of units"):
        model = Attention().eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture(scope="module")
def symmetry(network: nn.Module) -> Symmetry:
    return discover(network, torch.zeros(2, 2, 5))


def pose(network: nn.Module, symmetry: Symmetry) -> Problem:
    images = torch.randn(64, 2, 5, generator=torch.Generator().manual_seed(1))
    return Problem(network, symmetry, 0, torch.device("cpu"), lambda size: torch.split(images, size))


def by_hand(sizes: dict[str, int], outer: dict[str, tuple[str, ...]]) -> Symmetry:
    groups = {name: Group(name, size, (), outer=outer.get(name, ())) for name, size in sizes.items()}
    return Symmetry(groups, {}, frozenset())


def elements(symmetry: Symmetry, family: tuple[str, ...]) -> list[dict[str, Tensor]]:
    """Every element of the wreath product."""
    choices = []
    for name in family:
        *places, size = symmetry.lattice(name)
        rows = list(itertools.permutations(range(size)))
        copies = torch.Size(places).numel()
        choices.append(
            [torch.tensor(chosen).reshape(*places, size) for chosen in itertools.product(rows, repeat=copies)]
        )
    return [dict(zip(family, chosen, strict=True)) for chosen in itertools.product(*choices)]


@pytest.mark.parametrize(
    ("sizes", "outer"),
    [
        ({"heads": 3, "inside": 2}, {"inside": ("heads",)}),
        ({"heads": 3, "key": 2, "value": 2}, {"key": ("heads",), "value": ("heads",)}),
        ({"a": 2, "b": 2, "c": 2}, {"b": ("a",), "c": ("a", "b")}),
    ],
    ids=["heads", "two kinds inside", "three levels"],
)
@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_the_whole_wreath_product_is_found(sizes: dict, outer: dict, seed: int):
    symmetry, generator = by_hand(sizes, outer), torch.Generator().manual_seed(seed)
    family = tuple(sizes)
    similarities = {n: torch.randn(symmetry.units(n), symmetry.units(n), generator=generator) for n in family}

    def value(chosen: dict[str, Tensor]) -> float:
        total = 0.0
        for name in family:
            match = flat(symmetry, symmetry.chain(name), chosen)
            total += similarities[name].double()[torch.arange(len(match)), match].sum().item()
        return total

    best = max(map(value, elements(symmetry, family)))
    assert value(assign_family(symmetry, family, similarities)) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_inside_blocks_least_squares_is_the_product_too(seed: int):
    """Distances of all samples, summed over two places, for every element of the wreath product."""
    symmetry, generator = by_hand({"heads": 3, "inside": 2}, {"inside": ("heads",)}), torch.Generator()
    generator.manual_seed(seed)
    places = [[torch.randn(6, 40, generator=generator) for _ in range(2)] for _ in range(2)]
    products = torch.zeros(6, 6, dtype=torch.float64)
    for ours, theirs in places:
        moments = PairMoments.none(6, torch.device("cpu"))
        moments.add(ours, theirs)
        products += moments.product()
    found = assign_family(symmetry, ("heads", "inside"), {"inside": products})

    def distance(chosen: dict[str, Tensor]) -> float:
        match = flat(symmetry, symmetry.chain("inside"), chosen)
        return sum((ours.double() - theirs.double()[match]).square().mean(1).sum().item() for ours, theirs in places)

    assert distance(found) == pytest.approx(min(map(distance, elements(symmetry, ("heads", "inside")))), abs=1e-9)


CHOICES = [
    ["query"], ["query/inside"], ["query/inside#2"], ["value/inside"], ["enter"], ["enter/inside"], ["grouped/inside"],
    ["query", "value/inside"], ["query", "query/inside"], ["enter", "enter/inside"],
]  # fmt: skip


@pytest.mark.parametrize("chosen", CHOICES, ids=" and ".join)
def test_chosen_groups_of_a_family_move_and_the_others_stay(chosen: list[str], network: nn.Module, symmetry: Symmetry):
    """Against every permutation of the chosen groups: by the weights, and by the activations that they lead to."""
    fixed = state.of_model(network)
    with seeding.isolated(3, "chosen"):
        moving = {name: 0.5 * torch.randn_like(tensor) for name, tensor in fixed.items()}
    still, problem = Permutation.identity(symmetry), pose(network, symmetry)
    everything = [Permutation(symmetry, {**still, **element}) for element in elements(symmetry, tuple(chosen))]
    images = next(iter(problem.images(None, 64)))
    seen = [name for name, group in symmetry.groups.items() if name in chosen or {*group.outer} & {*chosen}]
    probe = Probe(network, symmetry, "pre", seen)

    def by_weights(permutation: Permutation) -> float:
        moved = permutation.apply(moving)
        return sum((fixed[name].double() * moved[name].double()).sum().item() for name in symmetry.axes_of)

    def by_activations(permutation: Permutation) -> float:
        values = [rows for _, _, rows in probe([fixed, permutation.apply(moving)], images)]
        return -sum((ours.double() - theirs.double()).square().mean(1).sum().item() for ours, theirs in values)

    best = max(map(by_weights, everything))
    for start in ("centre", "identity", "random"):
        found = WeightMatching(restarts=1, start=start, groups=chosen)(fixed, moving, problem)
        assert by_weights(found.permutation) == pytest.approx(best, rel=1e-5)
        assert found.objective == pytest.approx(best, rel=1e-5)
        assert all(found.permutation[name].equal(still[name]) for name in symmetry.groups if name not in chosen)
    found = ActivationMatching(kind="pre", similarity="l2", groups=chosen)(fixed, moving, problem)
    assert all(found.permutation[name].equal(still[name]) for name in symmetry.groups if name not in chosen)
    reached = sum(record["units"] * record["places"] * record["similarity"] for record in found.trace)
    assert reached == pytest.approx(by_activations(found.permutation), rel=1e-5)
    assert reached == pytest.approx(max(map(by_activations, everything)), rel=1e-5)


@pytest.mark.parametrize("similarity", ["product", "l2", "cosine"])
def test_each_similarity_of_activations_sees_the_function_and_not_the_order(
    similarity: str, network: nn.Module, symmetry: Symmetry
):
    fixed = state.of_model(network)
    with seeding.isolated(2, "other"):
        moving = {name: 0.5 * torch.randn_like(tensor) for name, tensor in fixed.items()}
    shift = Permutation.random(symmetry, torch.Generator().manual_seed(4))
    method = ActivationMatching(kind="pre", similarity=similarity)
    plain = method(fixed, moving, pose(network, symmetry))
    moved = method(fixed, shift.apply(moving), pose(network, symmetry))
    assert moved.permutation.compose(shift) == plain.permutation
    assert moved.objective == pytest.approx(plain.objective, rel=1e-5)


def test_rows_of_heads_are_compared_as_loops_do(network: nn.Module, symmetry: Symmetry):
    """S of what is inside heads, against explicit loops over heads and dimensions."""
    fixed = state.of_model(network)
    generator = torch.Generator().manual_seed(3)
    moving = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in fixed.items()}
    weights = WeightSimilarity(fixed, moving, symmetry, torch.device("cpu"))
    value = next(name for name, group in symmetry.groups.items() if name.startswith("value/"))
    permutation = Permutation.random(symmetry, generator)
    held = Permutation(symmetry, {**permutation, value: Permutation.identity(symmetry)[value]}).apply(moving)
    found = weights.inside(value, dict(permutation))
    for head, i, j in itertools.product(range(2), range(3), range(3)):
        row, other = head * 3 + i, head * 3 + j
        expected = fixed["value.weight"][row] @ held["value.weight"][other]
        expected = expected + fixed["value.bias"][row] * held["value.bias"][other]
        for shared in range(2):  # the query heads that read this value head
            ours = fixed["out.weight"][:, (head * 2 + shared) * 3 + i]
            expected = expected + ours @ held["out.weight"][:, (head * 2 + shared) * 3 + j]
        assert found[head, i, j].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(
    "method",
    [
        WeightMatching(restarts=1),
        WeightMatching(restarts=1, start="random"),
        ActivationMatching(kind="pre"),
    ],
    ids=["weights", "weights from random", "activations"],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_element_of_the_wreath_product_is_found(
    method: Callable, seed: int, network: nn.Module, symmetry: Symmetry
):
    assert any(group.outer for group in symmetry.groups.values())
    fixed = state.of_model(network)
    planted = Permutation.random(symmetry, torch.Generator().manual_seed(seed))
    found = method(fixed, planted.apply(fixed), pose(network, symmetry))
    assert found.permutation == planted.inverse()


@pytest.mark.parametrize("start", ["centre", "identity", "random"])
def test_descents_rise_and_end_where_nothing_inside_gains(start: str, network: nn.Module, symmetry: Symmetry):
    fixed = state.of_model(network)
    with seeding.isolated(1, "other"):
        moving = {name: torch.randn_like(tensor) for name, tensor in fixed.items()}
    found = WeightMatching(restarts=1, start=start)(fixed, moving, pose(network, symmetry))
    objectives = [record["objective"] for record in found.trace]
    assert all(later >= earlier - 1e-4 for earlier, later in itertools.pairwise(objectives))

    def objective(permutation: Permutation) -> float:
        moved = permutation.apply(moving)
        acted = symmetry.axes_of.keys()
        return sum((fixed[name].double() * moved[name].double()).sum().item() for name in acted)

    assert found.objective == pytest.approx(objective(found.permutation), rel=1e-5)
    for name, group in symmetry.groups.items():
        if symmetry.inside(name):
            continue
        for place in itertools.product(*(range(n) for n in symmetry.lattice(name)[:-1])):
            for i, j in itertools.combinations(range(group.size), 2):
                value = found.permutation[name].clone()
                value[(*place, i)], value[(*place, j)] = value[(*place, j)].clone(), value[(*place, i)].clone()
                changed = Permutation(symmetry, {**found.permutation, name: value})
                assert objective(changed) <= found.objective + 1e-3


def test_matching_a_permuted_copy_gives_the_permuted_answer(network: nn.Module, symmetry: Symmetry):
    """Activations see the function and not the order: the answer moves with the moving network."""
    fixed = state.of_model(network)
    with seeding.isolated(2, "other"):
        moving = {name: 0.5 * torch.randn_like(tensor) for name, tensor in fixed.items()}
    shift = Permutation.random(symmetry, torch.Generator().manual_seed(4))
    method = ActivationMatching(kind="pre")
    plain = method(fixed, moving, pose(network, symmetry)).permutation
    moved = method(fixed, shift.apply(moving), pose(network, symmetry)).permutation
    assert moved.compose(shift) == plain
