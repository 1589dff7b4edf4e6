"""A Weights & Biases run whose failures stay its own."""

import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


class Mirror:
    """Guards every call into wandb: the first one that fails is told in one warning, and the rest are left out.

    The experiment's own files are the truth and the mirror only repeats them, so losing it must cost nothing.

    Args:
        run: a `wandb` run, or None for a mirror that shows nothing.
        upload: the command that uploads what the run has written.
        remind: name that command when the run has ended.
    """

    def __init__(self, run: Any = None, upload: str = "", *, remind: bool = False) -> None:
        self._run = run
        self._upload = upload
        self._remind = remind
        self._failed = False

    def call(self, action: Callable[[Any], object]) -> None:
        """Call `action` with the wandb run, unless there is none or it has failed before."""
        if self._run is not None and not self._failed:
            self._guarded(action)

    def finish(self, exit_code: int) -> None:
        """End the run: 0 marks it finished, anything else failed. A second call does nothing."""
        if self._run is None:
            return
        # A run that failed half-way is ended too, or wandb would call it well finished when the process exits.
        self._guarded(lambda run: run.finish(exit_code=exit_code))
        self._run = None
        if self._remind and not self._failed:
            log.info("Weights & Biases has recorded offline; upload it with: %s", self._upload)

    def _guarded(self, action: Callable[[Any], object]) -> None:
        try:
            action(self._run)
        except Exception as error:  # whatever wandb raises, the experiment goes on
            if not self._failed:
                log.warning(
                    "Weights & Biases failed (%s) and is left out from here on; upload what it has with: %s",
                    summarised(error),
                    self._upload,
                )
            self._failed = True


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or an empty string."""
    return next(iter(str(error).splitlines()), "")


def summarised(error: BaseException) -> str:
    """Return the kind and the first line of an error, for a message."""
    return f"{type(error).__name__}: {first_line(error)}"
