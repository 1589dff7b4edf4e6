import json
import logging
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from lmc import config
from lmc.errors import UserError
from lmc.results import PathPoint, Row, read_rows, write_rows
from lmc.tracker.run import row_name
from lmc.tracker.wandb import WandB

pytestmark = pytest.mark.usefixtures("no_account")

SETTINGS = {"seeds": [0, 1], "alignment": {"_target_": "lmc.alignment.none.Nothing", "tolerance": 1e-12}}
ROWS = [
    Row(what=what, path=path, pair=pair, split="train", metric="loss", unit="nats", value=value, examples=7, key="k")
    for what, path, pair, value in [
        ("barrier", "aligned", (0, 1), -0.0123),
        ("barrier", "unaligned", (0, 1), 0.8),
        ("endpoint", None, (0,), 1 / 3),
    ]
]
POINTS = [
    PathPoint(pair=(0, 1), path=path, split="test", t=t, loss=2 * t, accuracy=t, distance=t, examples=7)
    for path in ("aligned", "unaligned")
    for t in (0.0, 0.5, 1.0)
]
# Reads the mode from its arguments and says how it went on; run in a process of its own, as wandb keeps a session.
SCRIPT = """
import logging, sys
from pathlib import Path
from lmc.tracker.wandb import WandB
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
with WandB(mode=sys.argv[1], init_timeout=1.0).start({}, Path(sys.argv[2]), group=None, name="n") as run:
    with run.stage("s", 1) as advance:
        advance({"loss": 1.0})
logging.info("experiment done")
"""


def table(recorded, name: str) -> tuple[list[str], list[list[object]]]:
    """Columns and lines of the only table logged as `name`."""
    (path,) = recorded.series(f"{name}/path")
    content = json.loads((recorded.folder / "files" / path).read_text())
    return content["columns"], content["data"]


def in_a_process(mode: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, mode, str(folder)]
    environ = {**os.environ, **environment}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=90, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("fails", [False, True], ids=["ends well", "crashes"])
def test_an_offline_run_reads_back_as_it_was_told(tmp_path, read_runs, fails):
    losses = [0.9, 0.5, 0.25]
    write_rows(tmp_path / "results.jsonl", ROWS)
    png = tmp_path / "barrier.png"
    Image.new("RGB", (4, 3)).save(png)

    def experiment() -> None:
        option = WandB(mode="offline", tags=("own",))
        with option.start(SETTINGS, tmp_path, group="sweep", name="job", tags=["own", "other"]) as run:
            with run.stage("endpoints/0", len(losses)) as advance:
                for loss in losses:
                    advance({"loss": loss, "accuracy": 1 - loss})
            run.rows(ROWS)
            run.path(POINTS)
            run.figure("barrier", png)
            if fails:
                raise ZeroDivisionError("the experiment's own")

    if fails:
        with pytest.raises(ZeroDivisionError, match="own"):
            experiment()
    else:
        experiment()

    (recorded,) = read_runs(tmp_path)
    assert recorded.exit_code == (1 if fails else 0)
    assert {name: recorded.config[name] for name in SETTINGS} == SETTINGS
    assert (recorded.project, recorded.group, recorded.name) == ("lmc", "sweep", "job")
    assert recorded.tags == ["own", "other"]
    assert recorded.series("endpoints/0/loss") == losses
    assert recorded.series("endpoints/0/step") == [1, 2, 3]
    assert recorded.step_axes["endpoints/0/*"] == "endpoints/0/step"
    for row in read_rows(tmp_path / "results.jsonl"):
        assert recorded.summary[row_name(row)] == row.value
    names, cells = table(recorded, "rows")
    assert [dict(zip(names, line, strict=True)) for line in cells] == [
        {**row.as_dict(), "pair": "-".join(map(str, row.pair))} for row in ROWS
    ]
    names, cells = table(recorded, "path")
    assert [(line[names.index("t")], line[names.index("loss")]) for line in cells] == [(p.t, p.loss) for p in POINTS]
    assert recorded.series("path_loss_table/nrows") == recorded.series("path_accuracy_table/nrows") == [len(POINTS)]
    (image,) = recorded.series("barrier/path")
    assert (recorded.folder / "files" / image).read_bytes() == png.read_bytes()


def test_two_runs_in_one_process_are_two_runs(tmp_path, read_runs):
    option = WandB(mode="offline")
    with option.start({"job": 0}, tmp_path / "0", group="g", name="a") as outer:
        with option.start({"job": 1}, tmp_path / "1", group="g", name="b") as inner, inner.stage("s", 1) as advance:
            advance({"loss": 1.0})
        with outer.stage("s", 1) as advance:
            advance({"loss": 2.0})
    (first,), (second,) = read_runs(tmp_path / "0"), read_runs(tmp_path / "1")
    assert (first.config["job"], second.config["job"]) == (0, 1)
    assert (first.series("s/loss"), second.series("s/loss")) == ([2.0], [1.0])
    assert first.group == second.group == "g"
    assert (first.exit_code, second.exit_code) == (0, 0)


def test_disabled_writes_nothing_and_leaves_wandb_unimported(tmp_path):
    code = SCRIPT + "assert 'wandb' not in sys.modules\n"
    folder = tmp_path / "run"
    folder.mkdir()
    subprocess.run([sys.executable, "-c", code, "disabled", str(folder)], check=True, timeout=60, capture_output=True)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("environment", [{}, {"WANDB_MODE": ""}], ids=["plain", "empty WANDB_MODE"])
def test_auto_without_a_key_is_offline_and_says_how_to_upload(tmp_path, read_runs, environment):
    ended = in_a_process("auto", tmp_path, **environment)
    assert ended.returncode == 0, ended.stderr
    (recorded,) = read_runs(tmp_path)
    assert recorded.series("s/loss") == [1.0]
    assert ended.stderr.count(f"wandb sync {recorded.folder}") == 1
    assert "WARNING" not in ended.stderr


def test_auto_without_a_key_does_not_ask_on_a_terminal(tmp_path, read_runs):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "auto", str(tmp_path)], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # Linux reports the end of a pseudo-terminal so
                break
    try:
        code = process.wait(timeout=max(1.0, deadline - time.monotonic()))
    finally:
        process.kill()
        os.close(ours)
    assert code == 0, shown.decode()
    assert b"choice" not in shown.lower()
    assert b"experiment done" in shown
    assert len(read_runs(tmp_path)) == 1


def test_auto_with_a_key_but_no_network_falls_back_offline_with_one_warning(tmp_path, read_runs):
    started = time.monotonic()
    ended = in_a_process("auto", tmp_path, WANDB_API_KEY="0" * 40, WANDB_BASE_URL="http://127.0.0.1:9")
    assert time.monotonic() - started < 40  # wandb alone waits 90 s
    assert ended.returncode == 0, ended.stderr
    recorded = [run for run in read_runs(tmp_path) if run.folder.name.startswith("offline-run")]
    assert [run.series("s/loss") for run in recorded] == [[1.0]]
    warnings = [line for line in ended.stderr.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert f"wandb sync {recorded[0].folder}" in warnings[0]


@pytest.mark.parametrize(
    ("environment", "reason"),
    [({}, "no W&B key"), ({"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}, "cannot be used")],
    ids=["no key", "no network"],
)
def test_online_insists(tmp_path, environment, reason):
    ended = in_a_process("online", tmp_path, **environment)
    last = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode != 0
    assert last.startswith(f"{UserError.__module__}.{UserError.__name__}: tracker.mode=online")
    assert reason in last
    assert "tracker.mode=auto" in last
    assert "experiment done" not in ended.stderr


@pytest.mark.parametrize(("wished", "runs"), [("offline", 1), ("disabled", 0)])
def test_auto_honours_the_environment(tmp_path, monkeypatch, read_runs, wished, runs):
    monkeypatch.setenv("WANDB_MODE", wished)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with WandB().start({}, tmp_path, group=None, name="n"):
        pass
    assert len(read_runs(tmp_path)) == runs


class Broken:
    """A wandb run of which every part raises."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError(f"{name} is broken\nin two lines")


@pytest.mark.parametrize("mode", ["auto", "offline", "online"])
def test_a_wandb_that_cannot_start_is_left_out(tmp_path, monkeypatch, caplog, mode):
    import wandb

    def init(*_: object, **__: object) -> None:
        raise OSError("no file handles left")

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr("lmc.tracker.wandb._has_key", lambda: True)
    with caplog.at_level(logging.WARNING), WandB(mode=mode).start({}, tmp_path, group=None, name="n") as run:
        run.rows(ROWS)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no file handles left" in caplog.text


def test_an_unusable_wandb_setting_in_the_environment_costs_only_the_tracker(tmp_path):
    ended = in_a_process("auto", tmp_path, WANDB_MODE="nonsense")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("WARNING") == 1
    assert "experiment done" in ended.stderr


@pytest.mark.parametrize(
    ("node", "named"),
    [
        ({"mode": "of"}, "tracker.mode"),
        ({"project": "a/b"}, "tracker.project"),
        ({"tags": ["x" * 65]}, r"tracker.tags\[0\]"),
        ({"init_timeout": 0}, "tracker.init_timeout"),
        ({"projet": "p"}, "did you mean project"),
    ],
)
def test_unusable_settings_are_refused_with_their_name(node, named):
    with pytest.raises(UserError, match=named):
        config.settings({"_target_": "lmc.tracker.wandb.WandB", **node}, "tracker")


def test_no_setting_of_the_tracker_is_part_of_a_key():
    assert set(config.identity({"_target_": "lmc.tracker.wandb.WandB"}, "tracker")) <= {"_target_"}


def test_the_option_file_lists_every_setting_with_its_default():
    from omegaconf import OmegaConf

    file = Path(__file__).parents[2] / "conf" / "tracker" / "wandb.yaml"
    node = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(node, dict)
    assert node == config.settings({"_target_": node["_target_"]}, "tracker")
