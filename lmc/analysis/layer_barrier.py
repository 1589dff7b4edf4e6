"""Barriers of networks of which only some layers are merged."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path as FilePath
from statistics import fmean
from typing import ClassVar

from pydantic import NonNegativeInt, PositiveInt

from lmc.analysis.base import Finding, OnStep, Setting, Subject
from lmc.analysis.resumed import Key, resumed
from lmc.errors import UserError
from lmc.evaluation.layer_barrier import (
    End,
    Layer,
    Mode,
    displaced,
    layer_sets,
    layers_of,
    partly_merged,
    random_directions,
    shares,
)
from lmc.evaluation.path import equal_grid
from lmc.state import State

FILE = "layers.csv"
_COLUMNS = ("mode", "layer", "layers", "rest", "direction", "t", "split", "loss", "accuracy", "examples")
_ENDS: tuple[End, End] = ("fixed", "moving")
_SPLITS = ("train", "test")
_OTHER = "moving"
"""The direction towards the other end; random ones are numbered."""


@dataclass(frozen=True)
class Mixture:
    """One network that is measured.

    Attributes:
        mode: "none" (an end), "all", or one of `Mode`.
        layer: the name of the set of layers.
        chosen: their numbers.
        rest: the end that all other layers come from.
        direction: the number of a random direction; 0: towards the other end.
        t: where the chosen layers are.
    """

    mode: str
    layer: str
    chosen: tuple[int, ...]
    rest: End
    direction: int
    t: float

    @property
    def way(self) -> str:
        """The name of the direction."""
        return f"random {self.direction}" if self.direction else _OTHER

    def keys(self) -> list[Key]:
        """Return what stands before the numbers of its rows in the raw file."""
        of = (self.mode, self.layer, len(self.chosen), self.rest, self.way, self.t)
        return [(*of, split) for split in _SPLITS]


@dataclass(frozen=True, kw_only=True)
class LayerBarrier:
    """Merge only some layers of two networks and take the rest from one of them (Adilova et al. 2024, Definition 2).

    On the straight line, whatever the curve; both ends are asked for the rest. What is subtracted is the mean loss (or
    error) of the two whole networks. See `lmc.evaluation.layer_barrier` for what a layer is, for the correction of a
    network of which only some layers are merged, and for the control: as far from the end that the rest comes from, in
    a random direction (Adilova et al. 2024, section 5).

    Args:
        modes: which sets of layers (see `lmc.evaluation.layer_barrier.layer_sets`), besides all of them.
        window: layers in a window, for the mode of that name.
        grid: number of equally spaced t, odd, at least 3; the barrier is the largest at one of them, 0 and 1 left out,
            where layers are exchanged rather than merged. 3: only 1/2, as published.
        random_directions: how many random directions; 0: no control. Their barriers are averaged.
        with_norm: whether a normalisation layer belongs to the layer registered before it, or is one of its own.

    Raises:
        UserError: no or twice the same mode, an even grid, or one of less than 3 points.
    """

    files: ClassVar[tuple[str, ...]] = (FILE,)
    together: ClassVar[bool] = False

    modes: list[Mode] = field(default_factory=lambda: ["single", "bottom", "top"])
    window: PositiveInt = 3
    grid: PositiveInt = 3
    random_directions: NonNegativeInt = 1
    with_norm: bool = True

    def __post_init__(self) -> None:
        equal_grid(self.grid)
        if not self.modes or len(set(self.modes)) < len(self.modes):
            raise UserError(
                f"analysis.layer_barrier.modes={self.modes} must name every mode once, and at least one; "
                "give some of [single,bottom,top,window]"
            )

    def steps(self, setting: Setting) -> int:
        """Return the number of networks that are measured; those that are the same are counted as often."""
        return len(self._mixtures(layers_of(setting.model, with_norm=self.with_norm)))

    def check(self, setting: Setting) -> None:
        """Refuse a network that has not enough layers.

        Raises:
            UserError: it has no parameters, or fewer layers than a window.
        """
        count = len(layers_of(setting.model, with_norm=self.with_norm))
        if not count:
            raise UserError("analysis=layer_barrier: this network has no parameters, so no layer; choose another one")
        if "window" in self.modes and count < self.window:
            raise UserError(
                f"analysis.layer_barrier.window={self.window}, but the network has {count} layers; give at most "
                f"{count}, or leave the mode window out"
            )

    def __call__(self, subject: Subject, folder: FilePath, on_step: OnStep) -> list[Finding]:
        """Return what "layer_barrier" each set of layers has, and what says something of all of them.

        Of all: "largest_layer_barrier" and "mean_layer_barrier" over single layers and both ends for the rest,
        "mean_random_barrier" of the control, and "all_layers_barrier" of the midpoint. layers.csv: every network that
        was measured, the two ends ("none") among them. A killed attempt is gone on from.
        """
        layers = layers_of(subject.model, with_norm=self.with_norm)
        mixtures = self._mixtures(layers)
        measure = _Measure(subject, layers)
        measured: list[list[list[float]]] = []
        known: dict[object, list[list[float]]] = {}

        def compute(number: int) -> list[list[float]]:
            found = known.get(_network_of(mixtures[number], len(layers)))
            return measure(mixtures[number]) if found is None else found

        steps = [mixture.keys() for mixture in mixtures]
        for mixture, values in zip(mixtures, resumed(folder / FILE, _COLUMNS, steps, compute), strict=True):
            measured.append(values)
            known[_network_of(mixture, len(layers))] = [[*of[:2], int(of[2])] for of in values]
            on_step({f"{split}_loss": loss for split, (loss, _, _) in zip(_SPLITS, values, strict=True)})
        return list(_findings(mixtures, measured))

    def _mixtures(self, layers: Sequence[Layer]) -> list[Mixture]:
        """Everything that is measured: both ends, all layers together, then mode by mode."""
        everything = tuple(range(len(layers)))
        found = [Mixture("none", "", (), "fixed", 0, 0.0), Mixture("none", "", (), "moving", 0, 1.0)]
        inner = equal_grid(self.grid)[1:-1]
        found += [Mixture("all", "", everything, "fixed", 0, t) for t in inner]
        for mode in self.modes:
            sets = layer_sets(mode, layers, self.window)
            ways = range(self.random_directions + 1)
            for (layer, chosen), rest, way, t in itertools.product(sets, _ENDS, ways, inner):
                found.append(Mixture(mode, layer, chosen, rest, way, t))
        return found


def _network_of(mixture: Mixture, layers: int) -> object:
    """What tells one network from another; where all layers are merged, there is no rest."""
    rest = None if len(mixture.chosen) == layers and not mixture.direction else mixture.rest
    return mixture.chosen, mixture.direction, mixture.t, rest


class _Measure:
    """Builds, corrects and measures mixtures of one pair."""

    def __init__(self, subject: Subject, layers: Sequence[Layer]) -> None:
        self._subject, self._layers = subject, layers
        self._ends: Mapping[End, State] = dict(zip(_ENDS, subject.networks, strict=True))

    def __call__(self, mixture: Mixture) -> list[list[float]]:
        """Return loss, accuracy and examples on each split."""
        subject = self._subject
        tensors = [name for number in mixture.chosen for name in self._layers[number].tensors]
        fixed, moving = self._ends.values()
        if mixture.direction:
            away = mixture.t if mixture.rest == "fixed" else 1 - mixture.t
            directions = random_directions(subject.model, fixed, moving, tensors, subject.seed, mixture.direction)
            network = displaced(self._ends[mixture.rest], directions, away)
        else:
            network = partly_merged(fixed, moving, tensors, mixture.t, mixture.rest)
        corrected = subject.correction(network, shares(subject.model, tensors, mixture.t, mixture.rest))
        found = subject.splits.measure(subject.model, corrected)
        return [[found[split].loss, found[split].accuracy, found[split].examples] for split in _SPLITS]


def _findings(mixtures: Sequence[Mixture], measured: Sequence[Sequence[Sequence[float]]]) -> Iterator[Finding]:
    for (place, split), (metric, unit) in itertools.product(
        enumerate(_SPLITS), (("loss", "nats"), ("error", "fraction"))
    ):
        values = [of[place][0] if metric == "loss" else 1 - of[place][1] for of in measured]
        of = partial(Finding, metric=metric, unit=unit, split=split, examples=int(measured[0][place][2]))
        yield from _barriers(mixtures, values, of)


def _barriers(mixtures: Sequence[Mixture], values: Sequence[float], of: "partial[Finding]") -> Iterator[Finding]:
    """The findings of one metric on one split, from its value in every network; the first two are the ends."""
    both = fmean(values[:2])
    along: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for mixture, value in zip(mixtures[2:], values[2:], strict=True):
        along[mixture.mode, mixture.layer, mixture.rest, mixture.way].append(value - both)
        if mixture.mode == "all" and mixture.t == 0.5:
            yield of(what="all_layers_barrier", value=value - both)
    ways: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for (mode, layer, rest, way), barriers in along.items():
        ways[mode, layer, rest, way.split()[0]].append(max(barriers))
    found = {key: fmean(barriers) for key, barriers in ways.items() if key[0] != "all"}
    for (mode, layer, rest, way), value in found.items():
        more = {"mode": mode, "layer": layer, "rest": rest, "direction": way}
        yield of(what="layer_barrier", value=value, more=more)
    single = [value for (mode, _, _, way), value in found.items() if mode == "single" and way == _OTHER]
    control = [value for (mode, _, _, way), value in found.items() if mode == "single" and way != _OTHER]
    if single:
        yield of(what="largest_layer_barrier", value=max(single))
        yield of(what="mean_layer_barrier", value=fmean(single))
    if control:
        yield of(what="mean_random_barrier", value=fmean(control))
