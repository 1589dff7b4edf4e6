import logging

from lmc.tracker.mirror import Mirror


class FakeRun:
    """Counts what is asked of it; the calls named in `broken` raise."""

    def __init__(self, *broken: str) -> None:
        self.broken = broken
        self.calls: list[str] = []

    def log(self) -> None:
        self._note("log")

    def finish(self, exit_code: int) -> None:
        self._note(f"finish {exit_code}")

    def _note(self, what: str) -> None:
        self.calls.append(what)
        if what.split()[0] in self.broken:
            raise RuntimeError("first line\nsecond line")


def test_a_failing_call_is_told_once_and_ends_the_mirroring(caplog):
    run = FakeRun("log", "finish")
    mirror = Mirror(run, "wandb sync FOLDER", remind=True)
    for _ in range(3):
        mirror.call(lambda r: r.log())
    mirror.finish(1)
    mirror.finish(1)
    assert run.calls == ["log", "finish 1"]
    assert len(caplog.records) == 1
    assert "RuntimeError: first line" in caplog.text
    assert "second line" not in caplog.text
    assert "wandb sync FOLDER" in caplog.text


def test_a_sound_run_is_called_each_time_and_reminded_of_at_its_end(caplog):
    run = FakeRun()
    mirror = Mirror(run, "wandb sync FOLDER", remind=True)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            mirror.call(lambda r: r.log())
        mirror.finish(0)
        mirror.call(lambda r: r.log())
    assert run.calls == ["log", "log", "log", "finish 0"]
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "wandb sync FOLDER" in caplog.text


def test_no_run_means_no_calls(caplog):
    mirror, called = Mirror(), []
    mirror.call(called.append)
    mirror.finish(0)
    assert called == []
    assert caplog.records == []
