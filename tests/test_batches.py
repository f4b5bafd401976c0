"""Batches of clips of equal length: each clip as if alone."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.batches import (
    decode_rows,
    encode_clips,
    equal_length_batches,
    evaluating,
    forward_clips,
)
from tests.test_loading import build
from utils.errors import UserError

LENGTHS = (40, 8, 40, 23, 8, 40, 70)


def clips_of(lengths=LENGTHS):
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    frames = rng.normal(size=(offsets[-1], 263)).astype(np.float32)
    return SimpleNamespace(names=[f"clip{i}" for i in range(len(lengths))], frames=frames, offsets=offsets)


def test_batches_hold_each_clip_once_and_one_length():
    batches = equal_length_batches(np.array(LENGTHS), 80)
    assert sorted(np.concatenate(batches)) == list(range(len(LENGTHS)))
    for batch in batches:
        assert len({LENGTHS[i] for i in batch}) == 1
        assert len(batch) == 1 or sum(LENGTHS[i] for i in batch) <= 80
    assert equal_length_batches(np.array([], int)) == []


@pytest.mark.parametrize("norm", [None, "GN"])
def test_every_clip_comes_out_as_if_alone(norm):
    net, clips = build(norm=norm), clips_of()
    starts, lengths = clips.offsets[:-1], np.diff(clips.offsets) // 2 * 2
    encoded = {i: row for batch, rows in encode_clips(net, clips, np.arange(len(lengths)), starts, lengths)
               for i, row in zip(batch, rows)}
    codes = [encoded[i] for i in range(len(lengths))]
    decoded = {i: row for batch, rows in decode_rows(net, codes) for i, row in zip(batch, rows)}
    for i, length in enumerate(lengths):
        x = torch.from_numpy(clips.frames[starts[i]:starts[i] + length])[None]
        with torch.no_grad():
            out, row = net(x)[0][0].numpy(), net.encode(x)[0].numpy()
        assert np.array_equal(encoded[i], row)
        np.testing.assert_allclose(decoded[i], out, atol=1e-4)


def test_the_modes_of_the_net_come_back():
    net = build(norm="BN").train()
    net.vqvae.decoder.eval()
    before = {name: module.training for name, module in net.named_modules()}
    with evaluating(net):
        assert not any(module.training for module in net.modules())
    assert {name: module.training for name, module in net.named_modules()} == before


def test_clips_that_cannot_be_encoded_are_named():
    net, clips = build(), clips_of((8, 8))
    clips.frames[11, 3] = np.nan
    with pytest.raises(UserError, match=r"clip1: frame 3 is NaN or Inf"):
        forward_clips(net, clips, np.arange(2), clips.offsets[:2], 8)
