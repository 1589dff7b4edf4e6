import pytest
import torch
from torch import nn

from lmc.seeding import generator
from lmc.state import of_model
from lmc.statistics.forward import end_after, evaluating, run, tie


class Shared(nn.Module):
    """One layer under two names, and one that holds the same tensor as another."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.other = nn.Linear(4, 4, bias=False)
        self.other.weight = self.first.weight

    def forward(self, inputs):
        return self.other(self.again(self.first(inputs)))


def test_the_given_tensors_are_used_and_the_model_is_left_alone():
    model, inputs = Shared(), torch.randn(3, 4, generator=generator(0))
    before = of_model(model)
    doubled = {name: 2 * tensor for name, tensor in before.items()}
    with evaluating(model, doubled) as network:
        found = network(inputs)
    weight, bias = doubled["first.weight"], doubled["first.bias"]
    torch.testing.assert_close(found, ((inputs @ weight.T + bias) @ weight.T + bias) @ weight.T)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not found.requires_grad


def test_training_flags_are_put_back_even_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2))
    model[1].eval()
    flags = [module.training for module in model.modules()]
    with evaluating(model, of_model(model), [model[2]]):
        assert [module.training for module in model.modules()] == [False, False, False, True]
    assert [module.training for module in model.modules()] == flags
    with pytest.raises(RuntimeError, match="shapes"), evaluating(model, of_model(model)) as network:
        network(torch.zeros(3, 5))
    assert [module.training for module in model.modules()] == flags


def test_work_is_done_in_float32():
    model, inputs = nn.Linear(64, 8), torch.randn(5, 64, generator=generator(0))
    state = of_model(model)
    exact = inputs.double() @ state["weight"].double().T + state["bias"].double()
    precision = torch.get_float32_matmul_precision()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with evaluating(model, state) as network:
            found = network(inputs)
        rounded = model(inputs)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 1e-5 < (rounded - exact).abs().max()
    half = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
    with evaluating(model, half) as network:
        assert network(inputs).dtype == torch.float32
    assert torch.get_float32_matmul_precision() == precision


def test_tie_gives_every_name_of_a_shared_layer_the_same_tensors():
    model = Shared()
    state = of_model(model)
    state["first.bias"] += 1
    tied = tie(model, state)
    assert torch.equal(tied["again.bias"], state["first.bias"])
    assert not torch.equal(state["again.bias"], state["first.bias"])
    assert set(tied) == set(state)


def test_a_pass_ends_after_so_many_calls_of_a_module():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model.append(model[0])
    before, calls = of_model(model), []
    for layer in (model[0], model[2]):
        layer.register_forward_pre_hook(lambda module, inputs: calls.append(module))
    for times, expected in ((1, [model[0]]), (2, [model[0], model[2], model[0]])):
        calls.clear()
        run(model, before, [torch.zeros(3, 4)] * 2, [end_after(model[0], times)])
        assert calls == 2 * expected
    assert not model[0]._forward_hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
