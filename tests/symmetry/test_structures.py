"""The structures that networks are built of: each small network's groups are worked out by hand, and proved."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lmc import seeding
from lmc.symmetry.discover import discover
from lmc.symmetry.structure import Symmetry
from lmc.symmetry.verify import verify


def groups(symmetry: Symmetry) -> list[tuple[int, tuple[int, ...]]]:
    """(size, sizes of the outer groups) of every group, sorted."""
    return sorted((group.size, symmetry.lattice(name)[:-1]) for name, group in symmetry.groups.items())


@dataclass(frozen=True)
class Case:
    """A network, an input, the groups it has, and axes that one group must act on."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    groups: list[tuple[int, tuple[int, ...]]]
    tied: list[set[tuple[str, int]]] = field(default_factory=list)


class Run(nn.Module):
    """Named layers and a function of them and the input."""

    def __init__(self, run: Callable[..., Tensor], **layers: nn.Module | Tensor) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, nn.Parameter(layer) if isinstance(layer, Tensor) else layer)
        self._run = run

    def forward(self, x: Tensor) -> Tensor:
        return self._run(self, x)


def plain(size: int) -> tuple[int, tuple[int, ...]]:
    return size, ()


def residual_stream() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        x = m.enter(x)
        x = x + m.down(torch.relu(m.up(x)))
        return m.leave(x + m.scale * m.again(x))

    return Run(
        run,
        enter=nn.Linear(3, 5),
        up=nn.Linear(5, 7),
        down=nn.Linear(7, 5),
        again=nn.Linear(5, 5),
        scale=torch.ones(5),
        leave=nn.Linear(5, 2),
    )


def dense_block() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        one = m.one(x)
        two = m.two(torch.relu(m.norm(one)))
        three = m.three(torch.relu(m.wide(torch.cat([one, two], 1))))
        return m.leave(torch.cat([one, two, three], 1).mean((2, 3)))

    layers = {"one": nn.Conv2d(2, 3, 1), "norm": nn.BatchNorm2d(3), "two": nn.Conv2d(3, 4, 3, padding=1)}
    return Run(run, **layers, wide=nn.BatchNorm2d(7), three=nn.Conv2d(7, 5, 1), leave=nn.Linear(12, 2))


def flattened(channels_last: bool) -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        x = torch.relu(m.one(x))
        return m.leave((x.permute(0, 2, 3, 1) if channels_last else x).flatten(1))

    return Run(run, one=nn.Conv2d(2, 5, 1), leave=nn.Linear(5 * 9, 2))


def in_groups() -> nn.Module:
    """Three groups of 2 input and 4 output channels; the group follows both."""
    layers = [nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(12 * 4, 2))


def depthwise(multiplier: int) -> nn.Module:
    layers = [nn.Conv2d(2, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 5 * multiplier, 3, groups=5), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(5 * multiplier, 3, 1), nn.Flatten(), nn.Linear(12, 2))


def shuffled() -> nn.Module:
    """ShuffleNet v1's unit: two grouped convolutions with a shuffle between; each second group sees both first ones."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        x = torch.relu(m.one(m.enter(x)))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return m.leave(torch.relu(m.two(x)).mean((2, 3)))

    layers = {"enter": nn.Conv2d(2, 6, 1), "one": nn.Conv2d(6, 12, 1, groups=2), "two": nn.Conv2d(12, 10, 1, groups=2)}
    return Run(run, **layers, leave=nn.Linear(10, 2))


def half_shuffled() -> nn.Module:
    """ShuffleNet v2's unit: half of the channels pass, the others are convolved, and both are interleaved."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        x = m.enter(x)
        for step in (m.one, m.two):
            kept, used = x.chunk(2, dim=1)
            x = torch.cat([kept, torch.relu(step(used))], dim=1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).flatten(1, 2)
        return m.leave(x.mean((2, 3)))

    layers = {"enter": nn.Conv2d(2, 8, 1), "one": nn.Conv2d(4, 4, 1), "two": nn.Conv2d(4, 4, 1)}
    return Run(run, **layers, leave=nn.Linear(8, 2))


def gate_of_channels() -> nn.Module:
    """Squeeze and excitation."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        x = m.one(x)
        gate = torch.sigmoid(m.up(torch.relu(m.down(x.mean((2, 3), keepdim=True)))))
        return m.leave((x * gate).mean((2, 3)))

    layers = {"one": nn.Conv2d(2, 6, 1), "down": nn.Conv2d(6, 3, 1), "up": nn.Conv2d(3, 6, 1)}
    return Run(run, **layers, leave=nn.Linear(6, 2))


def gated_halves(how: str) -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        if how == "glu":
            return m.leave(functional.glu(m.both(x)))
        both = m.both(x)
        gate, value = both.chunk(2, -1) if how == "chunk" else (both[:, :6], both[:, 6:])
        return m.leave(functional.silu(gate) * value)

    return Run(run, both=nn.Linear(3, 12), leave=nn.Linear(6, 2))


def normalised_in_groups() -> nn.Module:
    layers = [nn.Conv2d(2, 6, 1), nn.GroupNorm(3, 6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(6, 2))


def root_mean_square() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.RMSNorm(5), nn.GELU(), nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def convnext_block() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        x = m.enter(x)
        y = m.norm(m.depthwise(x).permute(0, 2, 3, 1))
        x = x + m.scale * m.down(functional.gelu(m.up(y))).permute(0, 3, 1, 2)
        return m.leave(x.mean((2, 3)))

    layers = {"enter": nn.Conv2d(2, 5, 1), "depthwise": nn.Conv2d(5, 5, 3, padding=1, groups=5)}
    layers |= {"norm": nn.LayerNorm(5), "up": nn.Linear(5, 9), "down": nn.Linear(9, 5), "leave": nn.Linear(5, 2)}
    return Run(run, **layers, scale=torch.ones(5, 1, 1))


def packed_attention(*, bias: bool) -> nn.Module:
    """torch's own: 3 heads of 4 dimensions in a stream of 12."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        x = m.enter(x)
        x = x + m.attention(x, x, x, need_weights=False)[0]
        return m.leave(x.mean(1))

    attention = nn.MultiheadAttention(12, 3, bias=bias, batch_first=True)
    return Run(run, enter=nn.Linear(3, 12), attention=attention, leave=nn.Linear(12, 2))


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def grouped_query_attention(*, rotary: bool, flag: bool) -> nn.Module:
    """Two key heads of 4 dimensions, each shared by 3 query heads."""

    def turn(x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[-2])[:, None] / torch.tensor([1.0, 10.0])
        angles = torch.cat([angles, angles], -1).to(x.dtype)
        return x * angles.cos() + torch.cat([-x[..., 2:], x[..., :2]], -1) * angles.sin()

    def run(m: nn.Module, x: Tensor) -> Tensor:
        x = m.enter(x)
        query, key, value = heads(m.query(x), 6), heads(m.key(x), 2), heads(m.value(x), 2)
        if rotary:
            query, key = turn(query), turn(key)
        if flag:
            y = functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        else:
            key, value = (t[:, :, None].expand(-1, -1, 3, -1, -1).flatten(1, 2) for t in (key, value))
            y = functional.scaled_dot_product_attention(query, key, value)
        return m.leave((x + m.out(y.transpose(1, 2).flatten(2))).mean(1))

    layers = {"enter": nn.Linear(3, 5), "query": nn.Linear(5, 24), "key": nn.Linear(5, 8, bias=False)}
    return Run(run, **layers, value=nn.Linear(5, 8), out=nn.Linear(24, 5), leave=nn.Linear(5, 2))


def windowed_attention() -> nn.Module:
    """Swin's: packed by one reshape, a table of relative positions for each head."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        x = m.enter(x)
        n, t, _ = x.shape
        query, key, value = m.packed(x).reshape(n, t, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        index = torch.arange(t)[:, None] - torch.arange(t)[None] + t - 1
        bias = m.table[index.reshape(-1)].view(t, t, -1).permute(2, 0, 1)
        weights = (query @ key.transpose(-2, -1) + bias).softmax(-1)
        return m.leave(m.out((weights @ value).transpose(1, 2).reshape(n, t, 8)).mean(1))

    layers = {"enter": nn.Linear(3, 5), "packed": nn.Linear(5, 24), "out": nn.Linear(8, 6), "leave": nn.Linear(6, 2)}
    return Run(run, **layers, table=torch.randn(9, 2))


def tokens() -> nn.Module:
    """A class token and position embeddings on the residual stream."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        x = m.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([m.token.expand(x.shape[0], -1, -1), x], dim=1) + m.positions
        x = m.norm(x + m.down(functional.gelu(m.up(x))))
        return m.leave(x[:, 0] * x[:, 1:].mean(1))

    layers = {"patches": nn.Conv2d(2, 6, 2, stride=2), "up": nn.Linear(6, 7), "down": nn.Linear(7, 6)}
    layers |= {"norm": nn.LayerNorm(6), "leave": nn.Linear(6, 2)}
    return Run(run, **layers, token=torch.randn(1, 1, 6), positions=torch.randn(1, 5, 6))


def pixel_shuffled() -> nn.Module:
    layers = [nn.Conv2d(2, 5 * 4, 1), nn.PixelShuffle(2), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(5, 3, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))


def heads_by_einsum() -> nn.Module:
    """One matrix for each head, contracted by einsum."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        inside = torch.tanh(torch.einsum("nti,hid->nthd", x, m.enter))
        return torch.einsum("nthd,hdo->no", inside, m.leave)

    return Run(run, enter=torch.randn(3, 4, 5), leave=torch.randn(3, 5, 2))


def auxiliary_head() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.side, self.leave = (
                *(nn.Linear(3, 5), nn.Linear(5, 4)),
                *(nn.Linear(5, 2), nn.Linear(4, 2)),
            )

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = functional.dropout(torch.relu(self.one(x)), 0.5, self.training)
            return self.leave(torch.relu(self.two(x))), self.side(x)

    return Net()


def table_of_coordinates() -> nn.Module:
    """Swin v2's: a small network turns coordinates, which are given, into what each position adds to the stream."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        x = m.enter(x) + m.waves + m.place(torch.relu(m.inside(m.coordinates)))
        return m.leave(torch.tanh(x).mean(1))

    layers = {"enter": nn.Linear(3, 5), "inside": nn.Linear(2, 6), "place": nn.Linear(6, 5), "leave": nn.Linear(5, 2)}
    net = Run(run, **layers)
    net.register_buffer("coordinates", torch.randn(4, 2))
    net.register_buffer("waves", torch.randn(4, 5))
    return net


def shared_zeros() -> nn.Module:
    """T5's position bias of cross-attention, for example: made once, added by every layer."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        zeros = torch.zeros(5)[None].expand(len(x), -1) + 0
        return m.leave(torch.relu(m.two(torch.relu(m.one(x) + zeros)) + zeros))

    return Run(run, one=nn.Linear(3, 5), two=nn.Linear(5, 5), leave=nn.Linear(5, 2))


def kept_from_before() -> nn.Module:
    """LeViT's biases: looked up once in evaluation mode, and kept until the network is trained again."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.bias, self.two = nn.Linear(3, 5), nn.Parameter(torch.zeros(5)), nn.Linear(5, 2)
            self.kept: Tensor | None = None

        def train(self, mode: bool = True) -> nn.Module:
            self.kept = None
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            if self.kept is None:
                self.kept = 2 * self.bias
            return self.two(torch.relu(self.one(x) + self.kept))

    net = Net().eval()
    net(torch.zeros(1, 3))
    return net


def mixed_pairs() -> nn.Module:
    """Pairs inside channels, mixed by a layer that reads and makes them."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        x = torch.relu(m.pairs(torch.relu(m.one(x))))
        return m.leave((x + torch.relu(m.mix(x))).mean((2, 3)))

    layers = {"one": nn.Conv2d(2, 5, 1), "pairs": nn.Conv2d(5, 10, 1, groups=5), "mix": nn.Conv2d(10, 10, 1)}
    return Run(run, **layers, leave=nn.Linear(10, 2))


def shared_module() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        return m.leave(torch.relu(m.same(torch.relu(m.same(m.enter(x))))))

    return Run(run, enter=nn.Linear(3, 5), same=nn.Linear(5, 5), leave=nn.Linear(5, 2))


ATTENTION = [plain(3), (4, (3,)), (4, (3,)), plain(12)]
CASES = {
    "residual stream": Case(
        residual_stream,
        (3,),
        [plain(5), plain(7)],
        [{("enter.weight", 0), ("up.weight", 1), ("down.bias", 0), ("again.weight", 1), ("scale", 0)}],
    ),
    "concatenation": Case(
        dense_block, (2, 4, 4), [plain(3), plain(4), plain(5)], [{("one.weight", 0), ("wide.running_var", 0)}]
    ),
    "flattened, channels first": Case(lambda: flattened(False), (2, 3, 3), [plain(5)], [{("leave.weight", 1)}]),
    "flattened, channels last": Case(lambda: flattened(True), (2, 3, 3), [plain(5)], [{("leave.weight", 1)}]),
    "grouped convolution": Case(
        in_groups,
        (2, 4, 4),
        [(2, (3,)), plain(3), (4, (3,))],
        [{("0.weight", 0), ("2.weight", 0), ("5.weight", 1)}, {("0.weight", 0), ("2.weight", 1)}],
    ),
    "depthwise convolution": Case(
        lambda: depthwise(1), (2, 4, 4), [plain(3), plain(5)], [{("0.weight", 0), ("3.weight", 0), ("5.weight", 1)}]
    ),
    "depthwise convolution with a multiplier": Case(
        lambda: depthwise(2), (2, 4, 4), [(2, (5,)), plain(3), plain(5)], [{("0.weight", 0), ("3.weight", 0)}]
    ),
    # The second groups g', the first groups g, what a first group sends to a second one, and both ends.
    "channel shuffle between groups": Case(
        shuffled, (2, 3, 3), [plain(2), plain(2), (3, (2,)), (3, (2, 2)), (5, (2,))]
    ),
    # A quarter passes twice, others once; the interleaving moves positions, not units: 2+2+4 of enter, 2+2 of one, 4.
    "channel shuffle of halves": Case(
        half_shuffled, (2, 3, 3), [plain(2), plain(2), plain(2), plain(2), plain(4), plain(4)]
    ),
    "squeeze and excitation": Case(
        gate_of_channels, (2, 3, 3), [plain(3), plain(6)], [{("one.weight", 0), ("up.weight", 0), ("down.weight", 1)}]
    ),
    "gated linear unit": Case(lambda: gated_halves("glu"), (3,), [plain(6)]),
    "gated halves by chunk": Case(lambda: gated_halves("chunk"), (3,), [plain(6)]),
    "gated halves by slices": Case(lambda: gated_halves("slice"), (3,), [plain(6)]),
    "group normalisation": Case(normalised_in_groups, (2, 3, 3), [(2, (3,)), plain(3)]),
    "root mean square and layer normalisation": Case(root_mean_square, (3,), [plain(4), plain(5)]),
    "ConvNeXt block": Case(
        convnext_block, (2, 4, 4), [plain(5), plain(9)], [{("scale", 0), ("norm.weight", 0), ("depthwise.weight", 0)}]
    ),
    "packed attention": Case(lambda: packed_attention(bias=True), (4, 3), ATTENTION),
    "packed attention without bias": Case(lambda: packed_attention(bias=False), (4, 3), ATTENTION),
    "windowed attention": Case(
        windowed_attention,
        (5, 3),
        [plain(2), (4, (2,)), (4, (2,)), plain(5), plain(6)],
        [{("table", 1), ("packed.weight", 0), ("out.weight", 1)}],
    ),
    # Key heads, query heads inside them, query-key and value dimensions, the stream.
    "grouped queries": Case(
        lambda: grouped_query_attention(rotary=False, flag=False),
        (4, 3),
        [plain(2), (3, (2,)), (4, (2,)), (4, (2,)), plain(5)],
        [{("query.weight", 0), ("key.weight", 0)}, {("value.weight", 0), ("out.weight", 1)}],
    ),
    "grouped queries by torch's flag": Case(
        lambda: grouped_query_attention(rotary=False, flag=True),
        (4, 3),
        [plain(2), (3, (2,)), (4, (2,)), (4, (2,)), plain(5)],
    ),
    # Turning pairs of dimensions by angles of their own leaves no two of them interchangeable.
    "grouped queries with rotary embeddings": Case(
        lambda: grouped_query_attention(rotary=True, flag=False),
        (4, 3),
        [plain(2), (3, (2,)), (4, (2,)), plain(5)],
    ),
    "class token and positions": Case(
        tokens, (2, 4, 4), [plain(6), plain(7)], [{("token", 2), ("positions", 2), ("patches.weight", 0)}]
    ),
    "pixel shuffle and interpolation": Case(pixel_shuffled, (2, 3, 3), [plain(3), plain(5)]),
    "heads by einsum": Case(
        heads_by_einsum, (4, 4), [plain(3), (5, (3,))], [{("enter", 0), ("leave", 0)}, {("enter", 2), ("leave", 1)}]
    ),
    "auxiliary head and dropout": Case(auxiliary_head, (3,), [plain(4), plain(5)], [{("side.weight", 1)}]),
    # Neither the positions nor the two coordinates can change places, but waves moves with the stream it is added to.
    "table of coordinates": Case(
        table_of_coordinates, (4, 3), [plain(5), plain(6)], [{("waves", 1), ("enter.weight", 0), ("leave.weight", 1)}]
    ),
    "shared zeros": Case(shared_zeros, (3,), [plain(5), plain(5)]),
    "kept from before": Case(kept_from_before, (3,), [plain(5)], [{("bias", 0), ("one.weight", 0), ("two.weight", 1)}]),
    "pairs that are mixed": Case(
        mixed_pairs, (2, 3, 3), [plain(5), (2, (5,))], [{("mix.weight", 0), ("mix.weight", 1), ("pairs.weight", 0)}]
    ),
    "shared module": Case(shared_module, (3,), [plain(5)], [{("same.weight", 0), ("same.weight", 1)}]),
}


@pytest.mark.parametrize("name", CASES)
def test_structure(name: str, caplog: pytest.LogCaptureFixture):
    case = CASES[name]
    with seeding.isolated(0, name):
        model = case.make().eval()
    example = torch.zeros(2, *case.shape)
    with caplog.at_level(logging.WARNING):
        symmetry = discover(model, example)
    assert not caplog.records  # every operator has a rule
    assert groups(symmetry) == sorted(case.groups)
    acted_on = [{(axis.tensor, axis.dim) for axis in group.axes} for group in symmetry.groups.values()]
    for axes in case.tied:
        assert any(axes <= mine for mine in acted_on), axes
    assert verify(model, symmetry, example).error < 1e-12
