"""All networks, each in the frame of the first."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lmc.stages.base import Network, Pair
from lmc.state import State

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frame:
    """Networks in one frame.

    Attributes:
        networks: as they were trained, the reference first.
        members: their tensors in the frame.
        parents: the keys of what they were made from.
    """

    networks: list[Network]
    members: list[State]
    parents: list[str]

    @property
    def labels(self) -> tuple[int, ...]:
        """Their numbers."""
        return tuple(network.label for network in self.networks)


def in_first_frame(pairs: Sequence[Pair]) -> Frame | None:
    """Return all networks as the pairs with the first one bring them to it; None if it is changed for each pair."""
    reference = pairs[0].fixed
    towards = [pair for pair in pairs if pair.fixed is reference]
    middle = pairs[0].ends[0]
    if not all(_equal(middle, pair.ends[0]) for pair in towards):
        log.info("no common frame: the alignment changes network %d anew for every pair", reference.label)
        return None
    return Frame(
        networks=[reference, *(pair.moving for pair in towards)],
        members=[middle, *(pair.ends[1] for pair in towards)],
        parents=[reference.key, *(key for pair in towards for key in (pair.moving.key, pair.key))],
    )


def _equal(first: State, second: State) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())
