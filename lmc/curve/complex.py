"""Two simplices that share all vertices but one: their volume, uniform points in them, and a vertex to train."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lmc.curve.bending import Bending, combination
from lmc.state import State
from lmc.training.trainable import Forward, Look


def log_volume(gram: Tensor) -> Tensor:
    """Return the logarithm of the volume (...,) of simplices; -inf if their vertices lie in fewer dimensions.

    That is log(sqrt(det gram) / k!), which the Cayley-Menger determinant of the distances equals.

    Args:
        gram: (..., k, k) float64, inner products of the k edges that leave one of the vertices.
    """
    logdet: Tensor = torch.linalg.slogdet(gram)[1]
    return 0.5 * logdet - math.lgamma(gram.shape[-1] + 1)


def log_volumes(gram: Tensor) -> Tensor:
    """Return the logarithms of the volumes (2,) of {fixed, v_1 .. v_k} and {moving, v_1 .. v_k}.

    Args:
        gram: (k + 2, k + 2), inner products of fixed, moving, v_1 .. v_k, relative to any one point.
    """
    return torch.stack([log_volume(_edges(gram, end)) for end in (0, 1)])


def _edges(gram: Tensor, end: int) -> Tensor:
    """Inner products of the edges from vertex `end` (0 or 1) to the shared ones."""
    shared = gram[2:, 2:]
    return shared - gram[2:, end : end + 1] - gram[end : end + 1, 2:] + gram[end, end]


def draw(volumes: Tensor, shared: int, generator: torch.Generator) -> tuple[list[float], float]:
    """Return a uniform point of the complex: weights of fixed, moving, v_1 .. v_k, and its t for what does not bend.

    Args:
        volumes: (2,) logarithms, from `log_volumes`; a simplex is drawn by its share.
        shared: k.
        generator: on the CPU.
    """
    second = float(torch.rand((), generator=generator, dtype=torch.float64)) >= float(volumes.softmax(0)[0])
    pieces = -torch.rand(shared + 1, generator=generator, dtype=torch.float64).clamp_min(1e-300).log()
    end, *weights = (pieces / pieces.sum()).tolist()
    return ([0.0, end] if second else [end, 0.0]) + weights, (1 + end if second else 1 - end) / 2


class VertexTrainable:
    """The last of the shared vertices; a `lmc.training.trainable.Composite`.

    Args:
        bending: makes a network of a point.
        controls: (k + 2, P): fixed, moving, and the shared vertices; the last one is trained. It is copied.
        samples: points of the complex that a step looks at.
        volume_weight: what the logarithm of the volume is multiplied by.
    """

    decay_on_sample = False

    def __init__(self, bending: Bending, controls: Tensor, *, samples: int, volume_weight: float) -> None:
        self._bending, self._samples, self._volume_weight = bending, samples, volume_weight
        self._controls = controls.clone()
        self._leaf = self._controls[-1:].detach().requires_grad_()

    def parameters(self) -> list[Tensor]:
        """Return the one leaf, (1, P)."""
        return [self._leaf]

    def state(self, generator: torch.Generator) -> State:
        """Refuse: a step looks at several networks.

        Raises:
            ValueError: always.
        """
        raise ValueError("a step of a simplex looks at several of its points")

    def tensors(self) -> State:
        """Return the leaf by its name in checkpoints."""
        return {"vertex": self._leaf}

    def validated(self) -> None:
        """Return None: no single network of the complex stands for it."""
        return

    def descend(self, network: Forward, images: Tensor, labels: Tensor, generator: torch.Generator) -> Look:
        """Leave the gradient of the mean loss of the samples and of the volume (see `Composite.descend`)."""
        rows = torch.cat([self._controls[:-1], self._leaf])
        volumes = log_volumes(_gram(rows))
        seen: list[Tensor] = []
        total = torch.zeros((), device=images.device)
        for _ in range(self._samples):
            weights, t = draw(volumes.detach(), len(rows) - 2, generator)
            point = combination(self._leaf, self._controls, weights, slice(-1, None), 0.0)
            logits = network(self._bending.network(point, t), images)
            loss = cross_entropy(logits, labels) / self._samples
            loss.backward()  # type: ignore[no-untyped-call] # torch has no annotation
            total += loss.detach()
            seen.append(logits.detach())
        if self._volume_weight:
            size = -self._volume_weight * volumes.logsumexp(0)
            size.backward()  # type: ignore[no-untyped-call] # torch has no annotation
            total += size.detach().to(total)
        return Look.of(total, torch.stack(seen), labels)

    def stepped(self) -> None:
        """Do nothing: the vertex lies where the optimiser has put it."""

    def handed_on(self) -> State:
        """Return "controls" (k + 2, P): fixed, moving, and the shared vertices."""
        return {"controls": self._controls.detach().clone()}


def next_vertex(controls: Tensor, generator: torch.Generator) -> Tensor:
    """Return `controls` (n, P) with one vertex more: their mean, moved a hundredth of the first edge anywhere.

    The mean alone may lie in the space of the others, where the volume is 0 and its logarithm has no gradient.
    """
    away = torch.randn(controls.shape[1], generator=generator).to(controls)
    away *= 0.01 * (controls[1] - controls[0]).norm() / away.norm()
    return torch.cat([controls, (controls.mean(0) + away)[None]])


def _gram(rows: Tensor) -> Tensor:
    """Inner products of `rows` relative to the first, (n, n) float64 on the CPU: they are few, P is large.

    In float64 where the device has it: a flat simplex is a small difference of large products.
    """
    wide = rows if rows.device.type == "mps" else rows.double()
    edges = wide - wide[0]
    return (edges @ edges.T).cpu().double()


def gram_of(states: Sequence[State]) -> Tensor:
    """Return the inner products (n, n) float64 of networks relative to the first, over the tensors of the last."""
    gram = torch.zeros(len(states), len(states), dtype=torch.float64)
    for name in states[-1]:
        gram += _gram(torch.stack([state[name].detach().flatten() for state in states]))
    return gram
