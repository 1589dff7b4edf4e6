"""What every architecture promises; a new file in conf/architecture is tested without a change here."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lmc import seeding
from lmc.state import of_model

CONF = Path(__file__).resolve().parents[2] / "conf" / "architecture"
# Our own; those of other libraries, which have no norm and width to choose, are tested in test_adapted.py.
OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml") if "\nnorm:" in path.read_text(encoding="utf-8"))
NORMS = ("batch", "layer", "none")
NARROW = {
    "mlp": {"width": 16},
    "pre_resnet164": {"depth": 20, "width": 0.125},
    "wide_resnet28_10": {"depth": 10, "width": 0.125},
}
# What torch.export may leave of a network: the operators that the discovery of symmetries has to know.
OPERATORS = {
    "aten.linear.default", "aten.conv2d.default", "aten.batch_norm.default", "aten.layer_norm.default",
    "aten.permute.default", "aten.relu.default", "aten.max_pool2d.default", "aten.mean.dim", "aten.flatten.using_ints",
    "aten.add.Tensor",
}  # fmt: skip

assert OPTIONS


def narrow(option):
    return NARROW.get(option, {"width": 0.125})


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("option", OPTIONS)
class TestEveryArchitecture:
    def test_gives_one_finite_logit_for_each_class(self, network, photographs, option, norm):
        logits = network(option, classes=7, norm=norm, **narrow(option))(photographs)

        assert logits.shape == (4, 7)
        assert logits.isfinite().all()
        assert logits.std() > 1e-3

    def test_has_the_norm_it_was_asked_for(self, network, option, norm):
        model = network(option, norm=norm, **narrow(option))
        kinds = {"batch": (nn.BatchNorm1d, nn.BatchNorm2d), "layer": nn.LayerNorm}
        found = {name: sum(isinstance(module, kind) for module in model.modules()) for name, kind in kinds.items()}

        assert all((count > 0) == (name == norm) for name, count in found.items())
        for layer in model.modules():  # biases where no BatchNorm subtracts them
            if isinstance(layer, nn.Conv2d):
                assert (layer.bias is not None) == (norm != "batch")

    def test_works_on_a_state_that_is_handed_in(self, network, photographs, option, norm):
        model, other = (network(option, seed=seed, norm=norm, **narrow(option)).eval() for seed in (0, 1))
        before = of_model(model)
        logits = torch.func.functional_call(model, of_model(other), (photographs,))

        torch.testing.assert_close(logits, other(photographs))
        assert not torch.allclose(logits, model(photographs))
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_channels_last_changes_nothing(self, network, photographs, option, norm):
        model = network(option, norm=norm, **narrow(option)).eval()
        expected = model(photographs)
        last = model.to(memory_format=torch.channels_last)(photographs.to(memory_format=torch.channels_last))

        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("option", OPTIONS)
class TestEveryOption:
    def test_seed_decides_the_weights(self, network, option):
        first, again, other = (of_model(network(option, seed=seed, **narrow(option))) for seed in (0, 0, 1))

        assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
        assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())

    def test_takes_grey_images_and_other_numbers_of_classes(self, network, option):
        images = torch.randn(2, 1, 64, 48, generator=seeding.generator(0))
        for classes in (2, 200):
            assert network(option, (1, 64, 48), classes, **narrow(option)).eval()(images).shape == (2, classes)

    def test_gradients_reach_every_parameter(self, network, photographs, option):
        model = network(option, **narrow(option))
        model(photographs).square().sum().backward()

        assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("option", ["mlp", "tiny_ten", "vgg11", "resnet20", "pre_resnet164", "wide_resnet28_10"])
def test_export_leaves_few_operators(network, photographs, option, norm):
    settings = narrow(option) | ({"depth": 8} if option == "resnet20" else {})
    model = network(option, norm=norm, **settings).eval()
    nodes = torch.export.export(model, (photographs,), strict=False).graph.nodes
    found = {str(node.target) for node in nodes if node.op == "call_function"}

    assert found <= OPERATORS
    assert len(found) >= 3
