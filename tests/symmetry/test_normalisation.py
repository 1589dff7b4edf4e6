"""Folding of norms and orthogonal maps of residual streams: the function stays, and what does not fit is refused."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torchvision.models import VisionTransformer

from lmc import seeding, state
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry import transform
from lmc.symmetry.discover import discover
from lmc.symmetry.normalisation import fold, foldable, mapped_axes
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry
from lmc.symmetry.transform import OrthogonalMap, map_streams


class Transformer(nn.Module):
    """Tokens of 5 numbers in a stream of 8; two blocks, `final` normalises what the last layer reads."""

    def __init__(self, norm: Callable[[int], nn.Module], *, final: bool = True, bias: bool = True, post: bool = False):
        super().__init__()
        self.enter, self.positions = nn.Linear(5, 8), nn.Parameter(torch.zeros(4, 8))
        self.norms = nn.ModuleList(norm(8) for _ in range(4))
        self.attentions = nn.ModuleList(nn.MultiheadAttention(8, 2, bias=bias, batch_first=True) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(8, 9, bias=bias) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(9, 8) for _ in range(2))
        self.final, self.leave = norm(8) if final else nn.Identity(), nn.Linear(8, 3)
        self.post = post

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x) + self.positions
        for block in range(2):
            before, after = self.norms[2 * block], self.norms[2 * block + 1]
            attention, up, down = self.attentions[block], self.up[block], self.down[block]
            if self.post:
                x = before(x + attention(x, x, x, need_weights=False)[0])
                x = after(x + down(functional.gelu(up(x))))
            else:
                y = before(x)
                x = x + attention(y, y, y, need_weights=False)[0]
                x = x + down(functional.gelu(up(after(x))))
        return self.leave(self.final(x).mean(1))


class RootMeanSquare(nn.Module):
    """As language models write it down."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Language(nn.Module):
    """A tiny network of transformers that takes tokens."""

    def __init__(self, network: nn.Module, **arguments: bool) -> None:
        super().__init__()
        self.network, self.leave, self.arguments = network, nn.Linear(8, 3), arguments

    def forward(self, tokens: Tensor) -> Tensor:
        return self.leave(self.network(tokens, **self.arguments).last_hidden_state)


def vision_transformer() -> nn.Module:
    return VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=12, num_classes=3
    )


def llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
    )
    return Language(transformers.LlamaModel(config), use_cache=False)


def hugging_face_vision() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
    )
    return Language(transformers.ViTModel(config, add_pooling_layer=False))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=True)
    layers = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(5, 8), layers, nn.Linear(8, 3))


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    centred: bool = True  # whether a norm subtracts the mean
    bare: bool = False  # whether the mean of the stream matters
    norms: int = 5
    rounding: float = 1e-12  # of the outputs, in float64


CASES = {
    "torchvision": Case(vision_transformer, (3, 8, 8)),
    "torch encoder": Case(encoder, (4, 5)),
    "LayerNorm": Case(lambda: Transformer(nn.LayerNorm), (4, 5)),
    "LayerNorm, read bare": Case(lambda: Transformer(nn.LayerNorm, final=False), (4, 5), bare=True, norms=4),
    "RMSNorm": Case(lambda: Transformer(nn.RMSNorm), (4, 5), centred=False, bare=True),
    "RMSNorm by hand": Case(lambda: Transformer(RootMeanSquare, bias=False), (4, 5), centred=False, bare=True),
    "without scales": Case(lambda: Transformer(lambda n: nn.LayerNorm(n, elementwise_affine=False)), (4, 5), norms=1),
    "transformers' ViT": Case(hugging_face_vision, (3, 8, 8)),
    # Its norms compute in float32, whatever the type of the network.
    "transformers' Llama": Case(llama, (0,), centred=False, bare=True, rounding=1e-6),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Tensor, Symmetry]:
    return (request.param, *prepared(CASES[request.param]))


def prepared(case: Case) -> tuple[nn.Module, Tensor, Symmetry]:
    with seeding.isolated(0, "normalisation"):
        model = case.make().eval().double()
        for parameter in model.parameters():
            nn.init.normal_(parameter, mean=0.3, std=0.5)
        inputs = torch.randn(3, *case.shape, dtype=torch.float64) if any(case.shape) else torch.randint(0, 11, (3, 5))
    return model, inputs, discover(model, inputs)


def difference(model: nn.Module, inputs: Tensor, one: State, other: State) -> float:
    """Of the outputs, relative to their size."""
    with torch.no_grad():
        ours, theirs = (functional_call(model, each, (inputs,), tie_weights=False) for each in (one, other))
    return ((ours - theirs).norm() / ours.norm()).item()


def drawn(symmetry: Symmetry, seed: int) -> dict[str, Tensor]:
    """A random orthogonal matrix for each stream, with the ones fixed where a norm centres."""
    found = {}
    for name, stream in foldable(symmetry).items():
        generator, size = torch.Generator().manual_seed(seed), symmetry.groups[name].size
        whole = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator)).Q
        if stream.centred:
            ones = torch.cat([torch.ones(size, 1), torch.eye(size)[:, 1:]], 1).double()
            basis = torch.linalg.qr(ones).Q
            inner = torch.linalg.qr(whole[1:, 1:]).Q
            whole = basis @ torch.block_diag(torch.ones(1, 1, dtype=torch.float64), inner) @ basis.T
        found[name] = whole
    return found


def test_what_a_stream_is(case: tuple[str, nn.Module, Tensor, Symmetry]):
    name, _, _, symmetry = case
    (stream,) = symmetry.streams.values()
    expected = CASES[name]
    found = (stream.is_residual, stream.centred, stream.bare, len(stream.norms), stream.obstacle)
    assert found == (True, expected.centred, expected.bare, expected.norms, None)


def test_folding_keeps_the_function_and_leaves_norms_without_scale(case: tuple[str, nn.Module, Tensor, Symmetry]):
    _, model, inputs, symmetry = case
    weights = state.of_model(model)
    before = {name: tensor.clone() for name, tensor in weights.items()}
    folded = fold(weights, symmetry)
    assert all(torch.equal(weights[name], before[name]) for name in before)
    assert difference(model, inputs, weights, folded) < CASES[case[0]].rounding
    model.load_state_dict(folded)  # the same architecture
    model.load_state_dict(before)
    for group, stream in foldable(symmetry).items():
        for norm in stream.norms:
            assert norm.scale is None or torch.equal(folded[norm.scale], torch.ones_like(folded[norm.scale]))
            assert norm.shift is None or not folded[norm.shift].any()
        if not stream.bare:
            for axis in mapped_axes(symmetry, group):
                assert folded[axis.tensor].mean(axis.dim).abs().max() < 1e-14
    again = fold(folded, symmetry)
    assert all(torch.allclose(again[name], folded[name], rtol=0, atol=1e-14) for name in folded)


def test_an_orthogonal_map_keeps_the_function_of_a_folded_network(case: tuple[str, nn.Module, Tensor, Symmetry]):
    name, model, inputs, symmetry = case
    weights = state.of_model(model)
    matrices = drawn(symmetry, 1)
    mapped = map_streams(fold(weights, symmetry), symmetry, matrices)
    assert difference(model, inputs, weights, mapped) < CASES[name].rounding
    # The control: scales that are not folded do not commute with the map.
    if symmetry.streams[next(iter(matrices))].affine:
        assert difference(model, inputs, weights, map_streams(weights, symmetry, matrices)) > 1e-3


def test_a_map_and_a_permutation_together_keep_the_function(
    case: tuple[str, nn.Module, Tensor, Symmetry], tmp_path: Path
):
    name, model, inputs, symmetry = case
    weights = state.of_model(model)
    matrices = drawn(symmetry, 2)
    units = dict(Permutation.random(symmetry, torch.Generator().manual_seed(3)))
    units |= {name: torch.arange(len(matrix)) for name, matrix in matrices.items()}
    found = OrthogonalMap(Permutation(symmetry, units), matrices)
    mapped = found.apply(weights)
    assert difference(model, inputs, weights, mapped) < CASES[name].rounding
    assert {name: tensor.dtype for name, tensor in mapped.items()} == {n: t.dtype for n, t in weights.items()}
    transform.save(found, tmp_path)
    again = transform.load(tmp_path, symmetry)
    assert isinstance(again, OrthogonalMap)
    assert again.permutation == found.permutation
    assert all(torch.equal(again.matrices[name], found.matrices[name]) for name in found.matrices)
    twice = again.apply(weights)
    assert all(torch.allclose(twice[name], mapped[name], rtol=0, atol=1e-13) for name in mapped)


def test_a_permutation_matrix_does_what_the_permutation_does(case: tuple[str, nn.Module, Tensor, Symmetry]):
    _, model, _, symmetry = case
    weights = state.of_model(model)
    (stream,) = foldable(symmetry)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(4))
    identity = Permutation.identity(symmetry)
    by_matrix = OrthogonalMap(identity, {stream: torch.eye(8)[order]}).apply(weights)
    by_order = OrthogonalMap(Permutation(symmetry, {**identity, stream: order}), {}).apply(weights)
    for name in weights:
        assert torch.allclose(by_matrix[name], by_order[name], atol=1e-12)


def test_a_layer_norm_without_its_mean_needs_maps_that_keep_it():
    _, _, symmetry = prepared(CASES["LayerNorm"])
    (stream,) = foldable(symmetry)
    whole = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    identity = Permutation.identity(symmetry)
    with pytest.raises(ValueError, match="does not keep the mean"):
        OrthogonalMap(identity, {stream: whole})
    with pytest.raises(ValueError, match="not an orthogonal matrix of 8 x 8"):
        OrthogonalMap(identity, {stream: 2 * torch.eye(8)})
    with pytest.raises(ValueError, match="no residual stream"):
        OrthogonalMap(identity, {"up.0": torch.eye(9)})
    moved = Permutation(symmetry, {**identity, stream: torch.arange(8).flip(0)})
    with pytest.raises(ValueError, match="permuted too"):
        OrthogonalMap(moved, {stream: torch.eye(8)})


def test_in_float32_nothing_but_rounding_changes():
    model, inputs, symmetry = prepared(CASES["torchvision"])
    weights = {name: tensor.float() for name, tensor in state.of_model(model).items()}
    mapped = OrthogonalMap(Permutation.identity(symmetry), drawn(symmetry, 1)).apply(weights)
    assert difference(model.float(), inputs.float(), weights, mapped) < 1e-5


class Tied(nn.Module):
    """The table of embeddings reads what its vectors have become."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 9), nn.Linear(9, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        x = x + self.down(torch.relu(self.up(x)))
        return functional.linear(self.norm(x), self.table.weight)


class Scaled(nn.Module):
    """LayerScale."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.leave = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        self.up, self.down, self.gamma = nn.Linear(8, 9), nn.Linear(9, 8), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(self.norm(x + self.gamma * self.down(torch.relu(self.up(self.norm(x))))))


class Borrowed(nn.Module):
    """Two norms with one scale and a shift each."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave, self.scale = nn.Linear(5, 8), nn.Linear(8, 3), nn.Parameter(torch.ones(8))
        self.up, self.down = nn.Linear(8, 9), nn.Linear(9, 8)
        self.one, self.two = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + self.down(torch.relu(self.up(functional.layer_norm(x, (8,), self.scale, self.one))))
        return self.leave(functional.layer_norm(x, (8,), self.scale, self.two))


class InPlace(nn.Module):
    """What is scaled in place is added to the stream after."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave, self.norm = nn.Linear(5, 8), nn.Linear(8, 3), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 9), nn.Linear(9, 8)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x.mul_(self.scale)
        return self.leave(self.norm(x + self.down(torch.relu(self.up(self.norm(x))))))


@pytest.mark.parametrize(
    ("make", "example", "reason"),
    [
        (lambda: Transformer(nn.LayerNorm, post=True), torch.zeros(2, 4, 5), "post-norm"),
        (Scaled, torch.zeros(2, 4, 5), r"'gamma' scales what is added to it \(LayerScale\)"),
        (Borrowed, torch.zeros(2, 4, 5), r"'scale' belongs to several norms"),
        (InPlace, torch.zeros(2, 4, 5), "mul acts on its units one by one"),
        (Tied, torch.zeros(2, 4, dtype=torch.long), r"'table\.weight' is used in several ways \(tied weights\)"),
        (
            lambda: nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)),
            torch.zeros(2, 5),
            "relu acts on its units one by one",
        ),
        (lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(2, 5), "nothing to fold"),
    ],
    ids=["post-norm", "LayerScale", "one scale, two norms", "in place", "tied", "nonlinearity", "no norm"],
)
def test_what_cannot_be_folded_is_refused_in_one_line(make: Callable[[], nn.Module], example: Tensor, reason: str):
    model = make()
    symmetry = discover(model, example)
    with pytest.raises(UserError, match=reason) as refused:
        fold(state.of_model(model), symmetry)
    assert "\n" not in str(refused.value)


def test_a_shift_that_no_bias_can_take_is_refused():
    model, _, symmetry = prepared(Case(lambda: Transformer(nn.LayerNorm, bias=False), (4, 5)))
    weights = state.of_model(model)
    with pytest.raises(UserError, match=r"'norms\.\d\.bias' cannot be folded: .* has no bias") as refused:
        fold(weights, symmetry)
    assert "\n" not in str(refused.value)
    # A shift of zero needs none.
    shifts = {norm.shift for stream in symmetry.streams.values() for norm in stream.norms}
    fold({name: torch.zeros_like(t) if name in shifts else t for name, t in weights.items()}, symmetry)


def test_a_tied_bias_and_a_layer_used_twice():
    """Whole blocks are shared (ALBERT): one norm, read by one layer, in two places."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.norm, self.leave = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)
            self.up, self.down = nn.Linear(8, 9), nn.Linear(9, 8)
            self.again = self.up

        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            for up in (self.up, self.again):
                x = x + self.down(torch.relu(up(self.norm(x))))
            return self.leave(self.norm(x))

    model, inputs, symmetry = prepared(Case(Shared, (4, 5)))
    weights = state.of_model(model)
    mapped = OrthogonalMap(Permutation.identity(symmetry), drawn(symmetry, 1)).apply(weights)
    assert torch.equal(mapped["up.weight"], mapped["again.weight"])
    assert torch.equal(mapped["up.bias"], mapped["again.bias"])
    assert difference(model, inputs, weights, mapped) < 1e-12


def test_a_map_of_another_network_is_not_read(tmp_path: Path):
    _, _, one = prepared(CASES["LayerNorm"])
    _, _, other = prepared(CASES["torchvision"])
    transform.save(OrthogonalMap.folding(one), tmp_path)
    with pytest.raises(UserError, match="holds no orthogonal map of this network"):
        transform.load(tmp_path, other)
