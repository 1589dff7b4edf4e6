"""What all curves with trained inner points between two networks have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import ClassVar

from torch import Tensor, nn

from lmc.curve.base import Path
from lmc.curve.staged import Stage, fit_staged
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.seeding import derive
from lmc.state import State, check_fits, to_device
from lmc.training.loop import fit
from lmc.training.recipe import Training
from lmc.training.trainable import Trainable

Ends = tuple[State, State]
"""The networks at t = 0 and t = 1, on the training device."""


@dataclass(frozen=True)
class Fit:
    """What a fit works with, whatever is fitted.

    Attributes:
        model: the architecture; it is not changed.
        dataset: images in memory; their device is where everything is computed.
        seed: of the order of the images, their augmentation, t, and whatever else is drawn.
        folder: where the files are written; made if absent. A killed fit goes on from what is there.
        on_epoch: called after every epoch with its record.
    """

    model: nn.Module
    dataset: Dataset
    seed: int
    folder: FilePath
    on_epoch: Callable[[Mapping[str, float]], None]

    def run(self, trainable: Trainable, training: Training) -> None:
        """Train `trainable` in place (see `lmc.training.loop.fit`)."""
        seed = derive(self.seed, "curve")
        fit(self.model, trainable, self.dataset, training, seed=seed, folder=self.folder, on_epoch=self.on_epoch)

    def run_staged(self, trainings: Sequence[Training], begin: Callable[[int, State], Stage]) -> State:
        """Train one stage after the other; return what the last one hands on (see `lmc.curve.staged.fit_staged`)."""
        seed = derive(self.seed, "curve")
        return fit_staged(
            self.model, self.dataset, trainings, begin, seed=seed, folder=self.folder, on_epoch=self.on_epoch
        )


@dataclass(frozen=True, kw_only=True)
class TrainedCurve(ABC):
    """A curve between two networks with inner points that are trained.

    Args:
        training: how they are trained.

    Raises:
        UserError: the training attacks its images, and a step looks at several networks.
    """

    draws_one_network: ClassVar[bool] = True
    """Whether a step looks at a single network, which an attack can be made against."""

    training: Training

    def __post_init__(self) -> None:
        if self.training.attack is not None and not self.draws_one_network:
            raise UserError(
                "curve.training.attack: this curve looks at several networks in one step, so that there is not one to "
                "attack; choose a curve that draws one point a step (bezier, polygonal_chain, star), or no attack"
            )

    def check(self, model: nn.Module) -> None:
        """Raise a `UserError` if the curve cannot be fitted between networks of `model`; called before any training."""
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError("no parameter of this architecture is trained, so that no curve can bend; set curve=linear")

    def fit(
        self,
        model: nn.Module,
        fixed: Mapping[str, Tensor],
        moving: Mapping[str, Tensor],
        dataset: Dataset,
        *,
        seed: int,
        folder: FilePath,
        on_epoch: Callable[[Mapping[str, float]], None],
    ) -> None:
        """Train the inner points; write bends.safetensors (tensors "bend1.<name>", ...) and history.jsonl.

        BatchNorm works with the statistics of the minibatch, and its running statistics are thrown away. A killed fit
        goes on from its last epoch, and ends with the same bits on a CPU.

        Args:
            model, dataset, seed, folder, on_epoch: as in `Fit`.
            fixed: the network at t = 0.
            moving: the network at t = 1.

        Raises:
            UserError: the networks are of another architecture, or the training fails.
        """
        expected = model.state_dict()
        check_fits(fixed, expected, "the fixed network")
        check_fits(moving, expected, "the moving network")
        device = dataset.train.images.device
        self.train((to_device(fixed, device), to_device(moving, device)), Fit(model, dataset, seed, folder, on_epoch))

    @abstractmethod
    def train(self, ends: Ends, fit: Fit) -> None:
        """Train the inner points between `ends` and write them with `lmc.curve.points.write_points`."""

    @abstractmethod
    def path(self, fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], folder: FilePath | None) -> Path:
        """Return the path from `fixed` to `moving` through the inner points that `fit` wrote into `folder`.

        Raises:
            UserError: the file is missing or damaged, holds another number of points, or is of another architecture.
            ValueError: no folder is given.
        """
