"""What lies between a user's model and its graph: what is accepted, and one clear line for what is not."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lmc import seeding, state
from lmc.errors import UserError
from lmc.symmetry.discover import discover
from lmc.symmetry.example import Example
from lmc.symmetry.structure import Symmetry
from lmc.symmetry.trace import trace
from lmc.symmetry.verify import SymmetryError, verify


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


class Hardwired(nn.Module):
    def __init__(self, noise: bool = False) -> None:
        super().__init__()
        self.one, self.noise = nn.Linear(4, 4), noise

    def forward(self, x: Tensor) -> Tensor:
        if self.noise:
            return self.one(x) + torch.randn_like(x)
        return functional.dropout(self.one(x), 0.5, training=True)


def sharing() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = nn.Parameter(model[0].weight.detach().view(4, 4))
    return model


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3), nn.ReLU())


def with_parameter(parameter: nn.Parameter) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = nn.Linear(4, 4)
        model.register_parameter("odd", parameter)
        return model

    return make


@pytest.mark.parametrize(
    ("make", "example", "message"),
    [
        (Branching, torch.zeros(2, 4), r"Branching cannot be traced .*test_trace.py, line \d+, in forward.*x.sum\(\)"),
        (
            lambda: nn.Linear(3, 2),
            torch.zeros(2, 4),
            r"Linear does not accept an input of shape \(2, 4\): .*mat1 and mat2",
        ),
        (lambda: nn.Linear(4, 2), (torch.zeros(2, 4),) * 2, r"does not accept inputs of shapes \(2, 4\), \(2, 4\)"),
        (lambda: nn.Linear(4, 2), {"y": torch.zeros(2, 4)}, "does not accept .*unexpected keyword argument 'y'"),
        (lambda: nn.Linear(4, 2), (torch.zeros(2, 4), 3), "holds a int where a tensor is expected"),
        (with_parameter(nn.Parameter(torch.zeros(2, dtype=torch.complex64))), torch.zeros(2, 4), "odd is complex"),
        (lambda: nn.Linear(4, 2), torch.zeros(2, 4, dtype=torch.complex64), "example is complex or quantised"),
        (sharing, torch.zeros(2, 4), "0.weight and 2.weight share memory but are not one tensor"),
        (Hardwired, torch.zeros(2, 4), r"random in evaluation mode too: dropout .*test_trace.py.*training=True"),
        (lambda: Hardwired(noise=True), torch.zeros(2, 4), r"random in evaluation mode too: randn_like .*randn_like"),
        (lazy, torch.zeros(2, 4), "0.weight has no shape yet; run the model once"),
        (lambda: nn.Linear(4, 2), torch.zeros(2, 4, device="meta"), r"Linear is on cpu, the example on meta; move one"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_bad_input_is_one_clear_line(make: Callable[[], nn.Module], example: Example, message: str):
    with pytest.raises(UserError, match=message) as caught:
        discover(make(), example)
    assert "\n" not in str(caught.value)


def test_training_mode_with_dropout_is_announced_once_and_left_as_it_was(caplog: pytest.LogCaptureFixture):
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.1), nn.Dropout(0.2), nn.Linear(5, 2)).train()
    with caplog.at_level(logging.WARNING):
        symmetry = discover(model, torch.zeros(2, 4))
    (message,) = (record.getMessage() for record in caplog.records)
    assert "in training mode with dropout (1)" in message
    assert all(module.training for module in model.modules())
    assert [group.size for group in symmetry.groups.values()] == [5]


class Several(nn.Module):
    """Two inputs, of which one holds token ids; outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.one, self.two = nn.Embedding(7, 5), nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, tokens: Tensor, x: Tensor) -> dict[str, Tensor | None]:
        return {"logits": self.two(torch.tanh(self.table(tokens) + self.one(x))), "nothing": None}


@pytest.mark.parametrize("named", [False, True], ids=["positional", "by keyword"])
def test_several_inputs(named: bool):
    tokens, x = torch.tensor([1, 6, 2]), torch.zeros(3, 3)
    example: Example = {"x": x, "tokens": tokens} if named else (tokens, x)
    model = Several()
    symmetry = discover(model, example)
    assert [group.size for group in symmetry.groups.values()] == [5]
    assert verify(model, symmetry, example).error < 1e-12
    # Run side by side, the trace computes what the model does.
    traced = trace(model, example)
    values = dict(traced.run([state.of_model(model)], {"x": x + 1, "tokens": tokens} if named else (tokens, x + 1)))
    (result,) = values[traced.module.graph.output_node().all_input_nodes[0]]
    torch.testing.assert_close(result, model(tokens, x + 1)["logits"])


def test_a_model_without_weights_is_traced_and_not_proved():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4000, 3), nn.GELU(), nn.Flatten(), nn.Linear(4000 * 36, 100_000))
    symmetry = discover(model, torch.zeros(1, 3, 8, 8))  # 57 GB of weights
    assert [group.size for group in symmetry.groups.values()] == [4000]
    with pytest.raises(UserError, match="meta device and has no weights to run"):
        verify(model, symmetry, torch.zeros(1, 3, 8, 8))


def test_tracing_leaves_the_model_as_it_was():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.one, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.one(x))

    model = Counting().train()
    model.norm.eval()
    before, ids = state.of_model(model), [id(parameter) for parameter in model.parameters()]
    discover(model, torch.zeros(3, 4))
    assert [module.training for module in model.modules()] == [True, True, False]
    assert [id(parameter) for parameter in model.parameters()] == ids
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.norm._forward_pre_hooks


class Rounding(nn.Module):
    """Casts to float32 on the way, as the RMSNorm of many language models does."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 32), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        y = x.float()
        return self.two((y * torch.rsqrt(y.square().mean(-1, keepdim=True))).to(x.dtype))


def test_rounding_inside_a_model_is_no_change():
    model = Rounding()
    assert verify(model, discover(model, torch.zeros(2, 4)), torch.zeros(2, 4)).error < 1e-12


def test_half_precision_models_are_proved_in_float64():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).to(torch.bfloat16)
    example = torch.zeros(2, 4, dtype=torch.bfloat16)
    assert verify(model, discover(model, example), example).error < 1e-12
    assert model[0].weight.dtype == torch.bfloat16


def test_controls_stay_visible_through_a_deep_network():
    """Without live statistics the signal of the first layer would be gone after forty gates."""
    with seeding.isolated(0, "deep"):
        layers = [layer for _ in range(20) for layer in (nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Hardswish())]
        model = nn.Sequential(nn.Conv2d(2, 4, 1), *layers, nn.Conv2d(4, 2, 1)).eval()
    proof = verify(model, discover(model, torch.zeros(2, 2, 6, 6)), torch.zeros(2, 2, 6, 6))
    assert proof.error < 1e-12
    assert proof.control > 1e-4


def test_a_wreath_claimed_too_large_is_refused():
    """A group with an inside that follows nothing: permuting it must be caught."""
    model = nn.Sequential(nn.Conv1d(2, 6, 1), nn.Tanh(), nn.Conv1d(6, 6, 1, groups=3), nn.Tanh(), nn.Conv1d(6, 2, 1))
    example = torch.zeros(2, 2, 3)
    symmetry = discover(model, example)
    inner = next(group for group in symmetry.groups.values() if group.outer)
    broken = type(inner)(inner.name, inner.size, inner.axes[:1], inner.sites, inner.outer)
    false = Symmetry({**symmetry.groups, inner.name: broken}, symmetry.shapes, symmetry.parameters)
    with pytest.raises(SymmetryError, match="changes the outputs by"):
        verify(model, false, example)


def test_constants_that_are_the_same_everywhere_move():
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)
            self.register_buffer("same", torch.zeros(4), persistent=False)
            self.register_buffer("other", torch.arange(5.0), persistent=False)
            self.side, self.last = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(torch.tanh(self.one(x) + self.same)) + self.last(torch.tanh(self.side(x) + self.other))

    symmetry = discover(Constant(), torch.zeros(2, 3))
    assert [group.size for group in symmetry.groups.values()] == [4]
    assert symmetry.fixed["a constant of the network"] == 5
