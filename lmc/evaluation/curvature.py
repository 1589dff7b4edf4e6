"""The curvature of the training loss: products with its Hessian, its top eigenvalue, its trace, predicted barriers.

The Hessian is that of the mean cross-entropy with respect to all parameters that require gradients, in evaluation mode
(BatchNorm's statistics are constants, dropout is off) and without weight decay. It is never built: a product with a
vector is a gradient of a gradient (Pearlmutter 1994).

The second-order prediction of a barrier (Ito et al. 2025): with mu = moving - fixed, gradients g and Hessians H,
expanding the loss of the midpoint around either end,

    L(1/2) = L(fixed) + 1/2 mu^T g_fixed + 1/8 mu^T H_fixed mu + ...
           = L(moving) - 1/2 mu^T g_moving + 1/8 mu^T H_moving mu + ...,

and averaging both gives

    L(1/2) - [L(fixed) + L(moving)] / 2 ~ 1/4 mu^T (g_fixed - g_moving) + 1/16 mu^T (H_fixed + H_moving) mu,

exact where the loss is a polynomial of at most third order along the line (the third orders cancel). Where it is one of
second order, mu^T (g_moving - g_fixed) = mu^T H mu, and the sum of both parts is -1/8 mu^T H mu.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from lmc.curve.bending import Bending
from lmc.dataset.images import Dataset, Images
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import to_device
from lmc.statistics.forward import evaluating
from lmc.statistics.moments import wide

Product = Callable[[Tensor], Tensor]
"""A vector (P,) to the product of a symmetric matrix with it, (P,) float64."""


@dataclass(frozen=True)
class Derivatives:
    """What one pass over the images says of the loss at a network, along one direction.

    Attributes:
        loss: mean cross-entropy, in nats.
        slope: its derivative along the direction, g^T v.
        product: H v, (P,) float64.
    """

    loss: float
    slope: float
    product: Tensor


@dataclass(frozen=True)
class Eigenvalue:
    """The largest eigenvalue of a symmetric matrix, as far as it is known.

    Attributes:
        value: the Rayleigh quotient of the vector found.
        residual: |H v - value v| / |value| for that unit vector v, of a product made for the purpose; an eigenvalue
            lies within `residual * |value|` of `value`.
        iterations: how many steps of Lanczos were made.
    """

    value: float
    residual: float
    iterations: int


class Hessian:
    """Products with the Hessian of the training loss at one network; nothing is changed.

    Each is one pass over the images: a forward and a backward pass and a backward pass through both, in float32, its
    sums over batches in float64. Memory: that of a gradient step on one batch, about twice, and some vectors (P,).

    Args:
        model: the architecture; put back as it was after every product.
        state: the tensors of the network; those of parameters that require gradients are the point (P,) in the order
            of `model.named_parameters`, tied ones once.
        dataset: says how images are normalised.
        images: all of them are used, without augmentation; the work is done on their device.
        batch_size: images in a batch; changes nothing but rounding.

    Raises:
        UserError: there is no image, or no parameter requires gradients.
    """

    def __init__(
        self, model: nn.Module, state: Mapping[str, Tensor], dataset: Dataset, images: Images, batch_size: int = 250
    ) -> None:
        if not len(images):
            raise UserError(f"dataset {dataset.name}: there is no image to take the curvature of a loss on")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError(
                "no parameter of this network requires gradients, so its loss has no curvature; unfreeze it"
            )
        self._model, self._dataset, self._images, self._batch_size = model, dataset, images, batch_size
        self._state = to_device(state, images.images.device)
        self._bending = Bending(model, self._state, self._state, channels_last=False)
        self._point = self._bending.flatten(self._state).float()
        # functional_call does not put back a layer that is used under two names, so each layer goes by its first name.
        self._layers = {name for name, _ in model.named_modules()}

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return len(self._point)

    @property
    def point(self) -> Tensor:
        """The parameters as a vector (P,) float32."""
        return self._point

    def derivatives(self, vector: Tensor) -> Derivatives:
        """Return the loss, its slope along `vector` (P,) and the product of the Hessian with it."""
        vector = vector.to(self._point)
        product = wide(torch.zeros_like(self._point))
        loss, slope = wide(torch.zeros((), device=vector.device)), wide(torch.zeros((), device=vector.device))
        # The kernels that fuse attention have no second derivatives.
        with evaluating(self._model, self._state), sdpa_kernel(SDPBackend.MATH):
            for inputs, labels in self._dataset.batches(self._images, self._batch_size):
                of_batch, gradient, second = self._batch(inputs, labels, vector)
                loss += wide(of_batch)
                slope += wide(gradient) @ wide(vector)
                product += wide(second)
        count = len(self._images)
        return Derivatives(loss.item() / count, slope.item() / count, product / count)

    def product(self, vector: Tensor) -> Tensor:
        """Return H v, (P,) float64, for `vector` (P,)."""
        return self.derivatives(vector).product

    @torch.enable_grad()
    def _batch(self, inputs: Tensor, labels: Tensor, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sum of the losses of a batch, its gradient, and the product of its Hessian with `vector`; detached."""
        point = self._point.detach().requires_grad_()
        tensors = self._bending.network(point, 0.0)
        own = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] in self._layers}
        logits = functional_call(self._model, own, (inputs,), tie_weights=False)
        loss = cross_entropy(logits.float(), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, point, create_graph=True)
        (second,) = torch.autograd.grad(gradient, point, vector)
        return loss.detach(), gradient.detach(), second


@dataclass(frozen=True, kw_only=True)
class BarrierPrediction:
    """The barrier at the midpoint of the line between two networks, expanded to second order at both; in nats.

    Attributes:
        first_order: 1/4 mu^T (g_fixed - g_moving).
        second_order: 1/16 mu^T (H_fixed + H_moving) mu.
    """

    first_order: float
    second_order: float

    @property
    def barrier(self) -> float:
        """The prediction: the sum of both parts."""
        return self.first_order + self.second_order


def predicted_barrier(slopes: tuple[float, float], curvatures: tuple[float, float]) -> BarrierPrediction:
    """Return the second-order prediction of a midpoint barrier (see the top of this file).

    Args:
        slopes: mu^T g at the fixed and at the moving network, mu = moving - fixed.
        curvatures: mu^T H mu at both.
    """
    return BarrierPrediction(first_order=(slopes[0] - slopes[1]) / 4, second_order=sum(curvatures) / 16)


def top_eigenvalue(product: Product, start: Tensor, *, iterations: int = 50, tolerance: float = 1e-3) -> Eigenvalue:
    """Return the largest (most positive) eigenvalue of a symmetric matrix by the method of Lanczos.

    All basis vectors are kept and every new one is made orthogonal to them twice (full reorthogonalisation), so that no
    eigenvalue appears twice. It ends once the residual of the largest Ritz pair, which Lanczos knows without a further
    product, is below the tolerance. Memory: one vector (P,) float32 for each iteration that is made.

    Args:
        product: of the matrix with a vector.
        start: (P,) where to begin; random, so that it is not orthogonal to the vector that is looked for.
        iterations: at most so many, one product each; one more product gives the residual.
        tolerance: of the residual, in shares of the eigenvalue.
    """
    found = start.float() / start.float().norm()
    basis = torch.empty(min(iterations, len(start)), len(start), device=start.device)
    diagonal: list[float] = []
    beside: list[float] = []
    for count in range(1, len(basis) + 1):
        basis[count - 1] = found
        image = product(found)
        diagonal.append(float(image @ wide(found)))
        rest = image.to(found)
        for _ in range(2):
            rest -= basis[:count].T @ (basis[:count] @ rest)
        norm = float(wide(rest).norm())
        values, vectors = _tridiagonal(diagonal, beside)
        largest = float(values.abs().max())
        if norm * abs(float(vectors[-1, -1])) <= tolerance * abs(float(values[-1])) or norm <= 1e-6 * largest:
            break
        beside.append(norm)
        found = rest / norm
    return _checked(product, basis[:count].T @ vectors[:, -1].to(basis), count)


def _tridiagonal(diagonal: list[float], beside: list[float]) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of the matrix of Lanczos; float64 on the CPU."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for place, value in enumerate(beside):
        matrix[place, place + 1] = matrix[place + 1, place] = value
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors


def _checked(product: Product, vector: Tensor, iterations: int) -> Eigenvalue:
    """The Rayleigh quotient of a vector and its residual, from one more product."""
    unit = vector / vector.norm()
    image, exact = product(unit), wide(unit)
    exact = exact / exact.norm()
    value = float(image @ exact)
    apart = float((image - value * exact).norm())
    if not value:
        return Eigenvalue(value, math.inf if apart else 0.0, iterations)
    return Eigenvalue(value, apart / abs(value), iterations)


def probe(size: int, seed: int, number: int) -> Tensor:
    """Return a Rademacher vector (size,) float32 on the CPU: +1 and -1 with equal probability.

    v^T H v has the mean tr H (Hutchinson 1990), and of all vectors with independent entries these give the least
    variance, 2 (sum of squares of H off its diagonal).
    """
    draws = generator(seed, "curvature", "probe", number)
    return torch.randint(0, 2, (size,), generator=draws).mul_(2).sub_(1).float()


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean of at least two independent estimates and its standard error, s / sqrt(n)."""
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (len(values) - 1) / len(values))
