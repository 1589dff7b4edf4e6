"""Training and evaluation mode, borrowed and put back."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(model: nn.Module, training: Collection[nn.Module] = ()) -> Iterator[None]:
    """Run a block with `model` in evaluation mode, but for the modules in `training`; its flags are put back after.

    The mode is really switched, before and after: networks that keep what they computed from their weights until they
    are trained again (LeViT's attention biases) shall neither bring it along nor keep that of borrowed weights.
    """
    flags = {module: module.training for module in model.modules()}
    try:
        model.train()
        model.eval()
        for module in training:
            module.training = True
        yield
    finally:
        model.train()
        for module, flag in flags.items():
            module.training = flag
