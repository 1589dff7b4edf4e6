"""Weights & Biases, which never asks, never waits for long, and never takes an experiment with it."""

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat

from lmc.errors import UserError
from lmc.tracker.mirror import Mirror, first_line, summarised
from lmc.tracker.run import Run
from lmc.tracker.terminal import Terminal

log = logging.getLogger(__name__)

Mode = Literal["auto", "online", "offline", "disabled"]
# The limits are those of the W&B server; a longer name would be refused when the run is uploaded.
_NAME_LENGTH, _TAG_LENGTH = 128, 64


@dataclass(frozen=True, kw_only=True)
class WandB:
    """Records an experiment with Weights & Biases and shows its progress on the terminal.

    Args:
        mode: "auto" is online if there is a key (WANDB_API_KEY or netrc) and the server answers, else offline;
            WANDB_MODE=offline or disabled in the environment is honoured. "online" insists: without a key or a
            server the run stops at its start. "offline" writes to the run's folder, for `wandb sync`. "disabled"
            writes nothing.
        project: name of the W&B project.
        entity: W&B user or team; None for the default of the key's account.
        tags: labels of every run.
        init_timeout: seconds to wait for the server at the start.
        finish_timeout: seconds to wait for uploads at the end; what is left can be sent with `wandb sync`.
    """

    outside_key: ClassVar[frozenset[str]] = frozenset(
        {"mode", "project", "entity", "tags", "init_timeout", "finish_timeout"}
    )

    mode: Mode = "auto"
    project: Annotated[str, Field(min_length=1, max_length=_NAME_LENGTH, pattern=r"^[^/\\#?%:]+$")] = "lmc"
    entity: str | None = None
    tags: tuple[Annotated[str, Field(min_length=1, max_length=_TAG_LENGTH)], ...] = ()
    init_timeout: PositiveFloat = 15.0
    finish_timeout: PositiveFloat = 120.0

    def start(
        self, settings: Mapping[str, Any], folder: Path, *, group: str | None, name: str, tags: Sequence[str] = ()
    ) -> Run:
        """Begin to record an experiment; a process can record several, one after the other or at once.

        Args:
            settings: the resolved configuration, plain and nested; shown as the W&B configuration.
            folder: the run's folder; W&B keeps its files in its subfolder "wandb".
            group: name that the runs of one sweep share; None outside a sweep.
            name: name of this run.
            tags: labels beside the option's own.

        Raises:
            UserError: mode "online" and W&B has no key, does not accept it, or cannot be reached.
        """
        mode = self._effective_mode()
        if mode == "disabled":
            return Run(Terminal(), Mirror())
        arguments = {
            "project": self.project,
            "entity": self.entity,
            "config": dict(settings),
            "dir": str(folder.absolute()),
            "group": group[:_NAME_LENGTH] if group else None,
            "name": name[:_NAME_LENGTH],
            "tags": [tag[:_TAG_LENGTH] for tag in dict.fromkeys((*self.tags, *tags)) if tag],
            "reinit": "create_new",  # the jobs of a sweep can share a process
        }
        try:
            mirror = self._offline(arguments) if mode == "offline" else self._online(arguments)
        except UserError:
            raise
        except Exception as error:  # wandb itself is broken here; the experiment is not
            log.warning("Weights & Biases cannot start (%s); the experiment goes on without it", summarised(error))
            mirror = Mirror()
        return Run(Terminal(), mirror)

    def _effective_mode(self) -> Mode:
        wished = os.environ.get("WANDB_MODE")
        if wished == "":
            del os.environ["WANDB_MODE"]  # `import wandb` fails on an empty value
        if self.mode == "auto" and wished in ("offline", "dryrun"):
            return "offline"
        if self.mode == "auto" and wished == "disabled":
            return "disabled"
        return self.mode

    def _online(self, arguments: Mapping[str, Any]) -> Mirror:
        """Return an online run if that can be had, else (mode "auto") an offline one."""
        import wandb

        insists = self.mode == "online"
        try:
            run = wandb.init(mode="online", settings=self._settings(), **arguments) if _has_key() else None
        except Exception as error:  # wandb raises more than its own errors, and "auto" must survive them all
            if insists and isinstance(error, wandb.errors.Error):
                raise UserError(
                    f"tracker.mode=online, but W&B cannot be used ({first_line(error)}); "
                    "check the network and the key, or use tracker.mode=auto"
                ) from None
            return self._offline(arguments, because=summarised(error))
        if run is not None:
            log.info("Weights & Biases: %s", run.url)
            return Mirror(run, _upload(run))
        if insists:
            raise UserError(
                "tracker.mode=online, but there is no W&B key; "
                "run `wandb login`, set WANDB_API_KEY, or use tracker.mode=auto"
            )
        return self._offline(arguments)

    def _offline(self, arguments: Mapping[str, Any], because: str = "") -> Mirror:
        import wandb

        run = wandb.init(mode="offline", settings=self._settings(), **arguments)
        if because:
            log.warning(
                "Weights & Biases cannot be reached (%s) and records offline; upload it later with: %s",
                because,
                _upload(run),
            )
        return Mirror(run, _upload(run), remind=not because)

    def _settings(self) -> Any:
        import wandb

        return wandb.Settings(
            init_timeout=self.init_timeout,
            finish_timeout=self.finish_timeout,
            finish_timeout_raises=True,
            silent=True,
            console="off",  # standard output belongs to the experiment
            x_disable_stats=True,  # no polling of the machine beside a measurement
            x_disable_meta=True,
            disable_git=True,
            disable_code=True,
        )


def _has_key() -> bool:
    """Tell whether W&B finds a key in the environment, its settings or netrc; never asks for one."""
    import wandb

    wandb.setup(wandb.Settings(silent=True, mode="online"))
    return bool(wandb.login(prompt=False, verify=False))


def _upload(run: Any) -> str:
    return f"wandb sync {shlex.quote(run.settings.sync_dir)}"
