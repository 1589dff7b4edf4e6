import itertools

import numpy as np
import pytest
from matplotlib.colors import to_hex

from lmc.report.figures import PALETTE, run_figure, save, sweep_figure
from lmc.report.lines import lines
from lmc.report.runs import read_whole_path


@pytest.fixture
def three_pairs(tmp_path, make_run):
    heights = {(0, 1): 0.01, (0, 2): 0.025, (1, 2): 0.055}
    return read_whole_path(make_run(tmp_path / "run", seeds=(0, 1, 2), heights=heights) / "path.csv")


def test_the_mean_line_is_the_mean_of_the_pairs(three_pairs):
    line = lines([three_pairs])["aligned", "train"]
    t = np.linspace(0, 1, 25)
    np.testing.assert_allclose(line.mean("loss"), 0.1 + 0.2 * t + 4 * 0.03 * t * (1 - t), rtol=1e-12)
    np.testing.assert_allclose(
        line.deviation("loss"), np.std([0.01, 0.025, 0.055], ddof=1) * 4 * t * (1 - t), atol=1e-12
    )


def test_lines_on_different_grids_meet_on_their_union(three_pairs):
    coarse = [point for point in three_pairs if point.t in (0.0, 0.5, 1.0) and point.pair == (0, 1)]
    other = [point for point in three_pairs if point.pair == (0, 2)]
    line = lines([coarse, other])["aligned", "train"]
    assert len(line.t) == 25
    at = float(line.t[6])
    assert at == 0.25
    straight = (0.1 + (0.1 + 0.1 + 0.01)) / 2  # between t = 0 and t = 1/2
    assert sorted(line.loss[:, 6]) == pytest.approx(sorted([straight, 0.1 + 0.05 + 4 * 0.025 * 0.25 * 0.75]))


def test_a_path_that_two_runs_share_is_one_line(three_pairs):
    assert lines([three_pairs, three_pairs])["aligned", "train"].loss.shape == (3, 25)


def test_the_figure_of_a_run_shows_what_was_measured(three_pairs):
    figure = run_figure(lines([three_pairs]))
    loss, accuracy = figure.axes
    assert loss.get_ylabel() == "loss (nats)"
    assert accuracy.get_ylabel() == "accuracy (%)"
    assert accuracy.get_xlabel().startswith("position t")
    # Two paths, two splits: three thin lines, their mean, and the marks of its ends.
    assert len(loss.lines) == len(accuracy.lines) == 2 * 2 * (3 + 1 + 1)
    t = np.linspace(0, 1, 25)
    mean = 0.1 + 0.2 * t + 4 * 0.03 * t * (1 - t)
    drawn = [line for line in loss.lines if len(line.get_xdata()) == 25 and np.allclose(line.get_ydata(), mean)]
    assert [line.get_linestyle() for line in drawn] == ["-"]
    ends = [line for line in loss.lines if line.get_marker() == "o"]
    assert all(list(line.get_xdata()) == [0, 1] for line in ends)
    np.testing.assert_allclose(ends[0].get_ydata(), [0.1, 0.3])
    percent = np.concatenate([line.get_ydata() for line in accuracy.lines])
    assert percent.max() == pytest.approx(97.0)


def test_the_legends_cover_no_data(three_pairs):
    own = lines([three_pairs])
    for figure in (run_figure(own), sweep_figure([((f"setting {n}",), own) for n in range(9)])):
        figure.draw_without_rendering()
        for legend in figure.legends:
            box = legend.get_window_extent()
            assert all(not box.overlaps(axes.get_tightbbox()) for axes in figure.axes if axes.axison)
            assert figure.bbox.contains(box.x0, box.y0)
            assert figure.bbox.contains(box.x1, box.y1)


def test_more_settings_than_colours_get_a_panel_for_each_value_of_a_column(three_pairs):
    own = lines([three_pairs])
    settings = [((fix, f"method {n}"), own) for n in range(9) for fix in ("none", "repair")]
    figure = sweep_figure(settings)
    drawn = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in drawn] == [f"method {n}" for n in range(9)]
    assert [text.get_text() for text in figure.legends[1].get_texts()] == ["none", "repair"]
    for axes in drawn:
        colours = {to_hex(line.get_color()).upper() for line in axes.lines}
        assert {*PALETTE[:2]} < colours
        assert PALETTE[2] not in colours


def test_colours_are_told_apart_from_each_other_and_from_white():
    """WCAG's contrast to white for a line (at least 2), and pairwise distance in RGB."""

    def luminance(colour: str) -> float:
        channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    assert len({to_hex(colour) for colour in PALETTE}) == len(PALETTE)
    assert all(1.05 / (luminance(colour) + 0.05) >= 2 for colour in PALETTE)


def test_svg_and_png_are_the_same_bytes_each_time(three_pairs, tmp_path):
    for name in ("a", "b"):
        save(run_figure(lines([three_pairs])), tmp_path / name)
    for suffix in (".svg", ".png"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_drawing_leaves_matplotlib_as_it_was(three_pairs, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    save(run_figure(lines([three_pairs])), tmp_path / "a")
    assert dict(matplotlib.rcParams) == before


def test_a_page_has_room_for_so_many_panels_and_says_what_it_leaves_out():
    from lmc.report.figures import MOST_PANELS, spread, sweep_figure

    assert spread(list("abc")) == ["a", "b", "c"]
    found = spread(list(range(100)))
    assert (len(found), found[0], found[-1]) == (MOST_PANELS, 0, 99)
    assert max(b - a for a, b in itertools.pairwise(found)) - min(b - a for a, b in itertools.pairwise(found)) <= 1
    figure = sweep_figure([((str(number),), {}) for number in range(100)])
    assert figure.get_suptitle() == f"{MOST_PANELS} of 100 panels; all numbers are in report.html"
