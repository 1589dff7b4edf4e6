"""From what a user writes to a network and an input that it accepts."""

import copy
import importlib

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lmc.inspection.sources.request import Network, Request

_SOURCES = ("torchvision", "timm", "transformers")


def build(request: Request) -> Network:
    """Return the network that `request` names; its source is the part in front of the colon.

    Raises:
        UserError: there is no such network, a package is missing, or a setting cannot be used.
    """
    prefix, colon, _ = request.spec.partition(":")
    source = prefix if prefix in _SOURCES and colon else "python" if colon else "architecture"
    model, example = importlib.import_module(f"lmc.inspection.sources.{source}").build(request)
    assert isinstance(model, nn.Module)
    if request.meta:
        model = copy.deepcopy(model).to("meta")  # the module may be the user's own
        example = pytree.tree_map_only(Tensor, lambda tensor: tensor.to("meta"), example)
    return Network(request.spec, model, example)
