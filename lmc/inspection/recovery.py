"""How much of a planted permutation a method finds again."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmc import seeding
from lmc.alignment.activation_matching import ActivationMatching
from lmc.alignment.problem import Alignment, Problem
from lmc.alignment.weight_matching import WeightMatching
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.activations import Probe
from lmc.symmetry.example import Example
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry
from lmc.symmetry.trial import Trial


@dataclass(frozen=True)
class Planted:
    """A network with distinct units, and a copy of it in which a random element of the symmetry has moved them.

    Attributes:
        model: the architecture.
        symmetry: of it.
        fixed, moving: the network and its permuted copy.
        answer: what brings `moving` to `fixed`.
    """

    model: nn.Module
    symmetry: Symmetry
    fixed: State
    moving: State
    answer: Permutation

    @classmethod
    def draw(cls, model: nn.Module, symmetry: Symmetry, inputs: Example, seed: int = 0) -> "Planted":
        """Plant a uniformly random element in the network with noise on its weights and statistics of `inputs`.

        Raises:
            UserError: the outputs of the network on the inputs are zero or not finite.
        """
        generator = seeding.generator(seed, "inspection", "planted")
        drawn = Trial.draw(model, symmetry, inputs, generator).state
        fixed = {name: drawn[name].to(tensor.dtype) for name, tensor in model.state_dict().items()}
        planted = Permutation.random(symmetry, generator)
        return cls(model, symmetry, fixed, planted.apply(fixed), planted.inverse())

    def recovered(self, found: Permutation) -> float:
        """Return the share of units, over all groups, that `found` brings to where they belong."""
        right = sum(int((found[name] == value).sum()) for name, value in self.answer.items())
        return right / max(1, sum(value.numel() for value in self.answer.values()))


@dataclass(frozen=True)
class Recovery:
    """What a method recovered: `share` of the units, or None and why not; `seconds` of the method alone."""

    share: float | None
    seconds: float
    reason: str = ""


def by_weights(planted: Planted, seed: int = 0) -> Recovery:
    """Match by weights: one descent from the centre, which knows nothing of the order of the units."""
    return _recover(WeightMatching(restarts=1, start="centre"), planted, None, seed)


def by_activations(planted: Planted, inputs: Example, seed: int = 0) -> Recovery:
    """Match by the inputs of the nonlinearities on `inputs`, (batch, ...): their outputs are zero for dead units."""
    if not isinstance(inputs, Tensor):
        return Recovery(None, 0.0, "activation matching takes networks with one tensor as their input")
    method = ActivationMatching(images=None, kind="pre", batch_size=len(inputs))
    return _recover(method, planted, inputs, seed)


def _recover(method: Alignment, planted: Planted, inputs: Tensor | None, seed: int) -> Recovery:
    batches = None if inputs is None else lambda _: [inputs]
    problem = Problem(planted.model, planted.symmetry, seed, torch.device("cpu"), batches)
    started = time.perf_counter()
    try:
        found = method(planted.fixed, planted.moving, problem).permutation
    except UserError as error:
        return Recovery(None, time.perf_counter() - started, str(error))
    return Recovery(planted.recovered(found), time.perf_counter() - started)


def twin_share(planted: Planted, inputs: Example) -> float | None:
    """Return the share of units that answer to all of `inputs` as another unit of their group does, or not at all.

    Which of two such units is which, activations cannot tell. None where a group cannot be observed.

    Args:
        planted: the network.
        inputs: what `by_activations` is given.
    """
    symmetry = planted.symmetry
    if not isinstance(inputs, Tensor):
        return None
    try:
        probe = Probe(planted.model, symmetry, "pre")
    except UserError:
        return None
    prints: dict[str, list[Tensor]] = {name: [] for name in symmetry.groups}
    for name, _, (rows,) in probe([planted.fixed], inputs):
        prints[name].append(_fingerprint(rows))
    twins = 0
    for name, found in prints.items():
        if not found:  # blocks that are told apart by what is inside them
            continue
        size = symmetry.groups[name].size
        place = torch.arange(symmetry.units(name)) // size  # units in different blocks are no twins
        together = torch.column_stack([place.double(), *found])
        _, inverse, counts = torch.unique(together, dim=0, return_inverse=True, return_counts=True)
        silent = (torch.cat(found, dim=1) == 0).all(1)
        twins += int(((counts[inverse] > 1) | silent).sum())
    return twins / max(1, sum(symmetry.units(name) for name in symmetry.groups))


def _fingerprint(rows: Tensor, digits: int = 5) -> Tensor:
    """(units, samples) -> (units, 2): equal for units with a correlation of one, zero for constant ones."""
    centred = rows.double() - rows.double().mean(1, keepdim=True)
    size = centred.norm(dim=1, keepdim=True)
    alive = size > 1e-9 * rows.double().norm(dim=1, keepdim=True)
    standard = torch.where(alive, centred / size.clamp_min(torch.finfo(size.dtype).tiny), 0.0)
    draw = seeding.generator(0, "inspection", "fingerprint")
    against = torch.randn(rows.shape[1], 2, generator=draw, dtype=torch.float64)
    return torch.round(standard @ against, decimals=digits)
