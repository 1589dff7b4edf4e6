"""One hub that is linearly connected to many networks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

import torch
from torch import Tensor, nn

from lmc.curve.bending import Bending, combination
from lmc.curve.chain import Chain
from lmc.curve.points import PointsPath, read_points, write_points
from lmc.curve.trained import Fit
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.state import State, check_fits, mean, to_device
from lmc.training.recipe import Training


@dataclass(frozen=True, kw_only=True)
class Star:
    """A hub h with the least E_{n, t} L((1 - t) h + t network_n), n and t uniform (Sonthalia et al. 2024).

    One network and one t are drawn for each minibatch. The hub starts as the mean of the networks. The path from one
    network to another goes straight to the hub and straight on.

    Args:
        training: how the hub is trained.
        decay_on_sample: True: weight decay is that of the sampled network, 0.5 * weight_decay * ||phi||^2; False: the
            optimiser decays the hub itself.
    """

    training: Training
    decay_on_sample: bool = True

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
        """Train the hub; write bends.safetensors (tensors "bend1.<name>") and history.jsonl.

        BatchNorm works with the statistics of the minibatch. A killed fit goes on from its last epoch
        (`lmc.training.loop.fit`).

        Args:
            model: the architecture; it is not changed.
            networks: all networks, at least two, in one frame.
            dataset: images in memory; their device is where everything is computed.
            seed: of the order of the images, their augmentation, the networks and t.
            folder: where the files are written; made if absent.
            on_epoch: called after every epoch with its record.

        Raises:
            UserError: there are fewer than two networks, they are of another architecture, or the training fails.
        """
        if len(networks) < 2:
            raise UserError(f"a star joins networks, but there are {len(networks)}; give at least 2")
        expected = model.state_dict()
        for number, network in enumerate(networks):
            check_fits(network, expected, f"network {number} of the star")
        device = dataset.train.images.device
        trainable = StarTrainable(
            model,
            [to_device(network, device) for network in networks],
            decay=self.training.weight_decay if self.decay_on_sample else None,
            channels_last=self.training.channels_last,
        )
        Fit(model, dataset, seed, folder, on_epoch).run(trainable, self.training)
        write_points([trainable.hub()], folder)

    def path(self, fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], folder: FilePath | None) -> PointsPath:
        """Return the chain from `fixed` over the hub in `folder` to `moving`, two of the networks of the fit.

        Raises:
            UserError: the file is missing or damaged, or is of another architecture.
            ValueError: no folder is given.
        """
        return PointsPath(Chain(2), fixed, moving, read_points(folder, fixed, moving, 1, "curve"))


class StarTrainable:
    """The hub of a star; a `lmc.training.trainable.Trainable`.

    Args:
        model: the architecture; says which tensors bend (parameters that require gradients).
        networks: the networks, on the training device.
        decay: weight decay on the sampled point; None leaves decay to the optimiser.
        channels_last: store convolutions in the channels-last memory format.
    """

    def __init__(
        self, model: nn.Module, networks: Sequence[State], *, decay: float | None, channels_last: bool
    ) -> None:
        self.decay_on_sample = decay is not None
        self._decay = decay or 0.0
        middle = mean(networks)
        self._rays = [Bending(model, middle, network, channels_last=channels_last) for network in networks]
        flatten = self._rays[0].flatten
        self._controls = torch.stack([flatten(middle), *(flatten(network) for network in networks)])
        self._leaf = self._controls[:1].detach().requires_grad_()

    def parameters(self) -> list[Tensor]:
        """Return the one leaf, (1, P)."""
        return [self._leaf]

    def state(self, generator: torch.Generator) -> State:
        """Return a network at a uniform t on the line from the hub to a network drawn uniformly."""
        number = int(torch.randint(len(self._rays), (), generator=generator))
        return self.at(number, float(torch.rand((), generator=generator, dtype=torch.float64)))

    def at(self, number: int, t: float) -> State:
        """Return the network at `t` from the hub (0) to network `number` (1), differentiable in `parameters`."""
        weights = [1 - t, *(t if index == number else 0.0 for index in range(len(self._rays)))]
        point = combination(self._leaf, self._controls, weights, slice(0, 1), self._decay)
        return self._rays[number].network(point, t)

    def tensors(self) -> State:
        """Return the leaf by its name in checkpoints."""
        return {"hub": self._leaf}

    def validated(self) -> None:
        """Return None: the hub has no running statistics of its own with which it could be measured."""
        return

    def hub(self) -> State:
        """Return the hub: detached contiguous tensors, all that bend."""
        return self._rays[0].points(self._leaf)[0]
