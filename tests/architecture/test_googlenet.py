"""GoogLeNet for small images: its size against the paper's, its symmetry, and what it lacks."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lmc.state import of_model
from lmc.symmetry.discover import discover
from lmc.symmetry.verify import verify

Build = Callable[..., nn.Module]


@pytest.fixture(scope="module")
def small(network: Build) -> nn.Module:
    return network("googlenet", (3, 16, 16), 10).eval()


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_size_is_the_published_one_less_the_auxiliary_classifiers(network: Build) -> None:
    # Tatro et al. 2020: 10.24 M for CIFAR-100. An auxiliary classifier (Szegedy et al. 2015, section 5) is a 1 x 1
    # convolution to 128 channels (with scale and shift), pooled to 4 x 4, and linear layers to 1024 and the classes.
    auxiliary = sum(c * 128 + 2 * 128 + (128 * 16 + 1) * 1024 + (1024 + 1) * 100 for c in (512, 528))
    assert round((size(network("googlenet", classes=100)) + auxiliary) / 1e6, 2) == 10.24


def test_there_are_no_auxiliary_classifiers(small: nn.Module) -> None:
    assert small.aux_logits is False
    assert not any("aux" in name for name in of_model(small))
    small.train()
    logits = small(torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    small.eval()
    assert isinstance(logits, torch.Tensor)  # with them it would be a tuple of three
    assert logits.shape == (4, 10)


def test_feature_maps_have_the_published_sides(small: nn.Module) -> None:
    # Tatro et al. halve twice: 32 x 32 pixels leave the last block as 8 x 8.
    sides = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: sides.update({name: output.shape[-1]})

    watched = {"conv1": 16, "conv3": 16, "inception3a": 8, "inception4a": 4, "inception4e": 4, "inception5b": 4}
    handles = [small.get_submodule(name).register_forward_hook(note(name)) for name in watched]
    with torch.no_grad():
        small(torch.zeros(1, 3, 16, 16))
    for handle in handles:
        handle.remove()
    assert sides == watched


def test_every_branch_is_a_group_and_permuting_keeps_the_function(small: nn.Module) -> None:
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    symmetry = discover(small, images)
    # Three convolutions, then nine blocks: one group for each of the four branches, two more inside the longer ones.
    assert len(symmetry.groups) == 3 + 9 * 6
    assert sum(group.size for group in symmetry.groups.values()) == 64 + 64 + 192 + sum(
        (256, 96, 16, 480, 128, 32, 512, 96, 16, 512, 112, 24, 512, 128, 24, 528, 144, 32, 832, 160, 32)
    ) + sum((832, 160, 32, 1024, 192, 48))
    assert verify(small, symmetry, images, draws=1, controls=1).error < 1e-12


def test_seed_decides_the_weights_and_grey_images_are_taken(network: Build) -> None:
    first, again = (of_model(network("googlenet", (1, 20, 24), 7)) for _ in range(2))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert first["conv1.conv.weight"].shape == (64, 1, 7, 7)
    other = of_model(network("googlenet", (1, 20, 24), 7, seed=1))
    assert not torch.equal(first["inception3a.branch1.conv.weight"], other["inception3a.branch1.conv.weight"])
