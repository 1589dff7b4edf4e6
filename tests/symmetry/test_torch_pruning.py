"""An independent reference: Torch-Pruning's dependency graph couples the channels that must be removed together.

A channel and all that has to go with it is a hidden unit, so both must find the same units: the same positions of the
same dimensions of the same tensors. Units with the same signature (as many positions of every dimension) are
interchangeable, unless a grouped convolution keeps some of them together, which the reference's pruners know as groups
of channels. Which units there are, which may change places, which keep together and how many permutations that makes is
all that a symmetry says.
"""

import dataclasses
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import pytest
import torch
import torch_pruning
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import Bottleneck, ResNet

from lmc.symmetry.discover import discover
from lmc.symmetry.structure import Axis, Factor, Group, Symmetry

Place = tuple[str, int, int]
"""A tensor, a dimension and a position; for dimension 1 of a grouped convolution's weight, the input channel."""

Unit = frozenset[Place]
models = torchvision.models
Key = TypeVar("Key")
Member = TypeVar("Member")


@dataclass(frozen=True)
class Coupling:
    """What moves together.

    Attributes:
        units: the places of every hidden unit.
        orbits: sets of units that may take each other's places.
        blocks: sets of blocks that may take each other's places; a block is the units that keep together.
    """

    units: frozenset[Unit]
    orbits: frozenset[frozenset[Unit]]
    blocks: frozenset[frozenset[frozenset[Unit]]]

    @property
    def log10_size(self) -> float:
        """log10 of the number of permutations if every one is allowed that exchanges units, and blocks, as said."""
        orbit_of = {unit: orbit for orbit in self.orbits for unit in orbit}
        blocks = [block for exchanged in self.blocks for block in exchanged]
        loose = self.units.difference(*blocks)
        movable = [Counter(orbit_of[unit] for unit in together).values() for together in (loose, *blocks)]
        sizes = [*(len(exchanged) for exchanged in self.blocks), *itertools.chain(*movable)]
        return sum(math.lgamma(size + 1) for size in sizes) / math.log(10)


def found_coupling(model: nn.Module, symmetry: Symmetry) -> Coupling:
    labels = defaultdict[Place, set[tuple[str, int]]](set)
    for place, group, index in unit_labels(model, symmetry):
        labels[place].add((group, index))
    places = defaultdict[frozenset[tuple[str, int]], set[Place]](set)
    for place, label in labels.items():
        places[frozenset(label)].add(place)
    units = {label: frozenset(held) for label, held in places.items()}
    return Coupling(
        frozenset(units.values()),
        collected((frozenset(group for group, _ in label), unit) for label, unit in units.items()),
        frozenset(
            collected((index, unit) for label, unit in units.items() for group, index in label if group == host)
            for host in hosts(symmetry)
        ),
    )


def hosts(symmetry: Symmetry) -> set[str]:
    """The groups that others live inside."""
    return {outer for group in symmetry.groups.values() for outer in group.outer}


def unit_labels(model: nn.Module, symmetry: Symmetry) -> Iterator[tuple[Place, str, int]]:
    """Yield every place with each group that acts on it and the unit of the group that it belongs to."""
    grouped = grouped_convolutions(model)
    for group in symmetry.groups.values():
        for axis in group.axes:
            acting = {group.name: axis.unit_of(group.name)}
            if axis.dim == 1 and axis.tensor in grouped:
                # An input channel is a column of the rows of its group of channels: they say which outer unit it is in.
                layer = grouped[axis.tensor]
                rows, columns = layer.out_channels // layer.groups, layer.in_channels // layer.groups
                acting = {group.name: acting[group.name].repeat(layer.groups)} | {
                    outer: host.unit_of(outer)[::rows].repeat_interleave(columns)
                    for outer in group.outer
                    for host in symmetry.groups[outer].axes
                    if host.tensor == axis.tensor
                }
            for name, units in acting.items():
                for position, unit in enumerate(units.tolist()):
                    if unit >= 0:
                        yield (axis.tensor, axis.dim, position), name, unit


def grouped_convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Name of the weight to layer; the groups of a depthwise convolution are single channels, which keep nothing."""
    layers = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    return {weight: layer for weight, layer in layers.items() if 1 < layer.groups < layer.out_channels}


def reference_coupling(model: nn.Module, example: Tensor) -> Coupling:
    # Else it warns of parameters that belong to no layer (layer scales), though it couples them rightly.
    graph = torch_pruning.DependencyGraph().build_dependency(model, (example,), verbose=False)
    names: dict[object, str] = {module: name for name, module in model.named_modules()}
    names |= {parameter: name for name, parameter in model.named_parameters()}
    roots: dict[Place, tuple[str, int]] = {}
    for group in graph.get_all_groups():
        root = names[group[0].dep.target.module]
        for item in group:
            for tensor, dim in pruned_dimensions(graph, item.dep, names):
                for position, channel in zip(item.idxs, item.root_idxs, strict=True):
                    # Every place must belong to one channel of one root, else the graph says more than is read here.
                    assert roots.setdefault((tensor, dim, position), (root, channel)) == (root, channel)
    units = collected((root, place) for place, root in roots.items())
    unit_at = {place: unit for unit in units for place in unit}
    return Coupling(
        units,
        collected((signature(unit), unit) for unit in units),
        frozenset(
            collected((block, unit_at[place]) for place, block in blocks_of(weight, layer, graph))
            for weight, layer in grouped_convolutions(model).items()
        ),
    )


def pruned_dimensions(
    graph: torch_pruning.DependencyGraph, dependency: torch_pruning.Dependency, names: dict[object, str]
) -> list[tuple[str, int]]:
    """The tensors' dimensions from which `dependency` removes channels."""
    node, layer = dependency.target, dependency.target.module
    if layer not in names:
        return []  # an operator without parameters
    if isinstance(layer, nn.Parameter):
        return [(names[layer], node.pruning_dim % layer.ndim)]
    mixes = isinstance(layer, nn.Linear | nn.Conv2d) and node.type != torch_pruning.ops.OPTYPE.DEPTHWISE_CONV
    if mixes and graph.is_in_channel_pruning_fn(dependency.handler):
        return [(f"{names[layer]}.weight", 1)]
    tensors = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    return [(f"{names[layer]}.{name}", 0) for name, tensor in tensors if tensor.ndim]


def blocks_of(weight: str, layer: nn.Conv2d, graph: torch_pruning.DependencyGraph) -> Iterator[tuple[Place, int]]:
    """Yield every output and input channel of a grouped convolution with the group that it belongs to."""
    pruner = graph.get_pruner_of_module(layer)
    ends = [
        (0, layer.out_channels, pruner.get_out_channel_groups(layer)),
        (1, layer.in_channels, pruner.get_in_channel_groups(layer)),
    ]
    for dim, channels, groups in ends:
        for position in range(channels):
            yield (weight, dim, position), position // (channels // groups)


def collected(pairs: Iterable[tuple[Key, Member]]) -> frozenset[frozenset[Member]]:
    """The sets of members with the same key."""
    members = defaultdict[Key, set[Member]](set)
    for key, member in pairs:
        members[key].add(member)
    return frozenset(map(frozenset, members.values()))


def signature(unit: Unit) -> frozenset[tuple[str, int, int]]:
    """How many positions of every dimension of every tensor belong to `unit`."""
    return frozenset((*dimension, count) for dimension, count in Counter(place[:2] for place in unit).items())


def summary(units: Iterable[Unit]) -> Counter[frozenset[tuple[str, int, int]]]:
    """How many units there are of each signature."""
    return Counter(map(signature, units))


def hidden(reference: Coupling, last: str) -> Coupling:
    """What the reference says of all but the outputs, which layer `last` makes.

    The one difference that is expected: the reference offers these for removal as if they were hidden, and leaves it to
    its user to keep them. They are what the network computes, so no symmetry may move them.
    """
    outputs = frozenset(frozenset({(f"{last}.weight", 0, i), (f"{last}.bias", 0, i)}) for i in range(CLASSES))
    assert outputs <= reference.units
    return Coupling(reference.units - outputs, reference.orbits - {outputs}, reference.blocks)


def agree(model: nn.Module, symmetry: Symmetry, expected: Coupling) -> bool:
    # Of the same sets there are fewer permutations where groups wrongly move as one.
    as_large = math.isclose(symmetry.log10_size, expected.log10_size, rel_tol=1e-12)
    return as_large and found_coupling(model, symmetry) == expected


CLASSES = 10
EXAMPLE = torch.zeros(2, 3, 64, 64)


@dataclass(frozen=True)
class Network:
    """A network, the layer that makes its outputs, and how many grouped convolutions it has."""

    make: Callable[[], nn.Module]
    last: str
    grouped: int = 0


CONVNEXT = [CNBlockConfig(32, 64, 2), CNBlockConfig(64, 96, 3), CNBlockConfig(96, None, 1)]

# ShuffleNet is missing: the reference divides by zero where it reads the channel shuffle.
NETWORKS = {
    "resnet18": Network(lambda: models.resnet18(num_classes=CLASSES), "fc"),
    "vgg11_bn": Network(lambda: models.vgg11_bn(num_classes=CLASSES), "classifier.6"),
    "densenet": Network(lambda: models.DenseNet(block_config=(3, 4, 5), num_classes=CLASSES), "classifier"),
    "googlenet": Network(lambda: models.googlenet(num_classes=CLASSES, aux_logits=False, init_weights=False), "fc"),
    "mobilenet_v2": Network(lambda: models.mobilenet_v2(num_classes=CLASSES, width_mult=0.5), "classifier.1"),
    "mobilenet_v3_small": Network(lambda: models.mobilenet_v3_small(num_classes=CLASSES), "classifier.3"),
    "squeezenet1_1": Network(lambda: models.squeezenet1_1(num_classes=CLASSES), "classifier.1"),
    "resnext": Network(
        lambda: ResNet(Bottleneck, [1, 2, 1, 1], CLASSES, groups=32, width_per_group=4), "fc", grouped=5
    ),
    "convnext": Network(lambda: models.ConvNeXt(CONVNEXT, num_classes=CLASSES), "classifier.2"),
    "efficientnet_b0": Network(lambda: models.efficientnet_b0(num_classes=CLASSES), "classifier.1"),
    "regnet_y_400mf": Network(lambda: models.regnet_y_400mf(num_classes=CLASSES), "fc", grouped=16),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_units_are_those_of_the_dependency_graph(name: str):
    network = NETWORKS[name]
    model = network.make().eval()
    symmetry, expected = discover(model, EXAMPLE), hidden(reference_coupling(model, EXAMPLE), network.last)
    found = found_coupling(model, symmetry)
    # The kinds of units that only one of the two has make a message that can be read.
    assert summary(found.units - expected.units) == summary(expected.units - found.units) == {}
    assert found.orbits == expected.orbits
    assert found.blocks == expected.blocks
    assert len(found.blocks) == network.grouped
    assert symmetry.log10_size == pytest.approx(expected.log10_size, rel=1e-12)


def test_a_channel_shuffle_is_beyond_the_reference():
    """Why ShuffleNet is not compared; should this fail, it can be."""
    with pytest.raises(ZeroDivisionError):
        reference_coupling(models.shufflenet_v2_x0_5(num_classes=CLASSES).eval(), EXAMPLE)


Small = tuple[nn.Module, Symmetry, Coupling]
"""A network, its symmetry and what the reference says."""


@pytest.fixture(scope="module", params=["densenet", "regnet"])
def small(request: pytest.FixtureRequest) -> Small:
    """A small network with concatenations, and one with grouped convolutions and squeeze and excitation."""
    last, model = "classifier", models.DenseNet(4, (2, 3), 6, num_classes=CLASSES)
    if request.param == "regnet":
        parameters = BlockParams.from_init_params(depth=4, w_0=16, w_a=8.0, w_m=2.0, group_width=8, se_ratio=0.25)
        last, model = "fc", RegNet(parameters, num_classes=CLASSES, stem_width=8)
    model.eval()
    symmetry, expected = discover(model, EXAMPLE), hidden(reference_coupling(model, EXAMPLE), last)
    assert agree(model, symmetry, expected)
    return model, symmetry, expected


def changed(symmetry: Symmetry, group: Group) -> Symmetry:
    return dataclasses.replace(symmetry, groups={**symmetry.groups, group.name: group})


def test_a_missing_axis_is_caught(small: Small):
    """Control: whichever axis of whichever group is forgotten."""
    model, symmetry, expected = small
    for group in symmetry.groups.values():
        for axis in group.axes:
            short = dataclasses.replace(group, axes=tuple(other for other in group.axes if other != axis))
            assert not agree(model, changed(symmetry, short), expected), axis


def test_displaced_units_are_caught(small: Small):
    """Control: two units of each group have changed places on one tensor."""
    model, symmetry, expected = small
    for group in symmetry.groups.values():
        axis = group.axes[-1]
        units = axis.unit_of(group.name).tolist()
        order = list(range(len(units)))
        one, two = units.index(0), units.index(1)
        order[one], order[two] = two, one
        displaced = dataclasses.replace(axis, order=tuple(order))
        assert axis.order is None
        wrong = dataclasses.replace(group, axes=(*group.axes[:-1], displaced))
        assert not agree(model, changed(symmetry, wrong), expected), axis


def test_units_that_are_not_exchanged_are_caught(small: Small):
    """Control: the right units, but those of a group may only move within its two halves."""
    model, symmetry, expected = small
    plain = [group for name, group in symmetry.groups.items() if not group.outer and name not in hosts(symmetry)]
    assert plain
    for group in plain:
        others = {name: other for name, other in symmetry.groups.items() if name != group.name}
        smaller = dataclasses.replace(symmetry, groups=others | halves(group))
        assert found_coupling(model, smaller).units == found_coupling(model, symmetry).units
        assert not agree(model, smaller, expected), group.name


def halves(group: Group) -> dict[str, Group]:
    sizes = {"first": group.size // 2, "second": group.size - group.size // 2}

    def split(axis: Axis, kept: str) -> Axis:
        segments = []
        for segment in axis.segments:
            if segment[0].group == group.name:
                segments += [
                    (Factor(half if half == kept else None, size), *segment[1:]) for half, size in sizes.items()
                ]
            else:
                segments.append(segment)
        return dataclasses.replace(axis, segments=tuple(segments))

    return {half: Group(half, size, tuple(split(axis, half) for axis in group.axes)) for half, size in sizes.items()}


@pytest.mark.parametrize("small", ["regnet"], indirect=True)
def test_a_forgotten_outer_group_is_caught(small: Small):
    """Control: the units inside the groups of a convolution move in all of these alike."""
    model, symmetry, expected = small
    inner = [group for group in symmetry.groups.values() if group.outer]
    assert inner
    for group in inner:
        wrong = changed(symmetry, dataclasses.replace(group, outer=()))
        assert not agree(model, wrong, expected), group.name
