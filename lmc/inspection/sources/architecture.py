"""NAME: an option of lmc's own, conf/architecture/NAME.yaml."""

from pathlib import Path

from torch import Tensor, nn

from lmc import config
from lmc.errors import UserError
from lmc.inspection.sources.request import Request

_INPUT = (1, 3, 32, 32)
_CLASSES = 10


def build(request: Request) -> tuple[nn.Module, Tensor]:
    """Return the network for images of the input's shape, by default CIFAR's, and an input.

    The settings are those of the option; `classes` is the number of outputs.

    Raises:
        UserError: there is no such option, or a setting cannot be used.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    folder = Path(config.conf_dir())
    known = sorted(path.stem for path in (folder / "architecture").glob("*.yaml"))
    if request.name not in known:
        raise UserError(
            f"{request.name} is no architecture of lmc; {config.nearest(request.name, known)}"
            f"known: {', '.join(known)}; others are torchvision:NAME, timm:NAME, transformers:NAME, "
            "package.module:callable"
        )
    config.register()
    with initialize_config_dir(str(folder), version_base="1.3"):
        composed = compose("config", [f"architecture={request.name}"])
    example = request.image(*_INPUT)
    settings = dict(request.settings)
    classes = settings.pop("classes", _CLASSES)
    option = OmegaConf.to_container(composed.architecture, resolve=True)
    assert isinstance(option, dict)
    node = {**option, **settings}
    plain = Request(request.spec, {}, request.input, request.seed, request.meta)
    shape = tuple(example.shape[1:])
    model = plain.make(lambda: config.build(node, "architecture", input_shape=shape, classes=classes))
    return model, example
