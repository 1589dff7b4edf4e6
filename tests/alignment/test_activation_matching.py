import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lmc import state as states
from lmc.alignment.activation_matching import ActivationMatching
from lmc.alignment.assignment import assign
from lmc.alignment.problem import Problem
from lmc.errors import UserError
from lmc.seeding import isolated
from lmc.state import State
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry

Plant = Callable[[Symmetry, State, int, float], tuple[State, Permutation]]


class Residual(nn.Module):
    """A stem, two residual blocks on the same stream, a linear layer on the flattened feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.first, self.second = (nn.ModuleList([nn.Conv2d(6, 5, 1), nn.Conv2d(5, 6, 1)]) for _ in range(2))
        self.out = nn.Linear(6 * 16, 3)

    def stages(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        x = torch.relu(self.norm(self.stem(x)))
        yield "stream", x
        for name, (enter, leave) in (("first", self.first), ("second", self.second)):
            inner = torch.relu(enter(x))
            yield name, inner
            x = torch.relu(x + leave(inner))
            yield "stream", x

    def forward(self, x: Tensor) -> Tensor:
        for _, value in self.stages(x):
            x = value
        return functional.linear(x.flatten(1), self.out.weight, self.out.bias)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(90, 2, 4, 4, generator=torch.Generator().manual_seed(9))


@pytest.fixture(scope="module")
def model() -> Residual:
    with isolated(0, "test"):
        return Residual().eval()


@pytest.fixture(scope="module")
def symmetry(model: Residual) -> Symmetry:
    return discover(model, torch.zeros(2, 2, 4, 4))


@pytest.fixture(scope="module")
def networks(model: Residual) -> tuple[State, State]:
    found = []
    for seed in (1, 2):
        with isolated(seed, "test"):
            found.append(states.of_model(Residual()))
        found[-1]["norm.running_mean"] += 0.1 * seed
    return found[0], found[1]


def groups_of(symmetry: Symmetry) -> dict[str, str]:
    """Place in `Residual.stages` to the name of its group."""
    found = {}
    for place, tensor in (("stream", "stem.weight"), ("first", "first.0.weight"), ("second", "second.0.weight")):
        axis = next(axis for axis in symmetry.axes_of[tensor] if axis.dim == 0)
        found[place] = next(iter(axis.groups))
    return found


def problem(model: nn.Module | None, symmetry: Symmetry, images: Tensor | None) -> Problem:
    def batches(size: int) -> Iterable[Tensor]:
        assert images is not None
        return images.split(size)

    return Problem(model, symmetry, 0, torch.device("cpu"), None if images is None else batches)


def observed(model: Residual, state: State, images: Tensor) -> dict[str, list[np.ndarray]]:
    """The samples of every unit at every place, by running the module itself in one batch."""
    twin = Residual().eval()
    twin.load_state_dict(state)
    found: dict[str, list[np.ndarray]] = {}
    with torch.no_grad():
        for place, value in twin.stages(images):
            found.setdefault(place, []).append(value.transpose(0, 1).flatten(1).double().numpy())
    return found


def compared(ours: np.ndarray, theirs: np.ndarray, similarity: str) -> np.ndarray:
    """The similarity of all pairs of rows, by its definition."""
    n = len(ours)
    with np.errstate(invalid="ignore", divide="ignore"):
        if similarity == "pearson":
            return np.nan_to_num(np.corrcoef(ours, theirs)[:n, n:])
        if similarity == "cosine":
            lengths = np.linalg.norm(ours, axis=1)[:, None] * np.linalg.norm(theirs, axis=1)
            return np.nan_to_num(ours @ theirs.T / lengths)
    if similarity == "l2":
        return -((ours[:, None] - theirs[None]) ** 2).mean(2)
    return ours @ theirs.T / ours.shape[1]


@pytest.mark.parametrize("similarity", ["pearson", "product", "cosine", "l2"])
def test_each_group_is_matched_on_the_sum_over_its_places(
    model: Residual, symmetry: Symmetry, networks: tuple[State, State], images: Tensor, similarity: str
) -> None:
    fixed, moving = (observed(model, state, images) for state in networks)
    matching = ActivationMatching(images=None, similarity=similarity)(*networks, problem(model, symmetry, images))
    means = {}
    for place, group in groups_of(symmetry).items():
        total = np.zeros((len(fixed[place][0]),) * 2)
        for ours, theirs in zip(fixed[place], moving[place], strict=True):
            total += compared(ours, theirs, similarity)
        best = assign(torch.from_numpy(total))
        assert matching.permutation[group].tolist() == best.tolist()
        means[group] = total[np.arange(len(best)), best].mean() / len(fixed[place])
    for name, record in zip(symmetry.groups, matching.trace, strict=True):
        assert record["similarity"] == pytest.approx(means[name], rel=1e-4)
        assert record["units"] == symmetry.groups[name].size
        assert record["places"] == (3 if name == groups_of(symmetry)["stream"] else 1)
    weighted = sum(means[name] * group.size for name, group in symmetry.groups.items())
    assert matching.objective == pytest.approx(weighted / sum(g.size for g in symmetry.groups.values()), rel=1e-4)


def test_least_squares_finds_the_nearest_activations_as_the_product_does(
    model: Residual, symmetry: Symmetry, networks: tuple[State, State], images: Tensor
) -> None:
    """Against every permutation of a group, on its distances summed over all of its places."""
    fixed, moving = (observed(model, state, images) for state in networks)
    given = problem(model, symmetry, images)
    nearest, product = (ActivationMatching(images=None, similarity=s)(*networks, given) for s in ("l2", "product"))
    assert nearest.permutation == product.permutation
    assert nearest.objective < 0 < product.objective
    for place, group in groups_of(symmetry).items():
        orders = np.array(list(itertools.permutations(range(len(fixed[place][0])))))
        total = np.zeros(len(orders))
        for ours, theirs in zip(fixed[place], moving[place], strict=True):
            pairs = ((ours[:, None] - theirs[None]) ** 2).mean(2)
            total += pairs[np.arange(orders.shape[1]), orders].sum(1)
        assert nearest.permutation[group].tolist() == orders[total.argmin()].tolist()


@pytest.mark.parametrize("similarity", ["pearson", "product", "cosine", "l2"])
def test_groups_in_sequence_are_matched_as_all_at_once(
    model: Residual, symmetry: Symmetry, networks: tuple[State, State], images: Tensor, similarity: str
) -> None:
    """Group after group, each on the moving network in which the earlier ones have been permuted."""
    fixed, moving = networks
    given = problem(model, symmetry, images)
    whole = ActivationMatching(images=None, similarity=similarity)(fixed, moving, given).permutation
    found = Permutation.identity(symmetry)
    for name in symmetry.groups:
        step = ActivationMatching(images=None, similarity=similarity, groups=[name])(fixed, found.apply(moving), given)
        found = step.permutation.compose(found)
    assert found == whole
    assert whole != Permutation.identity(symmetry)


def test_only_chosen_groups_are_observed_and_move(
    model: Residual, symmetry: Symmetry, networks: tuple[State, State], images: Tensor
) -> None:
    given, identity = problem(model, symmetry, images), Permutation.identity(symmetry)
    whole = ActivationMatching(images=None)(*networks, given)
    inner = groups_of(symmetry)["first"]
    for patterns, chosen in (
        ([inner], {inner}),
        (["st*"], {groups_of(symmetry)["stream"]}),
        (["first*", "second*"], set(symmetry.groups) - {groups_of(symmetry)["stream"]}),
        (["*"], set(symmetry.groups)),
    ):
        found = ActivationMatching(images=None, groups=patterns)(*networks, given)
        for name in symmetry.groups:
            expected = whole.permutation if name in chosen else identity
            assert found.permutation[name].tolist() == expected[name].tolist()
        records = [r for name, r in zip(symmetry.groups, whole.trace, strict=True) if name in chosen]
        assert [r["similarity"] for r in found.trace] == [r["similarity"] for r in records]


def test_patterns_that_fit_no_group_are_refused(
    model: Residual, symmetry: Symmetry, networks: tuple[State, State], images: Tensor
) -> None:
    method = ActivationMatching(groups=["stem", "thrid*"])
    message = r"alignment\.groups: no group fits 'thrid\*'; there are " + ", ".join(symmetry.groups)
    with pytest.raises(UserError, match=message):
        method.check(symmetry)
    with pytest.raises(UserError, match=message):
        method(*networks, problem(model, symmetry, images))
    with pytest.raises(UserError, match=r"alignment\.groups=\[\]"):
        ActivationMatching(groups=[])


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_batch_size_does_not_matter(
    model: Residual, symmetry: Symmetry, networks: tuple[State, State], images: Tensor, batch_size: int
) -> None:
    given = problem(model, symmetry, images)
    whole = ActivationMatching(images=40, batch_size=90)(*networks, given)
    cut = ActivationMatching(images=40, batch_size=batch_size)(*networks, given)
    assert cut.permutation == whole.permutation
    assert cut.objective == pytest.approx(whole.objective, rel=1e-6)
    assert "batch_size" in ActivationMatching.outside_key


def test_the_first_images_are_used(
    model: Residual, symmetry: Symmetry, networks: tuple[State, State], images: Tensor
) -> None:
    few = ActivationMatching(images=40)(*networks, problem(model, symmetry, images))
    assert few.objective == ActivationMatching(images=None)(*networks, problem(model, symmetry, images[:40])).objective
    assert few.objective != ActivationMatching(images=None)(*networks, problem(model, symmetry, images)).objective


@pytest.mark.parametrize("kind", ["post", "pre"])
@pytest.mark.parametrize("similarity", ["pearson", "product", "cosine", "l2"])
def test_planted_permutation_is_recovered(
    model: Residual, symmetry: Symmetry, images: Tensor, plant: Plant, kind: str, similarity: str
) -> None:
    fixed = states.of_model(model)
    # Signals of equal strength: uncentred products prefer strong units to equal ones.
    given, noise = problem(model, symmetry, images), 0.01 if similarity in ("pearson", "cosine") else 0.0
    moving, truth = plant(symmetry, {n: t for n, t in fixed.items() if t.is_floating_point()}, 0, noise)
    moving |= {name: tensor for name, tensor in fixed.items() if not tensor.is_floating_point()}
    found = ActivationMatching(kind=kind, similarity=similarity, images=None)(fixed, moving, given)
    if similarity in ("pearson", "cosine"):
        assert found.permutation == truth
        assert found.objective > 0.8
    else:
        assert (
            found.objective
            >= ActivationMatching(kind=kind, similarity=similarity, images=None)(
                fixed, truth.apply(moving), given
            ).objective
            - 1e-6
        )


def test_the_order_of_the_units_does_not_matter(
    model: Residual, symmetry: Symmetry, networks: tuple[State, State], images: Tensor
) -> None:
    fixed, moving = networks
    shuffle = Permutation.random(symmetry, torch.Generator().manual_seed(3))
    given, method = problem(model, symmetry, images), ActivationMatching(images=None)
    found, again = method(fixed, moving, given), method(fixed, shuffle.apply(moving), given)
    assert again.objective == pytest.approx(found.objective, rel=1e-6)
    assert again.permutation == found.permutation.compose(shuffle.inverse())


def test_a_network_is_matched_with_itself_by_the_identity_dead_units_included(
    model: Residual, symmetry: Symmetry, images: Tensor
) -> None:
    fixed = states.of_model(model)
    fixed["first.0.weight"][[1, 3]] = 0.0
    fixed["first.0.bias"][[1, 3]] = torch.tensor([0.3, -0.3])
    given = problem(model, symmetry, images)
    matching = ActivationMatching(images=None)(fixed, fixed, given)
    assert matching.permutation == Permutation.identity(symmetry)
    alive = {
        place: np.mean([v.std(1) > 0 for v in values], 0) for place, values in observed(model, fixed, images).items()
    }
    assert 0 < alive["first"].sum() <= 3
    units = np.concatenate(list(alive.values()))
    assert matching.objective == pytest.approx(units.mean(), rel=1e-6)


def test_nothing_handed_in_is_changed(
    model: Residual, symmetry: Symmetry, networks: tuple[State, State], images: Tensor
) -> None:
    model.train()
    before = [{name: tensor.clone() for name, tensor in s.items()} for s in (*networks, states.of_model(model))]
    looked = images.clone()
    steps: list[dict[str, float]] = []
    ActivationMatching(images=None, batch_size=40)(
        *networks, problem(model, symmetry, images), lambda record: steps.append(dict(record))
    )
    for state, old in zip((*networks, states.of_model(model)), before, strict=True):
        assert all(torch.equal(state[name], old[name]) for name in old)
    assert model.training
    assert torch.equal(images, looked)
    assert [step["images"] for step in steps] == [40, 80, 90]
    model.eval()


def test_a_limit_above_what_is_there_takes_all(
    model: Residual, symmetry: Symmetry, networks: tuple[State, State], images: Tensor
) -> None:
    given = problem(model, symmetry, images)
    limited, whole = (
        ActivationMatching(images=10_000)(*networks, given),
        ActivationMatching(images=None)(*networks, given),
    )
    assert limited.objective == whole.objective


def test_what_cannot_be_compared_is_refused(
    model: Residual, symmetry: Symmetry, networks: tuple[State, State], images: Tensor
) -> None:
    fixed, moving = networks
    method = ActivationMatching()
    with pytest.raises(UserError, match="no images were given"):
        method(fixed, moving, problem(model, symmetry, None))
    with pytest.raises(UserError, match="no model was given"):
        method(fixed, moving, problem(None, symmetry, images))
    with pytest.raises(UserError, match="no images"):
        ActivationMatching(images=None)(fixed, moving, problem(model, symmetry, images[:0]))
    with pytest.raises(UserError, match="NaN or infinity"):
        method(fixed, {**moving, "out.bias": torch.full((3,), torch.nan)}, problem(model, symmetry, images))
    rootless = {**moving, "norm.running_var": torch.full((6,), -1.0)}
    with pytest.raises(UserError, match=r"activations of group .* are not finite"):
        ActivationMatching(images=None)(fixed, rootless, problem(model, symmetry, images))
