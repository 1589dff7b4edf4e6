import itertools
import logging
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lmc import config
from lmc import state as states
from lmc.alignment.activation_matching import ActivationMatching
from lmc.alignment.dual_space import DualSpace
from lmc.alignment.problem import Matching, Problem
from lmc.alignment.weight_matching import WeightMatching
from lmc.errors import UserError
from lmc.seeding import isolated
from lmc.state import State
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry
from tests.symmetry.test_structures import CASES

CPU = torch.device("cpu")
NETWORKS = ["perceptron", "residual stream", "packed attention", "grouped convolution", "squeeze and excitation"]


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))


class Network:
    """An architecture with its symmetry, two networks that were drawn apart, and images."""

    def __init__(self, name: str) -> None:
        make, shape = (perceptron, (3,)) if name == "perceptron" else (CASES[name].make, CASES[name].shape)
        logging.disable(logging.WARNING)
        with isolated(0, "test"):
            self.model = make().eval()
            self.symmetry: Symmetry = discover(self.model, torch.zeros(2, *shape))
        logging.disable(logging.NOTSET)
        self.images = torch.randn(60, *shape, generator=torch.Generator().manual_seed(4))
        self.pair: tuple[State, State] = (self.drawn(1), self.drawn(2))
        # A residual stream is observed nowhere but before or after it is normalised or rectified.
        self.kind = "pre" if name == "packed attention" else "post"

    def drawn(self, seed: int) -> State:
        draw = torch.Generator().manual_seed(seed)
        return {
            name: tensor + 0.5 * torch.randn(tensor.shape, generator=draw) if tensor.is_floating_point() else tensor
            for name, tensor in states.of_model(self.model).items()
        }

    def problem(self, *, data: bool = True) -> Problem:
        def batches(size: int) -> Iterable[Tensor]:
            return self.images.split(size)

        return Problem(self.model if data else None, self.symmetry, 0, CPU, batches if data else None)

    def match(self, method: Callable[..., Matching], moving: State | None = None, **given: bool) -> Matching:
        return method(self.pair[0], self.pair[1] if moving is None else moving, self.problem(**given))

    def cosine(self, permutation: Permutation) -> float:
        """Of all trainable tensors on which groups act, in NumPy."""
        fixed, moved = self.pair[0], permutation.apply(self.pair[1])
        names = [name for name in self.symmetry.axes_of if name in self.symmetry.parameters]
        ours, theirs = (np.concatenate([s[n].double().numpy().ravel() for n in names]) for s in (fixed, moved))
        return float(ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs))


def tables(network: Network) -> list[np.ndarray]:
    """The correlations of both networks' units in each layer of the perceptron, in NumPy; 0 for dead units."""
    found = []
    seen: list[list[Tensor]] = [[], []]
    for state, values in zip(network.pair, seen, strict=True):
        x = network.images
        for layer in ("0", "2"):
            x = torch.relu(x @ state[f"{layer}.weight"].T + state[f"{layer}.bias"])
            values.append(x.double())
    for ours, theirs in zip(*seen, strict=True):
        n = ours.shape[1]
        with np.errstate(invalid="ignore"):
            found.append(np.nan_to_num(np.corrcoef(ours.T.numpy(), theirs.T.numpy())[:n, n:]))
    return found


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    return {name: Network(name) for name in NETWORKS}


@pytest.mark.parametrize("order", ["forward", "backward"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_weights_alone_are_weight_matching(networks: dict[str, Network], name: str, order: str):
    network = networks[name]
    settings = {"restarts": 1, "start": "identity", "order": order}
    expected = network.match(WeightMatching(**settings), data=False)
    found = network.match(DualSpace(activation_share=0.0, **settings), data=False)
    assert found.permutation == expected.permutation
    assert found.objective == pytest.approx(network.cosine(expected.permutation), rel=1e-5)
    bound = expected.objective / found.objective
    ours, theirs = ([record["objective"] for record in each.trace] for each in (found, expected))
    assert [value * bound for value in ours] == pytest.approx(theirs, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("start", ["centre", "identity", "random"])
@pytest.mark.parametrize("similarity", ["pearson", "product"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_activations_alone_are_activation_matching(
    networks: dict[str, Network], name: str, similarity: str, start: str
):
    network = networks[name]
    given = {"kind": network.kind, "similarity": similarity, "images": None}
    expected = network.match(ActivationMatching(**given)).permutation
    found = network.match(DualSpace(activation_share=1.0, restarts=1, start=start, **given))
    assert found.permutation == expected
    assert -1 <= found.objective <= 1


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_the_objective_is_the_weighted_mean_of_cosine_and_correlation(networks: dict[str, Network], share: float):
    """In NumPy, from the layers' outputs."""
    network = networks["perceptron"]
    found = network.match(DualSpace(activation_share=share, images=None))
    correlations = [
        table[np.arange(len(table)), order.numpy()]
        for table, order in zip(tables(network), found.permutation.values(), strict=True)
    ]
    expected = (1 - share) * network.cosine(found.permutation) + share * np.concatenate(correlations).mean()
    assert found.objective == pytest.approx(expected, rel=1e-5)


def test_a_network_agrees_with_itself_completely(networks: dict[str, Network]):
    """Both terms reach their bound where no unit is dead."""
    network = networks["grouped convolution"]
    fixed = network.pair[0]
    for similarity in ("pearson", "product"):
        method = DualSpace(kind="pre", similarity=similarity, images=None)
        found = method(fixed, fixed, network.problem())
        assert found.permutation == Permutation.identity(network.symmetry)
        assert found.objective == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("start", ["centre", "identity", "random"])
@pytest.mark.parametrize("name", NETWORKS)
def test_descents_rise_and_end_at_what_is_computed_anew(networks: dict[str, Network], name: str, start: str):
    network = networks[name]
    found = network.match(DualSpace(restarts=2, start=start, kind=network.kind))
    for restart in (0, 1):
        values = [record["objective"] for record in found.trace if record["restart"] == restart]
        assert all(later >= earlier - 1e-6 for earlier, later in itertools.pairwise(values))
    tops = [[r["objective"] for r in found.trace if r["restart"] == restart][-1] for restart in (0, 1)]
    assert found.objective == pytest.approx(max(tops), abs=1e-5)


def test_the_best_of_all_permutations_is_found_and_never_exceeded(networks: dict[str, Network]):
    network = networks["perceptron"]
    share, (first, second) = 0.5, network.symmetry.groups
    correlations = dict(zip(network.symmetry.groups, tables(network), strict=True))

    def value(choice: dict[str, tuple[int, ...]]) -> float:
        permutation = Permutation(network.symmetry, {name: torch.tensor(order) for name, order in choice.items()})
        matched = [correlations[name][np.arange(len(order)), list(order)] for name, order in choice.items()]
        return (1 - share) * network.cosine(permutation) + share * float(np.concatenate(matched).mean())

    orders = itertools.product(itertools.permutations(range(5)), itertools.permutations(range(4)))
    best = max(value({first: one, second: two}) for one, two in orders)
    for start, restarts in (("centre", 1), ("random", 20)):
        found = network.match(DualSpace(restarts=restarts, start=start, images=None))
        assert found.objective <= best + 1e-6
    assert found.objective == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", NETWORKS)
def test_planted_permutation_is_recovered(networks: dict[str, Network], name: str, share: float):
    network = networks[name]
    hidden = Permutation.random(network.symmetry, torch.Generator().manual_seed(3))
    noise = torch.Generator().manual_seed(5)
    moving = {
        tensor: value + 0.003 * torch.randn(value.shape, generator=noise) if value.is_floating_point() else value
        for tensor, value in hidden.apply(network.pair[0]).items()
    }
    found = network.match(DualSpace(activation_share=share, restarts=2, kind=network.kind), moving)
    assert found.permutation == hidden.inverse()


@pytest.mark.parametrize("name", NETWORKS)
def test_from_the_centre_the_order_of_the_units_does_not_matter(networks: dict[str, Network], name: str):
    network = networks[name]
    shuffle = Permutation.random(network.symmetry, torch.Generator().manual_seed(3))
    method = DualSpace(restarts=1, kind=network.kind)
    found = network.match(method)
    again = network.match(method, shuffle.apply(network.pair[1]))
    assert again.permutation == found.permutation.compose(shuffle.inverse())
    from_identity = network.match(DualSpace(restarts=1, start="identity", kind=network.kind))
    assert found.objective > from_identity.trace[0]["objective"]  # that of the identity itself


def test_batch_size_does_not_matter(networks: dict[str, Network]):
    network = networks["residual stream"]
    whole, cut = (network.match(DualSpace(batch_size=size)) for size in (60, 7))
    assert whole.permutation == cut.permutation
    assert "batch_size" in DualSpace.outside_key
    assert DualSpace.needs_data


def test_an_interrupted_search_returns_its_best(networks: dict[str, Network]):
    network = networks["residual stream"]
    for stop_at in (0, 1):

        def stop(record: Mapping[str, float], stop_at: int = stop_at) -> None:
            if record.get("restart") == stop_at:
                raise KeyboardInterrupt

        found = DualSpace(restarts=3)(*network.pair, network.problem(), stop)
        assert not found.complete
        assert found.trace[-1]["restart"] == stop_at
        reached = [
            [r["objective"] for r in found.trace if r["restart"] == restart][-1] for restart in range(stop_at + 1)
        ]
        assert found.objective == pytest.approx(max(reached), abs=1e-5)
    assert network.match(DualSpace(restarts=3)).complete


def test_same_seed_same_answer(networks: dict[str, Network]):
    network = networks["residual stream"]
    state = torch.random.get_rng_state()
    one, two = (network.match(DualSpace(start="random")) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert one.permutation == two.permutation
    assert [r["objective"] for r in one.trace] == [r["objective"] for r in two.trace]


def test_without_data_only_the_weights_can_be_compared(networks: dict[str, Network]):
    network = networks["perceptron"]
    with pytest.raises(UserError, match="no model was given"):
        network.match(DualSpace(), data=False)
    assert network.match(DualSpace(activation_share=0.0), data=False).complete


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("activation_share", 1.1),
        ("activation_share", -0.1),
        ("images", 0),
        ("kind", "both"),
        ("similarity", "cosine"),
        ("batch_size", 0),
        ("restarts", 0),
        ("start", "middle"),
        ("order", "sideways"),
        ("max_sweeps", 0),
        ("tolerance", -1.0),
    ],
)
def test_unusable_settings_are_named(setting: str, value: object):
    node = {"_target_": "lmc.alignment.dual_space.DualSpace", setting: value}
    with pytest.raises(UserError, match=rf"alignment\.{setting}"):
        config.build(node, "alignment")
