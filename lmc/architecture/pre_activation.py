"""What residual networks share whose blocks begin with norm and ReLU."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from lmc.architecture.initialise import draw_weights
from lmc.architecture.norm import Norm, norm2d
from lmc.architecture.resnet import shrink_branches


class PreActivationNetwork(nn.Module):
    """A convolution, blocks to which a shortcut is added with nothing behind it, norm, ReLU, mean, a linear layer.

    Weights are drawn as in `lmc.architecture.resnet.ResNet`, smaller ones in the last convolution of a branch if there
    is no normalisation.

    Args:
        first: what images go through before the blocks.
        blocks: one behind the other.
        ends: the last convolution of the branch of each block.
        channels: that the last block puts out.
        classes: number of outputs.
        norm: before the last ReLU.
    """

    def __init__(
        self,
        first: nn.Module,
        blocks: Sequence[nn.Module],
        ends: Sequence[nn.Conv2d],
        *,
        channels: int,
        classes: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.conv = first
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm2d(norm, channels)
        self.classifier = nn.Linear(channels, classes)
        draw_weights(self, self.classifier, "fan_out")
        if norm == "none":
            shrink_branches(ends)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes) of normalised images (B, C, H, W)."""
        x = self.conv(images)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.classifier(functional.relu(self.norm(x)).mean((2, 3)))
        return logits
