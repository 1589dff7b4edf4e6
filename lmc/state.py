"""A network as plain data: a dict from tensor name to tensor, read and written without running code."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from lmc.errors import UserError

State = dict[str, Tensor]


def of_model(model: nn.Module) -> State:
    """Return a detached copy of every parameter and persistent buffer of `model`, on its device."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def to_device(state: Mapping[str, Tensor], device: str | torch.device) -> State:
    """Return `state` with every tensor on `device`; tensors already there are shared, not copied."""
    return {name: tensor.to(device) for name, tensor in state.items()}


def interpolate(first: Mapping[str, Tensor], second: Mapping[str, Tensor], t: float) -> State:
    """Return (1 - t) * first + t * second for every floating-point tensor; the others come from `first`.

    Exact at the ends: t = 0 gives the values of `first` and t = 1 those of `second`, bit for bit.
    """
    return {
        name: torch.lerp(tensor, second[name], t) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in first.items()
    }


def mean(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None) -> State:
    """Return the mean of `states` (at least one); tensors that are not floating point come from the first.

    Args:
        states: networks of one architecture.
        weights: one for each, with the sum 1; None: all alike, the barycentre.
    """

    def merged(tensors: Tensor) -> Tensor:
        if weights is None:
            return tensors.mean(0)
        shares = torch.tensor(weights, dtype=tensors.dtype, device=tensors.device)
        return (shares.view(-1, *[1] * (tensors.dim() - 1)) * tensors).sum(0)

    return {
        name: merged(torch.stack([state[name] for state in states])) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in states[0].items()
    }


def save(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write `state` to `path` in the safetensors format (contiguous copies on the CPU)."""
    tensors = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in state.items()}
    path.write_bytes(serialise(tensors, metadata=dict(metadata or {})))


def load(path: Path) -> State:
    """Read a state dict from `path`: safetensors, or a `.pt`/`.pth`/`.ckpt` file that holds nothing but tensors.

    A checkpoint that wraps its tensors under "state_dict" or "model" is unwrapped. Nothing that is read can run code.

    Raises:
        UserError: the file is missing or damaged, or holds anything but tensors (pickled code is refused).
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; give the path of a .safetensors or .pt file")
    if path.suffix == ".safetensors":
        try:
            return load_file(str(path))
        except safetensors.SafetensorError as error:
            raise UserError(f"checkpoint {path} is not a readable safetensors file ({error}); save it again") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"checkpoint {path} holds more than tensors, and loading it would run code; "
            "save it again with torch.save(model.state_dict(), path) or as .safetensors"
        ) from None
    except (RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"checkpoint {path} is damaged or not a torch file ({reason}); save it again") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"checkpoint {path} is not a state dict; save it with torch.save(model.state_dict(), path)")
    return dict(content)


def check_fits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str) -> None:
    """Raise a `UserError` that names the first tensor in which `state` differs from `expected` in name or shape."""
    for name, tensor in expected.items():
        if name not in state:
            raise UserError(f"{origin} has no tensor {name!r}, which the architecture needs with {_shape(tensor)}")
        if state[name].shape != tensor.shape:
            raise UserError(
                f"{origin} is of another architecture: tensor {name!r} has {_shape(state[name])}, "
                f"the architecture needs {_shape(tensor)}"
            )
    for name in state:
        if name not in expected:
            raise UserError(f"{origin} is of another architecture: it has a tensor {name!r} that the network lacks")


def _shape(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}"
