"""Analyses in the pipeline: on every pair or once on all networks, checked early, kept, and left for the report."""

import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hydra import compose, initialize_config_dir

from lmc import config, pipeline, plan
from lmc.analysis.base import Finding, OnStep, Setting, Subject
from lmc.errors import UserError
from lmc.pipeline import Results
from lmc.state import State

QUICK = [
    *("dataset=synthetic", "dataset.examples=40", "dataset.test_examples=20", "dataset.size=6", "dataset.channels=1"),
    *("architecture.width=12", "architecture.depth=1", "training.epochs=1", "evaluation.grid=3"),
]


class Silent:
    def stage(self, label: str, total: int | None) -> Any:
        from contextlib import nullcontext

        SEEN.append((label, total))
        return nullcontext(lambda numbers: None)


SEEN: list[tuple[str, int | None]] = []


@dataclass(frozen=True, kw_only=True)
class Look:
    """Counts the networks that it is shown."""

    files: ClassVar[tuple[str, ...]] = ("seen.txt",)
    together: ClassVar[bool] = False

    refuse: bool = False

    def steps(self, setting: Setting) -> int | None:
        return len(setting.labels)

    def check(self, setting: Setting) -> None:
        if self.refuse:
            raise UserError("analysis.look cannot look")

    def __call__(self, subject: Subject, folder: Path, on_step: OnStep) -> list[Finding]:
        assert (subject.path is None) == self.together
        (folder / "seen.txt").write_text(str(len(subject.networks)), encoding="utf-8")
        LOOKED.append(list(subject.networks))
        more = {"layer": "a"}
        return [Finding(what="look", metric="networks", unit="networks", value=len(subject.networks), more=more)]


@dataclass(frozen=True, kw_only=True)
class LookAtAll(Look):
    together: ClassVar[bool] = True


LOOKED: list[list[State]] = []


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = types.ModuleType("looks")
    vars(module).update(Look=Look, LookAtAll=LookAtAll)
    monkeypatch.setitem(sys.modules, "looks", module)
    monkeypatch.setenv("LMC_STORE", str(tmp_path / "store"))
    SEEN.clear()
    LOOKED.clear()


def run(*overrides: str, **analyses: dict[str, Any]) -> Results:
    config.register()
    with initialize_config_dir(config.conf_dir(), version_base="1.3"):
        settings = config.plain(compose("config", [*QUICK, *overrides]))
    return pipeline.run(plan.prepare({**settings, "analysis": analyses}), Silent())


def test_every_pair_is_looked_at_once_and_the_finding_is_kept():
    look = {"_target_": "looks.Look"}
    first = run("seeds=[0,1,2]", look=look)
    assert [(row.pair, row.value, dict(row.more)) for row in first.rows if row.what == "look"] == [
        (pair, 2, {"analysis": "look", "layer": "a"}) for pair in ((0, 1), (0, 2), (1, 2))
    ]
    assert sorted(first.files) == ["look_0-1_seen.txt", "look_0-2_seen.txt", "look_1-2_seen.txt"]
    assert all(path.read_text(encoding="utf-8") == "2" for path in first.files.values())
    assert SEEN.count(("look 0-1", 3)) == 1
    LOOKED.clear()
    assert run("seeds=[0,1,2]", look=look) == first
    assert LOOKED == []


def test_all_networks_are_looked_at_together_in_the_frame_of_the_first():
    found = run("seeds=[0,1,2]", look={"_target_": "looks.LookAtAll"})
    assert [(row.pair, row.value) for row in found.rows if row.what == "look"] == [((0, 1, 2), 3)]
    ((first, second, third),) = LOOKED
    plain = run("seeds=[0,1,2]", "alignment=none", look={"_target_": "looks.LookAtAll"})
    raw = LOOKED[1]
    assert all(torch.equal(first[name], raw[0][name]) for name in first)
    assert any(not torch.equal(second[name], raw[1][name]) for name in second)
    assert any(not torch.equal(third[name], raw[2][name]) for name in third)
    assert found.rows != plain.rows


def test_what_cannot_be_done_is_refused_before_any_training():
    with pytest.raises(UserError, match=r"analysis\.look cannot look"):
        run(look={"_target_": "looks.Look", "refuse": True})
    assert SEEN == []


def test_a_misspelt_setting_names_its_place():
    with pytest.raises(UserError, match=r"analysis\.look\.refus is not a setting; did you mean refuse"):
        run(look={"_target_": "looks.Look", "refus": True})
