"""What is done to a network before it is merged: a permutation of its units, a matrix for each group, or both."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lmc import state as state_file
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.normalisation import fold, foldable, mapped_axes
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Axis, Symmetry

_PERMUTATION, _LINEAR_MAP = "permutation.safetensors", "linear_map.safetensors"
_ORTHOGONAL_MAP = "orthogonal_map.safetensors"
_ROUNDING = 1e-6
"""How far a matrix may be from an orthogonal one, in any entry of O O^T - 1; what float32 leaves is a tenth of it."""


class Transform(Protocol):
    """Brings a network closer to another."""

    symmetry: Symmetry

    def apply(self, state: Mapping[str, Tensor]) -> State:
        """Return the transformed network; `state` is not changed."""
        ...


class LinearMap(Mapping[str, tuple[Tensor, Tensor]]):
    """Two matrices for each group, what makes its units and what reads them: W' = M_out W N_in.

    Row i of a tensor that makes units becomes the mixture of its rows with the weights M[i]; a tensor that reads units
    gets N from the right, so that M and N = M^-1 would keep the function of a linear network. Of a permutation or an
    orthogonal map, N is the transpose of M. Scales, shifts, means and variances of single units are mixed as biases
    are; but variances may not become negative, so that an M with negative entries mixes them with squared weights, as
    those of uncorrelated units. In general such a network computes something else than before: what a nonlinearity does
    to a mixture is not the mixture of what it does.

    Args:
        symmetry: of the network, without groups inside others.
        maps: group to M (size, size), and N (size, size).

    Raises:
        UserError: the symmetry has groups inside others.
        ValueError: a group is missing or unknown, or a matrix has another shape.
    """

    def __init__(self, symmetry: Symmetry, maps: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        refuse_blocks(symmetry, "a linear map")
        if set(maps) != set(symmetry.groups):
            odd = sorted(set(maps) ^ set(symmetry.groups))
            raise ValueError(f"groups of the map and of the symmetry differ: {', '.join(odd)}")
        for name, pair in maps.items():
            size = symmetry.groups[name].size
            if any(matrix.shape != (size, size) for matrix in pair):
                raise ValueError(f"group {name!r}: not two matrices of {size} x {size}")
        self.symmetry = symmetry
        self._maps = {name: (make.detach(), read.detach()) for name, (make, read) in maps.items()}

    @classmethod
    def symmetric(cls, symmetry: Symmetry, maps: Mapping[str, Tensor]) -> "LinearMap":
        """Return the map with N = M^T: of permutations, orthogonal matrices, and doubly stochastic ones."""
        return cls(symmetry, {name: (matrix, matrix.T) for name, matrix in maps.items()})

    def __getitem__(self, group: str) -> tuple[Tensor, Tensor]:
        return self._maps[group]

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)

    def apply(self, state: Mapping[str, Tensor]) -> State:
        """Return the mapped network; tensors that no group acts on are shared with `state`, not copied."""
        return {name: self._mapped(name, tensor) for name, tensor in state.items()}

    def _mapped(self, name: str, tensor: Tensor) -> Tensor:
        for axis in self.symmetry.axes_of.get(name, ()):
            reads = (name, axis.dim) in self.symmetry.reading
            maps = {group: self[group][1].T if reads else self[group][0] for group in axis.groups}
            if name.rpartition(".")[2] == "running_var":
                maps = {group: m.square() if (m < 0).any() else m for group, m in maps.items()}
            tensor = mix(tensor, axis, maps)
        return tensor

    def save(self, path: Path) -> None:
        """Write the matrices to a safetensors file."""
        made = {f"make:{name}": make for name, (make, _) in self.items()}
        state_file.save({**made, **{f"read:{name}": read for name, (_, read) in self.items()}}, path)

    @classmethod
    def load(cls, path: Path, symmetry: Symmetry) -> "LinearMap":
        """Read a map of `symmetry`.

        Raises:
            UserError: the file is unreadable, or belongs to another symmetry.
        """
        found = state_file.load(path)
        try:
            names = [name.removeprefix("make:") for name in found if name.startswith("make:")]
            return cls(symmetry, {name: (found[f"make:{name}"], found[f"read:{name}"]) for name in names})
        except (ValueError, KeyError) as error:
            raise UserError(f"{path} holds no linear map of this network: {error}") from None


class OrthogonalMap:
    """Folded norms, then a permutation, then an orthogonal matrix for residual streams: the same function throughout.

    The norms of the residual streams are folded into the layers that read them, the units of all groups are permuted,
    and every vector x of a stream becomes O x: what writes to the stream is multiplied by O, what reads it by O^T. The
    network computes what it did before, but for rounding (Ashkboos et al. 2024, SliceGPT, theorem 1; Theus et al.
    2025). Computed in float64 and rounded to the types of the network.

    Args:
        permutation: of the folded network; the identity on streams that have a matrix.
        matrices: stream to O, (size, size); where a norm subtracts the mean, with O 1 = 1. Streams may be absent.

    Raises:
        UserError: no norm of the network can be folded.
        ValueError: a matrix is of no stream that can be folded, of another shape, not orthogonal, or does not keep
            the mean where it must; or a stream with a matrix is permuted too.
    """

    def __init__(self, permutation: Permutation, matrices: Mapping[str, Tensor]) -> None:
        self.symmetry = permutation.symmetry
        self.permutation = permutation
        self.matrices = {
            name: matrix.detach().to("cpu", torch.float64).contiguous() for name, matrix in matrices.items()
        }
        streams = foldable(self.symmetry)
        for name, matrix in self.matrices.items():
            if name not in streams:
                raise ValueError(f"group {name!r} is no residual stream whose norms can be folded")
            size = self.symmetry.groups[name].size
            if matrix.shape != (size, size) or not _is_close(matrix @ matrix.T, torch.eye(size)):
                raise ValueError(f"group {name!r}: not an orthogonal matrix of {size} x {size}")
            if streams[name].centred and not _is_close(matrix.sum(1), torch.ones(size)):
                raise ValueError(f"group {name!r}: a matrix that does not keep the mean that LayerNorm subtracts")
            if not torch.equal(permutation[name], torch.arange(size)):
                raise ValueError(f"group {name!r} has a matrix and is permuted too")

    @classmethod
    def folding(cls, symmetry: Symmetry) -> "OrthogonalMap":
        """Return the map that folds the norms, and does nothing else."""
        return cls(Permutation.identity(symmetry), {})

    def apply(self, state: Mapping[str, Tensor]) -> State:
        """Return the mapped network; tensors that nothing acts on are shared with `state`, not copied.

        Raises:
            UserError: a norm of `state` has a shift that no layer can take.
        """
        folded = {name: tensor.to(torch.float64) for name, tensor in state.items() if tensor.is_floating_point()}
        moved = self.permutation.apply(fold({**state, **folded}, self.symmetry))
        moved = map_streams(moved, self.symmetry, self.matrices)
        acted = self.symmetry.axes_of.keys() | {n for n in folded if moved[n] is not folded[n]}
        return {name: moved[name].to(tensor.dtype) if name in acted else tensor for name, tensor in state.items()}

    def save(self, path: Path) -> None:
        """Write the permutation and the matrices to a safetensors file."""
        units = {f"permutation:{name}": value for name, value in self.permutation.items()}
        state_file.save({**units, **{f"matrix:{name}": matrix for name, matrix in self.matrices.items()}}, path)

    @classmethod
    def load(cls, path: Path, symmetry: Symmetry) -> "OrthogonalMap":
        """Read a map of `symmetry`.

        Raises:
            UserError: the file is unreadable, or belongs to another symmetry.
        """
        found = state_file.load(path)
        kinds: dict[str, dict[str, Tensor]] = {"permutation": {}, "matrix": {}}
        try:
            for key, value in found.items():
                kind, _, name = key.partition(":")
                kinds[kind][name] = value
            return cls(Permutation(symmetry, kinds["permutation"]), kinds["matrix"])
        except (ValueError, KeyError) as error:
            raise UserError(f"{path} holds no orthogonal map of this network: {error}") from None


def map_streams(state: Mapping[str, Tensor], symmetry: Symmetry, matrices: Mapping[str, Tensor]) -> State:
    """Return the folded network `state` with every vector x of a stream replaced by O x, O being its matrix.

    Of a layer that reads the stream, W O^T is O applied to the dimension that is summed over, so that all tensors are
    multiplied alike.
    """
    found = dict(state)
    for name, matrix in matrices.items():
        for axis in mapped_axes(symmetry, name):
            found[axis.tensor] = mix(found[axis.tensor], axis, {name: matrix})
    return found


def _is_close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() < _ROUNDING)


def mix(tensor: Tensor, axis: Axis, maps: Mapping[str, Tensor]) -> Tensor:
    """Multiply every factor of an axis with the matrix of its group; groups without one stay as they are."""
    if not axis.groups & maps.keys():
        return tensor
    ordered = axis.concatenation(tensor)
    parts, start = [], 0
    for segment in axis.segments:
        sizes = [factor.size for factor in segment]
        length = torch.Size(sizes).numel()
        part = torch.unflatten(ordered.narrow(axis.dim, start, length), axis.dim, sizes)
        for place, factor in enumerate(segment, axis.dim):
            if factor.group is not None and factor.group in maps:
                matrix = maps[factor.group].to(tensor)
                part = torch.tensordot(matrix, part, dims=([1], [place])).movedim(0, place)
        parts.append(part.flatten(axis.dim, axis.dim + len(sizes) - 1))
        start += length
    whole = torch.cat(parts, axis.dim)
    if axis.order is None:
        return whole
    places = torch.tensor(axis.order, device=tensor.device)
    return torch.empty_like(whole).index_copy_(axis.dim, places, whole)


def refuse_blocks(symmetry: Symmetry, what: str) -> None:
    """Raise a `UserError` if some groups of `symmetry` live inside others, naming `what` cannot handle them."""
    inside = [name for name, group in symmetry.groups.items() if group.outer]
    if inside:
        raise UserError(
            f"{what} is not defined for units inside blocks, and this network has such ({inside[0]!r}: dimensions of "
            "attention heads, channels of a grouped convolution); choose one that handles them, such as weight_matching"
        )


def refuse_both_ways(symmetry: Symmetry, what: str) -> None:
    """Raise a `UserError` if a tensor makes and reads units along one dimension, so that M and N would have to agree.

    It is mixed by N^T there: of maps with N = M^T, permutations among them, that is M.
    """
    axes = [axis for axis in symmetry.axes if (axis.tensor, axis.dim) in symmetry.both_ways]
    if axes:
        raise UserError(
            f"{what} is not defined for tied weights: dimension {axes[0].dim} of {axes[0].tensor!r} makes units in one "
            "layer and reads them in another; choose a method that returns a permutation"
        )


AnyTransform = Permutation | LinearMap | OrthogonalMap
"""What an alignment may return."""

_FILES: Mapping[type[AnyTransform], str] = {
    Permutation: _PERMUTATION,
    LinearMap: _LINEAR_MAP,
    OrthogonalMap: _ORTHOGONAL_MAP,
}


def save(transform: AnyTransform, folder: Path) -> None:
    """Write a transform into `folder`."""
    transform.save(folder / _FILES[type(transform)])


def load(folder: Path, symmetry: Symmetry) -> AnyTransform:
    """Read what `save` wrote.

    Raises:
        UserError: a file is unreadable, or belongs to another symmetry.
    """
    for kind, name in _FILES.items():
        if (folder / name).is_file():
            return kind.load(folder / name, symmetry)
    return Permutation.load(folder / _PERMUTATION, symmetry)
