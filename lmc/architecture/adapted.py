"""Networks of other libraries, fitted to the images at hand."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from lmc.errors import UserError


def make(builder: Callable[..., nn.Module], name: str, arguments: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Return `builder` called with `arguments` and the user's `options`.

    Raises:
        UserError: the builder does not know an option, or refuses a value.
    """
    taken = sorted(arguments.keys() & options.keys())
    if taken:
        raise UserError(f"architecture.options.{taken[0]} is set by lmc itself; leave it out")
    try:
        return builder(**arguments, **options)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"architecture.name={name} with options {dict(options)}: {reason}") from error


def resize_images(network: nn.Module, size: int | None) -> nn.Module:
    """Let `network` resize its input bilinearly to size x size first; None leaves it as it is."""

    if size is not None:
        square = (size, size)

        def resize(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            return functional.interpolate(inputs[0], size=square, mode="bilinear", align_corners=False)

        network.register_forward_pre_hook(resize)
    return network


def replace_convolution(network: nn.Module, path: str, channels: int, **changes: Any) -> None:
    """Replace the convolution at `path` by one with `channels` inputs and some other settings changed, drawn anew."""
    old = network.get_submodule(path)
    assert isinstance(old, nn.Conv2d)
    kept = {key: getattr(old, key) for key in ("kernel_size", "stride", "padding", "dilation")}
    bias = old.bias is not None
    network.set_submodule(path, nn.Conv2d(channels, old.out_channels, **(kept | changes), bias=bias))
