"""An element of a symmetry: one permutation for each group."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lmc import state as state_file
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.structure import Symmetry, permute


class Permutation(Mapping[str, Tensor]):
    """A mapping from group to (size,) int64: row i of the result is row p[i] of the network it is applied to.

    Immutable; every operation returns a new one.

    Raises:
        ValueError: a group is missing or unknown, or its value is not a permutation of its units.
    """

    def __init__(self, symmetry: Symmetry, values: Mapping[str, Tensor]) -> None:
        if set(values) != set(symmetry.groups):
            odd = sorted(set(values) ^ set(symmetry.groups))
            raise ValueError(f"groups of the permutation and of the symmetry differ: {', '.join(odd)}")
        self.symmetry = symmetry
        self._values: dict[str, Tensor] = {}
        for name, group in symmetry.groups.items():
            value = values[name].detach().to("cpu", torch.int64)
            if value.shape != (group.size,) or not torch.equal(value.sort().values, torch.arange(group.size)):
                raise ValueError(f"group {name!r}: not a permutation of {group.size} units")
            self._values[name] = value

    @classmethod
    def identity(cls, symmetry: Symmetry) -> "Permutation":
        """Return the permutation that moves nothing."""
        return cls(symmetry, {name: torch.arange(group.size) for name, group in symmetry.groups.items()})

    @classmethod
    def random(cls, symmetry: Symmetry, generator: torch.Generator) -> "Permutation":
        """Return a uniformly drawn element; `generator` is a CPU generator."""
        return cls(symmetry, {n: torch.randperm(g.size, generator=generator) for n, g in symmetry.groups.items()})

    def __getitem__(self, group: str) -> Tensor:
        return self._values[group]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Permutation) or set(self) != set(other):
            return False
        return all(torch.equal(self[name], other[name]) for name in self)

    def __hash__(self) -> int:
        return hash(tuple((name, tuple(value.tolist())) for name, value in sorted(self.items())))

    def __repr__(self) -> str:
        moved = sum(int((value != torch.arange(len(value))).sum()) for value in self.values())
        return f"Permutation({len(self)} groups, {moved} of {sum(map(len, self.values()))} units moved)"

    def apply(self, state: Mapping[str, Tensor]) -> State:
        """Return the permuted network: the same function as `state`, its hidden units in another order.

        Tensors that no group acts on are shared with `state`, not copied.
        """
        axes = self.symmetry.axes_of
        moved = {}
        for name, tensor in state.items():
            here = {n: p.to(tensor.device) for axis in axes.get(name, ()) for n, p in self.items() if n in axis.groups}
            moved[name] = permute(tensor, axes.get(name, ()), here)
        return moved

    def inverse(self) -> "Permutation":
        """Return the permutation that undoes this one."""
        return Permutation(self.symmetry, {name: torch.argsort(value) for name, value in self.items()})

    def compose(self, first: "Permutation") -> "Permutation":
        """Return the permutation that applies `first` and then this one."""
        return Permutation(self.symmetry, {name: first[name][value] for name, value in self.items()})

    def save(self, path: Path) -> None:
        """Write the groups to a safetensors file."""
        state_file.save(dict(self), path)

    @classmethod
    def load(cls, path: Path, symmetry: Symmetry) -> "Permutation":
        """Read a permutation of `symmetry`.

        Raises:
            UserError: the file is unreadable, or belongs to another symmetry.
        """
        try:
            return cls(symmetry, state_file.load(path))
        except ValueError as error:
            raise UserError(f"{path} holds no permutation of this network: {error}") from None
