"""Networks along a path as one ensemble, beside the ensemble of its ends."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import ClassVar, Literal

from pydantic import PositiveInt

from lmc.analysis.base import Finding, OnStep, Setting, Subject
from lmc.dataset.images import Images
from lmc.evaluation.ensemble import Prediction, ensemble, path_ensemble
from lmc.evaluation.path import along_length, equal_grid

_UNITS = {"loss": "nats", "error": "fraction", "calibration_error": "fraction", "brier": "squared probability"}


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Average the predictions of equally spaced points of the path (Garipov et al. 2018, section 5).

    Measured on test images: loss, error, expected calibration error (15 bins; Guo et al. 2017) and Brier score of the
    ensemble of all points, of that of the two ends, and of every point alone; and, where earlier checkpoints of the
    networks were kept, of the ensemble of all checkpoints of each network, as they were trained (fast geometric
    ensembling, if they come from `training/schedule=cyclic`).

    Args:
        points: members of the ensemble, odd, at least 3; the ends are among them.
        spacing: equal steps of t, or of the length of the path.
        batch_size: images in a batch; does not change a result.

    Raises:
        UserError: an even number of points, or less than 3.
    """

    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    files: ClassVar[tuple[str, ...]] = ()
    together: ClassVar[bool] = False

    points: PositiveInt = 5
    spacing: Literal["t", "length"] = "t"
    batch_size: PositiveInt = 500

    def __post_init__(self) -> None:
        equal_grid(self.points)

    def steps(self, setting: Setting) -> int:
        """Return the number of points, and of the checkpoints of both networks if there are earlier ones."""
        checkpoints = len(setting.moments.values)
        return self.points + (2 * checkpoints if checkpoints > 1 else 0)

    def check(self, setting: Setting) -> None:
        """Accept every setting."""

    def __call__(self, subject: Subject, folder: FilePath, on_step: OnStep) -> list[Finding]:
        """Return what ensembles and single networks predict on test images.

        "path_ensemble", "end_ensemble" and each "member" (with its t); "checkpoint_ensemble" of the "fixed" and of the
        "moving" network.
        """
        images = subject.splits.images["test"]
        points = equal_grid(self.points)
        found = path_ensemble(
            subject.model,
            subject.joined,
            subject.correction,
            subject.dataset,
            images,
            along_length(subject.joined, points) if self.spacing == "length" else points,
            batch_size=self.batch_size,
            on_point=on_step,
        )
        members = zip(found.points, found.singles, strict=True)
        return [
            *_findings("path_ensemble", found.path),
            *_findings("end_ensemble", found.ends),
            *(finding for t, single in members for finding in _findings("member", single, t=t)),
            *self._of_checkpoints(subject, images, on_step),
        ]

    def _of_checkpoints(self, subject: Subject, images: Images, on_step: OnStep) -> Iterator[Finding]:
        if len(subject.moments.values) == 1:
            return
        for end, states in zip(("fixed", "moving"), subject.trained, strict=True):
            found = ensemble(subject.model, states, subject.dataset, images, self.batch_size, on_step)
            yield from _findings("checkpoint_ensemble", found, end=end)


def _findings(what: str, found: Prediction, **more: float | str) -> list[Finding]:
    values = {
        "loss": found.loss,
        "error": 1 - found.accuracy,
        "calibration_error": found.calibration_error,
        "brier": found.brier,
    }
    return [
        Finding(
            what=what, metric=metric, unit=_UNITS[metric], value=value, split="test", examples=found.examples, more=more
        )
        for metric, value in values.items()
    ]
