"""Keys, publication, locks and damage; processes are real where it matters."""

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from lmc.errors import UserError
from lmc.store import Store, fingerprint


def test_keys_are_pinned():
    # printf '["alignment",2,{"a":1,"b":[1.5,null]},["k"]]' | sha256sum
    expected = "6fa1e1f6b95ec32286517ceead04535800eba13ed46465813ef5ce31f94ee0c9"
    assert fingerprint("alignment", 2, {"b": [1.5, None], "a": 1}, ["k"]) == expected


def test_everything_that_counts_makes_another_key():
    keys = {
        fingerprint(stage, version, settings, parents)
        for stage in ("a", "b")
        for version in (1, 2)
        for settings in ({}, {"x": 1}, {"x": 1.0}, {"x": "1"})
        for parents in ((), ("p",), ("p", "q"), ("q", "p"))
    }
    assert len(keys) == 2 * 2 * 4 * 4


def make_text(text: str):
    def make(folder: Path) -> None:
        (folder / "value.txt").write_text(text, encoding="utf-8")

    return make


def test_an_artifact_is_made_once(tmp_path: Path):
    store = Store(tmp_path)
    first = store.get_or_make("stage", "k", make_text("one"), settings={"x": 1}, parents=["p"])
    second = store.get_or_make("stage", "k", make_text("two"), settings={"x": 1})
    assert (first.made, second.made) == (True, False)
    assert (second.folder / "value.txt").read_text(encoding="utf-8") == "one"
    assert second.record["settings"] == {"x": 1}
    assert second.record["parents"] == ["p"]
    assert set(second.record["versions"]) >= {"python", "torch", "lmc"}


def test_a_failed_maker_publishes_nothing_and_the_next_continues(tmp_path: Path):
    store = Store(tmp_path)

    def fails(folder: Path) -> None:
        (folder / "half.txt").write_text("half", encoding="utf-8")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        store.get_or_make("stage", "k", fails, settings={})
    assert store.find("stage", "k") is None

    def continues(folder: Path) -> None:
        assert (folder / "half.txt").read_text(encoding="utf-8") == "half"
        (folder / "half.txt").rename(folder / "whole.txt")

    assert store.get_or_make("stage", "k", continues, settings={}).made


@pytest.mark.parametrize("damage", ["changed", "removed", "record"])
def test_a_damaged_artifact_is_set_aside_and_made_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture):
    store = Store(tmp_path)
    found = store.get_or_make("stage", "k", make_text("one"), settings={})
    if damage == "changed":
        (found.folder / "value.txt").write_text("onf", encoding="utf-8")
    elif damage == "removed":
        (found.folder / "value.txt").unlink()
    else:
        (found.folder / "record.json").write_text('{"files": {', encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        again = store.get_or_make("stage", "k", make_text("two"), settings={})
    assert again.made
    assert (again.folder / "value.txt").read_text(encoding="utf-8") == "two"
    (message,) = (record.getMessage() for record in caplog.records)
    assert str(found.folder) in message
    assert (tmp_path / "stage" / "k.damaged-1").is_dir()


def _count(root: Path, log: Path) -> None:
    def make(folder: Path) -> None:
        with log.open("a", encoding="utf-8") as file:
            file.write("made\n")
        time.sleep(0.3)
        (folder / "value.txt").write_text("one", encoding="utf-8")

    Store(root).get_or_make("stage", "k", make, settings={})


def test_two_processes_make_it_once(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=_count, args=(tmp_path / "store", tmp_path / "log")) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert (tmp_path / "log").read_text(encoding="utf-8") == "made\n"


def _hang(root: Path, ready: Path) -> None:
    def make(folder: Path) -> None:
        ready.touch()
        time.sleep(60)

    Store(root).get_or_make("stage", "k", make, settings={})


def test_a_killed_maker_leaves_no_lock(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    job = context.Process(target=_hang, args=(tmp_path / "store", tmp_path / "ready"))
    job.start()
    deadline = time.monotonic() + 20
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert job.pid is not None
    os.kill(job.pid, signal.SIGKILL)
    job.join()
    assert Store(tmp_path / "store").get_or_make("stage", "k", make_text("one"), settings={}).made


def test_a_store_that_cannot_be_written_is_one_clear_line(tmp_path: Path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot write the store .*move the store with store\.root= or LMC_STORE"):
        Store(tmp_path / "file" / "store").check_writable()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    """What flock(2) answers on Lustre mounted without it, on NFS without its lock service, and on some of FUSE."""

    def refuse(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"without file locks, .* mount it with them \(flock\), or move the store"):
        Store(tmp_path).check_writable()
    assert not list(tmp_path.glob(".probe-*"))


def test_machines_whose_processes_have_the_same_number_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fsync, depth = os.fsync, 0

    def another_machine(descriptor: int) -> None:
        nonlocal depth
        depth += 1
        if depth == 1:
            Store(tmp_path).check_writable()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", another_machine)
    Store(tmp_path).check_writable()
    assert depth == 2


def test_a_full_disk_is_one_clear_line(tmp_path: Path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    store = Store(tmp_path)

    def make(folder: Path) -> None:
        with Path("/dev/full").open("w", encoding="utf-8") as file:
            file.write("x" * 10)

    with pytest.raises(UserError, match="the disk is full"):
        store.get_or_make("stage", "k", make, settings={})


def test_records_name_every_file(tmp_path: Path):
    found = Store(tmp_path).get_or_make("stage", "k", make_text("one"), settings={})
    record = json.loads((found.folder / "record.json").read_text(encoding="utf-8"))
    # printf one | sha256sum
    assert record["files"] == {"value.txt": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"}
