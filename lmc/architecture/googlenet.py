"""GoogLeNet for small images (Szegedy et al. 2015), as in the experiments of Tatro et al."""

from torch import nn

from lmc.architecture.adapted import replace_convolution
from lmc.architecture.torchvision import torchvision

_DROPPED = ("maxpool1", "maxpool4")
"""Without them, images of 32 x 32 pixels come to the last blocks as 8 x 8."""


def googlenet(*, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return torchvision's GoogLeNet with a first convolution of stride 1, and without its first and last pooling.

    That is the network of Tatro et al. 2020, but for the auxiliary classifiers, which have no part in the answer of a
    trained network: their 10.24 million parameters (100 classes) are 5.70 without those. The first convolution keeps
    its 7 x 7; with `architecture=torchvision architecture.stem=cifar` it is 3 x 3, and the last pooling stays.

    Args:
        input_shape: (C, H, W) of an image.
        classes: number of outputs.
    """
    network = torchvision(input_shape=input_shape, classes=classes, name="googlenet")
    replace_convolution(network, "conv1.conv", input_shape[0], stride=1)
    for pool in _DROPPED:
        network.set_submodule(pool, nn.Identity())
    return network
