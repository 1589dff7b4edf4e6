"""How weights are drawn before training."""

from typing import Literal

from torch import nn


def he_normal(model: nn.Module, classifier: nn.Linear, mode: Literal["fan_in", "fan_out"]) -> None:
    """Draw the weights of all convolutions and linear layers of `model` anew, and set their biases to 0.

    Normal with variance 2 / n (He et al. 2015, for layers with ReLU), where n counts the connections into a unit
    ("fan_in") or out of an input ("fan_out"). `classifier`, whose outputs meet no ReLU, gets variance 1 / inputs.
    """
    for layer in model.modules():
        if layer is classifier:
            nn.init.kaiming_normal_(classifier.weight, nonlinearity="linear")
            nn.init.zeros_(classifier.bias)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
