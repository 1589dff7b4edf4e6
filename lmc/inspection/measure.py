"""One row of the survey: everything that is measured about one network."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lmc import seeding
from lmc.inspection.inspection import inspect, peak_bytes
from lmc.inspection.network import build
from lmc.inspection.recovery import Planted, by_activations, by_weights, twin_share
from lmc.inspection.sources.request import Input, Request
from lmc.symmetry.discover import discover
from lmc.symmetry.example import Example

INPUTS = 4
"""Random inputs that activation matching looks at."""


@dataclass(frozen=True)
class Task:
    """What is to be measured.

    Attributes:
        spec: the network.
        settings: arguments of its builder.
        input: its input; None for its own.
        seed: of everything random.
        verify: whether the symmetry is proved.
        matching: whether a permuted copy is matched back.
    """

    spec: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    input: Input | None = None
    seed: int = 0
    verify: bool = True
    matching: bool = True

    def identity(self) -> dict[str, Any]:
        """Return what the row depends on, as plain values."""
        shape = None if self.input is None else [list(self.input.shape), str(self.input.dtype)]
        return {"settings": dict(self.settings), "input": shape, "seed": self.seed, "matching": self.matching}


def measure(task: Task) -> Iterator[dict[str, Any]]:
    """Yield the row of a network, first without what matching recovers, then with each method's result.

    Raises:
        UserError: the network cannot be built or traced, or its symmetry does not hold.
    """
    discover(nn.Linear(2, 2), torch.zeros(1, 2))  # what the first use of torch.export costs is not the network's
    started = time.perf_counter()
    network = build(Request(task.spec, task.settings, task.input, task.seed))
    seconds = time.perf_counter() - started
    found = inspect(network, build_seconds=seconds, run=task.verify, seed=task.seed, draws=1, controls=4)
    row: dict[str, Any] = {
        "parameters": network.parameters,
        "groups": len(found.symmetry.groups),
        "nested": sum(bool(group.outer) for group in found.symmetry.groups.values()),
        "movable": found.movable,
        "fixed": found.still,
        "share": found.share,
        "log10_equivalent_networks": found.symmetry.log10_size,
        "verification_error": found.proof.error if found.proof else None,
        "verification_control": found.proof.control if found.proof and found.symmetry.groups else None,
        "seconds": dict(found.seconds),
    }
    yield {**row, "peak_memory_bytes": peak_bytes()}
    if not task.matching or not found.symmetry.groups:
        return
    inputs = inputs_like(network.example, INPUTS, task.seed)
    planted = Planted.draw(network.model, found.symmetry, inputs, task.seed)
    row["recovered"] = {"activations": asdict(by_activations(planted, inputs, task.seed))}
    row["twins"] = twin_share(planted, inputs)
    yield {**row, "peak_memory_bytes": peak_bytes()}
    row["recovered"]["weights"] = asdict(by_weights(planted, task.seed))
    yield {**row, "peak_memory_bytes": peak_bytes()}


def inputs_like(example: Example, count: int, seed: int) -> Example:
    """Return `count` random inputs of the kind of `example`: normal numbers, or whole ones up to its largest."""
    draw = seeding.generator(seed, "inspection", "inputs")

    def like(tensor: Tensor) -> Tensor:
        shape = (count, *tensor.shape[1:])
        if tensor.is_floating_point():
            return torch.randn(shape, generator=draw, dtype=tensor.dtype)
        return torch.randint(int(tensor.max()) + 1, shape, generator=draw).to(tensor.dtype)

    drawn: Example = pytree.tree_map_only(Tensor, like, example)
    return drawn
