"""Matching with a map of the residual stream: planted maps, order of the objectives, and Procrustes by another hand."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models import VisionTransformer

from lmc import seeding, state
from lmc.alignment.problem import Matching, Problem
from lmc.alignment.transformer_matching import TransformerMatching, procrustes
from lmc.alignment.weight_matching import WeightMatching
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.discover import discover
from lmc.symmetry.normalisation import fold, foldable
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry
from lmc.symmetry.transform import OrthogonalMap, mix

Pose = Callable[..., Problem]


class RootMeanSquare(nn.Module):
    """A gated network with a square layer on its stream, which both reads and writes, and no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.square, self.leave = nn.Linear(6, 10), nn.Linear(10, 10, bias=False), nn.Linear(10, 4)
        self.gate, self.up, self.down = (nn.Linear(a, b, bias=False) for a, b in ((10, 12), (10, 12), (12, 10)))
        self.norms = nn.ModuleList(nn.RMSNorm(10) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + self.square(self.norms[0](x))
        y = self.norms[1](x)
        return self.leave(self.norms[2](x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))))


def vision_transformer() -> nn.Module:
    return VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=5
    )


class Network:
    """An architecture with its symmetry, and networks of it."""

    def __init__(self, make: Callable[[], nn.Module], inputs: Tensor) -> None:
        self.model, self.inputs = make().eval().double(), inputs.double()
        self.symmetry = discover(self.model, self.inputs)
        (self.stream,) = foldable(self.symmetry)

    def drawn(self, seed: int) -> State:
        generator = torch.Generator().manual_seed(seed)
        shapes = self.model.state_dict()
        return {n: 0.3 * torch.randn(t.shape, dtype=t.dtype, generator=generator) for n, t in shapes.items()}

    def difference(self, one: State, other: State) -> float:
        with torch.no_grad():
            ours, theirs = (functional_call(self.model, each, (self.inputs,)) for each in (one, other))
        return ((ours - theirs).norm() / ours.norm()).item()

    def objective(self, fixed: State, aligned: State) -> float:
        """Over all tensors on which groups act, but for those of the norms."""
        affine = self.symmetry.streams[self.stream].affine
        names = [n for n in self.symmetry.axes_of if n in self.symmetry.parameters and n not in affine]
        return sum((fixed[name] * aligned[name]).sum().item() for name in names)

    def map(self, seed: int) -> OrthogonalMap:
        """A random map of the stream, with random permutations of everything else."""
        generator = torch.Generator().manual_seed(seed)
        size = self.symmetry.groups[self.stream].size
        units = dict(Permutation.random(self.symmetry, generator)) | {self.stream: torch.arange(size)}
        whole = torch.randn(size, size, dtype=torch.float64, generator=generator)
        matrix = procrustes(whole, self.symmetry.streams[self.stream].centred)
        return OrthogonalMap(Permutation(self.symmetry, units), {self.stream: matrix})


@pytest.fixture(scope="module")
def vision() -> Network:
    return Network(vision_transformer, torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def square() -> Network:
    return Network(RootMeanSquare, torch.randn(3, 6, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(params=["vision", "square"])
def network(request: pytest.FixtureRequest) -> Network:
    found: Network = request.getfixturevalue(request.param)
    return found


def ends(matching: Matching, fixed: State, moving: State) -> tuple[State, State]:
    assert matching.fixed_transform is not None
    return matching.fixed_transform.apply(fixed), matching.transform.apply(moving)


@pytest.mark.parametrize("start", ["centre", "identity", "random"])
@pytest.mark.parametrize("seed", range(2))
def test_a_planted_map_with_permutations_is_found(vision: Network, pose: Pose, seed: int, start: str) -> None:
    fixed = vision.drawn(seed)
    moving = vision.map(seed).apply(fixed)
    assert vision.difference(fixed, moving) < 1e-12
    matching = TransformerMatching(restarts=1, start=start)(fixed, moving, pose(vision.symmetry))
    ours, theirs = ends(matching, fixed, moving)
    assert matching.objective == pytest.approx(vision.objective(ours, ours), rel=1e-12)
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-10), name


def test_a_planted_map_is_found_where_the_objective_is_quadratic(square: Network, pose: Pose) -> None:
    fixed = square.drawn(0)
    moving = square.map(1).apply(fixed)
    matching = TransformerMatching(restarts=1)(fixed, moving, pose(square.symmetry))
    ours, theirs = ends(matching, fixed, moving)
    assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-4) for name in ours)


def test_a_planted_map_is_found_under_noise(vision: Network, pose: Pose) -> None:
    fixed = vision.drawn(0)
    planted = vision.map(1)
    noise = vision.drawn(2)
    moving = {name: tensor + 0.05 * noise[name] for name, tensor in planted.apply(fixed).items()}
    matching = TransformerMatching(restarts=1)(fixed, moving, pose(vision.symmetry))
    assert isinstance(matching.transform, OrthogonalMap)
    assert matching.transform.permutation == planted.permutation.inverse()
    matrix = matching.transform.matrices[vision.stream] @ planted.matrices[vision.stream]
    assert (matrix - torch.eye(16)).abs().max() < 0.05


@pytest.mark.parametrize("residual", ["identity", "permutation", "orthogonal"])
def test_networks_compute_what_they_did(network: Network, pose: Pose, residual: str) -> None:
    fixed, moving = network.drawn(0), network.drawn(1)
    matching = TransformerMatching(restarts=1, residual=residual)(fixed, moving, pose(network.symmetry))
    ours, theirs = ends(matching, fixed, moving)
    assert network.difference(fixed, ours) < 1e-12
    assert network.difference(moving, theirs) < 1e-12
    assert matching.objective == pytest.approx(network.objective(ours, theirs), rel=1e-9)


def test_more_freedom_of_the_stream_gives_a_higher_objective(network: Network, pose: Pose) -> None:
    fixed, moving = network.drawn(0), network.drawn(1)
    found = [
        TransformerMatching(restarts=2, residual=residual)(fixed, moving, pose(network.symmetry)).objective
        for residual in ("identity", "permutation", "orthogonal")
    ]
    assert found[0] < found[1] < found[2]
    folded = [fold(each, network.symmetry) for each in (fixed, moving)]
    assert network.objective(*folded) < found[0]


@pytest.mark.parametrize("start", ["centre", "identity", "random"])
def test_the_objective_never_falls_within_a_descent(network: Network, pose: Pose, start: str) -> None:
    fixed, moving = network.drawn(2), network.drawn(3)
    seen: list[dict[str, float]] = []
    method = TransformerMatching(restarts=2, start=start)
    matching = method(fixed, moving, pose(network.symmetry), lambda record: seen.append(dict(record)))
    assert seen == matching.trace
    ends = []
    for restart in range(2):
        records = [record for record in matching.trace if record["restart"] == restart]
        values = [value for record in records for value in (record["permuted"], record["objective"])]
        assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(values))
        assert [record["round"] for record in records] == list(range(len(records)))
        assert records[-1]["turned"] == 0
        ends.append(values[-1])
    assert max(ends) == matching.objective


def test_no_orthogonal_map_is_better_where_the_search_ends(vision: Network, pose: Pose) -> None:
    """Against scipy's Procrustes on stacked matrices, and small rotations."""
    fixed, moving = vision.drawn(0), vision.drawn(1)
    matching = TransformerMatching(restarts=1)(fixed, moving, pose(vision.symmetry))
    ours, theirs = ends(matching, fixed, moving)
    affine = vision.symmetry.streams[vision.stream].affine
    axes = [axis for axis in vision.symmetry.groups[vision.stream].axes if axis.tensor not in affine]
    stacked = [
        np.concatenate([side[a.tensor].movedim(a.dim, -1).reshape(-1, 16).numpy() for a in axes])
        for side in (theirs, ours)
    ]
    best, _ = orthogonal_procrustes(*stacked)  # rows @ best
    gained = float((stacked[0] @ best * stacked[1]).sum() - (stacked[0] * stacked[1]).sum())
    assert abs(gained) < 1e-6 * matching.objective
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        turn = torch.linalg.matrix_exp(0.1 * (skew := torch.randn(16, 16, generator=generator).double()) - 0.1 * skew.T)
        turned = dict(theirs)
        for axis in axes:
            turned[axis.tensor] = mix(turned[axis.tensor], axis, {vision.stream: turn})
        assert vision.objective(ours, turned) < matching.objective


@pytest.mark.parametrize("seed", range(3))
def test_procrustes_is_scipys(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    fixed, moving = (torch.randn(7, 30, dtype=torch.float64, generator=generator) for _ in range(2))
    found = procrustes(fixed @ moving.T)
    expected, _ = orthogonal_procrustes(moving.T.numpy(), fixed.T.numpy())
    assert np.allclose(found.T.numpy(), expected, atol=1e-10)
    # Without parts along the ones, keeping them costs nothing; with them, it is the best of those that do.
    centred = [each - each.mean(0) for each in (fixed, moving)]
    kept = procrustes(centred[0] @ centred[1].T, keeps_mean=True)
    assert torch.allclose(kept @ torch.ones(7).double(), torch.ones(7).double())
    assert torch.allclose(kept @ kept.T, torch.eye(7).double(), atol=1e-12)
    free = procrustes(centred[0] @ centred[1].T)
    assert (kept * (centred[0] @ centred[1].T)).sum() == pytest.approx((free * (centred[0] @ centred[1].T)).sum())


def test_directions_that_nothing_determines_are_left_out_of_a_partial_map() -> None:
    generator = torch.Generator().manual_seed(0)
    fixed, moving = (torch.randn(7, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    partial = procrustes(fixed @ moving.T, partial=True)
    values = torch.linalg.svdvals(partial)
    assert torch.allclose(values, torch.tensor([1.0] * 3 + [0.0] * 4).double(), atol=1e-9)
    whole = procrustes(fixed @ moving.T)
    assert (partial * (fixed @ moving.T)).sum() == pytest.approx((whole * (fixed @ moving.T)).sum().item())


def test_a_mapped_copy_gives_the_composed_answer(vision: Network, pose: Pose) -> None:
    """From the centre neither the basis of the stream nor the order of the units matters."""
    fixed, moving = vision.drawn(0), vision.drawn(1)
    method = TransformerMatching(restarts=1)
    plain = ends(method(fixed, moving, pose(vision.symmetry)), fixed, moving)[1]
    copy = vision.map(5).apply(moving)
    mapped = ends(method(fixed, copy, pose(vision.symmetry)), fixed, copy)[1]
    assert all(torch.allclose(plain[name], mapped[name], rtol=0, atol=1e-8) for name in plain)


def test_without_folding_a_permutation_is_returned(vision: Network, pose: Pose) -> None:
    fixed, moving = vision.drawn(0), vision.drawn(1)
    kept = TransformerMatching(restarts=1, residual="identity", fold=False)
    assert not kept.is_soft
    matching = kept(fixed, moving, pose(vision.symmetry))
    assert matching.fixed_transform is None
    assert torch.equal(matching.permutation[vision.stream], torch.arange(16))
    assert any(not torch.equal(p, Permutation.identity(vision.symmetry)[n]) for n, p in matching.permutation.items())
    free = TransformerMatching(restarts=1, residual="permutation", fold=False, start="identity", order="forward")
    same = WeightMatching(restarts=1, start="identity", order="forward")
    assert (
        free(fixed, moving, pose(vision.symmetry)).permutation == same(fixed, moving, pose(vision.symmetry)).permutation
    )
    assert TransformerMatching().is_soft


def test_same_seed_gives_the_same_and_nothing_handed_in_is_changed(vision: Network, pose: Pose) -> None:
    fixed, moving = vision.drawn(0), vision.drawn(1)
    before = [{name: tensor.clone() for name, tensor in each.items()} for each in (fixed, moving)]
    method = TransformerMatching(restarts=2, start="random")
    one, two = (method(fixed, moving, pose(vision.symmetry)) for _ in range(2))
    assert isinstance(one.transform, OrthogonalMap)
    assert isinstance(two.transform, OrthogonalMap)
    assert torch.equal(one.transform.matrices[vision.stream], two.transform.matrices[vision.stream])
    assert one.transform.permutation == two.transform.permutation
    for each, old in zip((fixed, moving), before, strict=True):
        assert all(torch.equal(each[name], old[name]) for name in old)


@pytest.mark.parametrize("steps", [1, 3])
def test_an_interruption_leaves_the_best_so_far(vision: Network, pose: Pose, steps: int) -> None:
    fixed, moving = vision.drawn(0), vision.drawn(1)
    seen: list[float] = []

    def stop(record: dict[str, float]) -> None:
        seen.append(record["objective"])
        if len(seen) == steps:
            raise KeyboardInterrupt

    matching = TransformerMatching(restarts=3)(fixed, moving, pose(vision.symmetry), stop)  # type: ignore[arg-type]
    assert not matching.complete
    assert matching.objective == max(seen)
    assert len(matching.trace) == steps
    assert vision.difference(moving, matching.transform.apply(moving)) < 1e-12


def post_norm() -> Symmetry:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Linear(5, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3))
    return discover(model.eval(), torch.zeros(2, 4, 5))


def test_networks_without_a_stream_that_can_be_folded_are_refused_at_once() -> None:
    with seeding.isolated(0, "refused"):
        symmetry = post_norm()
        plain = discover(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(2, 5))
    with pytest.raises(UserError, match=r"cannot be folded.*post-norm") as refused:
        TransformerMatching().check(symmetry)
    assert "\n" not in str(refused.value)
    # Kept or permuted without folding, it may be post-norm.
    TransformerMatching(residual="identity", fold=False).check(symmetry)
    for method in (TransformerMatching(), TransformerMatching(residual="identity", fold=False)):
        with pytest.raises(UserError, match="no residual stream"):
            method.check(plain)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"alignment\.fold=false: an orthogonal map"):
        TransformerMatching(fold=False)
    with pytest.raises(UserError, match="all descents are the same"):
        TransformerMatching(start="identity", order="forward")


def test_networks_that_do_not_fit_are_refused(vision: Network, pose: Pose) -> None:
    fixed = vision.drawn(0)
    with pytest.raises(UserError, match="moving network has no tensor"):
        TransformerMatching()(fixed, {n: t for n, t in fixed.items() if n != "class_token"}, pose(vision.symmetry))
    assert state.of_model(vision.model).keys() == fixed.keys()
