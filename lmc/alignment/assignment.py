"""Linear assignment: the best one-to-one matching for given similarities, of units and of blocks of units."""

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lmc.symmetry.structure import Axis, Factor, Symmetry, axis_index


def assign(similarity: Tensor) -> Tensor:
    """Return the permutation p that maximises sum_i similarity[i, p[i]].

    Solved exactly in float64 on the CPU by shortest augmenting paths (Crouse 2016); equal input gives equal output,
    ties included. Units that are similar to none (rows and columns of zeros: dead or pruned units) keep their order
    among themselves. SciPy holds the interpreter's lock while it solves (measured with 1.17), so that threads do not
    help to solve several at once.

    Args:
        similarity: (n, n), finite, on any device.

    Returns:
        (n,) int64 on the CPU: row i is matched with column p[i].
    """
    values = similarity.detach().to("cpu", torch.float64)
    _, columns = linear_sum_assignment(values.numpy(), maximize=True)
    permutation = torch.from_numpy(columns).to(torch.int64)
    idle_rows, idle_columns = (values == 0).all(1), (values == 0).all(0)
    idle = idle_rows & idle_columns[permutation]
    permutation[idle] = permutation[idle].sort().values
    return permutation


def matched(similarity: Tensor, permutation: Tensor) -> Tensor:
    """Return the (n,) float64 similarities of the matched pairs: similarity[i, permutation[i]]."""
    return similarity.gather(1, permutation.to(similarity.device)[:, None]).squeeze(1).to(torch.float64)


def assign_family(symmetry: Symmetry, family: Sequence[str], similarities: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the permutations of a family of groups that maximise the sum of its matched similarities.

    An inner assignment is solved for each pair of units of an outer group, what is nested deeper first, and the outer
    assignment over the results: exact, as the choices inside one pair do not bear on those inside another.

    Args:
        symmetry: which groups live inside which.
        family: a group that lives inside no other, then the groups that live inside it alone, outer ones first.
        similarities: group to (units, units), its units being all combinations with those of its outer groups,
            row-major; groups that are absent count as similar to none.

    Returns:
        Every group of the family to its permutation, of shape `symmetry.lattice(group)`, on the CPU.
    """
    values = {}
    for name, similarity in similarities.items():
        lattice = symmetry.lattice(name)
        values[name] = similarity.detach().to("cpu", torch.float64).reshape(*lattice, *lattice)
    return _solve(symmetry, family[0], tuple(family[1:]), values)[1]


def _solve(
    symmetry: Symmetry, name: str, inside: tuple[str, ...], values: Mapping[str, Tensor]
) -> tuple[float, dict[str, Tensor]]:
    """Solve one group and the groups `inside` it; the lattices of `values` begin with its own units."""
    size = symmetry.groups[name].size
    total = values[name].clone() if name in values else torch.zeros(size, size, dtype=torch.float64)
    # Groups directly inside, each with those inside it in turn.
    children = [child for child in inside if not any(other in symmetry.groups[child].outer for other in inside)]
    below = {child: tuple(other for other in inside if child in symmetry.groups[other].outer) for child in children}
    solved: dict[tuple[str, int, int], dict[str, Tensor]] = {}
    for child in children:
        for i, j in itertools.product(range(size), repeat=2):
            here = {
                other: values[other][i].select(values[other].ndim // 2 - 1, j)
                for other in (child, *below[child])
                if other in values
            }
            value, solved[child, i, j] = _solve(symmetry, child, below[child], here)
            total[i, j] += value
    chosen = assign(total)
    found = {name: chosen}
    for child in children:
        for other in (child, *below[child]):
            found[other] = torch.stack([solved[child, i, j][other] for i, j in enumerate(chosen.tolist())])
    return matched(total, chosen).sum().item(), found


def assign_inside(symmetry: Symmetry, name: str, similarity: Tensor, permutation: Mapping[str, Tensor]) -> Tensor:
    """Return the best permutations of an inner group where its outer groups are held at `permutation`.

    Args:
        symmetry: which groups live inside which.
        name: the inner group.
        similarity: (units, units), as for `assign_family`.
        permutation: the permutations of its outer groups.
    """
    lattice = symmetry.lattice(name)
    held = flat(symmetry, symmetry.groups[name].outer, permutation)
    blocks = similarity.reshape(len(held), lattice[-1], len(held), lattice[-1])
    rows = [assign(blocks[i, :, j, :]) for i, j in enumerate(held.tolist())]
    return torch.stack(rows).reshape(lattice)


def assign_all(symmetry: Symmetry, similarities: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the permutations that are best for given (units, units) similarities of all groups, where these lie.

    Of a gradient, the vertex that Frank-Wolfe goes to; of a mixture, the permutation nearest to it. Groups that live
    inside several families are assigned after them, which is not exact.
    """
    found: dict[str, Tensor] = {}
    for family in symmetry.families.values():
        found |= assign_family(symmetry, family, {name: similarities[name] for name in family})
    for name in symmetry.shared:
        found[name] = assign_inside(symmetry, name, similarities[name], found)
    return {name: value.to(similarities[name].device) for name, value in found.items()}


def in_place(similarity: Tensor, symmetry: Symmetry, name: str) -> Tensor:
    """Return `similarity` (units, units) of a group such that inside every pair of blocks no unit is moved.

    Pairs that are out of the question have minus infinity.
    """
    size = symmetry.groups[name].size
    blocks = similarity.reshape(-1, size, len(similarity) // size, size)
    still = torch.eye(size, dtype=torch.bool, device=similarity.device)[:, None, :]
    return torch.where(still, blocks, -math.inf).reshape(similarity.shape)


def flat(symmetry: Symmetry, chain: Sequence[str], permutation: Mapping[str, Tensor]) -> Tensor:
    """Return (units,) int64 on the CPU: the unit that each combination of the units of `chain` is matched with."""
    axis = Axis("", 0, (tuple(Factor(name, symmetry.groups[name].size) for name in chain),))
    return axis_index(axis, {name: permutation[name].cpu() for name in chain}, "cpu", symmetry.outer)
