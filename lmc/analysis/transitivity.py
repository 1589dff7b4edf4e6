"""Permutations composed along chains of networks."""

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveInt

from lmc import seeding
from lmc.analysis.base import Finding, OnStep, Setting, Subject
from lmc.analysis.lines import (
    Barriers,
    Line,
    OnLines,
    examples_of,
    findings,
    permutation,
    refuse_soft,
    summary,
)
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.permutation import Permutation

Chain = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Transitivity(OnLines):
    """Align two networks by way of others, and measure the barrier between them (Sharma et al. 2024).

    If A is connected with B modulo a permutation P and B with C modulo Q, is A with C modulo P Q? Chains of different
    networks are drawn at random; along each, the permutations of neighbours are composed, and the barrier is that of
    the line between its first network and its last one, permuted so. A chain of length 1 is a direct alignment.

    Args:
        longest: of the chains, in steps (Sharma et al.: 5); chains of all lengths from 1 to it are drawn.
        chains: at most so many of each length (Sharma et al.: 20); where there are no more, all.
        grid, barrier: see `OnLines`.
    """

    together: ClassVar[bool] = True

    longest: Annotated[int, Field(ge=2)] = 5
    chains: PositiveInt = 20

    def steps(self, setting: Setting) -> int:
        """Return the number of lines, one for each chain."""
        networks = len(setting.labels)
        return sum(min(self.chains, _possible(networks, length)) for length in range(1, self.longest + 1))

    def check(self, setting: Setting) -> None:
        """Raise a `UserError` if the networks are too few for the chains, or the alignment gives no permutation."""
        refuse_soft(setting, "transitivity")
        if len(setting.labels) <= self.longest:
            raise UserError(
                f"analysis.transitivity.longest={self.longest} needs {self.longest + 1} networks, and there are "
                f"{len(setting.labels)}; give more seeds, or make the chains shorter"
            )

    def __call__(self, subject: Subject, folder: FilePath, on_step: OnStep) -> list[Finding]:
        """Return "chain_barrier" with `length` and `chain`, and "chain_mean_barrier" over the chains of a length."""
        examples = examples_of(subject)

        @functools.cache
        def towards(fixed: int, moving: int) -> Permutation:
            if fixed > moving:
                return towards(moving, fixed).inverse()
            return permutation(subject, subject.trained[fixed], subject.trained[moving])

        def ends(chain: Chain) -> tuple[State, State]:
            first, last = (subject.trained[place][-1] for place in (chain[0], chain[-1]))
            return first, composed(chain, towards).apply(last)

        chains = {length: self._chains(subject, length) for length in range(1, self.longest + 1)}
        lines = [
            Line((length, "-".join(str(subject.labels[place]) for place in chain)), functools.partial(ends, chain))
            for length, drawn in chains.items()
            for chain in drawn
        ]
        found: list[Finding] = []
        by_length: dict[int, list[Barriers]] = {length: [] for length in chains}
        every = self.measured(subject, folder, ("length", "chain"), lines, on_step)
        for line, barriers in zip(lines, every, strict=True):
            length, name = line.label
            by_length[int(length)].append(barriers)
            found += findings("chain_barrier", barriers, examples, length=length, chain=name)
        for length, barriers_of_length in by_length.items():
            mean = summary(statistics.fmean, barriers_of_length)
            found += findings("chain_mean_barrier", mean, examples, length=length)
        return found

    def _chains(self, subject: Subject, length: int) -> Sequence[Chain]:
        draw = seeding.generator(subject.seed, "transitivity", length)
        return draw_chains(len(subject.trained), length, self.chains, draw)


def composed(chain: Chain, towards: Callable[[int, int], Permutation]) -> Permutation:
    """Return what brings the last network of a chain to its first, step by step.

    Args:
        chain: at least two numbers of networks.
        towards: (fixed, moving) -> what brings the one to the other.
    """
    return functools.reduce(Permutation.compose, (towards(*step) for step in itertools.pairwise(chain)))


def draw_chains(networks: int, length: int, count: int, generator: torch.Generator) -> Sequence[Chain]:
    """Return different chains of `length` steps through different networks: `count` at random, or all there are.

    A chain and its reverse are one, as their permutations are each other's inverses: the one that begins with the
    smaller number is returned.
    """
    if _possible(networks, length) <= count:
        every = itertools.permutations(range(networks), length + 1)
        return [chain for chain in every if chain[0] < chain[-1]]
    found: dict[Chain, None] = {}
    while len(found) < count:
        drawn = tuple(torch.randperm(networks, generator=generator)[: length + 1].tolist())
        found[drawn if drawn[0] < drawn[-1] else drawn[::-1]] = None
    return list(found)


def _possible(networks: int, length: int) -> int:
    """How many different chains there are."""
    return math.perm(networks, length + 1) // 2
