"""What is found out about one network: its symmetry, the proof, and what both cost."""

import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

from lmc.inspection.sources.request import Network
from lmc.symmetry.discover import INPUT, OUTPUT, discover
from lmc.symmetry.structure import Group, Symmetry
from lmc.symmetry.verify import Verification, verify


@dataclass(frozen=True)
class Inspection:
    """The symmetry of a network.

    Attributes:
        network: with its example.
        symmetry: what was discovered.
        proof: what running showed; None where nothing was run.
        seconds: of "build", "discover" and "verify".
        peak_bytes: the most memory that the process has used.
    """

    network: Network
    symmetry: Symmetry
    proof: Verification | None
    seconds: dict[str, float]
    peak_bytes: int

    @property
    def movable(self) -> int:
        """How many hidden units move, with the blocks of units (heads) among them."""
        return sum(self.symmetry.units(name) for name in self.symmetry.groups)

    @property
    def still(self) -> int:
        """How many hidden units stay; the network's input and output are not hidden."""
        return sum(units for reason, units in self.symmetry.fixed.items() if reason not in (INPUT, OUTPUT))

    @property
    def share(self) -> float:
        """The share of the hidden units that move; 1 where there are none."""
        return self.movable / (self.movable + self.still) if self.movable + self.still else 1.0

    def kind(self, group: Group) -> str:
        """Say what the units of `group` are: "units", "blocks of units" or "units inside NAME"."""
        is_outer = any(group.name in other.outer for other in self.symmetry.groups.values())
        what = "blocks of units" if is_outer else "units"
        return f"{what} inside {' and '.join(group.outer)}" if group.outer else what

    def document(self) -> dict[str, Any]:
        """Return everything as plain values for JSON; `verification_error` is None where nothing was run."""
        groups = [
            {
                "name": group.name,
                "size": group.size,
                "outer": list(group.outer),
                "units": self.symmetry.units(group.name),
                "kind": self.kind(group),
                "tensors": [{"name": axis.tensor, "dim": axis.dim} for axis in group.axes],
            }
            for group in self.symmetry.groups.values()
        ]
        return {
            "model": self.network.spec,
            "input": self.network.input_text,
            "parameters": self.network.parameters,
            "groups": groups,
            "hidden_units": {"movable": self.movable, "fixed": self.still},
            "fixed": dict(self.symmetry.fixed),
            "log10_equivalent_networks": self.symmetry.log10_size,
            "verification_error": self.proof.error if self.proof else None,
            "verification_control": self.proof.control if self.proof and self.symmetry.groups else None,
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_bytes,
        }


def inspect(
    network: Network,
    *,
    build_seconds: float = 0.0,
    run: bool = True,
    seed: int = 0,
    draws: int = 2,
    controls: int = 8,
) -> Inspection:
    """Discover the symmetry of `network`, and prove it by running (as `verify` does) unless `run` is false.

    Raises:
        UserError: the network cannot be traced, or the symmetry does not hold.
    """
    started = time.perf_counter()
    symmetry = discover(network.model, network.example)
    seconds = {"build": build_seconds, "discover": time.perf_counter() - started}
    proof = None
    if run:
        started = time.perf_counter()
        proof = verify(network.model, symmetry, network.example, seed=seed, draws=draws, controls=controls)
        seconds["verify"] = time.perf_counter() - started
    return Inspection(network, symmetry, proof, seconds, peak_bytes())


def peak_bytes() -> int:
    """Return the most memory that this process has held at a time."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
