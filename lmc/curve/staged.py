"""A fit in stages, each with its own trainable: what was trained in one is what the next one begins with."""

import itertools
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import nn

from lmc.dataset.images import Dataset
from lmc.seeding import derive
from lmc.state import State, load, save, to_device
from lmc.training.loop import HISTORY_FILE, fit
from lmc.training.recipe import Training
from lmc.training.trainable import Trainable

log = logging.getLogger(__name__)

STAGES_FOLDER = "stages"


class Stage(Trainable, Protocol):
    """What is trained in one stage."""

    def handed_on(self) -> State:
        """Return the tensors with which the next stage begins, detached."""
        ...


def fit_staged(
    model: nn.Module,
    dataset: Dataset,
    trainings: Sequence[Training],
    begin: Callable[[int, State], Stage],
    *,
    seed: int,
    folder: Path,
    on_epoch: Callable[[Mapping[str, float]], None],
) -> State:
    """Train one stage after the other, or continue where a killed run stopped; return what the last one hands on.

    While it runs, the stages keep what they need in stages/ in `folder`; at the end that is removed and history.jsonl
    is written: the records of all stages (`lmc.training.loop.fit`), their epochs counted through, with the stage (from
    1). A continued run ends with the same bits as an unbroken one, as far as `fit` and `begin` do.

    Args:
        model: the architecture; it is copied, not changed.
        dataset: images in memory; their device is where everything is computed.
        trainings: one for each stage.
        begin: makes the stage of a number (from 0) out of what the one before handed on (at first nothing); a killed
            run calls it again.
        seed: of everything that is drawn.
        folder: where the files are written; made if absent.
        on_epoch: called after every epoch with its record.

    Raises:
        UserError: as `lmc.training.loop.fit`.
    """
    history: list[Mapping[str, float]] = []
    handed: State = {}
    for number, training in enumerate(trainings):
        done = len(history)

        def note(record: Mapping[str, float], done: int = done, number: int = number) -> None:
            history.append({**record, "epoch": done + record["epoch"], "stage": number + 1})
            on_epoch(history[-1])

        within = folder / STAGES_FOLDER / str(number)
        file = within / "handed_on.safetensors"
        if file.is_file():
            log.info("stage %d of %d is done already", number + 1, len(trainings))
            handed = to_device(load(file), dataset.train.images.device)
            for line in (within / HISTORY_FILE).read_text(encoding="utf-8").splitlines():
                note(json.loads(line))
            continue
        log.info("stage %d of %d", number + 1, len(trainings))
        stage = begin(number, handed)
        fit(model, stage, dataset, training, seed=derive(seed, "stage", number), folder=within, on_epoch=note)
        handed = stage.handed_on()
        partial = file.with_suffix(".partial")
        save(handed, partial)
        partial.replace(file)
    text = "".join(json.dumps(record) + "\n" for record in history)
    (folder / HISTORY_FILE).write_text(text, encoding="utf-8")
    return handed


def clear_stages(folder: Path) -> None:
    """Remove what the stages kept in `folder`, once the result has been written."""
    shutil.rmtree(folder / STAGES_FOLDER)


def shared_out(epochs: int, lengths: Sequence[float]) -> list[int]:
    """Return how many of `epochs` each stage gets, in proportion to `lengths`; rounding favours the earlier ones."""
    whole, ends, along = sum(lengths), [0], 0.0
    for length in lengths:
        along += length
        ends.append(min(epochs, math.ceil(epochs * along / whole - 1e-9)))
    return [end - start for start, end in itertools.pairwise(ends)]
