"""Every correction on the networks of this project, with the symmetry that they have."""

import pytest
import torch
from torch import nn

from lmc.architecture.mlp import MLP
from lmc.architecture.pre_resnet import PreResNet
from lmc.architecture.resnet import ResNet
from lmc.architecture.tiny_ten import TinyTen
from lmc.architecture.vgg import VGG
from lmc.architecture.wide_resnet import WideResNet
from lmc.dataset.augmentation import Augmentation
from lmc.dataset.images import Dataset, Images
from lmc.seeding import generator, isolated
from lmc.state import interpolate, of_model
from lmc.statistics.moments import Calibration
from lmc.statistics.none import NoCorrection
from lmc.statistics.repair import Repair
from lmc.statistics.repair_closed_form import RepairClosedForm
from lmc.statistics.rescale import Rescale
from lmc.statistics.reset import Reset, recompute
from lmc.statistics.reset_data_free import ResetDataFree
from lmc.statistics.reshift import Reshift
from lmc.statistics.temperature import Temperature
from lmc.statistics.variance import variance_ratios
from lmc.symmetry.discover import discover

GIVEN = {"input_shape": (3, 32, 32), "classes": 3}
ARCHITECTURES = {
    "mlp": lambda: MLP(width=12, depth=2, **GIVEN),
    "tiny_ten": lambda: TinyTen(width=0.25, **GIVEN),
    "vgg11": lambda: VGG(depth=11, width=1 / 16, norm="none", **GIVEN),
    "vgg11 batch": lambda: VGG(depth=11, width=1 / 16, **GIVEN),
    "resnet20": lambda: ResNet(depth=20, width=0.25, **GIVEN),
    "pre_resnet11": lambda: PreResNet(depth=11, width=0.25, **GIVEN),
    "wide_resnet10": lambda: WideResNet(depth=10, width=0.5, **GIVEN),
}
HIDDEN = {
    "mlp": 2, "tiny_ten": 8, "vgg11": 10, "vgg11 batch": 10, "resnet20": 21, "pre_resnet11": 16, "wide_resnet10": 13
}  # fmt: skip
"""Hidden layers: those that a network is named after without the last one; the shortcuts of residual ones beside; where
activations come before convolutions also the three norms behind a sum, of two blocks and before the classifier."""
PLAIN = {"examples": 24, "augment": False}
OPTIONS = {
    "none": NoCorrection(),
    "reset": Reset(**PLAIN),
    "repair": Repair(**PLAIN),
    "rescale": Rescale(**PLAIN),
    "reshift": Reshift(**PLAIN),
    "sequential repair": Repair(**PLAIN, sequential=True),
    "sequential rescale": Rescale(**PLAIN, sequential=True),
    "closed form": RepairClosedForm(**PLAIN),
    "data-free reset": ResetDataFree(),
    "temperature": Temperature(after=Reset(**PLAIN), **PLAIN),
}


@pytest.fixture(scope="module")
def images() -> Dataset:
    def draw(count: int, label: str) -> Images:
        labels = torch.arange(count) % 3
        noise = torch.randint(0, 150, (count, 3, 32, 32), generator=generator(0, label))
        return Images((noise + 50 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels)

    return Dataset("d", draw(36, "a"), draw(3, "b"), draw(3, "c"), 3, (0.5,) * 3, (0.25,) * 3, Augmentation(), "-")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def merged(request, images):
    """Architecture, symmetry, two networks whose BatchNorm statistics are those of the images, and hidden layers."""
    networks = []
    for seed in (0, 1, 2):
        with isolated(seed, "weights"):
            network = ARCHITECTURES[request.param]()
        for name, tensor in network.named_parameters():
            if tensor.ndim == 1:
                tensor.data += 0.1 * torch.randn(tensor.shape, generator=generator(seed, name))
        networks.append(network.eval())
    batches = Calibration(images, 24, 512)
    ends = [recompute(network, of_model(network), batches) for network in networks[:2]]
    return networks[2], discover(networks[2], torch.zeros(2, 3, 32, 32)), ends, HIDDEN[request.param]


def outputs(model: nn.Module, state, images: Dataset) -> torch.Tensor:
    model.load_state_dict(state)
    with torch.no_grad():
        return model(images.normalise(images.train.first(24).images))


@pytest.mark.parametrize("option", [option for option in OPTIONS if option != "sequential rescale"])
def test_an_end_stays_and_the_middle_does_not(merged, images, option):
    """To the factor of the temperature. The tolerance is for BatchNorm's n - 1 in place of n where few values enter."""
    model, symmetry, ends, _ = merged
    correct = OPTIONS[option].bind(model, symmetry, ends, images)
    for end, weights in zip(ends, ((1.0, 0.0), (0.0, 1.0)), strict=True):
        found, expected = outputs(model, correct(end, weights), images), outputs(model, end, images)
        if option == "temperature":
            expected = expected * (found.norm() / expected.norm())
        assert (found - expected).norm() < 0.02 * expected.norm()
    middle = interpolate(*ends, 0.5)
    found = correct(middle, (0.5, 0.5))
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {n: (t.dtype, t.shape) for n, t in middle.items()}
    assert outputs(model, found, images).isfinite().all()
    changed = any(not torch.equal(tensor, middle[name]) for name, tensor in found.items())
    has_batch_norm = any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in model.modules())
    assert changed == (option != "none" and (has_batch_norm or "reset" not in option))


@pytest.mark.parametrize("option", ["repair", "sequential rescale"])
def test_the_variance_that_collapsed_is_back_in_every_layer(merged, images, option):
    model, symmetry, ends, count = merged
    middle = interpolate(*ends, 0.5)
    corrected = OPTIONS[option].bind(model, symmetry, ends, images)(middle, (0.5, 0.5))
    found = variance_ratios(model, symmetry, ends, middle, corrected, Calibration(images, 24, 512))
    assert len(found) == count
    assert min(ratio.before for ratio in found) < 0.6
    for ratio in found:
        # REPAIR moves means, so it leaves out a convolution that has no bias and ends in a sum before any BatchNorm.
        if option == "repair" and getattr(model.get_submodule(ratio.layer), "bias", None) is None:
            assert ratio.after < 0.9
        else:
            assert ratio.after == pytest.approx(1, rel=0.1)
