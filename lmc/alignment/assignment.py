"""Linear assignment: the best one-to-one matching for given similarities."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


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
