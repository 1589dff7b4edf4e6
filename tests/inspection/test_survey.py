import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lmc.errors import UserError
from lmc.inspection.markdown import as_markdown
from lmc.inspection.measure import Task
from lmc.inspection.sources.request import Input
from lmc.inspection.survey import Survey, expand

MEASURED = {
    "parameters": 11_689_512,
    "groups": 5,
    "nested": 2,
    "movable": 1000,
    "share": 0.99999,
    "log10_equivalent_networks": 10.0,
    "verification_error": 2e-16,
    "verification_control": 0.3,
    "seconds": {"discover": 1.23},
    "recovered": {
        "activations": {"share": None, "seconds": 0.0, "reason": "no site"},
        "weights": {"share": 0.00001, "seconds": 0.0, "reason": ""},
    },
    "twins": 0.0,
}


def table(folder: Path) -> dict[str, list[str]]:
    lines = (folder / "table.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| mine:")]
    return {row[0]: row[1:] for row in rows}


def test_a_survey_survives_a_crash_and_goes_on_where_it_stopped(folder: Path):
    task = Task("", input=Input((2, 4)))
    known = {"network": "mine:known", "measured_with": task.identity(), "command": "an earlier start", **MEASURED}
    torn = '{"network": "mine:torn", '  # the earlier start was killed while it wrote
    (folder / "table.jsonl").write_text(f"{json.dumps(known)}\n{torn}", encoding="utf-8")
    arguments = [
        "--survey",
        "mine:known,crash,crash_when_matched,Net",
        "--out",
        "table.md",
        "--input",
        "2,4",
        "--limit",
        "100",
    ]
    command = [sys.executable, "-m", "lmc.inspection.command", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "table.md\n"
    assert "1 of 4 networks are in table.jsonl already" in done.stderr
    assert "mine:known ..." not in done.stderr

    rows = table(folder)
    assert list(rows) == ["mine:known", "mine:crash", "mine:crash_when_matched", "mine:Net"]
    assert rows["mine:crash"][0] == "failed: the process ended with status 7"
    parameters, groups, units, share, equivalent, error, control, activations, weights, twins, _ = rows["mine:Net"]
    assert (parameters, groups, units, share, equivalent) == ("37", "1", "5", "100 %", "10^2")
    assert float(error) < 1e-9 < float(control)
    assert (activations, weights, twins) == ("100 %", "100 %", "0 %")
    assert rows["mine:crash_when_matched"][:5] == rows["mine:Net"][:5]  # what was found before is kept
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert "- mine:crash_when_matched: the process ended with status 7" in text
    assert "an earlier start\nlmc-symmetry --survey mine:known,crash,crash_when_matched,Net" in text
    assert "3 of 4 networks" in text

    (folder / "table.md").unlink()
    again = Survey(folder / "table.md", task).run("mine:Net,crash,known")  # nothing is left to do
    assert len(again) == 4
    assert list(table(folder)) == ["mine:Net", "mine:crash", "mine:known", "mine:crash_when_matched"]


SLOW = """
import os, pathlib, time

def slow():
    pathlib.Path("started").write_text(str(os.getpid()))
    time.sleep(100)
"""


def test_no_process_is_left_behind_by_a_survey_that_is_killed(folder: Path):
    (folder / "slow.py").write_text(SLOW, encoding="utf-8")
    command = [sys.executable, "-m", "lmc.inspection.command", "--survey", "slow:slow", "--out", "table.md"]
    with subprocess.Popen([*command, "--input", "2,4"], cwd=folder, stderr=subprocess.DEVNULL) as survey:
        started = folder / "started"
        _wait_for(lambda: started.exists() and started.read_text() != "")
        survey.kill()
    status = Path("/proc") / started.read_text() / "status"

    def has_ended() -> bool:
        return not status.exists() or "State:\tZ" in status.read_text()  # what ended may wait to be reaped

    _wait_for(has_ended)
    assert has_ended()


def _wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_rows_of_other_settings_are_measured_again(tmp_path: Path):
    rows = [
        {"network": "a", "measured_with": Task("").identity(), "failed": "once"},
        {"network": "a", "measured_with": Task("").identity(), "failed": "twice"},
        {"network": "b", "measured_with": Task("", seed=1).identity(), "failed": "once"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["failed"] for row in Survey(tmp_path / "a.md", Task("")).rows()] == ["twice"]
    assert [row["network"] for row in Survey(tmp_path / "a.md", Task("", seed=1)).rows()] == ["b"]


def test_names_are_expanded():
    assert expand("timm:a,b,mine:c,d") == ["timm:a", "timm:b", "mine:c", "mine:d"]
    assert expand("mlp, resnet20,mlp") == ["mlp", "resnet20"]
    found = expand("torchvision")
    assert {"torchvision:resnet50", "torchvision:vit_b_16", "torchvision:densenet121"} < set(found)
    assert not any("quantized" in name or "rcnn" in name for name in found)
    with pytest.raises(UserError, match="empty"):
        expand("mlp,")


def test_shares_are_never_rounded_to_all_or_nothing():
    row = {"network": "a|b", **MEASURED}
    text = as_markdown([row, {**row, "network": "c", "unfinished": "given up after 9 s"}])
    assert "- c: given up after 9 s" in text
    assert "| a\\|b | 11.7 M | 3 + 2 | 1,000 | 99.9 % | 10^10 | 2e-16 | 3e-01 | - | 0.1 % | 0 % | 1.2 |" in text
    assert "- a\\|b, activations: no site" in text
