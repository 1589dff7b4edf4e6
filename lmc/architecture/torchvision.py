"""Networks of torchvision, with random weights."""

from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from lmc import config
from lmc.architecture.adapted import make, replace_convolution, resize_images
from lmc.errors import UserError

_SMALL_STEMS = {  # first convolution, and the pooling behind it
    "ResNet": ("conv1", "maxpool"),
    "DenseNet": ("features.conv0", "features.pool0"),
    "GoogLeNet": ("conv1.conv", "maxpool1"),
}


def torchvision(
    *,
    input_shape: tuple[int, int, int],
    classes: int,
    name: str = "resnet18",
    stem: Literal["imagenet", "cifar"] = "imagenet",
    resize: Annotated[int, Field(gt=0)] | None = None,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """Return a classification network of torchvision as its builder makes it, tensor names included.

    GoogLeNet and Inception come without their auxiliary classifiers, so that they return logits alone. Images with
    other than three channels get a first convolution of their own.

    Args:
        input_shape: (C, H, W) of an image.
        classes: number of outputs.
        name: of the builder, as `torchvision.models.list_models` gives it.
        stem: "cifar" begins with a 3 x 3 convolution of stride 1 and without pooling, as is usual for small images;
            for ResNet (also wide and ResNeXt), DenseNet and GoogLeNet.
        resize: images are resized bilinearly to this height and width first; None leaves them as they are.
        options: further arguments of the builder.

    Raises:
        UserError: there is no such network, it has no such stem, or the builder does not take the options.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise UserError(
            f"architecture.name={name} is no classification network of torchvision; {config.nearest(name, known)}"
            "torchvision.models.list_models() lists all"
        )
    arguments: dict[str, Any] = {"weights": None, "num_classes": classes}
    if name in ("googlenet", "inception_v3"):
        arguments |= {"aux_logits": False, "init_weights": True}
    network: nn.Module = make(models.get_model_builder(name), name, arguments, options or {})
    kind = type(network).__name__
    if stem == "cifar" and kind not in _SMALL_STEMS:
        raise UserError(
            f"architecture.stem=cifar is not defined for {name}, only for ResNet, DenseNet and GoogLeNet; "
            "use architecture.resize to enlarge the images"
        )
    if stem == "cifar":
        convolution, pool = _SMALL_STEMS[kind]
        replace_convolution(network, convolution, input_shape[0], kernel_size=3, stride=1, padding=1)
        network.set_submodule(pool, nn.Identity())
    elif input_shape[0] != 3:
        first = next(path for path, module in network.named_modules() if isinstance(module, nn.Conv2d))
        replace_convolution(network, first, input_shape[0])
    return resize_images(network, resize)
