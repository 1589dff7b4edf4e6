"""package.module:callable: a network of the user's own."""

import importlib
import inspect
import sys
from pathlib import Path

from torch import Tensor, nn

from lmc import config
from lmc.errors import UserError
from lmc.inspection.sources.request import Request, first_line


def build(request: Request) -> tuple[nn.Module, Tensor]:
    """Return the network that a function or class makes, or that the module holds; and an input as the user says.

    Raises:
        UserError: it cannot be imported or called, is no network, or no input is given.
    """
    module_name, _, name = request.spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise UserError(f"{module_name} cannot be imported: {error}") from None
        sources = ("torchvision", "timm", "transformers")
        raise UserError(
            f"there is no module {module_name!r} here or installed; {config.nearest(module_name, sources)}"
            "write torchvision:NAME, timm:NAME, transformers:NAME or package.module:callable"
        ) from None
    except Exception as error:
        raise UserError(f"{module_name} cannot be imported: {first_line(error)}") from error
    if not hasattr(module, name):
        known = [entry for entry in vars(module) if not entry.startswith("_")]
        raise UserError(f"{module_name} has no {name!r}; {config.nearest(name, known)}known: {', '.join(known)}")
    found = getattr(module, name)
    if request.input is None:
        raise UserError(
            f"{request.spec}: what does it take? say --input 1,3,32,32, or --input 1,16:int64 for token numbers"
        )
    if isinstance(found, nn.Module):
        if request.settings:
            raise UserError(f"{request.spec} is made already, so it takes no settings; name its class instead")
        return found, request.image()
    if not callable(found):
        raise UserError(f"{request.spec} is a {type(found).__name__}; name a torch.nn.Module or a function making one")
    try:
        inspect.signature(found).bind(**request.settings)
    except TypeError as error:
        raise UserError(f"{request.spec} cannot be called: {error}; give settings as NAME=VALUE") from None
    return request.make(found), request.image()
