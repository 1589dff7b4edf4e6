"""How weights are drawn before training."""

from typing import Literal

from torch import nn

Initialisation = Literal["he", "lecun", "torch"]
_NONLINEARITIES: dict[Initialisation, Literal["relu", "linear"]] = {"he": "relu", "lecun": "linear"}


def draw_weights(
    model: nn.Module, classifier: nn.Linear, mode: Literal["fan_in", "fan_out"], initialisation: Initialisation = "he"
) -> None:
    """Draw the weights of all convolutions and linear layers of `model` anew, and set their biases to 0; or neither.

    Normal with variance 2 / n ("he": He et al. 2015, for layers with ReLU) or 1 / n ("lecun": LeCun et al. 1998), where
    n counts the connections into a unit ("fan_in") or out of an input ("fan_out"). `classifier`, whose outputs meet no
    ReLU, gets variance 1 / inputs in either case. "torch" leaves all as PyTorch has drawn it: uniform, of variance
    1 / (3 inputs), biases too.
    """
    if initialisation == "torch":
        return
    for layer in model.modules():
        if layer is classifier:
            nn.init.kaiming_normal_(classifier.weight, nonlinearity="linear")
            nn.init.zeros_(classifier.bias)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity=_NONLINEARITIES[initialisation])
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
