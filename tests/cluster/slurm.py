"""A Slurm of one node with accounting, for tests: all of it in one folder, on free ports, gone when the test ends.

Nothing outside the folder is read or written, and no service of the machine is touched: the daemons run in the
foreground as children of the tests and are told to end when these end in any way.
"""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "setpriv")

_SLURM = """
ClusterName=lmc
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
# Neither cgroups nor systemd: a container will do.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# Jobs start within a second.
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
KillWait=1
CompleteWait=0
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting}
AccountingStoragePass={folder}/munge.socket
# As many jobs at once as a test wants, whatever the machine has.
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 State=UNKNOWN
PartitionName=tests Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
_ACCOUNTING = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdPort={accounting}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass=slurm
"""


def missing() -> str | None:
    """Return why no Slurm can be started here, or None."""
    if os.geteuid() != 0:
        return "Slurm's daemons are started by root only"
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    packages = "apt-get install --no-install-recommends slurm-wlm munge slurmdbd mariadb-server"
    return f"{', '.join(absent)} not found: {packages}" if absent else None


@dataclass(frozen=True)
class Slurm:
    """A running Slurm. `environment` is what its clients need to find it."""

    folder: Path
    environment: dict[str, str]

    def __call__(self, *command: str) -> str:
        """Return what a client (squeue, scontrol, ...) prints; raises `subprocess.CalledProcessError`."""
        return subprocess.run(
            command, env=self.environment, check=True, capture_output=True, text=True, timeout=120
        ).stdout.strip()


@contextmanager
def running(folder: Path) -> Iterator[Slurm]:
    """Start Slurm in `folder` (whose path is short: a socket's has at most 107 characters) and stop it at the end.

    Raises:
        TimeoutError: a daemon has not come up; its log is part of the message.
    """
    names = ("controller", "node", "accounting", "database")
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    values = {"folder": folder, "host": socket.gethostname().partition(".")[0], **ports}
    for name in ("state", "spool", "logs"):
        (folder / name).mkdir()
    _private(folder / "munge.key", secrets.token_bytes(1024))
    _private(folder / "slurmdbd.conf", _ACCOUNTING.format(**values).encode())
    (folder / "slurm.conf").write_text(_SLURM.format(**values), encoding="utf-8")
    environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}
    slurm = Slurm(folder, environment)
    with ExitStack() as stack:

        def daemon(*command: str) -> None:
            stack.enter_context(_daemon(command, environment, folder / "logs"))

        key, sock = folder / "munge.key", folder / "munge.socket"
        own = [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
        daemon("munged", "--foreground", "--force", f"--socket={sock}", f"--key-file={key}", *own)
        _start_database(slurm, ports["database"], daemon)
        daemon("slurmdbd", "-D")
        _until(lambda: slurm("sacctmgr", "-n", "show", "cluster") is not None, folder)
        slurm("sacctmgr", "-i", "add", "cluster", "lmc")
        daemon("slurmctld", "-D", "-i")
        daemon("slurmd", "-D")
        _until(lambda: slurm("sinfo", "-h", "-o", "%T") == "idle", folder)
        try:
            yield slurm
        finally:
            slurm("scancel", "--user=root", "--signal=KILL", "--full")
            slurm("scancel", "--user=root")
            _until(lambda: not slurm("squeue", "-h"), folder)


def _start_database(slurm: Slurm, port: int, daemon: Callable[..., None]) -> None:
    """An empty MariaDB in which the accounting may keep what it wants."""
    folder = slurm.folder
    where = ("--no-defaults", "--user=root", f"--datadir={folder}/database")
    slurm("mariadb-install-db", *where, "--auth-root-authentication-method=normal", "--skip-test-db")
    reached = (f"--socket={folder}/database.socket", "--bind-address=127.0.0.1", f"--port={port}")
    daemon("mariadbd", *where, *reached, f"--pid-file={folder}/database.pid")
    client = ("mariadb", "--no-defaults", "--user=root", reached[0])
    _until(lambda: bool(slurm(*client, "-e", "select 1")), folder)
    allowed = "create user slurm@localhost identified by 'slurm'; grant all on slurm_acct_db.* to slurm@localhost"
    slurm(*client, "-e", allowed)


@contextmanager
def _daemon(command: Sequence[str], environment: dict[str, str], logs: Path) -> Iterator[None]:
    """Run `command` in the background; the kernel ends it too when the tests are killed."""
    with (logs / f"{command[0]}.log").open("wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig=TERM", *command], env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _until(true: Callable[[], bool], folder: Path, seconds: float = 120) -> None:
    """Wait for `true`; a client that fails is one whose daemon is not there yet."""
    end, last = time.monotonic() + seconds, ""
    while time.monotonic() < end:
        try:
            if true():
                return
        except subprocess.CalledProcessError as error:
            last = error.stderr
        time.sleep(0.2)
    logs = "\n".join(f"{path.name}:\n{path.read_text(errors='replace')[-1000:]}" for path in folder.glob("logs/*"))
    raise TimeoutError(f"Slurm did not come up in {seconds} s: {last}\n{logs}")


def _private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(number)]
        for entry in sockets:
            entry.bind(("127.0.0.1", 0))
        return [entry.getsockname()[1] for entry in sockets]


def _path() -> str:
    """Debian keeps the daemons in /usr/sbin, which is not on everybody's path."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
