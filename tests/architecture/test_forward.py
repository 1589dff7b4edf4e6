"""Each architecture against a second implementation of it, in numpy and float64, that shares no code with it."""

import numpy as np
import pytest
import torch
from torch import nn

NORMS = ("batch", "layer", "none")
STRIDES = {"tiny_ten": (1, 1, 2, 1, 1, 2, 1, 1), "padding": (1, 1, 1, 1, 1, 1, 0, 0)}


def conv(x, state, name, stride=1, padding=0):
    kernel = state[f"{name}.weight"]
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    out = np.einsum("bchwij,ocij->bohw", windows, kernel)
    return out + state[f"{name}.bias"][:, None, None] if f"{name}.bias" in state else out


def linear(x, state, name):
    out = x @ state[f"{name}.weight"].T
    return out + state[f"{name}.bias"] if f"{name}.bias" in state else out


def norm(x, state, name):
    if f"{name}.weight" not in state:
        return x
    shape = (-1,) + (1,) * (x.ndim - 2)
    if f"{name}.running_mean" in state:
        mean, variance = (state[f"{name}.running_{part}"].reshape(shape) for part in ("mean", "var"))
        scaled = (x - mean) / np.sqrt(variance + 1e-5)
    else:
        scaled = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    return scaled * state[f"{name}.weight"].reshape(shape) + state[f"{name}.bias"].reshape(shape)


def relu(x):
    return np.maximum(x, 0)


def mlp(x, state, depth=3):
    x = x.reshape(len(x), -1)
    for i in range(depth):
        x = relu(norm(linear(x, state, f"hidden.{i}"), state, f"norms.{i}"))
    return linear(x, state, "classifier")


def tiny_ten(x, state):
    for i, (stride, padding) in enumerate(zip(STRIDES["tiny_ten"], STRIDES["padding"], strict=True)):
        x = relu(norm(conv(x, state, f"convs.{i}", stride, padding), state, f"norms.{i}"))
    return linear(x.mean((2, 3)), state, "classifier")


def vgg11(x, state):
    for stage, count in enumerate((1, 1, 2, 2, 2)):
        for i in range(count):
            x = relu(norm(conv(x, state, f"stages.{stage}.convs.{i}", padding=1), state, f"stages.{stage}.norms.{i}"))
        batch, channels, height, width = x.shape
        x = x.reshape(batch, channels, height // 2, 2, width // 2, 2).max((3, 5))
    x = x.reshape(len(x), -1)
    for i in range(2):
        x = relu(linear(x, state, f"hidden.{i}"))
    return linear(x, state, "classifier")


def resnet14(x, state):
    x = relu(norm(conv(x, state, "conv", padding=1), state, "norm"))
    for block in range(6):
        stride, at = 2 if block in (2, 4) else 1, f"blocks.{block}"
        y = relu(norm(conv(x, state, f"{at}.conv1", stride, 1), state, f"{at}.norm1"))
        y = norm(conv(y, state, f"{at}.conv2", 1, 1), state, f"{at}.norm2")
        short = norm(conv(x, state, f"{at}.shortcut.0", stride), state, f"{at}.shortcut.1") if stride == 2 else x
        x = relu(y + short)
    return linear(x.mean((2, 3)), state, "classifier")


def resnet10(x, state):
    x = relu(norm(conv(x, state, "conv", padding=1), state, "norm"))
    for block in range(4):
        stride, at = 2 if block else 1, f"blocks.{block}"
        y = relu(norm(conv(x, state, f"{at}.conv1", stride, 1), state, f"{at}.norm1"))
        y = norm(conv(y, state, f"{at}.conv2", 1, 1), state, f"{at}.norm2")
        short = norm(conv(x, state, f"{at}.shortcut.0", stride), state, f"{at}.shortcut.1") if block else x
        x = relu(y + short)
    return linear(x.mean((2, 3)), state, "classifier")


def pre_resnet20(x, state):
    x = conv(x, state, "conv", padding=1)
    for block in range(6):
        stride, at = 2 if block in (2, 4) else 1, f"blocks.{block}"
        y = conv(relu(norm(x, state, f"{at}.norm1")), state, f"{at}.conv1")
        y = conv(relu(norm(y, state, f"{at}.norm2")), state, f"{at}.conv2", stride, 1)
        y = conv(relu(norm(y, state, f"{at}.norm3")), state, f"{at}.conv3")
        x = y + (x if block % 2 else conv(x, state, f"{at}.shortcut", stride))
    return linear(relu(norm(x, state, "norm")).mean((2, 3)), state, "classifier")


def wide_resnet16(x, state):
    x = conv(x, state, "conv", padding=1)
    for block in range(6):
        stride, at = 2 if block in (2, 4) else 1, f"blocks.{block}"
        y = conv(relu(norm(x, state, f"{at}.norm1")), state, f"{at}.conv1", padding=1)
        y = conv(relu(norm(y, state, f"{at}.norm2")), state, f"{at}.conv2", stride, 1)
        x = y + (x if block % 2 else conv(x, state, f"{at}.shortcut", stride))
    return linear(relu(norm(x, state, "norm")).mean((2, 3)), state, "classifier")


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize(
    ("option", "reference", "settings", "sides"),
    [
        ("mlp", mlp, {"width": 9}, (8, 8)),
        ("tiny_ten", tiny_ten, {"width": 0.25}, (12, 9)),
        ("vgg11", vgg11, {"width": 0.0625}, (64, 32)),
        ("resnet20", resnet14, {"depth": 14, "width": 0.25}, (9, 16)),
        ("resnet18", resnet10, {"depth": 10, "width": 0.0625}, (9, 16)),
        ("pre_resnet164", pre_resnet20, {"depth": 20, "width": 0.25}, (9, 16)),
        ("wide_resnet28_10", wide_resnet16, {"depth": 16, "width": 0.25}, (9, 16)),
    ],
)
def test_agrees_with_a_second_implementation(network, option, reference, settings, sides, kind):
    model = network(option, (3, *sides), norm=kind, **settings).double().eval()
    generator = torch.Generator().manual_seed(1)
    for tensor in model.state_dict().values():  # nothing at the value that would hide a mistake
        if tensor.is_floating_point():
            tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
    images = torch.randn(3, 3, *sides, generator=generator, dtype=torch.float64)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    with torch.no_grad():
        np.testing.assert_allclose(model(images).numpy(), reference(images.numpy(), state), rtol=1e-9, atol=1e-9)


def test_max_pooling_drops_an_odd_row(network):
    model = network("vgg11", (3, 33, 40), width=0.0625).eval()
    images = torch.randn(2, 3, 33, 40, generator=torch.Generator().manual_seed(0))
    assert next(layer.weight.shape for layer in model.modules() if isinstance(layer, nn.Linear)) == (32, 32)
    assert model(images).shape == (2, 10)
