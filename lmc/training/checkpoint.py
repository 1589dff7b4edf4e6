"""The state of a training after an epoch, written so that a killed run can go on from it."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lmc.errors import UserError
from lmc.training.trainable import Trainable

CHECKPOINT_FILE = "checkpoint.safetensors"
Record = dict[str, float]


def signature(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of what must agree for one run to continue another: settings and shapes of tensors."""
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    return hashlib.sha256(json.dumps([settings, shapes], sort_keys=True, default=repr).encode()).hexdigest()


def write(
    folder: Path, trainable: Trainable, optimizer: torch.optim.Optimizer, history: list[Record], origin: str
) -> None:
    """Write the checkpoint into `folder` whole or not at all: one safetensors file, its header holding the scalars.

    A single file, so that no kill can leave tensors of one epoch beside scalars of another.

    Args:
        folder: an existing folder.
        trainable: whose tensors are written.
        optimizer: of `trainable.parameters()`.
        history: one record per epoch done so far.
        origin: from `signature`.
    """
    tensors = {f"trainable.{name}": tensor for name, tensor in trainable.tensors().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in slots.items() if isinstance(value, Tensor)}
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    content = save(plain, metadata={"signature": origin, "history": json.dumps(history)})
    partial = folder / f"{CHECKPOINT_FILE}.partial"
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / CHECKPOINT_FILE)


@torch.no_grad()
def restore(folder: Path, trainable: Trainable, optimizer: torch.optim.Optimizer, origin: str) -> list[Record]:
    """Put `trainable` and `optimizer` back to the checkpoint in `folder`; return its history, [] if there is none.

    Raises:
        UserError: the checkpoint is damaged, or belongs to a run with other settings.
    """
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        return []
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            saved: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise UserError(f"checkpoint {path} is damaged ({error}); remove it to train from the start") from None
    if metadata.get("signature") != origin:
        raise UserError(
            f"checkpoint {path} belongs to a run with other settings or data; remove it or choose another folder"
        )
    for name, tensor in trainable.tensors().items():
        tensor.copy_(saved[f"trainable.{name}"])
    optimizer.load_state_dict(
        {
            "state": _optimizer_state(saved, trainable.parameters()),
            "param_groups": optimizer.state_dict()["param_groups"],
        }
    )
    history: list[Record] = json.loads(metadata["history"])
    return history


def remove(folder: Path) -> None:
    """Remove the checkpoint and what a killed write may have left."""
    for name in (CHECKPOINT_FILE, f"{CHECKPOINT_FILE}.partial"):
        (folder / name).unlink(missing_ok=True)


def _optimizer_state(saved: Mapping[str, Tensor], parameters: list[Tensor]) -> dict[int, dict[str, Tensor]]:
    """The optimiser's tensors by parameter number, each in the memory format of its parameter."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in saved.items():
        kind, _, rest = name.partition(".")
        if kind != "optimizer":
            continue
        number, _, key = rest.partition(".")
        parameter = parameters[int(number)]
        # The fused kernels walk through memory, so a moment must lie in it as its parameter does.
        value = torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
        state.setdefault(int(number), {})[key] = value
    return state
