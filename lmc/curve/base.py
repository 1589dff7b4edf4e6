"""What a curve is, fitted or not, and the path that comes of it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from lmc.dataset.images import Dataset
from lmc.state import State
from lmc.training.recipe import Training


class Path(Protocol):
    """A way through weight space from the fixed network (t = 0) to the moving one (t = 1)."""

    def state(self, t: float) -> State:
        """Return the network at `t`, fresh tensors; at 0 and 1 the endpoint itself, bit for bit, buffers included.

        In between, buffers and parameters that are not trained lie on the straight line; tensors that are not floating
        point come from the fixed network.
        """
        ...

    def distance(self, grid: Sequence[float]) -> list[float]:
        """Return the length of the path from 0 to each t of `grid` (in any order), Euclidean over the parameters."""
        ...


class Curve(Protocol):
    """A kind of path; one whose inner points are trained is a `lmc.curve.trained.TrainedCurve`.

    Attributes:
        training: how its inner points are trained; None if there is nothing to fit.
    """

    @property
    def training(self) -> Training | None: ...  # noqa: D102 (above)

    def path(self, fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], folder: FilePath | None) -> Path:
        """Return the path from `fixed` to `moving` through the inner points in `folder` (None: there are none)."""
        ...


@runtime_checkable
class JointCurve(Protocol):
    """A kind of path whose inner points belong to all networks at once, not to a pair.

    Attributes:
        training: how its inner points are trained.
    """

    @property
    def training(self) -> Training: ...  # noqa: D102 (above)

    def fit_jointly(
        self,
        model: nn.Module,
        networks: Sequence[Mapping[str, Tensor]],
        dataset: Dataset,
        *,
        seed: int,
        folder: FilePath,
        on_epoch: Callable[[Mapping[str, float]], None],
    ) -> None:
        """Train the inner points of `networks`, all in one frame; write them and their history into `folder`."""
        ...

    def path(self, fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], folder: FilePath | None) -> Path:
        """Return the path between two of these networks through the inner points in `folder`."""
        ...
