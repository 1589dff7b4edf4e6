"""The units of every group, observed while several networks run side by side on the same inputs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lmc.errors import UserError
from lmc.symmetry.structure import Site, Symmetry, unit_rows
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
        self._sites: dict[str, list[tuple[str, Site]]] = {}
        for name in symmetry.groups if groups is None else groups:
            chosen = [site for site in symmetry.groups[name].sites if site.kind == kind]
            if not chosen:
                raise UserError(
                    f"the units of group {name!r} appear in no value of the network; match its weights instead"
                )
            for site in chosen:
                self._sites.setdefault(site.node, []).append((name, site))
        self._traces: dict[tuple[int, ...], Trace] = {}

    @torch.inference_mode()
    def __call__(
        self, states: Sequence[Mapping[str, Tensor]], images: Tensor
    ) -> Iterator[tuple[str, str, list[Tensor]]]:
        """Yield (group, node, observations) for every site, in the order of the network, from one forward pass of each.

        Args:
            states: networks of the architecture, on the device of `images`.
            images: (batch, ...) inputs; the graph is traced once for each batch shape.

        Yields:
            The group, the name of the value it is observed in, and for each network a (units, samples) tensor: for a
            feature map the samples are all examples and positions, in the same order for every network.
        """
        shape = tuple(images.shape)
        if shape not in self._traces:
            example = torch.zeros(shape, dtype=images.dtype, device=images.device)
            self._traces[shape] = trace(self._model, example)
        for node, values in self._traces[shape].run(states, images):
            for group, site in self._sites.get(node.name, ()):
                yield group, node.name, [_observe(value, site, group) for value in values]


def _observe(value: Tensor, site: Site, group: str) -> Tensor:
    rows = [
        unit_rows(value, dim, segments, group)
        for dim, segments in enumerate(site.axes)
        if any(factor.group == group for segment in segments for factor in segment)
    ]
    return torch.cat(rows, dim=1)
