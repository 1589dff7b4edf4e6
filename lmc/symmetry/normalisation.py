"""Moves the scales and shifts of normalisation layers into the layers that read them: the same function, one gauge.

A layer normalisation is w * (x - mean) / deviation + b, and whatever reads it sums over its units with weights W and
adds c. With W' = W diag(w), c' = c + W b, w' = 1 and b' = 0 the sums are the same (Ashkboos et al. 2024, SliceGPT,
section 3.2; there the mean is moved too, which turns LayerNorm into RMSNorm). A norm without a scale commutes with
orthogonal maps of the stream (those that keep the mean of every vector, if the norm subtracts it), so that the map can
be undone in the layers that read it. This needs a pre-norm network: nothing but layers reads what a norm makes.

If every layer reads the stream through a norm that subtracts the mean, the mean is never seen: it is taken out of all
tensors that write to the stream, and of the columns of those that read it, which see vectors without a mean alone. So
two networks that differ in nothing but what no output depends on become equal.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.stream import Norm, Stream
from lmc.symmetry.structure import Axis, Symmetry


def foldable(symmetry: Symmetry) -> dict[str, Stream]:
    """Return the streams of a network whose norms can be folded.

    Raises:
        UserError: there is none.
    """
    found = {name: stream for name, stream in symmetry.streams.items() if stream.obstacle is None}
    if found:
        return found
    if not symmetry.streams:
        raise UserError(
            "this network has no residual stream whose normalisation (LayerNorm, RMSNorm) can be told from its graph: "
            "there is nothing to fold; choose alignment=weight_matching"
        )
    # The widest is what a reader takes for the residual stream.
    name = max(symmetry.streams, key=lambda name: len(symmetry.groups[name].axes))
    raise UserError(
        f"the normalisation of the residual stream {name!r} cannot be folded into the layers that read it: "
        f"{symmetry.streams[name].obstacle}; choose alignment=weight_matching"
    )


def fold(state: Mapping[str, Tensor], symmetry: Symmetry) -> State:
    """Return the network with all norms of its streams folded: it computes what `state` does, but for rounding.

    Computed in float64 and rounded to the types of `state`; tensors that do not change are shared with it. Folding what
    is folded changes nothing.

    Raises:
        UserError: no stream can be folded, or a norm has a shift and a layer that reads it no bias to take it.
    """
    found = dict(state)
    for name, stream in foldable(symmetry).items():
        wide = {n: state[n].to(torch.float64) for n in _touched(symmetry, name, stream)}
        for norm in stream.norms:
            _fold_affine(wide, norm)
        _centre(wide, symmetry, name, stream)
        for other, used in stream.copies.items():
            wide[other] = wide[used]
        # Streams may share a tensor, along another dimension each.
        state = {**state, **wide}
        found |= {n: tensor.to(found[n].dtype) for n, tensor in wide.items()}
    return found


def mapped_axes(symmetry: Symmetry, name: str) -> tuple[Axis, ...]:
    """Return the axes on which a map of stream `name` acts once it is folded: all but those of its norms."""
    affine = _with_copies(symmetry.streams[name])
    return tuple(axis for axis in symmetry.groups[name].axes if axis.tensor not in affine)


def _with_copies(stream: Stream) -> frozenset[str]:
    return stream.affine | {other for other, used in stream.copies.items() if used in stream.affine}


def _touched(symmetry: Symmetry, name: str, stream: Stream) -> set[str]:
    biases = {reader.bias for norm in stream.norms for reader in norm.readers if reader.bias is not None}
    return {axis.tensor for axis in symmetry.groups[name].axes} | biases | set(stream.copies)


def _fold_affine(wide: dict[str, Tensor], norm: Norm) -> None:
    scale = wide[norm.scale] if norm.scale is not None else None
    shift = wide[norm.shift] if norm.shift is not None else None
    for reader in norm.readers:
        weight = wide[reader.weight]
        if shift is not None and shift.any():
            if reader.bias is None:
                raise UserError(
                    f"the shift {norm.shift!r} cannot be folded: {reader.weight!r}, which reads it, has no bias to "
                    "take it; choose alignment=weight_matching"
                )
            wide[reader.bias] = wide[reader.bias] + torch.tensordot(weight, shift, dims=([reader.dim], [0]))
        if scale is not None:
            along = [-1 if dim == reader.dim else 1 for dim in range(weight.ndim)]
            wide[reader.weight] = weight * scale.reshape(along)
    if norm.scale is not None:
        wide[norm.scale] = torch.ones_like(wide[norm.scale])
    if norm.shift is not None:
        wide[norm.shift] = torch.zeros_like(wide[norm.shift])


def _centre(wide: dict[str, Tensor], symmetry: Symmetry, name: str, stream: Stream) -> None:
    """Take the mean out of what never sees one, and of the stream if nothing sees its mean."""
    through = {(r.weight, r.dim): norm.centres for norm in stream.norms for r in norm.readers}
    for axis in mapped_axes(symmetry, name):
        place = (stream.copies.get(axis.tensor, axis.tensor), axis.dim)
        if through.get(place, not stream.bare):
            wide[axis.tensor] = wide[axis.tensor] - wide[axis.tensor].mean(axis.dim, keepdim=True)
