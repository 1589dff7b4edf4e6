"""How often a backdoor works."""

from collections.abc import Mapping

from torch import Tensor, nn

from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.evaluation.measure import Measurement, measure
from lmc.state import to_device


def backdoor(
    model: nn.Module,
    state: Mapping[str, Tensor],
    dataset: Dataset,
    *,
    examples: int | None = None,
    batch_size: int = 500,
) -> Measurement:
    """Return what the network with tensors `state` does with test images that carry the trigger.

    They are of other classes than the target, and the measurement takes the target for right: its accuracy is the
    success rate of the attack, its loss -log of the probability of the target. A network that ignores the trigger has
    a success rate near the share of images that it takes for the target by mistake, not 0.

    Args:
        model: the architecture; put back as it was.
        state: its tensors.
        dataset: with a trigger; the work is done on its device.
        examples: how many of those images, a fixed choice; None: all.
        batch_size: images in a batch; does not change a result.

    Raises:
        UserError: the dataset has no trigger, or fewer such images than are asked for.
    """
    if dataset.tampered is None:
        raise UserError(
            f"dataset {dataset.name} has no trigger whose success could be measured; set dataset/trigger=NAME"
        )
    marked = dataset.tampered.marked.first(examples)
    return measure(model, to_device(state, marked.images.device), dataset.batches(marked, batch_size))
