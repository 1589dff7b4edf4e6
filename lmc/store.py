"""Artifacts found again by their content: keys, locks, atomic publication, checksums.

A stage asks for an artifact by key; it is made at most once, by one process at a time, and can be read only whole:

    <root>/<stage>/<key>/            published: files and record.json (written last)
    <root>/<stage>/<key>.partial/    being made; kept when the maker dies, so that the next one continues from it
    <root>/<stage>/<key>.damaged-N/  set aside because a file did not match its checksum
    <root>/locks/<key>.lock          held by the maker; the operating system frees it when the process ends

Processes on several machines share a store over a file system that has these four properties: locks (flock) that hold
between machines, a rename of a folder that happens whole or not at all, fsync, and folders that are read anew when they
are opened (close-to-open consistency). NFS 4, NFS 3 with its lock service, Lustre mounted with `flock`, GPFS and BeeGFS
with its locks switched on have them; NFS mounted with `nolock` or `local_lock` and Lustre with `localflock` have locks
that only one machine sees, which nothing can notice from there.
"""

import errno
import hashlib
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, SoftFileLock, Timeout

from lmc.errors import UserError, refusal
from lmc.provenance import provenance

log = logging.getLogger(__name__)

RECORD_FILE = "record.json"
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})


def fingerprint(stage: str, version: int, settings: Mapping[str, Any], parents: Sequence[str] = ()) -> str:
    """Return the key of an artifact: sha256 (64 hexadecimal digits) of canonical JSON.

    Args:
        stage: name of the stage that makes it.
        version: raised whenever the stage's code changes what it computes from the same settings.
        settings: effective settings, plain JSON values. Never a device, path, worker count or log interval.
        parents: keys of the artifacts it is made from, in order.
    """
    text = json.dumps(
        [stage, version, settings, list(parents)],
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
        allow_nan=False,
    )
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Artifact:
    """A published result: read its files under `folder`. `made` tells whether this process has just made it."""

    stage: str
    key: str
    folder: Path
    record: Mapping[str, Any]
    made: bool


class Store:
    """A folder of artifacts, safe to share between processes and machines on one file system."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def check_writable(self) -> None:
        """Create the folder, write a probe file and lock it.

        Raises:
            UserError: the folder cannot be written (read-only, no permission, full disk), or its file system has no
                locks.
        """
        with _explained(self.root):
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            # A number of the process would not do: machines that share the store count their own.
            descriptor, name = tempfile.mkstemp(prefix=".probe-", dir=self.root)
            probe = Path(name)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(b"lmc" * 1000)
                    file.flush()
                    os.fsync(file.fileno())
                locks = _can_lock(probe)
            finally:
                probe.unlink(missing_ok=True)  # filelock may have done so
        if not locks:
            raise UserError(
                f"the store {self.root} is on a file system without file locks, which keep two jobs from training the "
                "same network; mount it with them (flock), or move the store with store.root= or LMC_STORE"
            )

    def find(self, stage: str, key: str) -> Artifact | None:
        """Return the artifact if it is published and undamaged, else None.

        A damaged one is set aside, with a warning that names it and the first file that is wrong.
        """
        folder = self.root / stage / key
        if not folder.is_dir():
            return None
        try:
            record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
            wrong = next((n for n, digest in record["files"].items() if _digest(folder / n) != digest), None)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            record, wrong = {}, RECORD_FILE
        if wrong is None:
            return Artifact(stage, key, folder, record, made=False)
        number = 1
        while (aside := folder.with_name(f"{key}.damaged-{number}")).exists():
            number += 1
        with _explained(self.root):
            folder.rename(aside)
        log.warning("damaged artifact %s: %s does not match its checksum; set aside as %s", folder, wrong, aside.name)
        return None

    def get_or_make(
        self,
        stage: str,
        key: str,
        make: Callable[[Path], None],
        *,
        settings: Mapping[str, Any],
        parents: Sequence[str] = (),
        device: str = "cpu",
    ) -> Artifact:
        """Return the artifact, calling `make(folder)` to write its files if it is not there yet.

        `folder` exists and may hold what an earlier, killed attempt left; `make` decides whether to continue from it.
        A second process that needs the same key waits for the first and then reads what it made.

        Args:
            stage: name of the stage; a folder of the store.
            key: from `fingerprint`.
            make: writes the artifact's files into the folder it is given, leaving nothing else there.
            settings: what the key was made of, for the record.
            parents: keys of the artifacts it is made from, for the record.
            device: where it was computed, for the record only.

        Raises:
            UserError: the store cannot be written.
        """
        if (found := self.find(stage, key)) is not None:
            return found
        with _explained(self.root):
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
        with self._lock(stage, key):
            _look_anew(self.root / stage)
            if (found := self.find(stage, key)) is not None:
                return found
            partial = self.root / stage / f"{key}.partial"
            with _explained(self.root):
                partial.mkdir(parents=True, exist_ok=True)
                start = time.perf_counter()
                make(partial)
                record = {
                    "stage": stage,
                    "key": key,
                    "settings": settings,
                    "parents": list(parents),
                    "seconds": round(time.perf_counter() - start, 3),
                    "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "device": device,
                    **provenance(),
                }
                return self._publish(stage, key, partial, record)

    def _publish(self, stage: str, key: str, partial: Path, record: dict[str, Any]) -> Artifact:
        names = sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file())
        record["files"] = {name: _digest(partial / name) for name in names if name != RECORD_FILE}
        (partial / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        for name in [*names, RECORD_FILE]:
            _sync(partial / name)
        _sync(partial)
        final = self.root / stage / key
        partial.rename(final)
        _sync(final.parent)
        return Artifact(stage, key, final, record, made=True)

    @contextmanager
    def _lock(self, stage: str, key: str) -> Iterator[None]:
        lock = FileLock(self.root / "locks" / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("another process is making %s %s; waiting for it", stage, key[:12])
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    """Turn the file system's refusals into one line that says how to mend them."""
    try:
        yield
    except OSError as error:
        reason = refusal(error)
        if reason is None:
            raise
        raise UserError(
            f"cannot write the store {root}: {reason}, or move the store with store.root= or LMC_STORE"
        ) from error


def _can_lock(path: Path) -> bool:
    """Whether the file system locks files.

    Where it does not, filelock makes do with a file that only says that there is a lock; that of a killed process would
    stay and make all others wait for ever.
    """
    lock = FileLock(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # filelock's about the above
        try:
            with lock:
                return not isinstance(lock, SoftFileLock)
        except NotImplementedError:  # older releases of filelock say it so
            return False
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise


def _look_anew(folder: Path) -> None:
    """Open the folder: only then does NFS ask its server what another machine has put there in the meantime."""
    try:
        os.close(os.open(folder, os.O_RDONLY))
    except FileNotFoundError:  # nothing of this stage has been made yet
        return


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
