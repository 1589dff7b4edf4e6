"""The normalisation that every architecture takes as a setting, and the layers that depend on it."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["batch", "layer", "none"]
"""batch: over the batch (and positions), for each channel; layer: over the channels, at each position; none."""

LAYER_EPS = 1e-6
"""As in Flax, with which Git Re-Basin trained its LayerNorm networks (torch's own default is 1e-5)."""


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels at each position of a feature map (B, C, H, W).

    That is what Flax's LayerNorm does to its (B, H, W, C) feature maps (Git Re-Basin).
    """

    def forward(self, features: Tensor) -> Tensor:
        """Return `features` with each (b, :, h, w) brought to mean 0 and variance 1, times weight, plus bias."""
        last = features.permute(0, 2, 3, 1)
        return functional.layer_norm(last, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def norm2d(kind: Norm, channels: int) -> nn.Module:
    """Return the normalisation of feature maps (B, channels, H, W)."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return ChannelNorm(channels, eps=LAYER_EPS) if kind == "layer" else nn.Identity()


def norm1d(kind: Norm, features: int) -> nn.Module:
    """Return the normalisation of vectors (B, features)."""
    if kind == "batch":
        return nn.BatchNorm1d(features)
    return nn.LayerNorm(features, eps=LAYER_EPS) if kind == "layer" else nn.Identity()


def has_bias(kind: Norm) -> bool:
    """Whether a layer before the normalisation has a bias: BatchNorm would subtract it again.

    Elsewhere it is needed: REPAIR (Jordan et al. 2023) writes its correction into it.
    """
    return kind != "batch"


def conv(inputs: int, outputs: int, kernel: int, norm: Norm, *, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    """Return a convolution that is followed by `norm`."""
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=has_bias(norm))


def scaled(channels: int, width: float) -> int:
    """Return `channels` times the width multiplier, rounded, at least 1."""
    return max(1, round(channels * width))
