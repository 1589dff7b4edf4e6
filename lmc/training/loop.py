"""The one training loop, for networks and for curves."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lmc.dataset.images import Dataset, Images
from lmc.errors import UserError
from lmc.seeding import generator, isolated
from lmc.state import State
from lmc.training import checkpoint
from lmc.training.attack.base import kept_statistics
from lmc.training.checkpoint import Record
from lmc.training.mounted import Mounted
from lmc.training.part import Part
from lmc.training.recipe import Training
from lmc.training.trainable import Composite, Look, Stepped, Trainable

log = logging.getLogger(__name__)

HISTORY_FILE = "history.jsonl"
_WHOLE = Part()


def fit(
    model: nn.Module,
    trainable: Trainable,
    dataset: Dataset,
    training: Training,
    *,
    seed: int,
    folder: Path,
    on_epoch: Callable[[Mapping[str, float]], None],
    keep: Callable[[int], None] = lambda epoch: None,
    part: Part = _WHOLE,
) -> None:
    """Train `trainable` on `dataset.train`, or continue where a killed run in `folder` stopped.

    After every epoch a record is appended to history.jsonl in `folder` and handed to `on_epoch`: epoch (from 1),
    learning_rate (of its last step), train_loss (nats) and train_accuracy (fraction), both over the epoch's augmented
    minibatches (as they are after the attack, if the training has one) and without weight decay, objective (likewise,
    of a `Composite` alone), validation_loss and validation_accuracy (never attacked) if there is a validation split and
    a network to measure on it, seconds and images_per_second of the training steps. A continued run hands out and
    writes the earlier epochs again, so that both are always whole. The checkpoint is removed at the end.

    On a CPU a continued run ends with the same bits as an unbroken one.

    Args:
        model: the architecture; it is copied, not changed.
        trainable: what is trained, in place; on the device of the dataset.
        dataset: images in memory; their device is where everything is computed.
        training: the settings.
        seed: of the order of the images, their augmentation and what `trainable` draws.
        folder: where history and checkpoint are written; made if absent.
        on_epoch: called after every epoch with its record.
        keep: called with the number of every epoch (from 1) that has been trained, before its checkpoint is written: a
            run that is killed in between trains the epoch again, and calls it again.
        part: which of the epochs are trained; history and `on_epoch` are given those of the part that this one goes on
            after, too.

    Raises:
        UserError: the loss is no longer finite (names epoch, step and learning rate), there are fewer than two training
            images, or the folder holds the checkpoint of another run.
        ValueError: an attack is asked for where a step looks at several networks.
    """
    if len(dataset.train) < 2:
        raise UserError(f"dataset {dataset.name} has {len(dataset.train)} training images; training needs at least 2")
    if training.attack is not None and isinstance(trainable, Composite):
        raise ValueError("a step that looks at several networks has not one that could be attacked")
    run = _Run.start(model, trainable, dataset, training, seed)
    origin = run.origin(seed, part)
    folder.mkdir(parents=True, exist_ok=True)
    history = checkpoint.restore(folder, trainable, run.optimizer, origin)
    if part.after is not None and not history:
        earlier = run.origin(part.after.seed, _WHOLE)
        history = checkpoint.restore(part.after.folder, trainable, run.optimizer, earlier)
    if history:
        log.info("continuing after epoch %d of %d", part.start + len(history), training.epochs)
    with (folder / HISTORY_FILE).open("w", encoding="utf-8") as file:
        for record in history:
            file.write(json.dumps(record) + "\n")
            on_epoch(record)
        last = training.epochs if part.stop is None else part.stop
        for epoch in range(part.start + len(history), last):
            record = run.epoch(epoch)
            history.append(record)
            file.write(json.dumps(record) + "\n")
            file.flush()
            keep(epoch + 1)
            if (epoch + 1) % training.checkpoint_every == 0 and epoch + 1 < training.epochs:
                checkpoint.write(folder, trainable, run.optimizer, history, origin)
            on_epoch(record)
    if part.stop is None:
        checkpoint.remove(folder)
    else:
        checkpoint.write(folder, trainable, run.optimizer, history, origin)


@dataclass(frozen=True)
class _Run:
    """What stays the same from epoch to epoch."""

    network: Mounted
    trainable: Trainable
    optimizer: torch.optim.Optimizer
    dataset: Dataset
    training: Training
    seed: int
    device: torch.device
    bfloat16: bool
    channels_last: bool

    @classmethod
    def start(cls, model: nn.Module, trainable: Trainable, dataset: Dataset, training: Training, seed: int) -> "_Run":
        device = dataset.train.images.device
        network = Mounted(model)
        network.module.to(device)
        convolutional = any(parameter.ndim == 4 for parameter in network.module.parameters())
        channels_last = training.channels_last and convolutional
        parameters = trainable.parameters()
        if channels_last:
            for parameter in parameters:
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        bfloat16 = training.autocast(network.module, device)
        log.info("training on %s in %s", device, "bfloat16" if bfloat16 else "float32")
        optimizer = training.optimizer(parameters, 0.0 if trainable.decay_on_sample else training.weight_decay)
        return cls(network, trainable, optimizer, dataset, training, seed, device, bfloat16, channels_last)

    def origin(self, seed: int, part: Part) -> str:
        """What tells the checkpoints of this training, begun with `seed`, from those of others."""
        made_of = {"seed": seed, "data": self.dataset.checksum, "training": _settings(self.training), **part.origin()}
        return checkpoint.signature(made_of, self.trainable.tensors())

    def epoch(self, epoch: int) -> Record:
        """Train one epoch (counted from 0) and return its record.

        Layers that are random themselves (dropout) draw from torch's global generator, which is the epoch's own here.
        """
        with isolated(self.seed, "layers", epoch, device=self.device):
            return self._epoch(epoch)

    def _epoch(self, epoch: int) -> Record:
        began = time.perf_counter()
        batches = self._order(epoch)
        augment = generator(self.seed, "augment", epoch)
        draw = generator(self.seed, "sample", epoch)
        noise = generator(self.seed, "attack", epoch, device=self.device)
        objectives, losses, correct = (torch.zeros(len(batches), device=self.device) for _ in range(3))
        composite = self.trainable if isinstance(self.trainable, Composite) else None
        stepped = self.trainable if isinstance(self.trainable, Stepped) else None
        group = self.optimizer.param_groups[0]
        self.network.module.train()
        for step, chosen in enumerate(batches):
            group["lr"] = self.training.rate(epoch + step / len(batches))
            images, labels = self._batch(chosen, augment)
            self.optimizer.zero_grad()
            look = (
                self._descend(images, labels, draw, noise)
                if composite is None
                else composite.descend(self._logits, images, labels, draw)
            )
            self.optimizer.step()
            if stepped is not None:
                stepped.stepped()
            objectives[step], losses[step], correct[step] = look.objective, look.loss, look.correct
        self._check_finite(epoch, objectives)
        sizes = torch.tensor([len(chosen) for chosen in batches], dtype=torch.float64)
        examples = float(sizes.sum())
        train_loss = float(losses.double().cpu() @ sizes) / examples
        train_accuracy = float(correct.double().cpu().sum()) / examples
        objective = float(objectives.double().cpu() @ sizes) / examples
        seconds = time.perf_counter() - began
        return {
            "epoch": epoch + 1,
            "learning_rate": group["lr"],
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            **({} if composite is None else {"objective": objective}),
            **self._validate(),
            "seconds": seconds,
            "images_per_second": examples / seconds,
        }

    def _descend(self, images: Tensor, labels: Tensor, draw: torch.Generator, noise: torch.Generator) -> Look:
        """Leave the gradient of the cross-entropy of one network, on the batch attacked against this very network."""
        state = self.trainable.state(draw)
        if self.training.attack is not None:
            images = self._attacked(state, images, labels, noise)
        logits = self._logits(state, images)
        loss = cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call] # torch has no annotation
        loss = loss.detach()
        return Look(objective=loss, loss=loss, correct=(logits.detach().argmax(1) == labels).sum())

    def _attacked(self, state: State, images: Tensor, labels: Tensor, noise: torch.Generator) -> Tensor:
        """The batch (in [0, 1]) after the attack, normalised.

        The attack sees the network as the step will: in training mode, BatchNorm with the statistics of the minibatch
        (on a curve there are no others). They are not recorded, so that the running statistics are those of the images
        that are trained on, each counted once.
        """
        assert self.training.attack is not None
        with kept_statistics(self.network.module):
            attacked = self.training.attack(
                lambda pixels: self._logits(state, self.dataset.normalise(pixels)), images, labels, noise
            )
        return self.dataset.normalise(attacked)

    def _logits(self, state: State, images: Tensor) -> Tensor:
        """The output in float32; `state` is too: a sampled weight must not be rounded before its gradient."""
        with self._precision():
            logits = self.network(state, images)
        return logits.float()

    def _order(self, epoch: int) -> tuple[Tensor, ...]:
        """The image numbers of every step; a last step of a single image is left out (BatchNorm cannot take it)."""
        order = torch.randperm(len(self.dataset.train), generator=generator(self.seed, "shuffle", epoch))
        batches = torch.split(order.to(self.device), self.training.batch_size)
        return batches if len(batches[-1]) > 1 else batches[:-1]

    def _batch(self, chosen: Tensor, augment: torch.Generator) -> tuple[Tensor, Tensor]:
        train = self.dataset.train
        images = self.dataset.augmentation(train.images.index_select(0, chosen), augment)
        # What is to be attacked stays in [0, 1] until it has been.
        images = self.dataset.normalise(images) if self.training.attack is None else images.float() / 255
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, train.labels.index_select(0, chosen)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()

    def _check_finite(self, epoch: int, losses: Tensor) -> None:
        """One look at the device per epoch: per-step losses, and the weights that the last step left."""
        bad = torch.cat([losses, *(parameter.detach().sum()[None] for parameter in self.trainable.parameters())])
        wrong = (~torch.isfinite(bad)).nonzero().flatten().tolist()
        if not wrong:
            return
        step = min(wrong[0], len(losses) - 1)
        rate = self.training.rate(epoch + step / len(losses))
        what = f"the loss became {float(losses[step])}" if wrong[0] == step else "the weights became infinite"
        raise UserError(
            f"training diverged: {what} in epoch {epoch + 1}, step {step + 1} of {len(losses)}, at learning rate "
            f"{rate:.3g}; lower training.learning_rate or lengthen the warm-up (training.warmup_epochs)"
        )

    @torch.inference_mode()
    def _validate(self) -> Record:
        split: Images = self.dataset.validation
        state = self.trainable.validated()
        if state is None or len(split) == 0:
            return {}
        self.network.module.eval()
        loss, correct = 0.0, 0
        for images, labels in self.dataset.batches(split, max(self.training.batch_size, 1000)):
            logits = self.network(state, images)
            loss += float(cross_entropy(logits, labels, reduction="sum"))
            correct += int((logits.argmax(1) == labels).sum())
        return {"validation_loss": loss / len(split), "validation_accuracy": correct / len(split)}


def _settings(training: Training) -> dict[str, object]:
    """What of the settings a continued run must share with the killed one."""
    shared = {"class": type(training).__name__, **asdict(replace(training, checkpoint_every=1))}
    if training.attack is None:
        del shared["attack"]  # so that a run that was killed before there were attacks goes on
    return shared
