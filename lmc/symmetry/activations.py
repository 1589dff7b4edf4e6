"""The units of every group, observed while several networks run side by side on the same inputs."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lmc.errors import UserError
from lmc.symmetry.structure import Site, Symmetry, unit_views
from lmc.symmetry.trace import Trace, trace

Kind = Literal["post", "pre"]


class Probe:
    """Observes the groups of one architecture; the model itself is never run and never changed.

    Args:
        model: the architecture that `symmetry` was discovered on.
        symmetry: what is to be observed.
        kind: "post" observes the outputs of the nonlinearities, "pre" their inputs.
        groups: the groups to observe; None for all.

    Raises:
        UserError: a group has no place where it can be observed.
    """

    def __init__(
        self, model: nn.Module, symmetry: Symmetry, kind: Kind = "post", groups: Sequence[str] | None = None
    ) -> None:
        self._model = model
        self._symmetry = symmetry
        self._sites: dict[str, list[tuple[str, Site]]] = {}
        for name in symmetry.groups if groups is None else groups:
            inside = set(symmetry.inside(name))
            # Where units that live inside the group's can be told apart, they say more than the group's units do.
            chosen = [
                site
                for site in symmetry.groups[name].sites
                if site.kind == kind and not any(inside & axis.groups for axis in site.axes)
            ]
            if not chosen and not inside:
                raise UserError(
                    f"the units of group {name!r} appear in no value of the network; match its weights instead"
                )
            for site in chosen:
                self._sites.setdefault(site.node, []).append((name, site))
        self._traces: dict[tuple[int, ...], Trace] = {}

    @property
    def places(self) -> dict[str, int]:
        """The groups that are observed, and at how many places of the network."""
        found: dict[str, int] = {}
        for sites in self._sites.values():
            for name, _ in sites:
                found[name] = found.get(name, 0) + 1
        return found

    @torch.inference_mode()
    def __call__(
        self, states: Sequence[Mapping[str, Tensor]], images: Tensor, groups: Collection[str] | None = None
    ) -> Iterator[tuple[str, str, list[Tensor]]]:
        """Yield (group, node, observations) for every site, in the order of the network, from one forward pass of each.

        Args:
            states: networks of the architecture, on the device of `images`.
            images: (batch, ...) inputs; the graph is traced once for each batch shape.
            groups: those of the observed groups that are wanted now; None for all.

        Yields:
            The group, the name of the value it is observed in, and for each network a (units, samples) tensor: for a
            feature map the samples are all examples and positions, in the same order for every network. The units of
            a group inside others are those of all of them, row-major; a group that has others inside it is observed
            only where none of these can be.
        """
        shape = tuple(images.shape)
        if shape not in self._traces:
            example = torch.zeros(shape, dtype=images.dtype, device=images.device)
            self._traces[shape] = trace(self._model, example)
        for node, values in self._traces[shape].run(states, images):
            for group, site in self._sites.get(node.name, ()):
                if groups is not None and group not in groups:
                    continue
                chain = self._symmetry.chain(group)
                yield group, node.name, [_observe(value, site, chain) for value in values]


def _observe(value: Tensor, site: Site, chain: Sequence[str]) -> Tensor:
    """One row for each unit of a group, from every dimension that it acts on.

    Where other groups act on the value too, their units are averaged: they have no order that both networks share.
    """
    acting = [axis for axis in site.axes if axis.groups]
    rows = []
    for axis in (axis for axis in acting if chain[-1] in axis.groups):
        for view, others in unit_views(value, axis, chain, acting):
            if others:
                view = view.mean([other.dim for other in others])
            rows.append(view.reshape(len(view), -1))
    return torch.cat(rows, dim=1)
