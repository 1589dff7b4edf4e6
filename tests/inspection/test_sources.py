import json
from pathlib import Path

import pytest
import torch

from lmc.errors import UserError
from lmc.inspection.network import build
from lmc.inspection.sources.request import Input, Request


@pytest.mark.parametrize(
    ("spec", "settings", "shape"),
    [
        ("torchvision:resnet18", {"num_classes": 7}, (1, 3, 224, 224)),
        ("torchvision:r3d_18", {}, (1, 3, 16, 224, 224)),
        ("timm:convnext_atto", {"depths": [1, 1, 1, 1]}, (1, 3, 224, 224)),
        ("resnet20", {"width": 0.5, "classes": 4}, (1, 3, 32, 32)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_source_gives_a_network_without_weights_and_its_input(spec: str, settings: dict, shape: tuple):
    pytest.importorskip(spec.partition(":")[0]) if ":" in spec else None
    network = build(Request(spec, settings, meta=True))
    assert network.is_meta
    assert tuple(network.example.shape) == shape
    assert network.example.is_meta


def test_settings_and_seeds_make_the_network():
    one, again, other = (
        build(Request("mlp", {"width": 3, "depth": 1}, Input((1, 1, 2, 2)), seed)) for seed in (0, 0, 1)
    )
    assert {name: tuple(t.shape) for name, t in one.model.state_dict().items()}["hidden.0.weight"] == (3, 4)
    weights = [network.model.state_dict()["hidden.0.weight"] for network in (one, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(one.example, again.example)


def test_transformers_take_their_inputs_by_name_within_the_vocabulary(tmp_path: Path):
    pytest.importorskip("transformers")
    small = {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 11}
    network = build(Request("transformers:gpt2", small, Input((1, 50))))
    tokens = network.example["input_ids"]
    assert tokens.dtype == torch.int64
    assert tokens.shape == (1, 50)
    assert 0 <= tokens.min() <= tokens.max() < 11
    assert len(tokens.unique()) > 2
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 8, "num_attention_heads": 2}))
    vision = build(Request(f"transformers:{tmp_path}", {"num_hidden_layers": 1, "image_size": 32}, meta=True))
    assert tuple(vision.example["pixel_values"].shape) == (1, 3, 32, 32)
    assert sum("attention" in name for name in vision.model.state_dict()) < 20


def test_transformers_have_a_head_where_one_is_asked_for(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 12}
    named = build(Request("transformers:BertForSequenceClassification", {**small, "num_labels": 3}))
    assert isinstance(named.model, transformers.BertForSequenceClassification)
    assert named.model.classifier.weight.shape == (3, 8)
    written = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 20, **small}
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert isinstance(build(Request(f"transformers:{tmp_path}")).model, transformers.BertForMaskedLM)
    assert type(build(Request("transformers:bert", small)).model) is transformers.BertModel


def test_own_networks_come_from_the_current_folder(folder: Path):
    given = Input.parse("1,4")
    assert build(Request("mine:ready", {}, given)).parameters == 4 * 6 + 6 + 6 * 2 + 2
    assert build(Request("mine:Net", {"width": 2}, given)).parameters == 4 * 2 + 2 + 2 * 2 + 2
    assert build(Request("mine:needs", {"width": 2}, given)).input_text == "(1, 4) float32"


def test_inputs_are_read_as_they_are_written():
    assert Input.parse("1,3,224,224") == Input((1, 3, 224, 224))
    assert Input.parse("1x16:int64") == Input((1, 16), torch.int64)
    for text in ("", "1,a", "1,0,3", "1,3:complex64", "-1,3"):
        with pytest.raises(ValueError, match=r"is no shape|size 0"):
            Input.parse(text)


@pytest.mark.parametrize(
    ("spec", "settings", "words"),
    [
        ("resnet2", {}, "no architecture of lmc; did you mean resnet32 or resnet20"),
        ("mlp", {"widht": 3}, "architecture.widht is not a setting; did you mean width"),
        ("torchvision:resnt18", {}, "did you mean resnet18"),
        ("torchvision:resnet18", {"bogus": 1}, "cannot be built: TypeError"),
        ("torchvision:fasterrcnn_resnet50_fpn", {}, "cannot be inspected: a detector"),
        ("torchvision:quantized_resnet18", {}, "quantised"),
        ("torchvison:resnet18", {}, "did you mean torchvision"),
        ("timm:convnext_ato", {}, "did you mean convnext_atto"),
        ("transformers:brt", {}, "did you mean bert"),
        ("transformers:bert", {"hiden_size": 3}, "no setting of BertConfig; did you mean hidden_size"),
        ("transformers:bert", {"hidden_size": 30, "num_attention_heads": 4}, "multiple"),
        ("mine:Nat", {}, "mine has no 'Nat'; did you mean Net"),
        ("mine:needs", {}, "missing a required argument: 'width'; give settings as NAME=VALUE"),
        ("mine:ready", {"width": 3}, "takes no settings"),
        ("mine:number", {}, "is a int"),
        ("mine:not_a_network", {}, "gives a int, not a torch.nn.Module"),
        ("mine:fails", {}, "RuntimeError: no weights"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_told_in_one_line(folder: Path, spec: str, settings: dict, words: str):
    source = spec.partition(":")[0]
    if source in ("timm", "transformers"):
        pytest.importorskip(source)
    shape = Input((1, 4)) if source == "mine" else None
    with pytest.raises(UserError) as caught:
        build(Request(spec, settings, shape))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["timm", "transformers"])
def test_a_missing_package_is_told_with_its_extra(package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=rf"pip install 'lmc\[{package}\]'"):
        build(Request(f"{package}:anything"))


def test_own_networks_need_an_input(folder: Path):
    with pytest.raises(UserError, match="--input 1,3,32,32"):
        build(Request("mine:Net"))
