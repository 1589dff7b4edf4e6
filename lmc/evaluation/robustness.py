"""Loss and accuracy of one network on images that are attacked against this very network."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmc.dataset.images import Dataset, Images
from lmc.errors import UserError
from lmc.evaluation.measure import Measurement
from lmc.seeding import generator
from lmc.state import to_device
from lmc.statistics.forward import evaluating
from lmc.statistics.moments import wide
from lmc.training.attack.base import Attack


def robustness(
    model: nn.Module,
    state: Mapping[str, Tensor],
    dataset: Dataset,
    images: Images,
    attack: Attack,
    *,
    seed: int,
    examples: int | None = None,
    batch_size: int = 500,
) -> Measurement:
    """Return the mean cross-entropy and the accuracy of the network with tensors `state` on attacked images.

    The attack is made anew against this network, in evaluation mode and in float32, whatever it was trained with. Its
    random numbers are drawn on the CPU and depend on `seed` and the number of the image alone: two networks that are
    compared (two points of a path) are attacked from the same starts, and batch size and device do not change those.

    Args:
        model: the architecture; put back as it was.
        state: its tensors.
        dataset: says how images are normalised, which is done behind the attack.
        images: uint8, where they come from; the work is done on their device.
        attack: what changes the images, within [0, 1].
        seed: of what the attack draws.
        examples: how many of `images`, a fixed stratified subset; None: all.
        batch_size: images in a batch; does not change a result.

    Raises:
        UserError: there is no image, or there are fewer than are asked for.
    """
    chosen = images.first(examples)
    if not len(chosen):
        raise UserError(f"dataset {dataset.name}: there is no image to attack")
    device = chosen.images.device
    noise = generator(seed, "robustness")
    loss, correct = wide(torch.zeros((), device=device)), torch.zeros((), dtype=torch.int64, device=device)
    with evaluating(model, to_device(state, device)) as forward:

        def network(pixels: Tensor) -> Tensor:
            return forward(dataset.normalise(pixels))

        for pixels, labels in _pixels(chosen, batch_size):
            logits = network(attack(network, pixels, labels, noise))
            loss += wide(functional.cross_entropy(logits, labels, reduction="none")).sum()
            correct += (logits.argmax(1) == labels).sum()
    return Measurement(loss.item() / len(chosen), correct.item() / len(chosen), len(chosen))


def _pixels(examples: Images, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All of `examples` in order: images (B, C, H, W) float32 in [0, 1] and labels (B,) int64."""
    for start in range(0, len(examples), batch_size):
        yield examples.images[start : start + batch_size].float() / 255, examples.labels[start : start + batch_size]
