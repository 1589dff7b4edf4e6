"""The families that people use: what each network's groups are follows from its architecture, and is proved.

Random weights only; nothing is downloaded. A family whose smallest common member is large is tried on a narrow network
of the same classes, and on the common member itself where the slow tests run.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import pytest
import timm
import torch
import transformers
from timm.models import convmixer, mlp_mixer
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from lmc import seeding
from lmc.symmetry.discover import discover
from lmc.symmetry.example import Example
from lmc.symmetry.structure import Symmetry
from lmc.symmetry.verify import verify

Groups = list[tuple[int, tuple[int, ...]]]
"""(size, sizes of the outer groups) of every group."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are so small that a second thread costs more than it gains, on a busy machine a hundredfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def groups(symmetry: Symmetry) -> Groups:
    return sorted((group.size, symmetry.lattice(name)[:-1]) for name, group in symmetry.groups.items())


def plain(*sizes: int) -> Groups:
    """Groups that live inside no other."""
    return [(size, ()) for size in sizes]


def attention(heads: int, key: int, value: int) -> Groups:
    """The heads, the query-key dimensions and the value dimensions of each."""
    return [(heads, ()), (key, (heads,)), (value, (heads,))]


def grouped(count: int, *channels: int) -> Groups:
    """The groups of a grouped convolution, and the channels inside them before and after it."""
    return [(count, ()), *((size, (count,)) for size in channels)]


def every_layer(*but: str) -> Callable[[nn.Module], Groups]:
    """One group for the channels of each convolution and dense layer, those under the prefixes in `but` excepted."""

    def read(model: nn.Module) -> Groups:
        layers = [m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and _used(name, but)]
        return plain(*(m.out_channels if isinstance(m, nn.Conv2d) else m.out_features for m in layers))

    return read


def _used(name: str, but: Iterable[str]) -> bool:
    return not any(name == prefix or name.startswith(f"{prefix}.") for prefix in but)


@dataclass(frozen=True)
class Case:
    """A network, an input, the groups it has, axes that one group must act on, and axes that none may act on.

    Attributes:
        make: builds the network.
        example: an input, or the size of a square image.
        groups: all of its groups, or a function of the network that counts them.
        tied: for some groups axes that they act on.
        still: axes on which no group acts.
        marks: for pytest.
    """

    make: Callable[[], nn.Module]
    example: Example | int
    groups: Groups | Callable[[nn.Module], Groups]
    tied: list[set[tuple[str, int]]] = field(default_factory=list)
    still: set[tuple[str, int]] = field(default_factory=set)
    marks: tuple[pytest.MarkDecorator, ...] = ()


def check(
    name: str, case: Case, caplog: pytest.LogCaptureFixture, *, draws: int, controls: int, tolerance: float
) -> None:
    with seeding.isolated(0, name):
        model = case.make().eval()
    example = torch.zeros(2, 3, case.example, case.example) if isinstance(case.example, int) else case.example
    with caplog.at_level(logging.WARNING):
        symmetry = discover(model, example)
    assert not caplog.records  # every operator has a rule
    assert groups(symmetry) == sorted(case.groups(model) if callable(case.groups) else case.groups)
    acted_on = [{(axis.tensor, axis.dim) for axis in group.axes} for group in symmetry.groups.values()]
    for axes in case.tied:
        assert any(axes <= mine for mine in acted_on), axes
    assert not case.still & set().union(*acted_on)
    # A group of buffers alone would permute constants that the network comes with, none of its hidden units.
    assert all(any(axis.tensor in symmetry.parameters for axis in g.axes) for g in symmetry.groups.values())
    assert verify(model, symmetry, example, draws=draws, controls=controls).error < tolerance


def parameters(cases: dict[str, Case]) -> list[object]:
    return [pytest.param(name, marks=case.marks) for name, case in cases.items()]


SLOW = (pytest.mark.slow,)


def known_gap(reason: str) -> tuple[pytest.MarkDecorator, ...]:
    """The groups of the case are those the network has; fewer are found so far."""
    return (pytest.mark.xfail(reason=reason, raises=AssertionError),)


# Transformers: a stream of 12, two layers of 3 heads of 4 dimensions, hidden layers of 10.

IDS = torch.arange(14).view(2, 7) % 11
TEXT = {"vocab_size": 11, "max_position_embeddings": 8}
SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 10}
T5 = {"vocab_size": 11, "d_model": 12, "d_kv": 4, "d_ff": 10, "num_layers": 2, "num_heads": 3, "use_cache": False}
LAYER = [*attention(3, 4, 4), *plain(10)]


class Logits(nn.Module):
    """Encoder and decoder without the encoder's states among the outputs, which would fix the stream."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, read: Tensor, written: Tensor) -> Tensor:
        return self.net(input_ids=read, decoder_input_ids=written).logits


def bert() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT, **SIZES, num_labels=3))


def albert() -> nn.Module:
    chosen = transformers.AlbertConfig(**TEXT, **SIZES, embedding_size=6, num_labels=3)
    return transformers.AlbertForSequenceClassification(chosen)


def distilbert() -> nn.Module:
    chosen = transformers.DistilBertConfig(**TEXT, dim=12, n_layers=2, n_heads=3, hidden_dim=10, num_labels=3)
    return transformers.DistilBertForSequenceClassification(chosen)


def gpt2() -> nn.Module:
    sizes = {"n_positions": 8, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_inner": 10}
    tokens = {"vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**tokens, **sizes, use_cache=False))


def vit() -> nn.Module:
    chosen = transformers.ViTConfig(**SIZES, image_size=8, patch_size=4, num_channels=3, num_labels=3)
    return transformers.ViTForImageClassification(chosen)


def llama() -> nn.Module:
    sizes = {**SIZES, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=11, **sizes, use_cache=False))


def t5_encoder() -> nn.Module:
    return transformers.T5ForTokenClassification(transformers.T5Config(**T5, is_encoder_decoder=False, num_labels=3))


def t5(decoders: int) -> nn.Module:
    chosen = transformers.T5Config(**T5, num_decoder_layers=decoders, feed_forward_proj="gated-gelu")
    return Logits(transformers.T5ForConditionalGeneration(chosen))


def t5_groups(decoders: int) -> Groups:
    """Encoder and decoder share the embedding, hence the stream.

    The table of relative positions of a first layer is that of all: one group of heads for the encoder's attention,
    one for the decoder's to itself. Its attention to the encoder has no table: heads of its own in every layer.
    """
    inside: Groups = [(4, (3,)), (4, (3,))]
    encoder = [*plain(3), *2 * [*inside, *plain(10)]]
    decoder = [*plain(3), *decoders * [*inside, *attention(3, 4, 4), *plain(10)]]
    return [*plain(12), *encoder, *decoder]


TRANSFORMERS = {
    # The stream; each layer; the pooler, a dense layer with tanh.
    "BERT": Case(
        bert,
        {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)},
        [*plain(12), *2 * LAYER, *plain(12)],
        [
            {
                ("bert.embeddings.word_embeddings.weight", 1),
                ("bert.embeddings.position_embeddings.weight", 1),
                ("bert.encoder.layer.0.attention.self.query.weight", 1),
                ("bert.encoder.layer.1.output.dense.weight", 0),
                ("bert.pooler.dense.weight", 1),
            },
            {("bert.pooler.dense.weight", 0), ("classifier.weight", 1)},
        ],
        {("bert.embeddings.word_embeddings.weight", 0), ("classifier.weight", 0)},
    ),
    # The embedding is narrower than the stream, and the same layer is used twice.
    "ALBERT": Case(
        albert,
        {"input_ids": IDS},
        [*plain(6, 12), *LAYER, *plain(12)],
        [{("albert.embeddings.word_embeddings.weight", 1), ("albert.encoder.embedding_hidden_mapping_in.weight", 1)}],
    ),
    # A dense layer with ReLU before the classifier.
    "DistilBERT": Case(
        distilbert,
        {"input_ids": IDS},
        [*plain(12), *2 * LAYER, *plain(12)],
        [{("pre_classifier.weight", 0), ("classifier.weight", 1)}],
    ),
    # Query, key and value are packed into one matrix; the embedding is the output layer too, so that the stream moves
    # along both and the vocabulary stays.
    "GPT-2": Case(
        gpt2,
        {"input_ids": IDS},
        [*plain(12), *2 * LAYER],
        [
            {("transformer.wte.weight", 1), ("lm_head.weight", 1), ("transformer.wpe.weight", 1)},
            {("transformer.h.0.attn.c_attn.weight", 1), ("transformer.h.0.attn.c_proj.weight", 0)},
        ],
        {("transformer.wte.weight", 0), ("lm_head.weight", 0)},
    ),
    "ViT": Case(
        vit,
        8,
        [*plain(12), *2 * LAYER],
        [
            {
                ("vit.embeddings.cls_token", 2),
                ("vit.embeddings.position_embeddings", 2),
                ("vit.embeddings.patch_embeddings.projection.weight", 0),
                ("classifier.weight", 1),
            }
        ],
        {("vit.embeddings.position_embeddings", 1)},
    ),
    # Two key heads, three query heads inside each, value dimensions; rotary embeddings fix the query-key dimensions.
    "Llama": Case(
        llama,
        {"input_ids": IDS},
        [*plain(12), *2 * [*plain(2), (3, (2,)), (4, (2,)), *plain(10)]],
        [
            {("model.embed_tokens.weight", 1), ("lm_head.weight", 1), ("model.norm.weight", 0)},
            {("model.layers.0.mlp.gate_proj.weight", 0), ("model.layers.0.mlp.up_proj.weight", 0)},
            {("model.layers.0.self_attn.v_proj.weight", 0), ("model.layers.0.self_attn.o_proj.weight", 1)},
        ],
        {("model.embed_tokens.weight", 0), ("lm_head.weight", 0)},
    ),
    # As in `t5_groups`: one group of heads, because both layers use the table of the first.
    "T5 encoder": Case(
        t5_encoder,
        {"input_ids": IDS},
        [*plain(12, 3), *2 * [(4, (3,)), (4, (3,)), *plain(10)]],
        [
            {
                ("transformer.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 1),
                ("transformer.encoder.block.0.layer.0.SelfAttention.q.weight", 0),
                ("transformer.encoder.block.1.layer.0.SelfAttention.q.weight", 0),
            },
            {("transformer.shared.weight", 1), ("transformer.encoder.embed_tokens.weight", 1)},
        ],
    ),
    "T5": Case(
        lambda: t5(1),
        (IDS, IDS[:, :5]),
        t5_groups(1),
        [{("net.shared.weight", 1), ("net.encoder.embed_tokens.weight", 1), ("net.lm_head.weight", 1)}],
        {("net.shared.weight", 0)},
    ),
    "T5 with two decoder layers": Case(
        lambda: t5(2),
        (IDS, IDS[:, :5]),
        t5_groups(2),
    ),
}


@pytest.mark.parametrize("name", parameters(TRANSFORMERS))
def test_transformers(name: str, caplog: pytest.LogCaptureFixture):
    check(name, TRANSFORMERS[name], caplog, draws=2, controls=8, tolerance=1e-12)


# timm


def of_timm(name: str, **settings: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, pretrained=False, num_classes=5, **settings)


def mixer(block: str = "MixerBlock", **settings: object) -> Callable[[], nn.Module]:
    sizes = {"embed_dim": 12, "img_size": 16, "patch_size": 8, "num_blocks": 2, "num_classes": 5}
    return lambda: mlp_mixer.MlpMixer(**sizes, block_layer=getattr(mlp_mixer, block), **settings)


def ghostnet() -> Groups:
    """Half of the channels of each module are a depthwise convolution of the others: a unit is a channel of both.

    A block is such a module, squeeze and excitation in some, and such a module added to the stream.
    """
    hidden = (16, 48, 72, 72, 120, 240, 200, 184, 184, 480, 672, 672, 960, 960, 960, 960)
    squeezed = (20, 32, 120, 168, 168, 240, 240)  # a quarter of 72, 120, 480, 672, 672, 960, 960 in multiples of 4
    streams = (16, 24, 40, 80, 112, 160)  # the stem is in the first
    return plain(*(n // 2 for n in (*hidden, *streams)), *squeezed, 960, 1280)


def levit_groups() -> Groups:
    """Heads of 16 query-key and 32 value dimensions in 2, 3 and 4 blocks; 64 value dimensions where it shrinks."""
    stages = [(128, 4, 2), (256, 6, 3), (384, 8, 4)]
    found = plain(16, 32, 64)  # the stem, but for its last convolution
    for width, heads, blocks in stages:
        found += [*plain(width), *blocks * [*attention(heads, 16, 32), *plain(2 * width)]]
    for before, after in ((128, 256), (256, 384)):
        found += [*attention(before // 16, 16, 64), *plain(2 * after)]
    return found


def mobilevit() -> Groups:
    """Inverted residuals that widen twofold, and convolution, transformer, convolution and fusion in three of them."""
    streams = plain(16, 24, 48, 64, 80)  # the stem is in the first
    hidden = plain(2 * 16, 2 * 16, 2 * 24, 2 * 24, 2 * 24, 2 * 48, 2 * 64)
    found = [*streams, *hidden, *plain(320)]
    for channels, width, depth in ((48, 64, 2), (64, 80, 4), (80, 96, 3)):
        layer = [*attention(4, width // 4, width // 4), *plain(2 * width)]
        found += [*plain(channels, width, channels, channels), *depth * layer]
    return found


TIMM = {
    # Each residual adds a depthwise convolution to its input, each pointwise convolution makes new units.
    "convmixer": Case(
        lambda: convmixer.ConvMixer(dim=12, depth=2, kernel_size=3, patch_size=4, num_classes=5),
        16,
        plain(12, 12, 12),
        [{("stem.0.weight", 0), ("blocks.0.0.fn.0.weight", 0), ("blocks.0.1.weight", 1)}],
    ),
    # Patches stay in their places; hidden layers across them (half the width) and across channels (four times).
    "mixer": Case(
        mixer(), 16, [*plain(12), *2 * plain(6, 48)], [{("blocks.0.mlp_tokens.fc1.weight", 0)}, {("norm.weight", 0)}]
    ),
    # A matrix across the patches instead of a hidden layer, affine maps instead of norms.
    "resmlp": Case(
        mixer("ResBlock", mlp_ratio=4, norm_layer=mlp_mixer.Affine),
        16,
        [*plain(12), *2 * plain(48)],
        [{("stem.proj.weight", 0), ("blocks.0.ls1", 0), ("blocks.0.norm1.alpha", 2), ("head.weight", 1)}],
        {("blocks.0.linear_tokens.weight", 0), ("blocks.0.linear_tokens.weight", 1)},
    ),
    # One half of a hidden layer of 6 * 12, mixed across the patches, gates the other.
    "gmlp": Case(
        mixer("SpatialGatingBlock", mlp_ratio=6, mlp_layer=mlp_mixer.GatedMlp),
        16,
        [*plain(12), *2 * plain(36)],
        [{("blocks.0.mlp_channels.fc1.weight", 0), ("blocks.0.mlp_channels.gate.norm.weight", 0)}],
    ),
    # Layer scale, relative positions for each head and layer, a bias put together of queries', values' and zeros.
    "beit": Case(
        of_timm("beit_base_patch16_224", embed_dim=12, img_size=16, patch_size=8, num_heads=3, depth=2),
        16,
        [*plain(12), *2 * [*attention(3, 4, 4), *plain(48)]],
        [
            {("blocks.0.gamma_1", 0), ("cls_token", 2), ("patch_embed.proj.weight", 0)},
            {("blocks.0.attn.relative_position_bias_table", 1), ("blocks.0.attn.q_bias", 0)},
        ],
    ),
    # Talking heads: one matrix before and one after the softmax make new heads of the heads, so that there are those of
    # queries and keys, those between the two, and those of values. Then two layers for the class token alone.
    "cait": Case(
        of_timm("cait_xxs24_224", embed_dim=12, img_size=16, patch_size=8, num_heads=3, depth=2, init_values=1.0),
        16,
        [*plain(12), *2 * [*plain(3, 3, 3, 48), (4, (3,)), (4, (3,))], *2 * [*attention(3, 4, 4), *plain(48)]],
        [
            {("blocks.0.attn.proj_l.weight", 1), ("blocks.0.attn.qkv.weight", 0)},
            {("blocks.0.attn.proj_l.weight", 0), ("blocks.0.attn.proj_w.weight", 1)},
            {("blocks.0.attn.proj_w.weight", 0), ("blocks.0.attn.proj.weight", 1)},
        ],
    ),
    # Rotary embeddings fix the query-key dimensions; the hidden layer is gated: 2/3 of four times the width.
    "eva02": Case(
        of_timm("eva02_tiny_patch14_224", embed_dim=24, img_size=16, patch_size=8, num_heads=3, depth=2),
        16,
        [*plain(24), *2 * [*plain(3, 64), (8, (3,))]],
    ),
    # Attention between channels: queries and what is put out share dimensions inside the heads, keys and values do.
    # Four convolutions before it, the last of them on the stream; two layers for the class token.
    "xcit": Case(
        of_timm("xcit_nano_12_p16_224", embed_dim=24, depth=2, num_heads=3, img_size=32),
        32,
        [*plain(3, 6, 12, 24), *4 * [*attention(3, 8, 8), *plain(96)]],
        [{("blocks.0.attn.temperature", 0), ("blocks.0.attn.qkv.weight", 0), ("blocks.0.attn.proj.weight", 1)}],
    ),
    # Four stages of one block; one head of 4 in the first, then 2, 3, 4. Keys and values come from a convolution that
    # shrinks the image, except in the last stage.
    "pvt_v2": Case(
        of_timm("pvt_v2_b0", depths=(1, 1, 1, 1), embed_dims=(4, 8, 12, 16), num_heads=(1, 2, 3, 4)),
        64,
        [
            *plain(4, 4, 4, 4, 32),
            *[*plain(8, 8, 64), *attention(2, 4, 4)],
            *[*plain(12, 12, 48), *attention(3, 4, 4)],
            *[*plain(16, 64), *attention(4, 4, 4)],
        ],
        [{("stages.1.blocks.0.attn.sr.weight", 0), ("stages.1.blocks.0.attn.kv.weight", 1)}],
    ),
    # A convolution's channels are used in parts, the first of which goes through a depthwise convolution and is added
    # to the next, and so on: in the stages of 2, 3, 4 parts all but the last part move together. Attention is xcit's.
    "edgenext": Case(
        of_timm("edgenext_xx_small", depths=(1, 1, 1, 1), dims=(6, 12, 24, 36), heads=(2, 2, 3, 3)),
        64,
        [
            *plain(6, 24),
            *[*plain(6, 6, 48), *attention(2, 6, 6)],
            *[*plain(8, 8, 96), *attention(3, 8, 8)],
            *[*plain(9, 9, 144), *attention(3, 12, 12)],
        ],
    ),
    "levit": Case(of_timm("levit_128s", img_size=64), 64, levit_groups()),
    "mobilevit": Case(of_timm("mobilevit_xxs"), 64, mobilevit()),
    "ghostnet": Case(
        of_timm("ghostnet_100"),
        32,
        ghostnet(),
        [{("conv_stem.weight", 0), ("blocks.0.0.ghost2.primary_conv.0.weight", 0)}],
    ),
    # Each block adds two convolutions and, if it keeps the shape, its input: one stream for each stage.
    "repvgg": Case(of_timm("repvgg_a0"), 32, plain(48, 48, 96, 192, 1280)),
    # A quarter of the hidden channels each: the first goes through a convolution, is added to the second, and so on;
    # the last passes. Where the image shrinks nothing is added: 4 parts before the convolutions, 3 after.
    "res2net": Case(
        of_timm("res2net50_26w_4s", layers=(2, 1, 1, 1)),
        32,
        plain(64, 256, 512, 1024, 2048, *7 * [26], *5 * [26], *7 * [52], *7 * [104], *7 * [208]),
    ),
    # All layers of a block are concatenated; the channel attention reads and scales the same channels.
    "vovnet": Case(
        of_timm("ese_vovnet19b_slim"),
        32,
        plain(64, 64, 128, *3 * [64], 112, *3 * [80], 256, *3 * [96], 384, *3 * [112], 512),
        [
            {
                ("stages.0.blocks.0.conv_concat.conv.weight", 0),
                *{("stages.0.blocks.0.attn.fc.weight", d) for d in (0, 1)},
            }
        ],
    ),
    # A residual stream and a dense one in each stage; grouped convolutions between pointwise ones.
    "dpn": Case(
        of_timm("dpn68", k_sec=(1, 2, 1, 1)),
        32,
        [
            *plain(10, 64, 128, 256, 512),
            *plain(2 * 16, 2 * 32, 2 * 32, 2 * 64),  # where a dense stream begins
            *plain(16, 32, 32, 32, 64),  # what each block adds to it
            *(unit for n in (4, 8, 8, 16, 32) for unit in grouped(32, n, n)),
        ],
    ),
    # Standardised weights; blocks of two grouped convolutions between pointwise ones, squeeze and excitation.
    "nfnet": Case(
        of_timm("nfnet_l0", channels=(32, 64), depths=(1, 2), group_size=4),
        32,
        [
            *plain(16, 32, 64, 128),
            *plain(32, 64),
            *[*grouped(2, 4, 4, 4), *plain(8)],
            *2 * [*grouped(4, 4, 4, 4), *plain(16)],
            *plain(2304),
        ],
    ),
    # Two LSTMs of two directions for each block.
    "sequencer": Case(
        of_timm("sequencer2d_s", layers=(1, 1, 1, 1), embed_dims=(6, 8, 10, 12), hidden_sizes=(3, 4, 5, 6)),
        56,
        [
            *plain(6, 18, *4 * [3]),
            *plain(8, 24, *4 * [4]),
            *plain(10, 30, *4 * [5]),
            *plain(12, 36, *4 * [6]),
        ],
    ),
    # Depthwise convolutions that make two channels of each begin a stage, and identities keep these on its stream:
    # pairs inside the channels of the stage before, of which each has an order of its own.
    "fastvit": Case(
        of_timm("fastvit_t8", layers=(1, 1, 1, 1), embed_dims=(8, 16, 32, 64)),
        64,
        [
            *plain(8, 24, 48, 96, 192, 8),  # the first stream, hidden layers, squeeze and excitation of 128 to 8
            *((2, (8, *before * [2])) for before in range(4)),
        ],
    ),
}


@pytest.mark.parametrize("name", parameters(TIMM))
def test_timm(name: str, caplog: pytest.LogCaptureFixture):
    check(name, TIMM[name], caplog, draws=1, controls=2, tolerance=1e-10)


# torchvision


def of_torchvision(name: str, **settings: object) -> Callable[[], nn.Module]:
    return lambda: getattr(models, name)(weights=None, num_classes=5, **settings)


def bottlenecks(stem: int, stages: Iterable[tuple[int, int, int]]) -> Groups:
    """Grouped bottlenecks: (stream, blocks, channels of each group) with as many groups as fit the bottleneck."""
    found = plain(stem)
    for stream, blocks, channels, count in stages:
        found += [*plain(stream), *blocks * grouped(count, channels, channels)]
    return found


def inverted(stem: int, stages: Iterable[tuple[int, int, int]], last: int, squeeze: Iterable[int] = ()) -> Groups:
    """Inverted residuals: (how much wider, stream, blocks); the first block of a stage widens the stream before it."""
    found, width = plain(stem, last, *squeeze), stem
    for wider, stream, blocks in stages:
        found += plain(stream, *(wider * n for n in (width, *(blocks - 1) * [stream]) if wider > 1))
        width = stream
    return found


def shufflenet(blocks: tuple[int, int, int]) -> Groups:
    """Follow every channel through the shuffles: those of one layer that the same layers read are interchangeable."""
    readers: dict[tuple[str, int], set[str]] = defaultdict(set)

    def layer(name: str, units: list[tuple[str, int]], width: int) -> list[tuple[str, int]]:
        for unit in units:
            readers[unit].add(name)
        return [(name, place) for place in range(width)]

    x = layer("stem", [], 24)
    for stage, (count, half) in enumerate(zip(blocks, (24, 48, 96), strict=True)):
        for block in range(count):
            name = f"{stage}.{block}"
            if block:
                kept, used = x[:half], x[half:]
            else:
                kept, used = layer(f"{name} shortcut", x, half), x
            convolved = layer(f"{name} second", layer(f"{name} first", used, half), half)
            x = [unit for pair in zip(kept, convolved, strict=True) for unit in pair]
    layer("classifier", layer("last", x, 1024), 0)
    alike = Counter((source, frozenset(names)) for (source, _), names in readers.items())
    return plain(*(size for size in alike.values() if size > 1))


def swin(second: bool, window: int = 2) -> nn.Module:
    kind = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2} if second else {}
    sizes = {
        "patch_size": [2, 2],
        "embed_dim": 12,
        "depths": [2, 2],
        "num_heads": [2, 3],
        "window_size": [window, window],
    }
    return models.SwinTransformer(**sizes, **kind, num_classes=5)


def swin_groups(width: int, heads: Iterable[int], depths: Iterable[int], table: int = 0) -> Groups:
    """Every stage doubles the width; the second version computes the table of positions by a layer of 512."""
    found: Groups = []
    for stage, (count, depth) in enumerate(zip(heads, depths, strict=True)):
        stream = width * 2**stage
        block = [*attention(count, stream // count, stream // count), *plain(4 * stream), *plain(*table * [512])]
        found += [*plain(stream), *depth * block]
    return found


def maxvit_groups(stem: int, stages: Iterable[tuple[int, int]], head: int) -> Groups:
    """An inverted residual with squeeze and excitation, attention in windows, attention across them; a dense layer."""
    found = plain(stem, stem)
    for width, blocks in stages:
        attend = [*attention(width // head, head, head), *plain(4 * width)]
        found += [*plain(width), *blocks * [*plain(4 * width, width // 4), *attend, *attend]]
    return [*found, *plain(width)]


def small_maxvit() -> nn.Module:
    sizes = {"input_size": (32, 32), "stem_channels": 8, "partition_size": 2, "head_dim": 6}
    depths = {"block_channels": [12, 18], "block_layers": [1, 2], "stochastic_depth_prob": 0.1}
    return models.MaxVit(**sizes, **depths, num_classes=5)


def small_vit() -> nn.Module:
    sizes = {"image_size": 8, "patch_size": 4, "num_layers": 2, "num_heads": 3, "hidden_dim": 12, "mlp_dim": 10}
    return models.VisionTransformer(**sizes, num_classes=5)


def small_convnext() -> nn.Module:
    return models.ConvNeXt([CNBlockConfig(12, 24, 2), CNBlockConfig(24, None, 1)], num_classes=5)


def small_densenet() -> nn.Module:
    return models.DenseNet(growth_rate=4, block_config=(2, 3), num_init_features=6, bn_size=2, num_classes=5)


EFFICIENTNET = ((1, 16, 1), (6, 24, 2), (6, 40, 2), (6, 80, 3), (6, 112, 3), (6, 192, 4), (6, 320, 1))
EFFICIENTNET_V2 = ((1, 24, 2), (4, 48, 4), (4, 64, 4), (4, 128, 6), (6, 160, 9), (6, 256, 15))

TORCHVISION = {
    "alexnet": Case(of_torchvision("alexnet"), 63, every_layer("classifier.6"), marks=SLOW),
    "vgg11_bn": Case(of_torchvision("vgg11_bn"), 32, every_layer("classifier.6"), marks=SLOW),
    "squeezenet1_1": Case(of_torchvision("squeezenet1_1"), 32, every_layer("classifier")),
    # Heads that are used in training only have no units here.
    "googlenet": Case(of_torchvision("googlenet", init_weights=False), 32, every_layer("aux1", "aux2", "fc")),
    "inception_v3": Case(of_torchvision("inception_v3", init_weights=False), 75, every_layer("AuxLogits", "fc")),
    "densenet": Case(small_densenet, 32, every_layer("classifier")),
    "densenet121": Case(of_torchvision("densenet121"), 32, every_layer("classifier"), marks=SLOW),
    # Two blocks with a hidden layer each on every stream; the stem is on the first.
    "resnet18": Case(of_torchvision("resnet18"), 32, plain(*3 * [64], *3 * [128], *3 * [256], *3 * [512])),
    "resnext50_32x4d": Case(
        of_torchvision("resnext50_32x4d"),
        32,
        bottlenecks(64, ((256, 3, 4, 32), (512, 4, 8, 32), (1024, 6, 16, 32), (2048, 3, 32, 32))),
    ),
    "regnet_x_400mf": Case(
        of_torchvision("regnet_x_400mf"),
        32,
        bottlenecks(32, ((32, 1, 16, 2), (64, 2, 16, 4), (160, 7, 16, 10), (400, 12, 16, 25))),
    ),
    # Squeezed to a quarter of the block's input.
    "regnet_y_400mf": Case(
        of_torchvision("regnet_y_400mf"),
        32,
        [
            *bottlenecks(32, ((48, 1, 8, 6), (104, 3, 8, 13), (208, 6, 8, 26), (440, 6, 8, 55))),
            *plain(8, 12, *3 * [26], *6 * [52], *5 * [110]),
        ],
    ),
    # The hidden layer of the first stage is the stem: that stage does not widen it.
    "mobilenet_v2": Case(
        of_torchvision("mobilenet_v2"),
        32,
        inverted(32, ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)), last=1280),
    ),
    "mnasnet0_5": Case(
        of_torchvision("mnasnet0_5"),
        32,
        inverted(16, ((1, 8, 1), (3, 16, 3), (3, 24, 3), (6, 40, 3), (6, 48, 2), (6, 96, 4), (6, 160, 1)), last=1280),
    ),
    "efficientnet_b0": Case(
        of_torchvision("efficientnet_b0"),
        32,
        inverted(
            32,
            EFFICIENTNET,
            last=1280,
            squeeze=(8, 4, 6, 6, *2 * [10], *2 * [20], 20, *2 * [28], 28, *3 * [48], 48),  # inputs / 4
        ),
    ),
    # Blocks of a single convolution keep the stem's width: it is the stream of the first stage, which is not another.
    "efficientnet_v2_s": Case(
        of_torchvision("efficientnet_v2_s"),
        32,
        inverted(24, EFFICIENTNET_V2, last=1280, squeeze=(16, *5 * [32], 32, *8 * [40], 40, *14 * [64]))[1:],
        marks=SLOW,
    ),
    # The stem (the hidden layer of the first block), streams, hidden layers, squeezed to a quarter in multiples of 8.
    "mobilenet_v3_small": Case(
        of_torchvision("mobilenet_v3_small"),
        32,
        [
            *plain(16),
            *plain(16, 24, 40, 48, 96),
            *plain(72, 88, 96, 240, 240, 120, 144, 288, 576, 576),
            *plain(8, 24, 64, 64, 32, 40, 72, 144, 144),
            *plain(576, 1024),
        ],
    ),
    "shufflenet_v2": Case(
        lambda: models.ShuffleNetV2([2, 4, 2], [24, 48, 96, 192, 1024], num_classes=5), 32, shufflenet((2, 4, 2))
    ),
    "shufflenet_v2_x0_5": Case(
        of_torchvision("shufflenet_v2_x0_5"),
        32,
        shufflenet((4, 8, 4)),
        marks=known_gap("a cut through interleaved channels at an odd place sets those apart that go together"),
    ),
    "convnext": Case(small_convnext, 32, plain(12, 48, 48, 24, 96)),
    "convnext_tiny": Case(
        of_torchvision("convnext_tiny"),
        32,
        plain(96, *3 * [384], 192, *3 * [768], 384, *9 * [1536], 768, *3 * [3072]),
    ),
    "swin": Case(
        lambda: swin(second=False),
        16,
        swin_groups(12, (2, 3), (2, 2)),
        [{("features.1.0.attn.relative_position_bias_table", 1), ("features.1.0.attn.qkv.weight", 0)}],
    ),
    # Images of 2 x 2 and 1 x 1 in windows of 3 x 3: what pads them is no hidden unit.
    "swin, padded": Case(
        lambda: swin(second=False, window=3),
        4,
        swin_groups(12, (2, 3), (2, 2)),
    ),
    # At 224 pixels the windows of 7 x 7 fill every image.
    "swin_t": Case(of_torchvision("swin_t"), 224, swin_groups(96, (3, 6, 12, 24), (2, 2, 6, 2)), marks=SLOW),
    "swin_v2": Case(
        lambda: swin(second=True),
        16,
        swin_groups(12, (2, 3), (2, 2), table=1),
        [
            {("features.1.0.attn.cpb_mlp.0.weight", 0), ("features.1.0.attn.cpb_mlp.2.weight", 1)},
            {("features.1.0.attn.cpb_mlp.2.weight", 0), ("features.1.0.attn.logit_scale", 0)},
        ],
    ),
    "swin_v2_t": Case(
        of_torchvision("swin_v2_t"), 256, swin_groups(96, (3, 6, 12, 24), (2, 2, 6, 2), table=1), marks=SLOW
    ),
    "vit": Case(small_vit, 8, [*plain(12), *2 * LAYER]),
    "vit_b_32": Case(
        of_torchvision("vit_b_32", image_size=64),
        64,
        [*plain(768), *12 * [*attention(12, 64, 64), *plain(3072)]],
        marks=SLOW,
    ),
    "maxvit": Case(small_maxvit, 32, maxvit_groups(8, ((12, 1), (18, 2)), head=6)),
    "maxvit_t": Case(
        of_torchvision("maxvit_t"),
        224,
        maxvit_groups(64, ((64, 2), (128, 2), (256, 5), (512, 2)), head=32),
        marks=SLOW,
    ),
}


@pytest.mark.parametrize("name", parameters(TORCHVISION))
def test_torchvision(name: str, caplog: pytest.LogCaptureFixture):
    check(name, TORCHVISION[name], caplog, draws=1, controls=2, tolerance=1e-9)
