"""The loss barrier, example by example, as what the network bends and what the loss bends.

With the logits z_f and z_m of the ends, z_t of the network at t and l(z) the cross-entropy of one example,

    l(z_t) - [(1 - t) l(z_f) + t l(z_m)]
        = l(z_t) - l((1 - t) z_f + t z_m)                               linearisation error of the logits
        + l((1 - t) z_f + t z_m) - [(1 - t) l(z_f) + t l(z_m)]          Jensen's term, never positive.

The second is never positive as the cross-entropy is convex in the logits: an average of logits is at least as good as
its ends are on average. A barrier therefore comes from the first alone, which is zero where the logits are linear along
the path (layerwise linear feature connectivity of the last layer, Zhou et al. 2023).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lmc.dataset.images import Dataset, Images, stratified_order
from lmc.errors import UserError
from lmc.state import to_device
from lmc.statistics.forward import evaluating
from lmc.statistics.moments import wide


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Both terms of examples, and the losses that they come from; each (N,) float64, in nats.

    Attributes:
        linearisation: l(z_t) - l((1 - t) z_f + t z_m).
        jensen: l((1 - t) z_f + t z_m) - [(1 - t) l(z_f) + t l(z_m)], not positive but for rounding.
        merged: l(z_t).
        fixed: l(z_f).
        moving: l(z_m).
    """

    linearisation: Tensor
    jensen: Tensor
    merged: Tensor
    fixed: Tensor
    moving: Tensor


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """The barrier at one t on one set of examples: means over all examples, in nats.

    Attributes:
        linearisation: mean of the first term.
        jensen: mean of the second term.
        barrier: mean loss at t minus (1 - t) and t times those of the ends, each a mean of its own; the sum of both
            terms but for rounding.
        positive: fraction of the examples whose first term is above zero.
        examples: how many there were.
        kept: numbers of the examples, (K,) int64 on the CPU, increasing, whose terms are kept.
        terms: their terms, on the CPU.
    """

    linearisation: float
    jensen: float
    barrier: float
    positive: float
    examples: int
    kept: Tensor
    terms: Terms


def terms(fixed: Tensor, moving: Tensor, merged: Tensor, labels: Tensor, t: float) -> Terms:
    """Return both terms of each example.

    Args:
        fixed, moving, merged: logits (N, classes) of the ends and of the network at t, of any floating type; the losses
            are taken in float64.
        labels: (N,) int64 on the device of the logits.
        t: the weight of `moving`; that of `fixed` is 1 - t.
    """
    fixed, moving, merged = (wide(logits) for logits in (fixed, moving, merged))
    labels = labels.to(fixed.device)
    between, of_fixed, of_moving, of_merged = (
        cross_entropy(logits, labels, reduction="none")
        for logits in (torch.lerp(fixed, moving, t), fixed, moving, merged)
    )
    return Terms(
        linearisation=of_merged - between,
        jensen=between - ((1 - t) * of_fixed + t * of_moving),
        merged=of_merged,
        fixed=of_fixed,
        moving=of_moving,
    )


def decompose(
    model: nn.Module,
    ends: Sequence[Mapping[str, Tensor]],
    merged: Mapping[str, Tensor],
    t: float,
    dataset: Dataset,
    images: Images,
    *,
    kept: int = 1000,
    batch_size: int = 500,
) -> Decomposition:
    """Take the barrier of `merged`, the network at `t` between both `ends`, apart on all of `images`.

    One pass of three networks, in evaluation mode and in float32; sums are kept in float64. Memory: three networks, a
    batch, and the terms of `kept` examples.

    Args:
        model: the architecture; put back as it was.
        ends: the fixed and the moving network, corrected already where that is wanted.
        merged: the network at t, likewise.
        t: where between the ends it is to lie.
        dataset: says how images are normalised.
        images: the work is done on their device.
        kept: the terms of at most so many examples are kept: a fixed stratified choice.
        batch_size: images in a batch; does not change a result.

    Raises:
        UserError: there is no image.
    """
    count = len(images)
    if not count:
        raise UserError(f"dataset {dataset.name}: there is no image to take a barrier apart on")
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[stratified_order(images.labels)[:kept].cpu()] = True
    sums = wide(torch.zeros(6, device=images.labels.device))
    parts, start = [], 0
    for found in _batches(model, [*ends, merged], t, dataset, images, batch_size):
        values = torch.stack(_listed(found))
        above = (found.linearisation > 0).sum().to(values)
        sums += torch.cat([values.sum(1), above[None]])
        parts.append(values.cpu()[:, chosen[start : start + values.shape[1]]])
        start += values.shape[1]
    linearisation, jensen, of_merged, of_fixed, of_moving, positive = (sums / count).tolist()
    return Decomposition(
        linearisation=linearisation,
        jensen=jensen,
        barrier=of_merged - ((1 - t) * of_fixed + t * of_moving),
        positive=positive,
        examples=count,
        kept=chosen.nonzero().flatten(),
        terms=Terms(**dict(zip(Terms.__dataclass_fields__, torch.cat(parts, 1), strict=True))),
    )


def _listed(found: Terms) -> list[Tensor]:
    return [found.linearisation, found.jensen, found.merged, found.fixed, found.moving]


def _batches(
    model: nn.Module, networks: Sequence[Mapping[str, Tensor]], t: float, dataset: Dataset, images: Images, size: int
) -> Iterator[Terms]:
    """The terms of one batch after the other; `networks` are both ends and the network at t."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        forwards = [
            stack.enter_context(evaluating(model, to_device(network, images.images.device))) for network in networks
        ]
        for inputs, labels in dataset.batches(images, size):
            fixed, moving, merged = (forward(inputs) for forward in forwards)
            yield terms(fixed, moving, merged, labels, t)
