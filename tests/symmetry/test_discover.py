"""What is found: as large as it truly is, never larger, on every architecture and on plain functional code."""

import itertools
import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lmc import seeding, state
from lmc.architecture.mlp import MLP
from lmc.architecture.pre_resnet import PreResNet
from lmc.architecture.resnet import ResNet
from lmc.architecture.tiny_ten import TinyTen
from lmc.architecture.vgg import VGG
from lmc.architecture.wide_resnet import WideResNet
from lmc.errors import UserError
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry
from lmc.symmetry.verify import SymmetryError, verify

NORMS = ("batch", "layer", "none")


def sizes(symmetry: Symmetry) -> list[int]:
    return [group.size for group in symmetry.groups.values()]


def moved_axes(symmetry: Symmetry, group: str) -> set[tuple[str, int]]:
    return {(axis.tensor, axis.dim) for axis in symmetry.groups[group].axes}


def tied(symmetry: Symmetry, *axes: tuple[str, int]) -> bool:
    """Whether one group acts on all of `axes`."""
    return any(set(axes) <= moved_axes(symmetry, group) for group in symmetry.groups)


ARCHITECTURES: dict[str, tuple[Callable[[str], nn.Module], tuple[int, int, int]]] = {
    "mlp": (lambda norm: MLP(input_shape=(1, 8, 8), classes=10, width=12, depth=3, norm=norm), (1, 8, 8)),
    "tiny_ten": (lambda norm: TinyTen(input_shape=(3, 32, 32), classes=10, norm=norm), (3, 32, 32)),
    "vgg11": (lambda norm: VGG(input_shape=(3, 32, 32), classes=10, depth=11, width=0.0625, norm=norm), (3, 32, 32)),
    "resnet20": (
        lambda norm: ResNet(input_shape=(3, 32, 32), classes=10, depth=20, width=0.25, norm=norm),
        (3, 32, 32),
    ),
    "pre_resnet20": (
        lambda norm: PreResNet(input_shape=(3, 32, 32), classes=10, depth=20, width=0.25, norm=norm),
        (3, 32, 32),
    ),
    "wide_resnet10": (
        lambda norm: WideResNet(input_shape=(3, 32, 32), classes=10, depth=10, width=0.5, norm=norm),
        (3, 32, 32),
    ),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_are_found_and_proved(name: str, norm: str, caplog: pytest.LogCaptureFixture):
    make, shape = ARCHITECTURES[name]
    with seeding.isolated(0, "network"):
        model = make(norm)
    example = torch.zeros(2, *shape)
    with caplog.at_level(logging.WARNING):
        symmetry = discover(model, example)
    assert not caplog.records  # every operator has a rule
    proof = verify(model, symmetry, example)
    assert proof.error < 1e-12
    assert proof.control > 1e-6
    # Every unit of every layer moves, but for the inputs and the outputs.
    for tensor, dims in symmetry.shapes.items():
        if len(dims) > 1:
            acting = {axis.dim for axis in symmetry.axes_of.get(tensor, ())}
            is_first, is_last = dims[1] == shape[0] or (dims[1] == 64 and name == "mlp"), dims[0] == 10
            assert (0 in acting) == (not is_last), tensor
            assert (1 in acting) == (not is_first), tensor


def test_mlp_has_one_group_a_layer():
    model = MLP(input_shape=(1, 8, 8), classes=10, width=12, depth=3, norm="none")
    symmetry = discover(model, torch.zeros(2, 1, 8, 8))
    assert sizes(symmetry) == [12, 12, 12]
    # 12!^3 equivalent networks
    assert symmetry.log10_size == pytest.approx(3 * 8.68033696411, abs=1e-9)


def test_resnet20_has_a_stream_for_each_stage_and_a_group_inside_each_block():
    model = ResNet(input_shape=(3, 32, 32), classes=10, depth=20, width=1, norm="batch")
    symmetry = discover(model, torch.zeros(2, 3, 32, 32))
    # Three streams of 16, 32, 64 channels and three blocks of each: as He et al. 2016 build it.
    assert sorted(sizes(symmetry)) == sorted([16, 32, 64] + 3 * [16] + 3 * [32] + 3 * [64])


@pytest.mark.parametrize("norm", NORMS)
def test_pre_activation_networks_have_a_stream_for_each_stage_and_groups_inside_each_block(norm: str):
    shape = {"input_shape": (3, 32, 32), "classes": 10, "norm": norm}
    bottlenecks = discover(PreResNet(depth=20, width=0.25, **shape), torch.zeros(2, 3, 32, 32))
    # The stem; a stream of four times as many channels in each stage; two groups in each of its two bottlenecks.
    assert sorted(sizes(bottlenecks)) == sorted([4, 16, 32, 64] + 4 * [4] + 4 * [8] + 4 * [16])
    wide = discover(WideResNet(depth=16, width=0.5, **shape), torch.zeros(2, 3, 32, 32))
    # The stem keeps its 16 channels; a stream in each stage, one group in each of its two blocks.
    assert sorted(sizes(wide)) == sorted([16] + 3 * [8] + 3 * [16] + 3 * [32])


class Catenated(nn.Module):
    """Two branches joined by a concatenation, normalised together, flattened with the channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 4, 1)
        self.norm, self.out = nn.BatchNorm2d(7), nn.Linear(7 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(torch.cat([self.one(x), self.two(x)], dim=1)))
        return self.out(x.permute(0, 2, 3, 1).flatten(1))


def test_concatenation_and_channels_last_flattening():
    model = Catenated()
    symmetry = discover(model, torch.zeros(2, 1, 2, 2))
    assert sizes(symmetry) == [3, 4]
    assert tied(symmetry, ("one.weight", 0), ("norm.running_var", 0), ("out.weight", 1))
    assert verify(model, symmetry, torch.zeros(2, 1, 2, 2)).error < 1e-12


class Functional(nn.Module):
    """No submodules: parameters used twice, a residual map of the stream to itself, a layer scale, a depthwise step."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(5, 3))
        self.loop = nn.Parameter(torch.randn(5, 5))
        self.scale, self.place = nn.Parameter(torch.randn(5, 1)), nn.Parameter(torch.randn(4))
        self.depthwise = nn.Parameter(torch.randn(5, 1, 3))
        self.last = nn.Parameter(torch.randn(2, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.linear(x, self.first)
        x = x + torch.tanh(functional.linear(x, self.loop))
        x = x + torch.tanh(functional.linear(x, self.loop))
        maps = functional.conv1d(x.unsqueeze(2) * self.scale * self.place, self.depthwise, padding=1, groups=5)
        return functional.linear(functional.gelu(maps).mean(dim=2), self.last)


def test_functional_code_and_parameters_used_twice():
    model = Functional()
    symmetry = discover(model, torch.zeros(2, 3))
    assert sizes(symmetry) == [5]
    axes = [("first", 0), ("loop", 0), ("loop", 1), ("scale", 0), ("depthwise", 0), ("last", 1)]
    assert tied(symmetry, *axes)
    assert verify(model, symmetry, torch.zeros(2, 3)).error < 1e-12


class Unknown(nn.Module):
    """An operator that no rule covers, in the middle of an otherwise movable network."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.three(torch.relu(self.two(torch.renorm(self.one(x), 2, 0, 1.0))))


def test_an_operator_without_a_rule_fixes_what_it_touches_and_is_named(caplog: pytest.LogCaptureFixture):
    model = Unknown()
    with caplog.at_level(logging.WARNING):
        symmetry = discover(model, torch.zeros(2, 3))
    assert sizes(symmetry) == [5]
    (message,) = (record.getMessage() for record in caplog.records)
    assert "aten.renorm" in message
    assert "torch.renorm(self.one(x), 2, 0, 1.0)" in message
    # The four units that the operator is given, and the four that it makes of them.
    assert symmetry.fixed["no rule for renorm"] == 8


class Tied(nn.Module):
    """Two names for one parameter: both must be permuted."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.one, self.two, self.three = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.three(torch.tanh(self.two(torch.tanh(self.one(torch.tanh(self.enter(x)))))))


def test_tied_parameters_keep_their_tie():
    model = Tied()
    symmetry = discover(model, torch.zeros(2, 3))
    assert sizes(symmetry) == [4]
    moved = Permutation.random(symmetry, seeding.generator(3, "tied")).apply(state.of_model(model))
    assert not torch.equal(moved["one.weight"], model.one.weight)
    assert torch.equal(moved["one.weight"], moved["two.weight"])
    assert verify(model, symmetry, torch.zeros(2, 3)).error < 1e-12


SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "catenated": (Catenated, (1, 2, 2)),
    "functional": (Functional, (3,)),
    "tied": (Tied, (3,)),
    "mlp": (lambda: MLP(input_shape=(1, 2, 2), classes=3, width=4, depth=2, norm="layer"), (1, 2, 2)),
}


@pytest.mark.parametrize("name", SMALL)
def test_nothing_movable_was_left_fixed(name: str):
    """Brute force: exchanging two positions of an axis alone changes the outputs, unless they are twins."""
    make, shape = SMALL[name]
    with seeding.isolated(7, name):
        model = make().double()
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        inputs = torch.randn(4, *shape, dtype=torch.float64)
    symmetry = discover(model, inputs)
    weights = state.of_model(model)
    model.eval()

    def outputs_with(changes: state.State) -> Tensor:
        return torch.func.functional_call(model, {**weights, **changes}, (inputs,), tie_weights=False)

    reference = outputs_with({})
    for tensor in symmetry.parameters:
        for dim in range(weights[tensor].ndim):
            if any(axis.dim == dim for axis in symmetry.axes_of.get(tensor, ())):
                continue
            for one, two in itertools.combinations(range(weights[tensor].shape[dim]), 2):
                order = list(range(weights[tensor].shape[dim]))
                order[one], order[two] = two, one
                outputs = outputs_with({tensor: weights[tensor].index_select(dim, torch.tensor(order))})
                assert (outputs - reference).abs().max() > 1e-9, (tensor, dim, one, two)


def test_a_false_symmetry_is_refused():
    """Control of `verify`: a symmetry that forgets one axis must not pass."""
    model = Tied()
    symmetry = discover(model, torch.zeros(2, 3))
    (group,) = symmetry.groups.values()
    broken = type(group)(
        group.name, group.size, tuple(a for a in group.axes if a.tensor != "three.weight"), group.sites
    )
    false = Symmetry({group.name: broken}, symmetry.shapes, symmetry.parameters)
    with pytest.raises(SymmetryError, match="changes the outputs by"):
        verify(model, false, torch.zeros(2, 3))


def test_a_check_that_could_not_fail_is_refused():
    """A network whose outputs ignore a group proves nothing about it."""
    model = Tied()
    symmetry = discover(model, torch.zeros(2, 3))

    class Blind(Tied):
        def forward(self, x: Tensor) -> Tensor:
            return self.three.bias + 0 * super().forward(x)

    with pytest.raises(SymmetryError, match="proves nothing"):
        verify(Blind(), symmetry, torch.zeros(2, 3))


def test_discovery_and_proof_leave_the_model_as_it_was():
    model = ResNet(input_shape=(3, 32, 32), classes=10, depth=20, width=0.25, norm="batch").train()
    before = state.of_model(model)
    verify(model, discover(model, torch.zeros(2, 3, 32, 32)), torch.zeros(2, 3, 32, 32))
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_example_that_does_not_fit_is_one_clear_line():
    with pytest.raises(UserError, match=r"Linear does not accept an input of shape \(2, 4\)"):
        discover(nn.Linear(3, 2), torch.zeros(2, 4))


def test_control_flow_on_values_is_one_clear_line():
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(UserError, match=r"Branching cannot be traced by torch\.export"):
        discover(Branching(), torch.zeros(2, 4))
