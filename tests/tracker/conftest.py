"""What the tracker tests share: an environment without an account, and a reader for what an offline run wrote."""

import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_BLOCK, _HEADER = 32768, 7
_FULL, _FIRST, _LAST = 1, 2, 4


@dataclass
class Recorded:
    """The content of one offline run."""

    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    step_axes: dict[str, str] = field(default_factory=dict)
    name: str = ""
    group: str = ""
    project: str = ""
    tags: list[str] = field(default_factory=list)
    exit_code: int | None = None
    folder: Path = Path()

    def series(self, name: str) -> list[Any]:
        return [entry[name] for entry in self.history if name in entry]


def _chunks(data: bytes) -> Iterator[bytes]:
    """Undo the framing of a .wandb file: LevelDB's log format, after a header of seven bytes."""
    assert data[:4] == b":W&B"
    position, parts = _HEADER, b""
    while position + _HEADER <= len(data):
        room = _BLOCK - position % _BLOCK
        if room < _HEADER:
            position += room
            continue
        checksum, size, kind = struct.unpack_from("<IHB", data, position)
        body = data[position + _HEADER : position + _HEADER + size]
        if kind == 0 or len(body) < size:
            return
        assert zlib.crc32(bytes([kind]) + body) == checksum
        position += _HEADER + size
        parts = body if kind in (_FULL, _FIRST) else parts + body
        if kind in (_FULL, _LAST):
            yield parts


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _read(folder: Path) -> list[Recorded]:
    from wandb.proto import wandb_internal_pb2 as protobuf

    found = []
    for file in sorted(folder.glob("wandb/*run-2*/run-*.wandb")):  # "latest-run" is a link to one of them
        recorded = Recorded(folder=file.parent)
        for chunk in _chunks(file.read_bytes()):
            record = protobuf.Record()
            record.ParseFromString(chunk)
            match record.WhichOneof("record_type"):
                case "run":
                    run = record.run
                    recorded.name, recorded.group, recorded.project = run.display_name, run.run_group, run.project
                    recorded.tags = list(run.tags)
                    recorded.config |= _values(run.config.update)
                case "config":
                    recorded.config |= _values(record.config.update)
                case "history":
                    recorded.history.append(_values(record.history.item))
                case "summary":
                    recorded.summary |= _values(record.summary.update)
                case "metric" if record.metric.step_metric:
                    name = record.metric.glob_name or record.metric.name
                    recorded.step_axes[name] = record.metric.step_metric
                case "exit":
                    recorded.exit_code = record.exit.exit_code
        found.append(recorded)
    return found


def _read_when_written(folder: Path) -> list[Recorded]:
    """Read once every run has its exit record: W&B's own process writes the file a moment after `finish` returns."""
    deadline = time.monotonic() + 30
    while True:
        runs = _read(folder)
        offline = [run for run in runs if run.folder.name.startswith("offline-run")]
        if all(run.exit_code is not None for run in offline) or time.monotonic() > deadline:
            return runs
        time.sleep(0.05)


@pytest.fixture
def read_runs() -> Callable[[Path], list[Recorded]]:
    """Every W&B run recorded in a folder."""
    return _read_when_written


@pytest.fixture
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder and an environment in which W&B finds no key and no settings."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DIR", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    return home
