"""Every rule on a small network of its own; and what the rules of pointwise operators claim, tried directly."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lmc import seeding
from lmc.symmetry.discover import discover
from lmc.symmetry.rules import RULES
from lmc.symmetry.rules.pointwise import _OF_ONE, NONLINEARITIES
from lmc.symmetry.trace import trace
from lmc.symmetry.verify import verify
from tests.symmetry.test_structures import CASES, Case, Run, groups, plain

aten = torch.ops.aten


def linears(
    run: Callable[..., Tensor], enter: int, leave: int, **layers: nn.Module | Tensor
) -> Callable[[], nn.Module]:
    """Layers between a linear map of three inputs and one to two outputs."""
    return lambda: Run(run, enter=nn.Linear(3, enter), leave=nn.Linear(leave, 2), **layers)


def images(run: Callable[..., Tensor], enter: int, leave: int, **layers: nn.Module | Tensor) -> Callable[[], nn.Module]:
    """Layers between a convolution of two channels and a linear map of the mean over positions."""
    ends = {"enter": nn.Conv2d(2, enter, 1), "leave": nn.Conv2d(leave, 2, 1)}
    return lambda: Run(lambda m, x: run(m, x).mean((2, 3)), **ends, **layers)


def recurrent(layer: Callable[..., nn.Module], **how: object) -> Callable[[], nn.Module]:
    width = 8 if how.get("bidirectional") else 4

    def run(m: nn.Module, x: Tensor) -> Tensor:
        return m.leave(m.inside(torch.tanh(m.enter(x)))[0].mean(1))

    return linears(run, 5, width, inside=layer(5, 4, batch_first=True, **how))


def last_state(m: nn.Module, x: Tensor) -> Tensor:
    return m.leave(m.inside(m.enter(x))[1].mean(0))


def weight_norm(m: nn.Module, x: Tensor) -> Tensor:
    return m.leave(torch.tanh(functional.linear(m.enter(x), torch._weight_norm(m.direction, m.length, 0))))


def rows(m: nn.Module, x: Tensor) -> Tensor:
    """Two rows of a table: its rows stay, its columns move."""
    index = torch.tensor([1, 0])
    return m.leave(m.enter(x) + m.table.index_select(0, index).sum(0) + m.table[index].sum(0))


def chosen(m: nn.Module, x: Tensor) -> Tensor:
    """Which position of a sequence counts is found for each unit apart."""
    x = m.enter(x)
    return m.leave(torch.gather(x, 1, x.argmax(1, keepdim=True))[:, 0])


def embedded(m: nn.Module, x: Tensor) -> Tensor:
    place = torch.arange(4)
    return m.leave(torch.tanh(m.enter(x) + m.table(place) + functional.one_hot(place, 4).to(x.dtype) @ m.rows).mean(1))


def windows(m: nn.Module, x: Tensor) -> Tensor:
    """Patches of two by two, and back."""
    x = torch.tanh(m.enter(x))
    h, w = x.shape[2:]
    patches = functional.unfold(x, 2, stride=2)
    return m.leave(functional.fold(patches.exp(), (h, w), 2, stride=2))


def coordinates(m: nn.Module, x: Tensor) -> Tensor:
    across, down = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    return m.leave(m.enter(x) * (across + down).to(x.dtype))


def padded(m: nn.Module, x: Tensor) -> Tensor:
    """Two channels of zeros are added in front: nothing tells them apart."""
    return m.leave(functional.pad(functional.pad(m.enter(x), [1, 1, 1, 1], mode="reflect"), [0, 0, 0, 0, 2, 0]))


# Group sizes, and the sizes of the groups that they live inside, by hand.
OPERATORS = {
    "outer product": Case(
        linears(
            lambda m, x: m.leave(torch.tanh(m.enter(x) @ torch.outer(m.one, m.two))),
            4,
            5,
            one=torch.ones(4),
            two=torch.ones(5),
        ),
        (3,),
        [plain(4), plain(5)],
    ),
    "bilinear layer": Case(
        linears(
            lambda m, x: m.leave(m.both(m.enter(x), m.side(x))), 4, 6, both=nn.Bilinear(4, 5, 6), side=nn.Linear(3, 5)
        ),
        (3,),
        [plain(4), plain(5), plain(6)],
    ),
    "matrix product and sum": Case(
        linears(
            lambda m, x: m.leave(torch.addmm(m.shift, m.enter(x), m.matrix)),
            4,
            5,
            shift=torch.ones(5),
            matrix=torch.ones(4, 5),
        ),
        (3,),
        [plain(4), plain(5)],
    ),
    "transposed convolution": Case(
        images(lambda m, x: m.leave(torch.tanh(m.up(m.enter(x)))), 4, 5, up=nn.ConvTranspose2d(4, 5, 2)),
        (2, 3, 3),
        [plain(4), plain(5)],
    ),
    # Two groups of three channels, which become two groups of four.
    "transposed convolution in groups": Case(
        images(lambda m, x: m.leave(torch.tanh(m.up(m.enter(x)))), 6, 8, up=nn.ConvTranspose2d(6, 8, 2, groups=2)),
        (2, 3, 3),
        [plain(2), (3, (2,)), (4, (2,))],
    ),
    "filled tensors": Case(
        linears(lambda m, x: m.leave(torch.maximum(m.enter(x), torch.full((4,), 0.5))), 4, 4), (3,), [plain(4)]
    ),
    "coordinates": Case(images(coordinates, 3, 3), (2, 4, 4), [plain(3)]),
    "slope of each channel": Case(
        images(lambda m, x: m.leave(m.bend(m.enter(x))), 4, 4, bend=nn.PReLU(4)), (2, 3, 3), [plain(4)]
    ),
    "norm of each row": Case(
        linears(weight_norm, 4, 5, direction=torch.ones(5, 4), length=torch.ones(5, 1)), (3,), [plain(4), plain(5)]
    ),
    # Sums along the units depend on their order; the units of the layer before do not.
    "cumulative sum": Case(
        linears(lambda m, x: m.leave(m.middle(torch.tanh(m.enter(x))).cumsum(1)), 4, 5, middle=nn.Linear(4, 5)),
        (3,),
        [plain(4)],
    ),
    "long short-term memory": Case(recurrent(nn.LSTM), (6, 3), [plain(4), plain(5)]),
    "gated recurrent unit in two directions": Case(
        recurrent(nn.GRU, bidirectional=True), (6, 3), [plain(4), plain(4), plain(5)]
    ),
    "two recurrent layers": Case(recurrent(nn.RNN, num_layers=2), (6, 3), [plain(4), plain(4), plain(5)]),
    # The last states of both layers are averaged, unit by unit.
    "last states of two layers": Case(
        linears(last_state, 5, 4, inside=nn.GRU(5, 4, 2, batch_first=True)), (6, 3), [plain(4), plain(5)]
    ),
    "position of an extremum": Case(linears(chosen, 4, 4), (5, 3), [plain(4)]),
    "rows by index": Case(linears(rows, 4, 4, table=torch.ones(3, 4)), (3,), [plain(4)]),
    "embedding": Case(linears(embedded, 5, 5, table=nn.Embedding(6, 5), rows=torch.ones(4, 5)), (4, 3), [plain(5)]),
    "part of a dimension": Case(linears(lambda m, x: m.leave(m.enter(x).narrow(1, 1, 3)), 4, 3), (3,), [plain(3)]),
    "moved dimensions": Case(
        images(lambda m, x: m.leave(m.enter(x).movedim(1, -1).exp().movedim(-1, 1)), 4, 4), (2, 3, 3), [plain(4)]
    ),
    "stack": Case(
        linears(lambda m, x: m.leave(torch.stack([m.enter(x), m.side(x)]).amax(0)), 4, 4, side=nn.Linear(3, 4)),
        (3,),
        [plain(4)],
    ),
    # The copies of a unit may change places for each unit; copies of the whole may not depend on the unit.
    "every position repeated": Case(
        linears(lambda m, x: m.leave(m.enter(x).repeat_interleave(3, 1)), 4, 12), (3,), [(3, (4,)), plain(4)]
    ),
    "copies behind one another": Case(
        linears(lambda m, x: m.leave(m.enter(x).repeat(1, 3)), 4, 12), (3,), [plain(3), plain(4)]
    ),
    "padding": Case(images(padded, 3, 5), (2, 3, 3), [plain(2), plain(3)]),
    # Four pixels of each channel become channels of their own, in order.
    "pixel unshuffle": Case(
        images(lambda m, x: m.leave(functional.pixel_unshuffle(m.enter(x), 2)), 3, 12), (2, 4, 4), [plain(3)]
    ),
    # Less than there is: nothing here would hinder all six from moving, but a shuffle cuts its channels into groups.
    "channel shuffle": Case(
        images(lambda m, x: m.leave(functional.channel_shuffle(torch.tanh(m.enter(x)), 2)), 6, 6),
        (2, 3, 3),
        [plain(2), (3, (2,))],
    ),
    "windows": Case(images(windows, 3, 3), (2, 4, 4), [plain(3)]),
    "spread and mean": Case(
        linears(lambda m, x: m.leave(torch.cat(torch.var_mean(m.enter(x), 1), 1)), 4, 8),
        (5, 3),
        [plain(4)],
    ),
}
UNTRACED = {
    # torch.export keeps aten.batch_norm; these are what other exporters write for it.
    "_by_channel_with_statistics",
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operator(name: str, caplog: pytest.LogCaptureFixture):
    case = OPERATORS[name]
    with seeding.isolated(0, name):
        model = case.make().eval()
    example = torch.zeros(2, *case.shape)
    with caplog.at_level(logging.WARNING):
        symmetry = discover(model, example)
    assert not caplog.records
    assert groups(symmetry) == sorted(case.groups)
    assert verify(model, symmetry, example).error < 1e-12


def test_every_rule_is_tried():
    used = set()
    for case in [*OPERATORS.values(), *CASES.values()]:
        for node in trace(case.make().eval(), torch.zeros(2, *case.shape)).module.graph.nodes:
            if node.op == "call_function" and node.target in RULES:
                used.add(RULES[node.target])
    assert {rule.__name__ for rule in set(RULES.values()) - used} == UNTRACED


MORE = {
    "threshold": (0.1, 0.0),
    "fill": (3.0,),
    "dropout": (0.5, False),
    "feature_dropout": (0.5, False),
    "alpha_dropout": (0.5, False),
    "feature_alpha_dropout": (0.5, False),
    "type_as": (torch.zeros(1),),
    "logit": (1e-3,),
    "to": (torch.float32,),
}
"""Arguments behind the tensor."""


@pytest.mark.parametrize("name", [*_OF_ONE, *(name for name in NONLINEARITIES if name != "prelu")])
def test_a_pointwise_operator_commutes_with_permutations(name: str):
    generator = seeding.generator(0, name)
    x = torch.rand(3, 4, 5, generator=generator) * 0.9 + 0.05
    if name == "bitwise_not":
        x = x > 0.5
    more = MORE.get(name, (1, False) if name in ("_softmax", "_log_softmax") else (1,) if "softmax" in name else ())
    operator = getattr(aten, name)
    for dim, n in enumerate(x.shape):
        order = torch.randperm(n, generator=generator)
        moved = operator(x.clone().index_select(dim, order), *more)
        assert torch.allclose(moved, operator(x.clone(), *more).index_select(dim, order), equal_nan=True)


def test_an_operator_that_knows_the_order_does_not_commute():
    x, order = torch.arange(4.0), torch.tensor([1, 0, 3, 2])
    assert not torch.equal(aten.cumsum(x[order], 0), aten.cumsum(x, 0)[order])
