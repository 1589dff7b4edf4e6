"""Hand-built symmetries, and a folder with a user's own module."""

from pathlib import Path

import pytest

from lmc.symmetry.structure import Axis, Factor, Group, Symmetry

MINE = """
import os

import torch
from torch import nn

print("a module of the user's may print")
ready = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
number = 3


class Net(nn.Module):
    def __init__(self, width: int = 5):
        super().__init__()
        self.first, self.last = nn.Linear(4, width), nn.Linear(width, 2)

    def forward(self, x):
        return self.last(self.first(x).relu())


def needs(width):
    return Net(width)


def crash():
    os._exit(7)


def crash_when_matched():
    class Crash(Net):
        def forward(self, x):
            if len(x) == 4:  # the inputs of activation matching
                os._exit(7)
            return super().forward(x)

    return Crash()


def fails():
    raise RuntimeError("no weights\\nat all")


def not_a_network():
    return 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the module `mine`."""
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plain(name: str, size: int) -> tuple[tuple[Factor, ...], ...]:
    return ((Factor(name, size),),)


@pytest.fixture
def attention() -> Symmetry:
    """A stream of 8 units, 2 heads with 4 query-key and 4 value units each, and a head of 3 outputs."""
    heads, inside = Factor("qkv", 2), [Factor("qkv/inside", 4), Factor("qkv/inside#2", 4)]
    packed = ((heads, inside[0]), (heads, inside[0]), (heads, inside[1]))
    rows, columns = Axis("qkv.weight", 0, packed), Axis("out.weight", 1, ((heads, inside[1]),))
    stream = plain("stem", 8)
    return Symmetry(
        groups={
            "stem": Group(
                "stem",
                8,
                (
                    Axis("stem.weight", 0, stream),
                    Axis("qkv.weight", 1, stream),
                    Axis("out.weight", 0, stream),
                    Axis("head.weight", 1, stream),
                ),
            ),
            "qkv": Group("qkv", 2, (rows, columns)),
            "qkv/inside": Group("qkv/inside", 4, (rows,), outer=("qkv",)),
            "qkv/inside#2": Group("qkv/inside#2", 4, (rows, columns), outer=("qkv",)),
        },
        shapes={"stem.weight": (8, 5), "qkv.weight": (24, 8), "out.weight": (8, 8), "head.weight": (3, 8)},
        parameters=frozenset({"stem.weight", "qkv.weight", "out.weight", "head.weight"}),
        fixed={"the network's input": 5, "the network's output": 3},
    )
