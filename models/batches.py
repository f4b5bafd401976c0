"""Clips of many lengths through a network: only clips of equal length share a batch."""
from contextlib import contextmanager

import numpy as np
import torch

from utils.errors import UserError

BATCH_FRAMES = 8192  # frames in one forward pass


@contextmanager
def evaluating(net):
    """Set eval mode without gradients; each module's own mode comes back afterwards."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def equal_length_batches(lengths, max_frames=BATCH_FRAMES):
    """Return index arrays into `lengths`, of one length and at most `max_frames` frames each."""
    batches = []
    for length in np.unique(lengths):
        same, count = np.flatnonzero(np.equal(lengths, length)), max(1, max_frames // max(1, length))
        batches += [same[start:start + count] for start in range(0, len(same), count)]
    return batches


def run_in_batches(net, function, lengths):
    """Yield (positions in `lengths`, function(positions) as an array), batch by batch, in eval mode."""
    for batch in equal_length_batches(lengths):
        with evaluating(net):
            output = function(batch).cpu().numpy()
        yield batch, output


def gather_clips(net, clips, index, starts, length):
    """Return the features of clips of one length, (N, T, D) float32 on the net's device.

    index: positions in `clips.names`. starts: first rows in `clips.frames`. Raises UserError for NaN and Inf.
    """
    x = torch.from_numpy(clips.frames[starts[:, None] + np.arange(length)]).to(next(net.parameters()).device)
    require_finite(x, [clips.names[i] for i in index], "mend the clip or leave it out with --skip-bad-clips")
    return x


def require_finite(x, names, advice):
    """Raise UserError naming the first of the clips x (N, T, D) with a NaN or Inf, and its frame."""
    finite = torch.isfinite(x).all(-1)
    if not bool(finite.all()):
        clip, frame = torch.nonzero(~finite)[0].tolist()
        raise UserError(f"{names[clip]}: frame {frame} is NaN or Inf; {advice}")


def forward_clips(net, clips, index, starts, length, layers=None):
    """Return x and its reconstruction (N, T, D), float32, and its codes, of clips of one length.

    layers: how many layers of residual codes to decode, None: all. Raises UserError for NaN and Inf.
    """
    x = gather_clips(net, clips, index, starts, length)
    codes = net.encode(x)
    kept = codes if layers is None else codes[..., :layers]
    out = net.forward_decoder(kept).float()  # of a half-precision net too
    names = [f"the reconstruction of {clips.names[i]}" for i in index]
    require_finite(out, names, "use an earlier checkpoint")
    return x, out, codes


def encode_clips(net, clips, index, starts, lengths):
    """Yield (positions in `index`, codes (N, T') int64 array) of clips, batch by batch."""
    return run_in_batches(net, lambda batch: net.encode(
        gather_clips(net, clips, index[batch], starts[batch], lengths[batch[0]])), lengths)


def decode_rows(net, rows):
    """Yield (positions in `rows`, normalised features (N, T, D) array) of rows of codes, batch by batch."""
    lengths = [len(row) * 2 ** net.down_t for row in rows]
    return run_in_batches(net, lambda batch: net.forward_decoder([rows[i] for i in batch]), lengths)


def as_array(value):
    """Return an array of an array, a tensor of any device, or nested lists."""
    return value.detach().cpu().numpy() if torch.is_tensor(value) else np.asarray(value)


def as_list(value, axes):
    """Return a list of arrays, and a function that puts their results together again in the same way.

    value: one array, a batch along a first axis, or a list. axes: array → how many axes a single one has.
    """
    if isinstance(value, (list, tuple)) and len(value) and np.ndim(value[0]):
        return [as_array(each) for each in value], list
    array = as_array(value)
    if array.ndim == axes(array):
        return [array], lambda results: results[0]
    if array.ndim == 0 or len(array) == 0:
        raise UserError(f"shape {array.shape} holds nothing; expected a clip, a batch or a list of clips")
    return list(array), torch.stack


def in_order(batches, count):
    """Return the `count` results of batches (positions, array), in order, as tensors."""
    results = {i: torch.from_numpy(row) for batch, output in batches for i, row in zip(batch, output)}
    return [results[i] for i in range(count)]
