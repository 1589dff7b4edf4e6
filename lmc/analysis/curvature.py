"""The curvature of the training loss along the path, and the barrier that it predicts."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path as FilePath
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveInt

from lmc.analysis.base import Finding, OnStep, Setting, Subject
from lmc.analysis.resumed import resumed
from lmc.dataset.images import Dataset, Images
from lmc.errors import UserError
from lmc.evaluation.curvature import Hessian, mean_and_error, predicted_barrier, probe, top_eigenvalue
from lmc.evaluation.measure import measure
from lmc.evaluation.path import equal_grid
from lmc.seeding import generator
from lmc.state import State, interpolate, of_model, to_device

log = logging.getLogger(__name__)

FILE = "curvature.csv"
_COLUMNS = ("where", "t", "quantity", "value")
_ALONG = ("loss", "slope", "second_derivative")
_EIGENVALUE = ("top_eigenvalue", "residual", "iterations")
_PER_SQUARE = "nats per squared weight"
_Quantity = tuple[str, float, str]
"""On "line" or "path", the t, and what it is: the key of a row."""


@dataclass(frozen=True, kw_only=True)
class Curvature:
    """Look at the Hessian of the training loss along the path, and predict the barrier of the straight line from it.

    At equally spaced t the largest eigenvalue (Lanczos) and the trace (Hutchinson) of the Hessian of the mean
    cross-entropy (see `lmc.evaluation.curvature`); the network there is corrected as on the path, and its BatchNorm
    statistics are then constants. On the straight line, whatever the curve, the second-order prediction of the barrier
    at the midpoint (Ito et al. 2025) beside the barrier measured on the same images. The prediction knows nothing of
    what the correction does to the midpoint, nor of statistics that differ between the ends.

    Args:
        grid: number of equally spaced t, odd, at least 3.
        images: at most so many training images, a fixed stratified subset, without augmentation; None: all.
        iterations: of Lanczos, at most; each is one pass over the images and keeps one vector as large as the network.
        tolerance: of |H v - value v|, in shares of the value; where it is not reached, that is logged.
        probes: random vectors for the trace; each is one pass.
        batch_size: images in a batch; changes nothing but rounding.

    Raises:
        UserError: an even grid, or one of less than 3 points.
    """

    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    files: ClassVar[tuple[str, ...]] = (FILE,)
    together: ClassVar[bool] = False

    grid: PositiveInt = 3
    images: PositiveInt | None = 2000
    iterations: PositiveInt = 50
    tolerance: Annotated[float, Field(gt=0)] = 1e-3
    probes: Annotated[int, Field(ge=2)] = 10
    batch_size: PositiveInt = 250

    def __post_init__(self) -> None:
        equal_grid(self.grid)

    def steps(self, setting: Setting) -> int:
        """Return how many of these there are: the ends, the midpoint; for each t one eigenvalue and every probe."""
        return 3 + self.grid * (1 + self.probes)

    def check(self, setting: Setting) -> None:
        """Try one product with the Hessian, on two images.

        Raises:
            UserError: no parameter requires gradients, or the network has a layer without second derivatives.
        """
        model, dataset = setting.model, setting.dataset
        two = dataset.train.first(min(2, len(dataset.train)))
        hessian = Hessian(model, of_model(model), dataset, two)
        try:
            hessian.product(torch.ones(hessian.size))
        except (RuntimeError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"analysis=curvature: this network has a layer without second derivatives ({reason}); choose another "
                "architecture or leave this analysis out"
            ) from None

    def __call__(self, subject: Subject, folder: FilePath, on_step: OnStep) -> list[Finding]:
        """Return the predicted and the measured barrier, and eigenvalue and trace at each t.

        "predicted_barrier", its "first_order" and "second_order" parts and "measured_barrier", all of the loss on the
        same images; "top_eigenvalue" with its "residual", "trace" with its "standard_error", at each t and without t
        that of the middle. curvature.csv: all that they come from, row by row, where "line" is the straight line and
        "path" the path. A killed attempt is gone on from.
        """
        examples = len(subject.dataset.train) if self.images is None else min(len(subject.dataset.train), self.images)
        work = _Work(self, subject, subject.dataset.train.first(examples))
        steps = list(self._steps())
        found: dict[_Quantity, float] = {}
        for keys, values in zip(steps, resumed(folder / FILE, _COLUMNS, steps, lambda n: work(steps[n])), strict=True):
            found |= {key: value for key, (value,) in zip(keys, values, strict=True)}
            _, t, quantity = keys[0]
            on_step({"t": t, quantity: values[0][0]})
        of = partial(Finding, split="train", examples=examples)
        return [*_barriers(found, of), *self._curvatures(found, of)]

    def _steps(self) -> Iterator[list[_Quantity]]:
        """The keys of the rows of every step."""
        for t in (0.0, 1.0):
            yield [("line", t, quantity) for quantity in _ALONG]
        yield [("line", 0.5, "loss")]
        for t in equal_grid(self.grid):
            yield [("path", t, quantity) for quantity in _EIGENVALUE]
            for number in range(1, self.probes + 1):
                yield [("path", t, f"probe {number}")]

    def _curvatures(self, found: Mapping[_Quantity, float], of: "partial[Finding]") -> Iterator[Finding]:
        for t in equal_grid(self.grid):
            value, residual, iterations = (found["path", t, quantity] for quantity in _EIGENVALUE)
            if not residual <= self.tolerance:
                log.warning(
                    "t = %g: the top eigenvalue %g has a residual of %.1e after %d iterations of Lanczos, above %.1e",
                    t, value, residual, iterations, self.tolerance,
                )  # fmt: skip
            probes = [found["path", t, f"probe {number}"] for number in range(1, self.probes + 1)]
            trace, error = mean_and_error(probes)
            for more in [{"t": t}, {}] if t == 0.5 else [{"t": t}]:
                yield of(what="top_eigenvalue", metric="curvature", unit=_PER_SQUARE, value=value, more=more)
                yield of(what="top_eigenvalue", metric="residual", unit="fraction", value=residual, more=more)
                yield of(what="trace", metric="curvature", unit=_PER_SQUARE, value=trace, more=more)
                yield of(what="trace", metric="standard_error", unit=_PER_SQUARE, value=error, more=more)


def _barriers(found: Mapping[_Quantity, float], of: "partial[Finding]") -> Iterator[Finding]:
    fixed, middle, moving = (found["line", t, "loss"] for t in (0.0, 0.5, 1.0))
    slopes = found["line", 0.0, "slope"], found["line", 1.0, "slope"]
    curvatures = found["line", 0.0, "second_derivative"], found["line", 1.0, "second_derivative"]
    predicted = predicted_barrier(slopes, curvatures)
    values = {
        "measured_barrier": middle - (fixed + moving) / 2,
        "predicted_barrier": predicted.barrier,
        "first_order": predicted.first_order,
        "second_order": predicted.second_order,
    }
    for what, value in values.items():
        yield of(what=what, metric="loss", unit="nats", value=value)


class _Work:
    """Computes one step after the other, holding the network of the present one."""

    def __init__(self, settings: Curvature, subject: Subject, images: Images) -> None:
        self._settings, self._subject, self._images = settings, subject, images
        self._dataset: Dataset = subject.dataset
        self._hessian = lru_cache(maxsize=1)(self._build)

    def __call__(self, keys: Sequence[_Quantity]) -> list[list[float]]:
        """Return the numbers of the rows with these keys."""
        where, t, quantity = keys[0]
        if where == "line":
            return [[value] for value in (self._along(t) if t in (0, 1) else [self._midpoint()])]
        hessian = self._hessian(t)
        if quantity == _EIGENVALUE[0]:
            return [[value] for value in self._eigenvalue(hessian)]
        vector = probe(hessian.size, self._subject.seed, int(quantity.split()[1]))
        image = hessian.product(vector)
        return [[float(image @ vector.to(image))]]

    def _along(self, t: float) -> tuple[float, float, float]:
        """Loss, slope and second derivative of the line at one of its ends."""
        points = {place: self._hessian(place).point for place in (1 - t, t)}
        mu = points[1.0] - points[0.0]
        found = self._hessian(t).derivatives(mu)
        return found.loss, found.slope, float(found.product @ mu.to(found.product))

    def _midpoint(self) -> float:
        """The loss of the midpoint of the line."""
        subject = self._subject
        fixed, moving = subject.networks
        middle = to_device(subject.correction(interpolate(fixed, moving, 0.5), (0.5, 0.5)), self._images.labels.device)
        batches = self._dataset.batches(self._images, self._settings.batch_size)
        return measure(subject.model, middle, batches).loss

    def _eigenvalue(self, hessian: Hessian) -> tuple[float, float, int]:
        start = torch.randn(hessian.size, generator=generator(self._subject.seed, "curvature", "start"))
        found = top_eigenvalue(
            hessian.product,
            start.to(hessian.point),
            iterations=self._settings.iterations,
            tolerance=self._settings.tolerance,
        )
        return found.value, found.residual, found.iterations

    def _build(self, t: float) -> Hessian:
        subject = self._subject
        network: State = subject.correction(subject.joined.state(t), (1 - t, t))
        return Hessian(subject.model, network, self._dataset, self._images, self._settings.batch_size)
