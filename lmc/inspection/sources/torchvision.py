"""torchvision:NAME: the builders of torchvision, with random weights."""

from torch import Tensor, nn

from lmc import config
from lmc.errors import UserError
from lmc.inspection.sources.request import Request

_REFUSED = {
    "quantization": "its weights are quantised integers; take the network without _quantized or quantized_",
    "detection": "a detector's graph depends on what it sees; take its backbone",
    "optical_flow": "it takes two images of a sequence; wrap it in a module of your own with one input",
}
_CLIPS = (1, 3, 16, 224, 224)


def names(kind: str = "") -> list[str]:
    """Return the names of torchvision's builders: of classification, or of the module `kind` ("video")."""
    import torchvision

    module = getattr(torchvision.models, kind) if kind else torchvision.models
    return list(torchvision.models.list_models(module=module))


def build(request: Request) -> tuple[nn.Module, Tensor]:
    """Return the network and an input.

    Raises:
        UserError: there is no such builder, or its kind of network cannot be traced.
    """
    import torchvision

    known = torchvision.models.list_models()
    if request.name not in known:
        raise UserError(
            f"torchvision has no network {request.name!r}; {config.nearest(request.name, known)}"
            "torchvision.models.list_models() lists all"
        )
    for kind, reason in _REFUSED.items():
        if request.name in names(kind):
            raise UserError(f"torchvision:{request.name} cannot be inspected: {reason}")
    shape: tuple[int, ...] = (1, 3, 224, 224)
    if request.name in names("video"):
        shape = _CLIPS
    elif request.name == "inception_v3":
        shape = (1, 3, 299, 299)
    model = request.make(torchvision.models.get_model_builder(request.name))
    return model, request.image(*shape)
