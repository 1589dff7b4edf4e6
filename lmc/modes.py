"""Training and evaluation mode, borrowed and put back."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(model: nn.Module, training: Collection[nn.Module] = ()) -> Iterator[None]:
    """Run a block with `model` in evaluation mode, but for the modules in `training`; its flags are put back after."""
    flags = {module: module.training for module in model.modules()}
    try:
        for module in flags:
            module.training = module in training
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag
