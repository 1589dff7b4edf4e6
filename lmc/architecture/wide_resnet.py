"""Wide residual networks for small images."""

from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from lmc.architecture.norm import Norm, conv, norm2d, scaled
from lmc.architecture.pre_activation import PreActivationNetwork
from lmc.architecture.resnet import CHANNELS, blocks_of_a_stage


class WideResNet(PreActivationNetwork):
    """WRN-d-k of Zagoruyko & Komodakis (2016): fewer, but wider residual blocks whose norm and ReLU come first.

    A 3 x 3 convolution with 16 channels, three stages of residual blocks with 16 k, 32 k and 64 k channels, norm, ReLU,
    the mean over positions, a linear layer. A branch is twice norm-ReLU-conv, both 3 x 3; the shortcut is added and
    nothing follows. No dropout.

    As in the network of Garipov et al. (2018, dnn-mode-connectivity, models/wide_resnet.py) the second convolution of a
    stage's first block halves the feature map, and the 1 x 1 convolution of its shortcut takes what comes in before
    norm and ReLU (the original halves in the first convolution, and its shortcut comes after norm and ReLU). Their
    convolutions have biases before BatchNorm; here, as in the original, they have none. Weights are drawn as in
    `lmc.architecture.resnet.ResNet`, smaller ones in the last convolution of a branch if there is no normalisation.

    Args:
        input_shape: (C, H, W) of an image.
        classes: number of outputs.
        depth: d = 6 n + 4 for n blocks in each stage: 10, 16, 22, 28, 40, ...
        width: k, multiplier of the channels of the stages; the first convolution keeps its 16.
        norm: before each ReLU.

    Raises:
        UserError: `depth` is not 6 n + 4.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        depth: PositiveInt = 28,
        width: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0,
        norm: Norm = "batch",
    ) -> None:
        blocks = blocks_of_a_stage(depth, each=6, rest=4, kind="WideResNet")
        inputs = CHANNELS[0]
        first = conv(input_shape[0], inputs, 3, norm, padding=1)
        stack: list[Block] = []
        for stage, base in enumerate(CHANNELS):
            outputs = scaled(base, width)
            for block in range(blocks):
                halve = stage > 0 and block == 0
                stack.append(Block(inputs, outputs, norm, stride=2 if halve else 1, project=halve or inputs != outputs))
                inputs = outputs
        ends = [unit.conv2 for unit in stack]
        super().__init__(first, stack, ends, channels=inputs, classes=classes, norm=norm)


class Block(nn.Module):
    """Two 3 x 3 convolutions, each behind a norm and ReLU, and a shortcut: the identity, or a 1 x 1 convolution."""

    def __init__(self, inputs: int, outputs: int, norm: Norm, *, stride: int, project: bool) -> None:
        super().__init__()
        self.norm1 = norm2d(norm, inputs)
        self.conv1 = conv(inputs, outputs, 3, norm, padding=1)
        self.norm2 = norm2d(norm, outputs)
        self.conv2 = conv(outputs, outputs, 3, norm, stride=stride, padding=1)
        self.shortcut = conv(inputs, outputs, 1, norm, stride=stride) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's feature map: (B, inputs, H, W) to (B, outputs, H / stride, W / stride), rounded up."""
        branch = self.conv1(functional.relu(self.norm1(x)))
        total: Tensor = self.conv2(functional.relu(self.norm2(branch))) + self.shortcut(x)
        return total
