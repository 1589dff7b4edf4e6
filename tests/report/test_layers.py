"""The figure of layer-wise barriers."""

from typing import Any

import pytest

from lmc.report.layers import layers_figure
from lmc.results import Row

VALUES = {("1", "fixed"): (1.0, 3.0), ("3", "fixed"): (2.0, 2.0), ("1", "moving"): (0.5, 0.5), ("3", "moving"): (4, 6)}


def row(value: float, **more: Any) -> Row:
    pair = more.pop("pair", (0, 1))
    return Row(
        what="layer_barrier", path="aligned", pair=pair, split=more.pop("split", "test"), metric="loss", unit="nats",
        value=value, examples=5, key="k", more={"analysis": "layer_barrier", **more},
    )  # fmt: skip


def test_every_way_to_choose_layers_has_a_panel_with_means_over_pairs() -> None:
    rows = [
        row(
            value + (10 if direction == "random" else 0), mode=mode, layer=layer, rest=rest, direction=direction, pair=p
        )
        for mode in ("top", "single")
        for (layer, rest), values in VALUES.items()
        for direction, shift in (("moving", 0), ("random", 10))
        for p, value in zip(((0, 1), (0, 2)), values, strict=True)
    ]
    rows.append(row(99.0, mode="window", layer="1", rest="fixed", direction="moving", split="train"))
    figure = layers_figure(rows)
    assert [axes.get_title() for axes in figure.axes] == ["one layer", "all layers from"]
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "3"]
    curves = [container.lines[0].get_ydata().tolist() for container in axes.containers]
    assert curves == [[2.0, 2.0], [0.5, 5.0], [12.0, 12.0], [10.5, 15.0]]
    # The bar of (1, fixed) is the sample deviation of 1 and 3.
    (bars,) = axes.containers[0].lines[2]
    low, high = bars.get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * 2**0.5)
