"""What is done to a network before it is merged: a permutation of its units, or a matrix for each group of them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lmc import state as state_file
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Axis, Symmetry

_PERMUTATION, _LINEAR_MAP = "permutation.safetensors", "linear_map.safetensors"


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
    orthogonal map, N is the transpose of M. Scales, shifts and statistics of single units are mixed as biases are. In
    general such a network computes something else than before: what a nonlinearity does to a mixture is not the mixture
    of what it does.

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
            tensor = _along(tensor, axis, maps)
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


def _along(tensor: Tensor, axis: Axis, maps: Mapping[str, Tensor]) -> Tensor:
    """Multiply every factor of an axis with the matrix of its group."""
    ordered = axis.concatenation(tensor)
    parts, start = [], 0
    for segment in axis.segments:
        sizes = [factor.size for factor in segment]
        length = torch.Size(sizes).numel()
        part = torch.unflatten(ordered.narrow(axis.dim, start, length), axis.dim, sizes)
        for place, factor in enumerate(segment, axis.dim):
            if factor.group is not None:
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
            "attention heads, channels of a grouped convolution); choose a method that returns a permutation"
        )


def save(transform: Permutation | LinearMap, folder: Path) -> None:
    """Write a transform into `folder`."""
    transform.save(folder / (_PERMUTATION if isinstance(transform, Permutation) else _LINEAR_MAP))


def load(folder: Path, symmetry: Symmetry) -> Permutation | LinearMap:
    """Read what `save` wrote.

    Raises:
        UserError: a file is unreadable, or belongs to another symmetry.
    """
    if (folder / _LINEAR_MAP).is_file():
        return LinearMap.load(folder / _LINEAR_MAP, symmetry)
    return Permutation.load(folder / _PERMUTATION, symmetry)
