import contextlib
import io
import logging
import os
import pty
import threading

import pytest

from lmc.tracker.mirror import Mirror
from lmc.tracker.run import Run, row_name
from lmc.tracker.terminal import Terminal


@pytest.mark.parametrize(("total", "expected"), [(1, 1), (2, 2), (4, 4), (100, 4), (1000, 4)])
def test_elsewhere_a_stage_is_a_few_log_lines(caplog, total, expected):
    stream = io.StringIO()
    with caplog.at_level(logging.INFO), Terminal(stream).stage("train", total) as advance:
        for step in range(total):
            advance({"loss": 1 / (step + 1)})
    assert len(caplog.records) == expected
    assert all(record.getMessage().startswith("train: ") for record in caplog.records)
    assert f"loss {1 / total:.4g}" in caplog.records[-1].getMessage()
    assert stream.getvalue() == ""


def test_a_stage_that_fails_is_not_told_as_ended(caplog):
    def stage() -> None:
        with Terminal(io.StringIO()).stage("train", 2):
            raise ValueError("mine")

    with caplog.at_level(logging.INFO), pytest.raises(ValueError, match="mine"):
        stage()
    assert caplog.records == []


def on_a_terminal(action) -> str:
    """What `action(stream)` shows on a pseudo-terminal, to its end: a single read gives what has arrived by then."""
    ours, theirs = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # Linux reports the end of a pseudo-terminal so
            while part := os.read(ours, 1 << 16):
                shown.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with open(theirs, "w", encoding="utf-8") as stream:
            action(stream)
    finally:
        reader.join(timeout=60)
        os.close(ours)
    return b"".join(shown).decode()


def test_on_a_terminal_a_stage_is_a_bar(caplog, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")

    def action(stream) -> None:
        terminal = Terminal(stream)
        with caplog.at_level(logging.INFO), terminal.stage("train [0]", 3) as advance:
            for _ in range(3):
                advance({"loss": 0.5})
            with terminal.stage("inner", 1) as inner:
                inner({})

    shown = on_a_terminal(action)
    assert "train [0]" in shown  # brackets are text, not markup
    assert "3/3" in shown
    assert "loss 0.5" in shown
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["inner", "train [0]"]


def test_log_lines_go_through_the_bar_and_their_handlers_are_put_back(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")

    def action(stream) -> None:
        monkeypatch.setattr("sys.stdout", stream)
        handler = logging.StreamHandler(stream)
        logging.getLogger().addHandler(handler)
        try:
            with Terminal().stage("train", 1):
                assert handler.stream is not stream
                logging.getLogger("lmc").warning("a warning in the middle")
            assert handler.stream is stream
        finally:
            logging.getLogger().removeHandler(handler)
            monkeypatch.undo()

    assert "a warning in the middle" in on_a_terminal(action)


def test_a_stage_counts_its_own_steps_in_the_record():
    class Recorder:
        def __init__(self) -> None:
            self.logged: list[dict[str, float]] = []

        def define_metric(self, name: str, **_: object) -> None:
            pass

        def log(self, values: dict[str, float]) -> None:
            self.logged.append(values)

        def finish(self, exit_code: int) -> None:
            pass

    recorder = Recorder()
    with Run(Terminal(io.StringIO()), Mirror(recorder)) as run:
        for label in ("a", "b"):
            with run.stage(label, 2) as advance:
                advance({"loss": 1.0})
                advance({"loss": 2.0})
    assert recorder.logged == [
        {f"{label}/step": step, f"{label}/loss": float(step)} for label in ("a", "b") for step in (1, 2)
    ]


def test_rows_have_names_that_tell_them_apart():
    from lmc.results import Row

    def row(**changed) -> Row:
        base = {"what": "barrier", "path": "aligned", "pair": (0, 1), "split": "train", "metric": "loss"}
        return Row(**{**base, "unit": "nats", "value": 0.0, "examples": 1, "key": "", **changed})

    assert row_name(row()) == "aligned/0-1/train/loss/barrier"
    assert row_name(row(what="endpoint", path=None, pair=(3,))) == "3/train/loss/endpoint"
    assert row_name(row(what="alignment", split=None, metric="seconds")) == "aligned/0-1/seconds/alignment"
    assert row_name(row(more={"layer": "fc1"})) == "aligned/0-1/train/loss/barrier/layer=fc1"
