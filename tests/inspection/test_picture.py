import re
from pathlib import Path

import pytest

from lmc.errors import UserError
from lmc.inspection.picture import check_target, picture, write
from lmc.symmetry.structure import Symmetry


def identifiers(svg: str) -> list[str]:
    return re.findall(r'id="((?:group|fixed)-\d+)"', svg)


def test_every_group_and_every_fixed_layer_is_drawn_once(attention: Symmetry, tmp_path: Path):
    write(picture(attention, "tiny", "four groups"), tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert sorted(identifiers(svg)) == ["fixed-4", "fixed-5", "group-0", "group-1", "group-2", "group-3"]
    texts = ["tiny", "four groups", "blocks of units", "units that stay", "stem · 8", "qkv · 2 ×", "qkv/inside · 2×4"]
    for text in [*texts, "head"]:
        assert f">{text}<" in svg, text


def test_the_same_picture_has_the_same_bytes(attention: Symmetry, tmp_path: Path):
    for name in ("a.svg", "b.svg"):
        write(picture(attention, "tiny"), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_png_shows_the_colours_of_the_groups(attention: Symmetry, tmp_path: Path):
    from matplotlib.image import imread

    write(picture(attention, "tiny"), tmp_path / "a.png")
    pixels = imread(tmp_path / "a.png")
    colourful = (pixels[..., :3].max(-1) - pixels[..., :3].min(-1)) > 0.3
    assert colourful.mean() > 0.05


def test_a_network_without_symmetry_has_a_picture_too(tmp_path: Path):
    write(picture(Symmetry({}, {"a.weight": (2, 3)}, frozenset({"a.weight"})), "one layer"), tmp_path / "a.svg")
    assert identifiers((tmp_path / "a.svg").read_text(encoding="utf-8")) == ["fixed-0"]


@pytest.mark.parametrize(("name", "words"), [("a.gif", ".png, .svg"), ("none/a.png", "no folder")])
def test_a_target_that_cannot_be_written_is_refused_beforehand(tmp_path: Path, name: str, words: str):
    with pytest.raises(UserError, match=words):
        check_target(tmp_path / name)
