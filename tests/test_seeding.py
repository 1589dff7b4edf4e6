"""Streams: pinned, unrelated, isolated."""

import torch

from lmc import seeding


def test_derived_seeds_are_pinned():
    # printf '[0,"init"]' | sha256sum; printf '[7,"train",3]' | sha256sum; the first 8 bytes, shifted right by one bit
    assert seeding.derive(0, "init") == 0x8FB93DBF9240B8F8 >> 1
    assert seeding.derive(7, "train", 3) == 0xD42562C3E2C8E0FE >> 1


def test_labels_and_seeds_make_other_streams():
    seen = {seeding.derive(seed, *labels) for seed in (0, 1) for labels in ((), ("a",), ("b",), ("a", 1), ("a", "1"))}
    assert len(seen) == 10
    assert all(0 <= seed < 2**63 for seed in seen)


def test_generators_repeat():
    first, second = (torch.rand(4, generator=seeding.generator(3, "x", 1)) for _ in range(2))
    assert torch.equal(first, second)


def test_isolated_blocks_neither_read_nor_write_the_global_stream():
    torch.random.default_generator.manual_seed(5)
    before = torch.random.get_rng_state()
    with seeding.isolated(0, "block"):
        one = torch.rand(3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.random.default_generator.manual_seed(6)
    with seeding.isolated(0, "block"):
        two = torch.rand(3)
    assert torch.equal(one, two)
