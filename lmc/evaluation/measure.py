"""Loss and accuracy of one network on one split."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmc.dataset.images import Dataset, Images
from lmc.errors import UserError
from lmc.state import State, to_device
from lmc.statistics.forward import evaluating
from lmc.statistics.moments import wide


@dataclass(frozen=True)
class Measurement:
    """What a network does on a set of examples.

    Attributes:
        loss: mean cross-entropy in nats.
        accuracy: fraction of examples classified correctly.
        examples: how many there were.
    """

    loss: float
    accuracy: float
    examples: int


def measure(model: nn.Module, state: Mapping[str, Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> Measurement:
    """Return the mean cross-entropy and the accuracy of the network with tensors `state` over all of `batches`.

    In evaluation mode and in float32, whatever the network was trained with. The sums over examples are kept in
    float64 and divided once, so that the batch size does not matter.

    Args:
        model: the architecture; put back as it was.
        state: its tensors, on the device where the work is done.
        batches: (inputs (B, ...), labels (B,) int64), moved to that device if they are elsewhere.

    Raises:
        UserError: `batches` holds no example.
    """
    device = next(iter(state.values())).device
    loss, correct, examples = wide(torch.zeros((), device=device)), torch.zeros((), dtype=torch.int64, device=device), 0
    with evaluating(model, state) as network, torch.inference_mode():
        for inputs, labels in batches:
            labels = labels.to(device)
            logits = network(inputs.to(device))
            loss += wide(functional.cross_entropy(logits, labels, reduction="none")).sum()
            correct += (logits.argmax(1) == labels).sum()
            examples += len(labels)
    if not examples:
        raise UserError(
            "no examples to measure on: batches are used several times, so give a list or a DataLoader, not a generator"
        )
    return Measurement(loss.item() / examples, correct.item() / examples, examples)


@dataclass(frozen=True)
class Splits:
    """The images that networks are measured on: `train` and `test` of a data set, or fixed subsets of them.

    Args:
        dataset: where they come from; networks are measured on its device.
        train_examples: how many training images, a fixed stratified subset; None: all.
        test_examples: how many test images, likewise.
        batch_size: images in a batch; does not change a result.

    Raises:
        UserError: a split is empty, or has fewer images than are asked for.
    """

    dataset: Dataset
    train_examples: int | None = None
    test_examples: int | None = None
    batch_size: int = 500

    def __post_init__(self) -> None:
        for split, images in self.images.items():
            if not len(images):
                raise UserError(f"data set {self.dataset.name} has no {split} images to measure on")

    @cached_property
    def images(self) -> dict[str, Images]:
        """The images of each split."""
        return {
            "train": self.dataset.train.first(self.train_examples),
            "test": self.dataset.test.first(self.test_examples),
        }

    def measure(self, model: nn.Module, state: State) -> dict[str, Measurement]:
        """Return split to measurement of the network with tensors `state`."""
        found = {}
        for split, images in self.images.items():
            batches = self.dataset.batches(images, self.batch_size)
            found[split] = measure(model, to_device(state, images.images.device), batches)
        return found
