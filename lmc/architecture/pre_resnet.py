"""Residual networks with bottlenecks whose normalisation and ReLU come first, for small images."""

from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from lmc.architecture.norm import Norm, conv, norm2d, scaled
from lmc.architecture.pre_activation import PreActivationNetwork
from lmc.architecture.resnet import CHANNELS, blocks_of_a_stage

EXPANSION = 4
"""Channels outside a bottleneck for each one inside."""


class PreResNet(PreActivationNetwork):
    """Pre-activation ResNet of He et al. (2016b, "Identity mappings") for CIFAR, with bottlenecks.

    A 3 x 3 convolution with 16 channels, three stages of bottlenecks with 16, 32 and 64 channels inside and four times
    as many outside, norm, ReLU, the mean over positions, a linear layer.

    A branch is three times norm-ReLU-conv, of 1 x 1, 3 x 3 and 1 x 1; the shortcut is added and nothing follows. The
    first bottleneck of a stage has a 1 x 1 convolution as its shortcut, of what comes in before norm and ReLU, and that
    of the second and of the third stage halves the feature map in its 3 x 3 convolution: the network of Garipov et al.
    (2018, dnn-mode-connectivity, models/preresnet.py). Weights are drawn as in
    `lmc.architecture.resnet.ResNet`, smaller ones in the last convolution of a branch if there is no normalisation.

    Args:
        input_shape: (C, H, W) of an image.
        classes: number of outputs.
        depth: 9 n + 2 for n bottlenecks in each stage: 164 has 18.
        width: multiplier of all channels.
        norm: before each ReLU.

    Raises:
        UserError: `depth` is not 9 n + 2.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        depth: PositiveInt = 164,
        width: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0,
        norm: Norm = "batch",
    ) -> None:
        blocks = blocks_of_a_stage(depth, each=9, rest=2, kind="PreResNet")
        inputs = scaled(CHANNELS[0], width)
        first = conv(input_shape[0], inputs, 3, norm, padding=1)
        stack: list[Bottleneck] = []
        for stage, base in enumerate(CHANNELS):
            inner = scaled(base, width)
            for block in range(blocks):
                halve = stage > 0 and block == 0
                stack.append(Bottleneck(inputs, inner, norm, stride=2 if halve else 1, project=block == 0))
                inputs = EXPANSION * inner
        ends = [unit.conv3 for unit in stack]
        super().__init__(first, stack, ends, channels=inputs, classes=classes, norm=norm)


class Bottleneck(nn.Module):
    """Three convolutions, each behind a norm and ReLU, and a shortcut: the identity, or a 1 x 1 convolution."""

    def __init__(self, inputs: int, inner: int, norm: Norm, *, stride: int, project: bool) -> None:
        super().__init__()
        outputs = EXPANSION * inner
        self.norm1 = norm2d(norm, inputs)
        self.conv1 = conv(inputs, inner, 1, norm)
        self.norm2 = norm2d(norm, inner)
        self.conv2 = conv(inner, inner, 3, norm, stride=stride, padding=1)
        self.norm3 = norm2d(norm, inner)
        self.conv3 = conv(inner, outputs, 1, norm)
        self.shortcut = conv(inputs, outputs, 1, norm, stride=stride) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map (B, 4 inner, H / stride, W / stride), rounded up, of (B, inputs, H, W)."""
        branch = self.conv1(functional.relu(self.norm1(x)))
        branch = self.conv2(functional.relu(self.norm2(branch)))
        total: Tensor = self.conv3(functional.relu(self.norm3(branch))) + self.shortcut(x)
        return total
