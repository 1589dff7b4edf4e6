"""Figures of units and layers that two networks have in common, from files whose numbers are known."""

import csv
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lmc.errors import UserError
from lmc.report.convergence import (
    LayerSimilarity,
    convergence_figures,
    matrices_figure,
    read_convergence,
    read_similarity,
    similarity_figure,
    units_figure,
)

UNITS = 6
LEVELS = {"stem": 0.2, "features.block1.layer1.conv1": 0.9, "middle": 0.6, "features.block2.layer2.conv1": 0.7}


def write(path: Path, heads: str, rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([heads.split(","), *rows])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Each unit i is matched with i + 1 (cyclic), the less the higher i is."""
    matrices, units, predicted = {}, [], []
    for layer, level in LEVELS.items():
        between = np.full((UNITS, UNITS), -0.1, dtype=np.float32)
        for unit in range(UNITS):
            match, correlation = (unit + 1) % UNITS, level - 0.02 * unit
            between[unit, match] = correlation
            units.append((layer, "fixed", unit, 1, match, correlation, match, correlation + 0.01, 1))
            units.append((layer, "moving", unit, 1, (unit - 1) % UNITS, 0.0, 0, 0.0, 0))
        matrices[f"between/{layer}"] = between
        for penalty, used in ((0.3, 2.0), (1.0, 0.0), (0.1, 4.0)):
            predicted.append((layer, "lasso", penalty, 1 - level * used / 6, used, 1e-6, UNITS))
        for method, used in (("one_to_one", 1), ("best_unit", 1), ("least_squares", UNITS)):
            predicted.append((layer, method, "", 1 - level, used, 0, UNITS))
    save_file(matrices, tmp_path / "convergent_learning_0-1_units.safetensors")
    write(
        tmp_path / "convergent_learning_0-1_units.csv",
        "layer,end,unit,live,match,correlation,best,highest,chosen",
        units,
    )
    write(tmp_path / "convergent_learning_0-1_prediction.csv", "layer,method,penalty,error,used,gap,targets", predicted)
    rows = [(a, b, "mean", 1 - abs(i - j) / 8) for i, a in enumerate(LEVELS) for j, b in enumerate(LEVELS)]
    write(tmp_path / "representation_similarity_0-1_cka.csv", "fixed,moving,samples,cka", rows)
    return tmp_path


def test_every_analysis_has_its_figures(folder: Path) -> None:
    names = [name for name, _ in convergence_figures(folder)]
    assert names == ["convergent_learning_0-1_matrices", "convergent_learning_0-1", "representation_similarity_0-1"]


def test_the_layers_that_match_best_are_shown_and_matched_pairs_are_on_the_diagonal(folder: Path) -> None:
    found = read_convergence(folder / "convergent_learning_0-1_units.csv")
    assert [layer.name for layer in found.layers] == [name for name in LEVELS if name != "stem"]
    figure = matrices_figure(found)
    panels = figure.axes[:6]
    for layer, before, after in zip(found.layers, panels[::2], panels[1::2], strict=True):
        np.testing.assert_allclose(before.images[0].get_array(), layer.between)
        diagonal = after.images[0].get_array().diagonal()
        np.testing.assert_allclose(diagonal, LEVELS[layer.name] - 0.02 * np.arange(UNITS), atol=1e-6)
        assert before.images[0].get_clim() == after.images[0].get_clim() == pytest.approx((-0.9, 0.9))


def test_the_curves_are_sorted_and_nothing_used_is_not_drawn(folder: Path) -> None:
    found = read_convergence(folder / "convergent_learning_0-1_units.csv")
    curves, traded = units_figure(found).axes
    first, best = curves.lines[:2]
    np.testing.assert_allclose(first.get_ydata(), 0.9 - 0.02 * np.arange(UNITS))
    np.testing.assert_allclose(best.get_ydata(), 0.91 - 0.02 * np.arange(UNITS))
    lasso, one_to_one, _, least = traded.lines[:4]
    np.testing.assert_allclose(lasso.get_xydata(), [(2, 70), (4, 40)])
    np.testing.assert_allclose(one_to_one.get_xydata(), [(1, 10)])
    np.testing.assert_allclose(least.get_xydata(), [(UNITS, 10)])


def test_the_most_similar_layer_of_every_row_is_framed(folder: Path) -> None:
    found = read_similarity(folder / "representation_similarity_0-1_cka.csv")
    assert found.layers == tuple(LEVELS)
    axes, *_ = similarity_figure(found).axes
    np.testing.assert_allclose(axes.images[0].get_array(), found.cka)
    centres = [(frame.get_x() + 0.46, frame.get_y() + 0.46) for frame in axes.patches]
    np.testing.assert_allclose(centres, [(n, n) for n in range(1, 5)])
    assert [text.get_text() for text in axes.texts[:4]] == ["1.00", "0.88", "0.75", "0.62"]


@pytest.mark.parametrize("count", [1, 3, 20, 60])
def test_labels_stay_inside_the_figure(folder: Path, count: int) -> None:
    names = tuple(f"features.block{n}.layer{n}.conv1" for n in range(count))
    figures = [similarity_figure(LayerSimilarity("x", ("0", "1"), names, np.eye(count)))]
    if count == 1:
        found = read_convergence(folder / "convergent_learning_0-1_units.csv")
        figures += [matrices_figure(found), units_figure(found)]
    for figure in figures:
        figure.draw_without_rendering()
        for axes in figure.axes:
            box = axes.get_tightbbox()
            assert figure.bbox.x0 <= box.x0 + 1 < box.x1 <= figure.bbox.x1 + 1
            assert figure.bbox.y0 <= box.y0 + 1 < box.y1 <= figure.bbox.y1 + 1


def cut(path: Path, end: int) -> None:
    path.write_bytes(path.read_bytes()[:end])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("units.csv", lambda path: cut(path, -6), r"units\.csv, line 49: not a whole line"),
        ("units.safetensors", lambda path: cut(path, 40), r"units\.safetensors is missing or damaged"),
        ("units.safetensors", lambda path: path.unlink(), r"units\.safetensors is missing or damaged"),
        ("prediction.csv", lambda path: path.unlink(), r"prediction\.csv is missing or damaged"),
    ],
)
def test_what_is_damaged_is_named(folder: Path, name: str, damage: object, message: str) -> None:
    damage(folder / f"convergent_learning_0-1_{name}")  # type: ignore[operator]
    with pytest.raises(UserError, match=message) as caught:
        list(convergence_figures(folder))
    assert "\n" not in str(caught.value)


def test_a_matrix_of_layers_with_a_line_missing_is_refused(folder: Path) -> None:
    path = folder / "representation_similarity_0-1_cka.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="15 lines are no square of 4 layers"):
        read_similarity(path)
