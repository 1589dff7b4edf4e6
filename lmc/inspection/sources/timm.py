"""timm:NAME: the networks of timm, with random weights."""

import functools

from torch import Tensor, nn

from lmc import config
from lmc.errors import UserError
from lmc.inspection.sources.request import Request


def build(request: Request) -> tuple[nn.Module, Tensor]:
    """Return the network and an input of the size that timm names for it.

    Raises:
        UserError: timm is not installed, or has no such network.
    """
    try:
        import timm
    except ModuleNotFoundError:
        raise UserError(f"{request.spec} needs the package timm; install it with pip install 'lmc[timm]'") from None

    if not timm.is_model(request.name):
        raise UserError(
            f"timm has no network {request.name!r}; {config.nearest(request.name, timm.list_models())}"
            "timm.list_models() lists all"
        )
    model = request.make(functools.partial(timm.create_model, pretrained=False), request.name)
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    return model, request.image(1, *size)
