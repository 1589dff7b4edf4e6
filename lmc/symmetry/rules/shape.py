"""Operators that only rearrange: views, permutations of dimensions, concatenation, padding, repetition."""

from collections.abc import Sequence

from torch import fx

from lmc.symmetry import labels
from lmc.symmetry.labels import Block, Label
from lmc.symmetry.rules.registry import (
    RULES,
    Labels,
    Unproved,
    Values,
    argument,
    aten,
    dimensions,
    join,
    keep,
    operator_name,
    overloads,
    rule,
    shape_of,
    still,
)


@rule(
    *overloads("flatten", "view", "reshape", "_unsafe_view", "unflatten", "squeeze", "unsqueeze", "view_as"),
    *overloads("reshape_as", "ravel", "atleast_1d"),
)
def reshape(values: Values, node: fx.Node) -> Labels:
    """Match runs of old and new dimensions with equal products; flatten each run, then cut it as the new shape asks."""
    if str(node.target) == "aten.view.dtype":
        raise Unproved("a view as another type")
    old = [label for label in values[node.args[0]] if labels.size(label) > 1]
    new = [n for n in shape_of(node) if n > 1]
    found: list[Label] = []
    while old or new:
        run, sizes = [old.pop(0)], [new.pop(0)]
        have, want = labels.size(run[0]), sizes[0]
        while have != want:
            if have < want:
                run.append(old.pop(0))
                have *= labels.size(run[-1])
            else:
                sizes.append(new.pop(0))
                want *= sizes[-1]
        whole = run[0] if len(run) == 1 else labels.product(run)
        found += [whole] if len(sizes) == 1 else labels.split(whole, sizes)
    remaining = iter(found)
    return tuple(labels.fixed(1, labels.SINGLE) if n == 1 else next(remaining) for n in shape_of(node))


@rule(aten.permute.default)
def _permute(values: Values, node: fx.Node) -> Labels:
    x = values[node.args[0]]
    return tuple(x[dim] for dim in dimensions(node, "dims", len(x)))


@rule(*overloads("transpose", "swapaxes", "swapdims", "t", "numpy_T", "mT", "adjoint"))
def _transpose(values: Values, node: fx.Node) -> Labels:
    x = list(values[node.args[0]])
    if "numpy_T" in str(node.target):
        return tuple(reversed(x))
    if len(x) < 2:
        return tuple(x)
    one, two = (int(argument(node, f"dim{k}", argument(node, f"axis{k}", k - 2))) for k in (0, 1))
    x[one], x[two] = x[two], x[one]
    return tuple(x)


def moved_from(node: fx.Node, dim: int) -> tuple[fx.Node, int] | None:
    """Return where a dimension of a copy or a transposition comes from; None for any other operator."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    rank = len(shape_of(source))
    if RULES.get(node.target) is _transpose:
        order = list(range(rank))
        if "numpy_T" in str(node.target):
            order.reverse()
        elif rank > 1:
            one, two = (int(argument(node, f"dim{k}", argument(node, f"axis{k}", k - 2))) for k in (0, 1))
            order[one], order[two] = order[two], order[one]
        return source, order[dim]
    if RULES.get(node.target) is _permute:
        return source, dimensions(node, "dims", rank)[dim]
    return (
        (source, dim) if operator_name(node) in ("clone", "contiguous", "alias", "detach", "to", "_to_copy") else None
    )


@rule(*overloads("movedim"))
def _movedim(values: Values, node: fx.Node) -> Labels:
    x = values[node.args[0]]
    source, target = dimensions(node, "source", len(x)), dimensions(node, "destination", len(x))
    placed = dict(zip(target, source, strict=True))
    others = iter(dim for dim in range(len(x)) if dim not in source)
    return tuple(x[placed[dim]] if dim in placed else x[next(others)] for dim in range(len(x)))


@rule(aten.cat.default, aten.concat.default, aten.concatenate.default)
def _cat(values: Values, node: fx.Node) -> Labels:
    parts = [values[part] for part in node.args[0]]  # type: ignore[union-attr]
    parts = [part for part in parts if part]  # an empty one-dimensional tensor counts as nothing
    along = int(argument(node, "dim")) % len(parts[0])
    letters = "abcdefgh"[: len(parts[0]) - 1]
    others = join(",".join([letters] * len(parts)) + f"->{letters}", *(p[:along] + p[along + 1 :] for p in parts))
    joined = tuple(segment for part in parts for segment in part[along])
    return (*(others or parts[0][:0])[:along], joined, *others[along:])


@rule(aten.stack.default)
def _stack(values: Values, node: fx.Node) -> Labels:
    parts = [values[part] for part in node.args[0]]  # type: ignore[union-attr]
    along = int(argument(node, "dim")) % (len(parts[0]) + 1)
    found = join(",".join(["..."] * len(parts)) + "->...", *parts)
    return (*found[:along], *still(node, [len(parts)]), *found[along:])


@rule(*overloads("expand", "expand_as", "broadcast_to"))
def expand(values: Values, node: fx.Node) -> Labels:
    """Repeat dimensions of size one: equal positions can take each other's places, for each of the others' units."""
    x, shape = values[node.args[0]], shape_of(node)
    offset = len(shape) - len(x)
    found: list[Label] = []
    for dim, n in enumerate(shape):
        kept = dim >= offset and labels.size(x[dim - offset]) == n
        found.append(labels.product([x[dim - offset]]) if kept else labels.free(n, _blocks(found)))
    return tuple(found)


def _blocks(value: Sequence[Label]) -> list[Block]:
    """The blocks in front of a dimension that is repeated: it may have an order of its own for each of their units.

    Every label is a single product, so that a concatenation is a block too: the sum by whose parts to go.
    """
    return list(dict.fromkeys(block for ((*factors,),) in value for block in factors))


@rule(*overloads("repeat", "tile"))
def _repeat(values: Values, node: fx.Node) -> Labels:
    """Copies of the whole dimension, one behind the other; the copies can take each other's places."""
    x, times = values[node.args[0]], [int(n) for n in argument(node, "repeats", argument(node, "dims"))]
    times = [1] * (len(x) - len(times)) + times
    x = (*(labels.fixed(1, labels.SINGLE) for _ in range(len(times) - len(x))), *(labels.product([y]) for y in x))
    return tuple(
        labels.product([labels.free(n, _blocks(x[:dim])), label])
        for dim, (n, label) in enumerate(zip(times, x, strict=True))
    )


@rule(aten.repeat_interleave.self_int)
def _repeat_interleave(values: Values, node: fx.Node) -> Labels:
    """Every position several times in a row."""
    x, dim = values[node.args[0]], argument(node, "dim")
    if dim is None:
        raise Unproved("repeat_interleave of a flattened tensor")
    place, times = int(dim) % len(x), int(argument(node, "repeats"))
    x = tuple(labels.product([label]) for label in x)
    copies = labels.free(times, _blocks(x[: place + 1]))
    return tuple(labels.product([label, copies]) if d == place else label for d, label in enumerate(x))


@rule(*overloads("constant_pad_nd", "pad", "reflection_pad1d", "reflection_pad2d", "replication_pad2d"))
def _pad(values: Values, node: fx.Node) -> Labels:
    """Constants before and behind a dimension are all the same; other padding depends on the order."""
    x, widths = values[node.args[0]], [int(n) for n in argument(node, "pad", argument(node, "padding"))]
    constant = "constant" in str(node.target) or argument(node, "mode") == "constant"
    x = tuple(labels.product([label]) for label in x)
    found = list(x)
    for place in range(len(widths) // 2):
        dim, before, behind = len(x) - 1 - place, widths[2 * place], widths[2 * place + 1]
        if before < 0 or behind < 0 or (not constant and (before or behind)):
            keep(node, x[dim])
            found[dim] = still(node, [labels.size(x[dim]) + before + behind])[0]
        else:
            padding = [labels.free(n, _blocks(x[:dim])) if n else () for n in (before, behind)]
            found[dim] = (*padding[0], *x[dim], *padding[1])
    return tuple(found)


@rule(*overloads("pixel_shuffle"))
def _pixel_shuffle(values: Values, node: fx.Node) -> Labels:
    """Channels (C, r, r) become C channels with r times as many rows and columns."""
    x, r = values[node.args[0]], int(argument(node, "upscale_factor"))
    channels, *inside = labels.split(x[-3], [labels.size(x[-3]) // r**2, r, r])
    keep(node, *inside, *x[-2:])
    return (*x[:-3], channels, *still(node, shape_of(node)[-2:]))


@rule(*overloads("pixel_unshuffle"))
def _pixel_unshuffle(values: Values, node: fx.Node) -> Labels:
    """The reverse: each channel becomes r x r of them."""
    x, r = values[node.args[0]], int(argument(node, "downscale_factor"))
    keep(node, *x[-2:])
    return (*x[:-3], labels.product([x[-3], *still(node, [r, r])]), *still(node, shape_of(node)[-2:]))


@rule(*overloads("channel_shuffle", "native_channel_shuffle"))
def _channel_shuffle(values: Values, node: fx.Node) -> Labels:
    """Channels (groups, c) become (c, groups)."""
    x, groups = values[node.args[0]], int(argument(node, "groups"))
    parts = labels.split(x[1], [groups, labels.size(x[1]) // groups])
    return (x[0], labels.product(parts[::-1]), *x[2:])


@rule(*overloads("im2col", "unfold"))
def _unfold(values: Values, node: fx.Node) -> Labels:
    """Patches of (N, C, H, W) as (N, C x kernel, patches)."""
    x = values[node.args[0]]
    if "im2col" not in str(node.target) or len(x) != 4:
        raise Unproved("unfold along a dimension")
    keep(node, *x[2:])
    kernel = shape_of(node)[1] // labels.size(x[1])
    return (x[0], labels.product([x[1], *still(node, [kernel])]), *still(node, shape_of(node)[2:]))


@rule(*overloads("col2im"))
def _fold(values: Values, node: fx.Node) -> Labels:
    """The reverse of `_unfold`: (N, C x kernel, patches) are added up as (N, C, H, W)."""
    x = values[node.args[0]]
    if len(x) != 3:
        raise Unproved("fold without a batch dimension")
    channels = shape_of(node)[1]
    channel, kernel = labels.split(x[1], [channels, labels.size(x[1]) // channels])
    keep(node, kernel, x[2])
    return (x[0], channel, *still(node, shape_of(node)[2:]))
