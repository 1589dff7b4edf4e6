"""Networks of timm, with random weights."""

from typing import Annotated, Any

from pydantic import Field
from torch import nn

from lmc import config
from lmc.architecture.adapted import make, resize_images
from lmc.errors import UserError


def timm(
    *,
    input_shape: tuple[int, int, int],
    classes: int,
    name: str = "convnext_atto",
    resize: Annotated[int, Field(gt=0)] | None = None,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """Return a network of timm as `timm.create_model` makes it, tensor names included.

    Args:
        input_shape: (C, H, W) of an image; timm fits the first layer to C.
        classes: number of outputs.
        name: as `timm.list_models` gives it.
        resize: images are resized bilinearly to this height and width first; None leaves them as they are.
        options: further arguments of `timm.create_model`, such as img_size for networks that are built for one size.

    Raises:
        UserError: timm is not installed, has no such network, or does not take the options.
    """
    try:
        from timm import create_model, list_models
    except ModuleNotFoundError:
        raise UserError("architecture=timm needs the package timm; install it with pip install 'lmc[timm]'") from None

    known = list_models()
    if name not in known:
        raise UserError(
            f"architecture.name={name} is no network of timm; {config.nearest(name, known)}timm.list_models() lists all"
        )
    arguments = {"model_name": name, "pretrained": False, "num_classes": classes, "in_chans": input_shape[0]}
    return resize_images(make(create_model, name, arguments, options or {}), resize)
