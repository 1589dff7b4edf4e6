"""Sizes and starting weights against what the papers and the published networks say."""

import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from lmc import config

CONF = Path(__file__).resolve().parents[2] / "conf" / "architecture"

# torchvision's published parameter counts of its VGGs for ImageNet, and of their three linear layers.
TORCHVISION_VGG = {11: 132_863_336, 13: 133_047_848, 16: 138_357_544, 19: 143_667_240}
TORCHVISION_CLASSIFIER = (25_088 + 1) * 4_096 + (4_096 + 1) * 4_096 + (4_096 + 1) * 1_000


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("depth", TORCHVISION_VGG)
def test_vgg_has_the_convolutions_of_the_published_ones(network, depth):
    model = network(f"vgg{depth}", norm="none", classifier_depth=0)
    assert parameters(model) - (512 + 1) * 10 == TORCHVISION_VGG[depth] - TORCHVISION_CLASSIFIER


def test_vgg_classifier_is_that_of_garipov(network):
    without, three = (parameters(network("vgg16", norm="none", classifier_depth=depth)) for depth in (0, 2))
    assert three - without == 2 * (512 + 1) * 512


@pytest.mark.parametrize(("option", "millions"), [("tiny_ten", 0.09), ("resnet20", 0.27), ("resnet32", 0.47)])
def test_size_is_the_published_one(network, option, millions):
    # He et al. 2016, Table 6: ResNet20 0.27 M; Tatro et al. 2020: TinyTen 0.09 M, ResNet32 0.47 M.
    assert round(parameters(network(option)) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("option", "settings", "classes", "millions"),
    [
        ("pre_resnet164", {}, 10, 1.70),
        ("wide_resnet28_10", {}, 10, 36.5),
        ("wide_resnet28_10", {"depth": 40, "width": 4}, 10, 8.9),
        ("wide_resnet28_10", {"depth": 16, "width": 8}, 10, 11.0),
        ("wide_resnet28_10", {"depth": 22, "width": 8}, 10, 17.2),
        ("wide_resnet28_10", {"depth": 40, "width": 1}, 10, 0.6),
    ],
)
def test_size_of_what_comes_after_resnet_is_the_published_one(network, option, settings, classes, millions):
    # Garipov et al. 2018: PreResNet164; the tables of Zagoruyko & Komodakis 2016: WRN-d-k.
    digits = len(str(millions).partition(".")[2])
    assert round(parameters(network(option, classes=classes, **settings)) / 1e6, digits) == millions


def test_resnet18_is_that_of_torchvision_with_another_stem(network):
    # torchvision's published count for ImageNet, 11,689,512, with 3 x 3 for 7 x 7 and 10 for 1,000 classes.
    assert parameters(network("resnet18")) == 11_689_512 - 64 * 3 * (7 * 7 - 3 * 3) - (512 + 1) * (1_000 - 10)


def test_the_channels_of_a_resnet_are_in_its_key_only_where_they_differ():
    # Networks that were trained before there was a choice are still found.
    keys = {
        option: config.identity(
            OmegaConf.to_container(OmegaConf.load(CONF / f"{option}.yaml")), "architecture", ("input_shape", "classes")
        )
        for option in ("resnet20", "resnet18")
    }
    assert set(keys["resnet20"]) == {"_target_", "depth", "width", "norm"}
    assert keys["resnet18"]["channels"] == [64, 128, 256, 512]


def test_tiny_ten_with_biases_is_the_published_one(network):
    # Eight convolutions with bias, scale and shift, and 64 x 10 + 10 (NeuronAlignment, models/tiny_ten.py).
    convs = [(3, 16, 3), (16, 16, 3), (16, 32, 3), (32, 32, 3), (32, 32, 3), (32, 64, 3), (64, 64, 3), (64, 64, 1)]
    assert parameters(network("tiny_ten", norm="layer")) == sum(a * b * k * k + 3 * b for a, b, k in convs) + 650


def test_weights_may_be_left_as_pytorch_draws_them(network):
    # torch.nn.Linear's documentation: all uniform in +-1 / sqrt(inputs), hence of variance 1 / (3 inputs).
    drawn = network("mlp", (1, 28, 28), initialisation="torch").hidden[0]
    bound = 28**-1
    assert drawn.weight.abs().max() <= bound
    assert drawn.bias.abs().max() <= bound
    assert float(drawn.weight.detach().var() * 3 / bound**2) == pytest.approx(1, rel=0.01)
    assert drawn.bias.abs().min() > 0


@pytest.mark.parametrize("classes", [10, 100, 120, 200])
def test_tiny_ten_is_the_same_for_every_number_of_classes(network, classes):
    def layers(model):
        return [(m.weight.shape, m.stride, m.padding) for m in model.modules() if isinstance(m, nn.Conv2d)]

    assert layers(network("tiny_ten", (3, 64, 64), classes)) == layers(network("tiny_ten"))


@pytest.mark.parametrize("option", ["tiny_ten", "vgg11", "resnet20", "resnet18", "pre_resnet164"])
def test_width_multiplies_every_channel(network, option):
    def channels(model):
        return [m.weight.shape[0] for m in model.modules() if isinstance(m, nn.Conv2d)]

    assert channels(network(option, width=2)) == [2 * count for count in channels(network(option))]
    assert channels(network(option, width=0.5)) == [count // 2 for count in channels(network(option))]
    assert min(channels(network(option, width=1e-3))) == 1


def test_width_of_a_wide_resnet_is_that_of_its_stages(network):
    model = network("wide_resnet28_10", depth=10, width=2)
    assert [m.weight.shape[0] for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)] == [
        16, 32, 32, 64, 64, 128, 128
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("option", "settings", "gain", "fan"),
    [
        ("mlp", {}, 2, 1),
        ("mlp", {"initialisation": "lecun"}, 1, 1),
        ("vgg11", {}, 2, 1),
        ("resnet20", {}, 2, 0),
        ("pre_resnet164", {"depth": 11, "width": 4}, 2, 0),
        ("wide_resnet28_10", {"depth": 10, "width": 2}, 2, 0),
    ],
)
def test_hidden_weights_are_drawn_after_he_or_lecun(network, option, settings, gain, fan):
    hidden = [
        layer
        for name, layer in network(option, **settings).named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and name != "classifier" and layer.weight.numel() > 4_000
    ]
    assert len(hidden) >= 3
    for layer in hidden:
        connections = layer.weight.shape[fan] * math.prod(layer.weight.shape[2:])
        assert layer.weight.var().item() == pytest.approx(gain / connections, rel=0.1)


def test_tiny_ten_weights_are_drawn_after_glorot(network):
    for layer in network("tiny_ten", width=2).modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 4_000:
            out, inputs, *kernel = layer.weight.shape
            assert layer.weight.var().item() == pytest.approx(2 / ((out + inputs) * math.prod(kernel)), rel=0.1)


@pytest.mark.parametrize(
    ("option", "depth", "last"),
    [("resnet20", 110, "conv2"), ("pre_resnet164", 164, "conv3"), ("wide_resnet28_10", 112, "conv2")],
)
def test_deep_residual_network_without_norm_starts_at_a_usable_scale(network, photographs, option, depth, last):
    deep = network(option, depth=depth, norm="none", width=1)
    assert 0.01 < deep(photographs).std() < 10
    with torch.no_grad():  # the control: without the smaller start the sum of 54 branches explodes
        for block in deep.blocks:
            block.get_submodule(last).weight *= math.sqrt(len(deep.blocks))
    assert deep(photographs).std() > 1e3


def test_a_shortcut_of_three_by_three_is_that_of_git_rebasin(network):
    # Two halving shortcuts, 16 to 32 and 32 to 64 channels: nine weights for one; the feature maps are the same.
    plain, wide = network("resnet20"), network("resnet20", shortcut_kernel=3)
    assert parameters(wide) - parameters(plain) == 8 * (16 * 32 + 32 * 64)
    images = torch.zeros(2, 3, 32, 32)
    assert wide(images).shape == plain(images).shape
