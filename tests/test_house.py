"""The rules of the house, read from the sources: floors, names, size, and the ways things are written."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lmc"

FLOORS = {
    **dict.fromkeys(("errors", "modes", "seeding", "state", "store", "results", "config"), 0),
    **dict.fromkeys(("measures", "provenance", "cluster", "command_line"), 0),
    **dict.fromkeys(("dataset", "architecture"), 0),
    **dict.fromkeys(("training", "symmetry", "experiment"), 1),
    **dict.fromkeys(("curve", "statistics"), 2),
    **dict.fromkeys(("alignment",), 3),
    **dict.fromkeys(("endpoints", "merge", "evaluation", "tracker"), 4),
    **dict.fromkeys(("analysis",), 5),
    **dict.fromkeys(("plan",), 6),
    **dict.fromkeys(("stages", "report", "inspection"), 7),
    **dict.fromkeys(("pipeline",), 8),
    **dict.fromkeys(("forecast",), 9),
    **dict.fromkeys(("app", "reporting"), 10),
}
# On the ground floor the concepts may use each other's vocabulary; rooms (packages) may not.
VOCABULARY = {"errors", "modes", "seeding", "state", "config", "results", "provenance"}
# The public face gathers from every floor; nothing below imports it.
FACE = {"__init__", "library"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[str]:
    """The rooms of lmc that a module imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("lmc."))


MODULES = sorted(PACKAGE.rglob("*.py"))


def test_every_room_has_a_floor():
    assert {room(path) for path in MODULES} - FACE == set(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_import_only_from_floors_below(path: Path):
    here = room(path)
    if here in FACE:
        return
    for used in set(imports(path)) - {here}:
        allowed = FLOORS[used] < FLOORS[here] or (FLOORS[used] == FLOORS[here] == 0 and used in VOCABULARY)
        assert allowed, f"{here} (floor {FLOORS[here]}) imports {used} (floor {FLOORS[used]})"


def test_nothing_uses_global_random_state():
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert "torch.manual_seed" not in text, path
        assert "np.random.seed" not in text, path
