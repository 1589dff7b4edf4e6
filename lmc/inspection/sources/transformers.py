"""transformers:NAME: a network of transformers from a configuration, with random weights."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmc import config
from lmc.errors import UserError
from lmc.inspection.sources.request import Input, Request, first_line

_TOKENS = (1, 16)
_SECOND = 16_000
"""Samples of one second of sound at the rate of most speech networks."""


def build(request: Request) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the network and its inputs by name.

    The name is a model type ("bert", "gpt2", "vit", "llama"), which stands for the bare network whose output is its
    last hidden state; a class with a head ("LlamaForCausalLM"); or a config.json or its folder, which may name one. The
    settings are those of the configuration (num_hidden_layers=2).

    Raises:
        UserError: transformers is not installed, there is no such type, or the configuration cannot be used.
    """
    try:
        import transformers
    except ModuleNotFoundError:
        raise UserError(
            f"{request.spec} needs the package transformers; install it with pip install 'lmc[transformers]'"
        ) from None

    logging.getLogger("transformers").setLevel(logging.ERROR)
    chosen = _configuration(request)
    if getattr(chosen, "use_cache", False):
        chosen.use_cache = False  # a cache of past tokens is no output of the network
    plain = Request(request.spec, {}, request.input, request.seed, request.meta)
    named = request.name
    if Path(named).exists():
        named = next(iter(getattr(chosen, "architectures", None) or ()), "")
    model = plain.make(_with_head(named) or transformers.AutoModel.from_config, chosen)
    return model, _inputs(request, model, chosen)


def _with_head(name: str) -> Any:
    """The class of this name that makes a network from a configuration; None if there is none."""
    import transformers

    found = getattr(transformers, name, None) if name.isidentifier() else None
    is_network = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_network and getattr(found, "config_class", None) is not None else None


def _configuration(request: Request) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    path, network = Path(request.name), _with_head(request.name)
    try:
        if path.exists():
            default = AutoConfig.from_pretrained(str(path), local_files_only=True)
        elif request.name in CONFIG_MAPPING:
            default = AutoConfig.for_model(request.name)
        elif network is not None:
            default = network.config_class()
        else:
            raise UserError(
                f"transformers has no model type {request.name!r} and there is no such file; "
                f"{config.nearest(request.name, CONFIG_MAPPING.keys())}write bert, gpt2, vit, llama, ..., a class "
                "(LlamaForCausalLM), or the path of a config.json"
            )
        known = {**default.to_dict(), **dict.fromkeys(default.attribute_map)}
        for name in request.settings:
            if name not in known and not hasattr(default, name):  # num_labels is computed from others
                near = config.nearest(name, known)
                raise UserError(f"{name} is no setting of {type(default).__name__}; {near}its to_dict() lists all")
        if path.exists():
            return AutoConfig.from_pretrained(str(path), local_files_only=True, **request.settings)
        return type(default)(**request.settings)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{request.spec} has no usable configuration: {first_line(error)}") from error


def _inputs(request: Request, model: nn.Module, chosen: Any) -> dict[str, Tensor]:
    """The network's inputs: its main one in the shape that the user asks for, the others as the configuration says."""
    text, vision = (getattr(chosen, f"{part}_config", None) for part in ("text", "vision"))
    main = str(getattr(model, "main_input_name", "input_ids"))
    draw = request.generator()
    found: dict[str, Tensor] = {}
    wanted = [main]
    if getattr(chosen, "is_encoder_decoder", False):
        wanted.append("decoder_input_ids")
    if main == "input_ids" and text is not None and vision is not None:
        wanted.append("pixel_values")
    for name in wanted:
        if name.endswith("input_ids"):
            below = int(getattr(chosen if hasattr(chosen, "vocab_size") else text, "vocab_size", 2))
            size, dtype = Input(_TOKENS), torch.int64
        elif name == "pixel_values":
            below, size, dtype = 2, Input(_image(vision or chosen)), torch.float32
        elif name == "input_features":  # mel bins by frames; the encoder halves the frames
            frames = 2 * int(getattr(chosen, "max_source_positions", 1500))
            below, size, dtype = 2, Input((1, int(getattr(chosen, "num_mel_bins", 80)), frames)), torch.float32
        elif name == "input_values":
            below, size, dtype = 2, Input((1, _SECOND)), torch.float32
        else:
            raise UserError(
                f"{request.spec} takes {name}, for which no example is known; "
                "wrap it in a module of your own with one input and name that as package.module:callable"
            )
        asked = request.input if name == main and request.input else size
        found[name] = asked.draw(draw, below, dtype)
    return found


def _image(chosen: Any) -> tuple[int, ...]:
    size = getattr(chosen, "image_size", None) or 224
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return (1, int(getattr(chosen, "num_channels", 3)), int(height), int(width))
