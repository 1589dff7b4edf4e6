"""As large as it truly is: on tiny networks every rearrangement of every tensor is tried, and those that keep the
function are counted."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional
from torch.utils import _pytree as pytree

from lmc import seeding
from lmc.symmetry.discover import discover
from lmc.symmetry.structure import Symmetry
from tests.symmetry.test_structures import CASES, Run

CHUNK = 1 << 13


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), linear(3, 1))


def residual() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        x = m.enter(x)
        x = x + m.down(torch.tanh(m.up(x)))
        return m.leave(x + m.scale * torch.tanh(x))

    layers = {"enter": linear(1, 3), "up": linear(3, 2), "down": linear(2, 3), "leave": linear(3, 1)}
    return Run(run, **layers, scale=torch.ones(3))


def in_groups() -> nn.Module:
    """The second convolution sees two groups of two channels."""
    layers = [nn.Conv2d(1, 4, 1, bias=False), nn.Tanh(), nn.Conv2d(4, 4, 1, groups=2, bias=False), nn.Tanh()]
    return nn.Sequential(*layers, nn.Conv2d(4, 1, 1, bias=False))


def depthwise() -> nn.Module:
    layers = [nn.Conv2d(1, 3, 1), nn.Tanh(), nn.Conv2d(3, 3, 1, groups=3), nn.Tanh(), nn.Conv2d(3, 1, 1, bias=False)]
    return nn.Sequential(*layers)


def normalised_in_groups() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv2d(4, 1, 1, bias=False))


def gated(how: str) -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        if how == "glu":
            return m.leave(functional.glu(m.both(x)))
        if how == "turned":  # both halves meet, so that they can be exchanged too
            one, two = m.both(x).chunk(2, -1)
            return m.leave(torch.tanh(one) * torch.tanh(two))
        one, two = m.both(x).unflatten(-1, (3, 2)).unbind(-1)
        return m.leave(one * torch.sigmoid(two))

    return Run(run, both=nn.Linear(1, 6), leave=linear(3, 1))


def concatenated() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        one = m.one(x)
        return m.leave(torch.tanh(m.norm(torch.cat([one, m.two(torch.tanh(one))], -1))))

    return Run(run, one=linear(1, 2), two=linear(2, 2), norm=nn.LayerNorm(4, bias=False), leave=linear(4, 1))


def shuffled() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        x = m.enter(x)
        x = torch.cat([x[:, :2], torch.tanh(m.middle(x[:, 2:]))], 1)
        return m.leave(torch.tanh(x.unflatten(1, (2, 2)).transpose(1, 2).flatten(1)))

    return Run(run, enter=linear(1, 4), middle=linear(2, 2), leave=linear(4, 1))


def attention(*, turned: bool = False, shared: bool = False, table: bool = False) -> nn.Module:
    """Two heads of two dimensions; turned by angles, with shared keys and values, or with a table for each head."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        count = 1 if shared else 2
        query, key, value = heads(m.query(x), 2), heads(m.key(x), count), heads(m.value(x), count)
        if turned:
            angle = torch.arange(1, 4, dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.3], dtype=x.dtype)
            query, key = query * angle.cos(), key * angle.cos()
        scores = query @ key.transpose(-2, -1)
        if table:
            scores = scores + m.table[:, None, None]
        return m.out((functional.softplus(scores) @ value).transpose(1, 2).flatten(2)).mean(1)

    count = 2 if shared else 4
    layers = {"query": linear(1, 4), "key": linear(1, count), "value": linear(1, count), "out": linear(4, 1)}
    return Run(run, **layers, **({"table": torch.ones(2)} if table else {}))


def einsum() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        return torch.einsum("nhd,hd->n", torch.tanh(torch.einsum("ni,hdi->nhd", x, m.enter)), m.leave)[:, None]

    return Run(run, enter=torch.randn(2, 3, 1), leave=torch.randn(2, 3))


def over_hidden_units() -> nn.Module:
    """Softmax, mean and maximum over hidden units know no order; a cumulative sum does."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        x = m.one(x)
        x = torch.tanh(m.two(x.softmax(-1) - x.mean(-1, keepdim=True) + x.amax(-1, keepdim=True)))
        return m.leave(x.cumsum(-1))

    return Run(run, one=nn.Linear(1, 3), two=linear(3, 3), leave=linear(3, 1))


def flattened() -> nn.Module:
    layers = [nn.Conv2d(1, 2, 1), nn.Tanh(), nn.Flatten(), linear(2 * 4, 1)]
    return nn.Sequential(*layers)


def tied() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        return torch.tanh(m.enter(x) @ m.table.T) @ m.table @ m.leave

    return Run(run, enter=linear(1, 3), table=torch.randn(3, 3), leave=torch.randn(3, 1))


def used_twice() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        return m.leave(torch.tanh(m.same(torch.tanh(m.same(torch.tanh(m.enter(x)))))))

    return Run(run, enter=nn.Linear(1, 3), same=nn.Linear(3, 3), leave=linear(3, 1))


def repeated() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        return m.leave(torch.tanh(m.enter(x)).repeat_interleave(2, -1))

    return Run(run, enter=linear(1, 2), leave=linear(4, 1))


def of_halves() -> nn.Module:
    """Each unit of the stream is the sum of the same unit of two stacked branches."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        both = torch.stack([m.one(x), m.two(x)], 1)
        return m.leave((both.softmax(1) * both.tanh()).sum(1))

    return Run(run, one=nn.Linear(1, 3), two=nn.Linear(1, 3), leave=linear(3, 1))


@dataclass(frozen=True)
class Tiny:
    """A network; `apart` names the tensors whose later dimensions may move on their own for each unit of the first."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    order: int
    apart: tuple[str, ...] = ()


TINY = {
    "perceptron": Tiny(perceptron, (1,), 36),
    "residual stream": Tiny(residual, (1,), 12),
    "grouped convolution": Tiny(in_groups, (1, 2, 1), 2 * 2**2 * 2**2, ("2.weight",)),
    "depthwise convolution": Tiny(depthwise, (1, 2, 1), 6),
    "group normalisation": Tiny(normalised_in_groups, (1, 2, 1), 2 * 2**2),
    "gated halves": Tiny(lambda: gated("glu"), (1,), 6),
    "gated pairs": Tiny(lambda: gated("pairs"), (1,), 6),
    "concatenation": Tiny(concatenated, (1,), 4),
    "channel shuffle": Tiny(shuffled, (1,), 8),
    "attention": Tiny(attention, (3, 1), 2 * 2**2 * 2**2),
    "attention with a table": Tiny(lambda: attention(table=True), (3, 1), 2 * 2**2 * 2**2),
    "attention with turned dimensions": Tiny(lambda: attention(turned=True), (3, 1), 2 * 2**2),
    "attention with shared keys": Tiny(lambda: attention(shared=True), (3, 1), 2 * 2 * 2),
    "einsum": Tiny(einsum, (1,), 2 * 6**2, ("enter", "leave")),
    "over hidden units": Tiny(over_hidden_units, (1,), 6),
    "flattened": Tiny(flattened, (1, 2, 2), 2),
    "tied": Tiny(tied, (1,), 36),
    "used twice": Tiny(used_twice, (1,), 6),
    "repeated": Tiny(repeated, (1,), 2 * 2**2),
    "stacked branches": Tiny(of_halves, (1,), 6),
}


def rearrangements(shape: tuple[int, ...], apart: bool) -> Tensor:
    """(count, *shape): every way in which the dimensions of a tensor can be permuted, as flat positions."""
    places = torch.arange(math.prod(shape)).reshape(shape)[None]
    for dim, n in enumerate(shape):
        if apart and dim:
            orders = torch.tensor(list(itertools.product(itertools.permutations(range(n)), repeat=shape[0])))
            front = [shape[0], *[1] * (dim - 1)]
        else:
            orders = torch.tensor(list(itertools.permutations(range(n))))
            front = [1] * dim
        orders = orders.reshape(len(orders), *front, n, *[1] * (len(shape) - dim - 1))
        index = orders[:, None].expand(-1, len(places), *shape)
        places = places.expand(len(orders), *places.shape).gather(dim + 2, index).flatten(0, 1)
    return places


@cache
def network(name: str) -> tuple[nn.Module, Tensor]:
    """In float64 with normal weights, which coincide nowhere, and inputs."""
    with seeding.isolated(0, name):
        model = TINY[name].make().double().eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        return model, torch.randn(4, *TINY[name].shape, dtype=torch.float64)


def count(name: str) -> int:
    """How many rearrangements of the tensors of a network keep its outputs, of all there are."""
    model, inputs = network(name)
    weights = {key: value.detach() for key, value in model.named_parameters()}
    choices = {key: rearrangements(tuple(value.shape), key in TINY[name].apart) for key, value in weights.items()}
    sizes = [len(choice) for choice in choices.values()]
    expected = model(inputs).detach()

    def run(chosen: dict[str, Tensor]) -> Tensor:
        return functional_call(model, chosen, (inputs,), tie_weights=False)

    kept = 0
    for start in range(0, math.prod(sizes), CHUNK):
        number = torch.arange(start, min(start + CHUNK, math.prod(sizes)))
        moved = {}
        for key, size in zip(choices, sizes, strict=True):
            places = choices[key][number % size]
            moved[key] = weights[key].flatten()[places.flatten(1)].reshape(places.shape)
            number = number // size
        outputs = vmap(run)(moved)
        kept += int(((outputs - expected).abs().flatten(1).amax(1) < 1e-10).sum())
    return kept


@pytest.mark.parametrize("name", TINY)
def test_no_other_rearrangement_keeps_the_function(name: str):
    model, inputs = network(name)
    assert count(name) == TINY[name].order
    assert round(10 ** discover(model, inputs).log10_size) == TINY[name].order


@pytest.mark.parametrize("name", CASES)
def test_no_two_units_that_stay_can_change_places(name: str):
    """What a rule has fixed too eagerly would be found here: a tensor in which two units are exchanged alone."""
    case = CASES[name]
    with seeding.isolated(7, name):
        model = case.make().double().eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        inputs = torch.randn(4, *case.shape, dtype=torch.float64)
    symmetry = discover(model, inputs)
    assert idle(model, symmetry, inputs) == []


class Repeating(nn.Module):
    """All inputs of the last layer are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.leave = nn.Linear(4, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(x.mean(1, keepdim=True).expand(-1, 4))


def test_two_units_that_could_change_places_are_noticed():
    inputs = torch.randn(4, 3, generator=seeding.generator(0, "inputs"), dtype=torch.float64)
    symmetry = discover(Repeating(), inputs)
    assert [(group.size, len(group.axes)) for group in symmetry.groups.values()] == [(4, 1)]
    assert idle(Repeating(), symmetry, inputs) == []
    missed = {("leave.weight", 1, one, two) for one, two in itertools.combinations(range(4), 2)}
    assert set(idle(Repeating(), replace(symmetry, groups={}), inputs)) == missed


def outputs_of(model: nn.Module, weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
    results = functional_call(model, weights, (inputs,), tie_weights=False)
    return torch.cat([result.detach().flatten() for result in pytree.tree_leaves(results)])


def idle(model: nn.Module, symmetry: Symmetry, inputs: Tensor) -> list[tuple[str, int, int, int]]:
    """The tensors and dimensions that stay, and two positions whose exchange changes nothing."""
    weights = {key: value.detach() for key, value in model.named_parameters()}
    expected = outputs_of(model, weights, inputs)
    found = []
    for tensor, weight in weights.items():
        for dim, n in enumerate(weight.shape):
            if any(tensor == axis.tensor and dim == axis.dim for g in symmetry.groups.values() for axis in g.axes):
                continue
            for one, two in itertools.combinations(range(n), 2):
                order = list(range(n))
                order[one], order[two] = two, one
                moved = {**weights, tensor: weight[(slice(None),) * dim + (order,)]}
                if (outputs_of(model, moved, inputs) - expected).abs().max() < 1e-9:
                    found.append((tensor, dim, one, two))
    return found
