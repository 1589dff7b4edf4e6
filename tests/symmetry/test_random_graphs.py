"""Never larger: whatever graph of operators is drawn, the symmetry that is found for it holds."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from lmc import seeding
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.verify import TOLERANCE, SymmetryError, verify

Step = Callable[[Tensor], Tensor]


class Drawn(nn.Module):
    """A network that is drawn step by step while a tensor runs through it, so that shapes always fit."""

    def __init__(self, data: Any, shape: tuple[int, ...], steps: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.parts = nn.ParameterList()
        self._data = data
        self.names: list[str] = []
        x = torch.randn(2, *shape)
        self.steps: list[Step] = []
        for _ in range(steps):
            x = self._append(self._draw(x), x)
        head = self._add(nn.Linear(x.flatten(1).shape[1], 2))
        self._append(lambda x: head(x.flatten(1)), x)
        self._data = None

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x

    def _append(self, step: Step, x: Tensor) -> Tensor:
        self.steps.append(step)
        return step(x)

    def _add(self, layer: nn.Module) -> nn.Module:
        self.layers.append(layer)
        return layer

    def _pick(self, *options: Any) -> Any:
        return self._data.draw(st.sampled_from(options))

    def _parameter(self, *shape: int) -> Callable[[], Tensor]:
        """A new parameter, to be read when a step runs: by then others may stand in its place."""
        place = len(self.parts)
        self.parts.append(nn.Parameter(torch.randn(*shape)))
        return lambda: self.parts[place]

    def _draw(self, x: Tensor) -> Step:
        kind = {2: "_on_vector_", 3: "_on_tokens_", 4: "_on_image_"}[x.ndim]
        name = self._pick(*(name for name in sorted(vars(Drawn)) if name.startswith((kind, "_any_"))))
        self.names.append(name)
        return getattr(self, name)(x)

    # Any number of dimensions; channels are dimension 1 of images, the last one otherwise.

    def _channels(self, x: Tensor) -> int:
        return 1 if x.ndim == 4 else x.ndim - 1

    def _map(self, x: Tensor, out: int) -> Step:
        size = x.shape[self._channels(x)]
        return self._add(nn.Conv2d(size, out, 1) if x.ndim == 4 else nn.Linear(size, out))

    def _any_map(self, x: Tensor) -> Step:
        return self._map(x, self._pick(4, 6, 8, 12))

    def _any_nonlinearity(self, x: Tensor) -> Step:
        return self._pick(torch.tanh, functional.gelu, functional.softplus, torch.sigmoid)

    def _any_residual(self, x: Tensor) -> Step:
        up = self._map(x, 6)
        down = self._map(up(x), x.shape[self._channels(x)])
        twice = self._pick(False, True)

        def run(x: Tensor) -> Tensor:
            x = x + down(torch.tanh(up(x)))
            return x + down(torch.tanh(up(x))) if twice else x

        return run

    def _any_concatenation(self, x: Tensor) -> Step:
        dim, other = self._channels(x), self._map(x, self._pick(2, 4, x.shape[self._channels(x)]))
        first = self._pick(False, True)
        return lambda x: torch.cat([x, other(x)] if first else [other(x), x], dim)

    def _any_gate(self, x: Tensor) -> Step:
        dim = self._channels(x)
        if x.shape[dim] % 2:
            return torch.tanh
        how = self._pick("chunk", "slice", "glu")

        def run(x: Tensor) -> Tensor:
            half = x.shape[dim] // 2
            if how == "glu":
                return functional.glu(x, dim)
            one, two = x.chunk(2, dim) if how == "chunk" else (x.narrow(dim, half, half), x.narrow(dim, 0, half))
            return one * torch.sigmoid(two)

        return run

    def _any_rearranged_parts(self, x: Tensor) -> Step:
        dim = self._channels(x)
        cut = self._pick(1, 2, x.shape[dim] // 2)
        if cut >= x.shape[dim]:
            return torch.tanh
        return lambda x: torch.cat(list(x.split([cut, x.shape[dim] - cut], dim))[::-1], dim)

    def _any_shuffle(self, x: Tensor) -> Step:
        dim, groups = self._channels(x), self._pick(2, 3, 4)
        if x.shape[dim] % groups:
            return torch.tanh
        inside = x.shape[dim] // groups
        return lambda x: x.unflatten(dim, (groups, inside)).transpose(dim, dim + 1).flatten(dim, dim + 1)

    def _any_stack(self, x: Tensor) -> Step:
        one, two = self._map(x, 4), self._map(x, 4)
        dim = self._channels(x)
        how = self._pick("sum", "unbind", "flatten")

        def run(x: Tensor) -> Tensor:
            both = torch.stack([one(x), two(x)], dim)
            if how == "sum":
                return (both.softmax(dim) * both).sum(dim)
            if how == "unbind":
                left, right = both.unbind(dim)
                return torch.cat([right, left.tanh()], dim)
            return both.flatten(dim, dim + 1)

        return run

    def _any_scale(self, x: Tensor) -> Step:
        shape = [1] * x.ndim
        dim = self._pick(*range(1, x.ndim))
        shape[dim] = x.shape[dim]
        scale = self._parameter(*shape)
        return lambda x: x * scale() + scale().exp()

    def _any_softmax(self, x: Tensor) -> Step:
        dim = self._pick(*range(1, x.ndim))
        return lambda x: x + 3 * x.softmax(dim)

    def _any_mean(self, x: Tensor) -> Step:
        dim = self._pick(*range(1, x.ndim))
        return lambda x: x - x.mean(dim, keepdim=True)

    def _any_repeat(self, x: Tensor) -> Step:
        dim = self._channels(x)
        if self._pick(False, True):
            return lambda x: x.repeat_interleave(2, dim)
        return lambda x: x.repeat(*(2 if d == dim else 1 for d in range(x.ndim)))

    def _any_zeros(self, x: Tensor) -> Step:
        """Zeros that are added in two places, or written to."""
        dim, layer = self._channels(x), self._map(x, x.shape[self._channels(x)])
        width, is_written = self._pick(1, x.shape[dim] // 2, x.shape[dim]), self._pick(False, True)

        def run(x: Tensor) -> Tensor:
            zeros = torch.zeros_like(x)
            if is_written:
                zeros.narrow(dim, x.shape[dim] - width, width).copy_(x.narrow(dim, 0, width))
            return torch.tanh(layer(torch.tanh(x + zeros)) + zeros.exp())

        return run

    def _any_pad(self, x: Tensor) -> Step:
        dim, wide = self._channels(x), self._map(x, x.shape[self._channels(x)] + 2)
        return lambda x: wide(x) + functional.pad(x, [0, 0] * (x.ndim - 1 - dim) + [1, 1])

    # Images.

    def _on_image_convolution(self, x: Tensor) -> Step:
        return self._add(nn.Conv2d(x.shape[1], self._pick(4, 6, 8), 3, padding=1, bias=self._pick(False, True)))

    def _on_image_groups(self, x: Tensor) -> Step:
        fitting = [g for g in (2, 3, 4, x.shape[1]) if x.shape[1] % g == 0]
        if not fitting:
            return torch.tanh
        groups = self._pick(*fitting)
        return self._add(nn.Conv2d(x.shape[1], groups * self._pick(1, 2, 3), 1, groups=groups))

    def _on_image_norm(self, x: Tensor) -> Step:
        groups = [g for g in (1, 2, 3, 4) if x.shape[1] % g == 0]
        norms = [nn.BatchNorm2d(x.shape[1]), nn.GroupNorm(self._pick(*groups), x.shape[1])]
        return self._add(self._pick(*norms))

    def _on_image_squeeze(self, x: Tensor) -> Step:
        down = self._add(nn.Conv2d(x.shape[1], 3, 1))
        up = self._add(nn.Conv2d(3, x.shape[1], 1))
        return lambda x: x * torch.sigmoid(up(torch.tanh(down(x.mean((2, 3), keepdim=True)))))

    def _on_image_pool(self, x: Tensor) -> Step:
        if x.shape[2] < 2:
            return torch.tanh
        return self._pick(lambda x: functional.max_pool2d(x, 2), lambda x: functional.avg_pool2d(x, 2))

    def _on_image_interpolate(self, x: Tensor) -> Step:
        return lambda x: functional.interpolate(x, size=(2, 2), mode="bilinear")

    def _on_image_pixels(self, x: Tensor) -> Step:
        if x.shape[1] % 4:
            return torch.tanh
        return lambda x: functional.interpolate(functional.pixel_shuffle(x, 2), size=(2, 2))

    def _on_image_tokens(self, x: Tensor) -> Step:
        return lambda x: x.flatten(2).transpose(1, 2)

    def _on_image_flatten(self, x: Tensor) -> Step:
        return self._pick(lambda x: x.flatten(1), lambda x: x.permute(0, 2, 3, 1).flatten(1), lambda x: x.mean((2, 3)))

    # Tokens.

    def _on_tokens_norm(self, x: Tensor) -> Step:
        return self._add(self._pick(nn.LayerNorm(x.shape[-1]), nn.RMSNorm(x.shape[-1])))

    def _on_tokens_mix(self, x: Tensor) -> Step:
        up, down = self._add(nn.Linear(x.shape[1], 5)), self._add(nn.Linear(5, x.shape[1]))
        return lambda x: x + down(torch.tanh(up(x.transpose(1, 2)))).transpose(1, 2)

    def _on_tokens_packed_attention(self, x: Tensor) -> Step:
        heads = [h for h in (1, 2, 3) if x.shape[-1] % h == 0]
        layer = self._add(nn.MultiheadAttention(x.shape[-1], self._pick(*heads), batch_first=True))
        return lambda x: x + layer(x, x, x, need_weights=False)[0]

    def _on_tokens_attention(self, x: Tensor) -> Step:
        keys, shared, size = self._pick(1, 2), self._pick(1, 2), self._pick(2, 4)
        query = self._add(nn.Linear(x.shape[-1], keys * shared * size))
        both = self._add(nn.Linear(x.shape[-1], 2 * keys * size))
        out = self._add(nn.Linear(keys * shared * size, x.shape[-1]))
        turned, table = self._pick(False, True), self._parameter(keys * shared, x.shape[1], x.shape[1])

        def run(x: Tensor) -> Tensor:
            q = query(x).unflatten(-1, (keys * shared, size)).transpose(1, 2)
            k, v = both(x).view(len(x), x.shape[1], 2, keys, size).permute(2, 0, 3, 1, 4)
            if turned:
                angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] / torch.arange(1, 1 + size, dtype=x.dtype)
                q, k = q * angle.cos(), k * angle.cos()
            k, v = (t[:, :, None].expand(-1, -1, shared, -1, -1).flatten(1, 2) for t in (k, v))
            weights = (q @ k.transpose(-2, -1) + table()).softmax(-1)
            return x + out((weights @ v).transpose(1, 2).flatten(2))

        return run

    def _on_tokens_einsum(self, x: Tensor) -> Step:
        weight = self._parameter(2, x.shape[-1], 3)
        return lambda x: torch.einsum("nti,hid->nthd", x, weight()).tanh().flatten(2)

    def _on_tokens_class(self, x: Tensor) -> Step:
        token, place = self._parameter(1, 1, x.shape[-1]), self._parameter(1, x.shape[1] + 1, x.shape[-1])
        return lambda x: torch.cat([token().expand(len(x), -1, -1), x], 1) + place()

    def _on_tokens_vector(self, x: Tensor) -> Step:
        return self._pick(lambda x: x[:, 0] + x.mean(1), lambda x: x.flatten(1), lambda x: x.amax(1))

    # Vectors.

    def _on_vector_norm(self, x: Tensor) -> Step:
        return self._add(self._pick(nn.BatchNorm1d(x.shape[-1]), nn.LayerNorm(x.shape[-1])))

    def _on_vector_outer(self, x: Tensor) -> Step:
        one, two = self._map(x, 3), self._map(x, 4)
        return lambda x: (one(x)[:, :, None] * two(x)[:, None]).flatten(1)

    def _on_vector_blocks(self, x: Tensor) -> Step:
        size = next((s for s in (4, 3, 2) if x.shape[-1] % s == 0), 1)
        weight = self._parameter(x.shape[-1] // size, size, 2)
        return lambda x: torch.einsum("nbi,bio->nbo", x.unflatten(-1, (-1, size)), weight()).flatten(1)


SHAPES = ((2, 4, 4), (3, 5), (6,))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), shape=st.sampled_from(SHAPES), steps=st.integers(2, 7))
def test_the_symmetry_of_a_random_graph_holds(data: Any, shape: tuple[int, ...], steps: int):
    with seeding.isolated(0, "graph"):
        model = Drawn(data, shape, steps).eval()
    example = torch.zeros(2, *shape)
    symmetry = discover(model, example)
    event("something moves" if symmetry.groups else "nothing moves")
    event("blocks" if any(group.outer for group in symmetry.groups.values()) else "no blocks")
    try:
        assert verify(model, symmetry, example, controls=0).error < TOLERANCE
    except SymmetryError as error:
        raise AssertionError(f"{model.names}: {error}") from error
    generator = seeding.generator(1, "laws")
    one, two = Permutation.random(symmetry, generator), Permutation.random(symmetry, generator)
    assert one.compose(two).inverse() == two.inverse().compose(one.inverse())
