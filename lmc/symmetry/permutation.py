"""An element of a symmetry: one permutation for each group, and for each place inside its outer groups."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lmc import state as state_file
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.structure import Symmetry, permute


class Permutation(Mapping[str, Tensor]):
    """A mapping from group to int64: row i of the result is row p[i] of the network it is applied to.

    The value of a plain group is (size,). That of a group inside others is (*sizes of the outer groups, size): row j
    inside row i of the outer group is row p[i, j] inside the row of the outer group that has come to i. So the units
    of a head move inside it, and the heads with all of theirs: an element of a wreath product.

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
            shape = symmetry.lattice(name)
            if value.shape != shape or not torch.equal(value.sort(-1).values, torch.arange(group.size).expand(shape)):
                raise ValueError(f"group {name!r}: not a permutation of {' x '.join(map(str, shape))} units")
            self._values[name] = value

    @classmethod
    def identity(cls, symmetry: Symmetry) -> "Permutation":
        """Return the permutation that moves nothing."""
        units = {name: torch.arange(group.size) for name, group in symmetry.groups.items()}
        return cls(symmetry, {name: value.expand(symmetry.lattice(name)) for name, value in units.items()})

    @classmethod
    def random(cls, symmetry: Symmetry, generator: torch.Generator) -> "Permutation":
        """Return a uniformly drawn element of the whole group; `generator` is a CPU generator."""
        drawn = {}
        for name, group in symmetry.groups.items():
            copies = symmetry.units(name) // group.size
            rows = [torch.randperm(group.size, generator=generator) for _ in range(copies)]
            drawn[name] = torch.stack(rows).reshape(symmetry.lattice(name))
        return cls(symmetry, drawn)

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
        return hash(tuple((name, tuple(value.flatten().tolist())) for name, value in sorted(self.items())))

    def __repr__(self) -> str:
        moved = sum(int((value != torch.arange(value.shape[-1])).sum()) for value in self.values())
        return f"Permutation({len(self)} groups, {moved} of {sum(v.numel() for v in self.values())} units moved)"

    def apply(self, state: Mapping[str, Tensor]) -> State:
        """Return the permuted network: the same function as `state`, its hidden units in another order.

        Tensors that no group acts on are shared with `state`, not copied.
        """
        axes, outer = self.symmetry.axes_of, self.symmetry.outer
        moved = {}
        for name, tensor in state.items():
            here = {n: p.to(tensor.device) for axis in axes.get(name, ()) for n, p in self.items() if n in axis.groups}
            moved[name] = permute(tensor, axes.get(name, ()), here, outer)
        return moved

    def _origin(self, name: str) -> tuple[Tensor, ...]:
        """For every row of group `name`, inside every row of its outer groups: the outer rows that it comes from."""
        outer = self.symmetry.groups[name].outer
        grid = torch.meshgrid(*(torch.arange(n) for n in self.symmetry.lattice(name)[:-1]), indexing="ij")
        place = dict(zip(outer, grid, strict=True))
        return tuple(self[o][(*(place[h] for h in self.symmetry.groups[o].outer), place[o])] for o in outer)

    def inverse(self) -> "Permutation":
        """Return the permutation that undoes this one."""
        undone = {}
        for name, value in self.items():
            inverted = torch.argsort(value, dim=-1)
            undone[name] = inverted.clone()
            if self.symmetry.groups[name].outer:
                undone[name][self._origin(name)] = inverted
        return Permutation(self.symmetry, undone)

    def compose(self, first: "Permutation") -> "Permutation":
        """Return the permutation that applies `first` and then this one."""
        found = {}
        for name, value in self.items():
            rows = first[name][self._origin(name)] if self.symmetry.groups[name].outer else first[name]
            found[name] = rows.gather(-1, value)
        return Permutation(self.symmetry, found)

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
