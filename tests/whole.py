"""A whole experiment, small, with an observer that remembers what was computed."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from hydra import compose, initialize_config_dir

from lmc import config, pipeline, plan
from lmc.pipeline import Results
from lmc.plan import Plan

SMALL = (
    *("dataset=synthetic", "dataset.examples=60", "dataset.test_examples=40", "dataset.size=6", "dataset.channels=1"),
    *("architecture.width=6", "evaluation.grid=3"),
)


class Silent:
    """Remembers of every stage how many steps it was to have, and what each of them said."""

    def __init__(self) -> None:
        self.steps: dict[str, tuple[int | None, list[Mapping[str, float]]]] = {}

    def stage(self, label: str, total: int | None) -> AbstractContextManager[Callable[[Mapping[str, float]], None]]:
        self.steps[label] = (total, [])
        return nullcontext(self.steps[label][1].append)


def prepared(*overrides: str) -> Plan:
    """Return the plan of a small experiment; overrides of the same key win."""
    config.register()
    with initialize_config_dir(config.conf_dir(), version_base="1.3"):
        settings: dict[str, Any] = config.plain(compose("config", [*SMALL, *overrides]))
    return plan.prepare(settings)


def run(*overrides: str) -> tuple[Results, Silent]:
    """Return what a small experiment measures, and its observer."""
    observer = Silent()
    return pipeline.run(prepared(*overrides), observer), observer
