import itertools
import logging
from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from torch import Tensor

from lmc.alignment.problem import Problem
from lmc.seeding import isolated
from lmc.state import State
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Axis, Factor, Group, Segment, Symmetry
from tests.symmetry.test_structures import CASES

Dims = tuple[tuple[Segment, ...] | str | int, ...]
Build = Callable[[Mapping[str, int], Mapping[str, Dims]], Symmetry]
Draw = Callable[[Symmetry, int], State]
Pose = Callable[..., Problem]


def all_permutations(symmetry: Symmetry) -> list[Permutation]:
    """Every element of the symmetry of plain groups, for brute force."""
    choices = itertools.product(*(itertools.permutations(range(g.size)) for g in symmetry.groups.values()))
    return [
        Permutation(symmetry, dict(zip(symmetry.groups, map(torch.tensor, choice), strict=True))) for choice in choices
    ]


def outputs(problem: Problem, state: State) -> Tensor:
    """What a network answers to all images of a problem."""
    assert problem.model is not None
    assert problem.batches is not None
    return torch.cat([torch.func.functional_call(problem.model, state, (batch,)) for batch in problem.batches(100)])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def build() -> Build:
    """A symmetry by hand: a dimension is a group's name, a number of fixed positions, or a tuple of segments."""

    def build(sizes: Mapping[str, int], tensors: Mapping[str, Dims]) -> Symmetry:
        axes: dict[str, list[Axis]] = {name: [] for name in sizes}
        shapes = {}
        for tensor, dims in tensors.items():
            lengths = []
            for dim, kind in enumerate(dims):
                if isinstance(kind, str):
                    segments: tuple[Segment, ...] = ((Factor(kind, sizes[kind]),),)
                else:
                    segments = ((Factor(None, kind),),) if isinstance(kind, int) else kind
                axis = Axis(tensor, dim, segments)
                lengths.append(sum(int(torch.tensor([f.size for f in segment]).prod()) for segment in segments))
                for name in sorted(axis.groups):
                    axes[name].append(axis)
            shapes[tensor] = tuple(lengths)
        groups = {name: Group(name, size, tuple(axes[name])) for name, size in sizes.items()}
        return Symmetry(groups, shapes, frozenset(shapes))

    return build


@pytest.fixture(scope="session")
def draw() -> Draw:
    """Normal weights of the shapes of a symmetry."""

    def draw(symmetry: Symmetry, seed: int) -> State:
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.randn(shape, generator=generator) for name, shape in symmetry.shapes.items()}

    return draw


@pytest.fixture(scope="session")
def pose() -> Pose:
    """A problem without data."""

    def pose(symmetry: Symmetry, seed: int = 0) -> Problem:
        return Problem(None, symmetry, seed, torch.device("cpu"), None)

    return pose


@pytest.fixture(scope="session")
def plant() -> Callable[[Symmetry, State, int, float], tuple[State, Permutation]]:
    """A permuted copy with noise (a share of each tensor's deviation), and the permutation that brings it back."""

    def plant(symmetry: Symmetry, state: State, seed: int, noise: float) -> tuple[State, Permutation]:
        generator = torch.Generator().manual_seed(seed)
        hidden = Permutation.random(symmetry, generator)
        moved = {
            name: tensor + noise * tensor.std(unbiased=False) * torch.randn(tensor.shape, generator=generator)
            for name, tensor in hidden.apply(state).items()
        }
        return moved, hidden.inverse()

    return plant


class Symmetries(dict[str, Symmetry]):
    """Small symmetries by name; one of `CASES`, of which some have units inside blocks, is discovered when needed."""

    def __missing__(self, name: str) -> Symmetry:
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # some cases have operators that no rule covers
        with isolated(0, "test"):
            self[name] = discover(CASES[name].make().eval(), torch.zeros(2, *CASES[name].shape))
        logging.disable(before)
        return self[name]


@pytest.fixture(scope="session")
def symmetries(build: Build) -> Symmetries:
    """One small symmetry for each shape of the problem, by hand; and those of `CASES`."""

    def conv(out: str | int, into: str | int) -> Dims:
        return (out, into, 3, 3)

    flat = ((Factor("b", 4), Factor(None, 6)),)
    joined = ((Factor(None, 2),), (Factor("a", 5),), (Factor("b", 4),), (Factor("a", 5),))
    by_hand = {
        "mlp": build(
            {"a": 5, "b": 4}, {"1.w": ("a", 3), "1.b": ("a",), "2.w": ("b", "a"), "2.b": ("b",), "3.w": (2, "b")}
        ),
        "conv": build({"a": 5, "b": 4}, {"1.w": conv("a", 2), "1.b": ("a",), "2.w": conv("b", "a"), "3.w": (3, flat)}),
        "channels last": build(
            {"a": 5, "b": 4},
            {"1.w": conv("a", 2), "2.w": conv("b", "a"), "3.w": (3, ((Factor(None, 6), *flat[0][:1]),))},
        ),
        "residual": build(
            {"s": 5, "i": 4, "j": 3},
            {
                "stem.w": ("s", 2),
                "1.w": ("i", "s"),
                "2.w": ("s", "i"),
                "3.w": ("j", "s"),
                "4.w": ("s", "j"),
                "norm": ("s",),
                "out.w": (2, "s"),
            },
        ),
        "concatenation": build(
            {"a": 5, "b": 4, "c": 3}, {"1.w": ("a", 2), "2.w": ("b", 2), "3.w": ("c", joined), "4.w": (2, "c")}
        ),
        "self-coupled": build(
            {"s": 5, "i": 3}, {"1.w": ("s", 2), "w": ("s", "s"), "2.w": ("i", "s"), "3.w": ("s", "i"), "4.w": (2, "s")}
        ),
        "three groups": build(
            {"a": 3, "b": 4, "c": 5}, {"t": ("a", 2, "c", "b"), "1.w": ("a", 2), "2.w": ("b", 2), "3.w": ("c", 2)}
        ),
        "heads": build(
            {"h": 3, "d": 4},
            {"q": (((Factor("h", 3), Factor("d", 4)),), 5), "k": (((Factor("h", 3), Factor("d", 4)),), 5)},
        ),
    }
    return Symmetries(by_hand)
