"""A run that was killed goes on as if nothing had happened."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lmc.dataset.augmentation import Augmentation
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.seeding import isolated
from lmc.state import State, of_model, save
from lmc.training.adam import Adam
from lmc.training.checkpoint import CHECKPOINT_FILE
from lmc.training.loop import HISTORY_FILE, fit
from lmc.training.network import NetworkTrainable
from lmc.training.recipe import Training
from lmc.training.schedule.cosine import Cosine

Settings = Callable[..., Training]
Record = Mapping[str, float]


class Stop(Exception):
    """Ends a run from within."""


def _fit(
    model: nn.Module, dataset: Dataset, training: Training, folder: Path, stop_after: int | None = None, seed: int = 0
) -> tuple[State, list[Record]]:
    trainable = NetworkTrainable(model, of_model(model))
    seen: list[Record] = []

    def on_epoch(record: Record) -> None:
        seen.append(record)
        if record["epoch"] == stop_after:
            raise Stop

    fit(model, trainable, dataset, training, seed=seed, folder=folder, on_epoch=on_epoch)
    return trainable.final_state(), seen


def _bytes(state: State) -> dict[str, bytes]:
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in state.items()}


def _without_time(records: list[Record]) -> list[dict[str, float]]:
    return [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in records]


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("stops", [(1,), (1, 2, 4)])
def test_interrupted_runs_end_with_the_same_bytes(
    convnet: nn.Module, dataset: Dataset, sgd: Settings, tmp_path: Path, optimiser: str, stops: tuple[int, ...]
) -> None:
    moved = replace(dataset, augmentation=Augmentation(flip=True))
    adam = Adam(schedule=Cosine(), epochs=5, batch_size=20, warmup_epochs=1)
    training = sgd(epochs=5, precision="auto") if optimiser == "sgd" else adam
    for stop in stops:
        with pytest.raises(Stop):
            _fit(convnet, moved, training, tmp_path / "broken", stop_after=stop)
    found, seen = _fit(convnet, moved, training, tmp_path / "broken")
    expected, unbroken = _fit(convnet, moved, training, tmp_path / "whole")
    assert _bytes(found) == _bytes(expected)
    assert _without_time(seen) == _without_time(unbroken)
    lines = [json.loads(line) for line in (tmp_path / "broken" / HISTORY_FILE).read_text().splitlines()]
    assert lines == seen
    assert [path.name for path in (tmp_path / "broken").iterdir()] == [HISTORY_FILE]


def test_dropout_is_drawn_again_as_it_was(dataset: Dataset, sgd: Settings, tmp_path: Path) -> None:
    with isolated(0, "dropout"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    training = sgd(epochs=4)
    with pytest.raises(Stop):
        _fit(model, dataset, training, tmp_path / "broken", stop_after=2)
    torch.rand(7)  # what the process has drawn in between does not matter
    found, seen = _fit(model, dataset, training, tmp_path / "broken")
    expected, unbroken = _fit(model, dataset, training, tmp_path / "whole")
    assert _bytes(found) == _bytes(expected)
    assert _without_time(seen) == _without_time(unbroken)
    model[3].p = 0.0
    assert _bytes(_fit(model, dataset, training, tmp_path / "without")[0]) != _bytes(expected)


def test_rarer_checkpoints_repeat_epochs_but_not_records(
    mlp: nn.Module, dataset: Dataset, sgd: Settings, tmp_path: Path
) -> None:
    training = sgd(epochs=5, checkpoint_every=2)
    with pytest.raises(Stop):
        _fit(mlp, dataset, training, tmp_path / "broken", stop_after=3)
    found, seen = _fit(mlp, dataset, sgd(epochs=5), tmp_path / "broken")  # another interval does not matter
    expected, _ = _fit(mlp, dataset, training, tmp_path / "whole")
    assert _bytes(found) == _bytes(expected)
    assert [record["epoch"] for record in seen] == [1, 2, 3, 4, 5]
    assert len((tmp_path / "broken" / HISTORY_FILE).read_text().splitlines()) == 5


CHILD = """
import sys, torch
from pathlib import Path
from lmc.dataset.augmentation import Augmentation
from lmc.dataset.images import Dataset, Images
from lmc.state import load, of_model
from lmc.training.loop import fit
from lmc.training.network import NetworkTrainable
from lmc.training.schedule.cosine import Cosine
from lmc.training.adam import Adam
torch.set_num_threads(1)
tensors = load(Path(sys.argv[1]) / "inputs.safetensors")
train = Images(tensors.pop("images"), tensors.pop("labels"))
empty = train.select(torch.tensor([], dtype=torch.int64))
dataset = Dataset("patterns", train, empty, train, 3, (0.5,), (0.25,), Augmentation(flip=True), "sum")
model = torch.nn.Sequential(
    torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 3))
trainable = NetworkTrainable(model, tensors)
fit(model, trainable, dataset, Adam(schedule=Cosine(), epochs=60, batch_size=20), seed=0,
    folder=Path(sys.argv[1]) / "run", on_epoch=lambda record: print(record["epoch"], flush=True))
"""


def test_a_run_killed_with_sigkill_continues_bit_for_bit(dataset: Dataset, tmp_path: Path) -> None:
    with isolated(0, "killed"):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    state = of_model(model)
    save({"images": dataset.train.images, "labels": dataset.train.labels, **state}, tmp_path / "inputs.safetensors")
    with subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(4):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert (tmp_path / "run" / CHECKPOINT_FILE).is_file()

    empty = dataset.train.select(torch.tensor([], dtype=torch.int64))
    same = replace(dataset, validation=empty, augmentation=Augmentation(flip=True), checksum="sum")
    training = Adam(schedule=Cosine(), epochs=60, batch_size=20)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        continued, seen = _fit(model, same, training, tmp_path / "run")
        unbroken, whole = _fit(model, same, training, tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert _bytes(continued) == _bytes(unbroken)
    assert _without_time(seen) == _without_time(whole)
    lines = [json.loads(line) for line in (tmp_path / "run" / HISTORY_FILE).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 61))


def test_a_torn_write_is_not_read(mlp: nn.Module, dataset: Dataset, sgd: Settings, folder: Path) -> None:
    with pytest.raises(Stop):
        _fit(mlp, dataset, sgd(), folder, stop_after=2)
    (folder / f"{CHECKPOINT_FILE}.partial").write_bytes(b"half of a checkpoint")
    with (folder / HISTORY_FILE).open("a") as file:
        file.write('{"epoch": 3, "train_l')
    _, seen = _fit(mlp, dataset, sgd(), folder)
    assert [record["epoch"] for record in seen] == [1, 2, 3]
    assert [path.name for path in folder.iterdir()] == [HISTORY_FILE]


def test_a_damaged_or_foreign_checkpoint_is_refused(
    mlp: nn.Module, dataset: Dataset, sgd: Settings, folder: Path
) -> None:
    with pytest.raises(Stop):
        _fit(mlp, dataset, sgd(), folder, stop_after=1)
    for training, seed, data in (
        (sgd(learning_rate=0.01), 0, dataset),
        (sgd(), 1, dataset),
        (sgd(), 0, replace(dataset, checksum="another")),
    ):
        with pytest.raises(UserError, match="belongs to a run with other settings or data"):
            _fit(mlp, data, training, folder, seed=seed)
    (folder / CHECKPOINT_FILE).write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"checkpoint\.safetensors is damaged"):
        _fit(mlp, dataset, sgd(), folder)
