"""Clips of any lengths through a network, several at a time, each as if it were alone.

Nothing here draws random numbers or trains: the network's mode is restored and its codebook does not move.
n clips, N clips of a batch, T frames, D features.
"""
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn as nn
from torch.nn.utils.rnn import pad_sequence

from utils.errors import UserError

BATCH_FRAMES = 8192  # frames in one forward pass
SPARE = 0.05         # padding that similar lengths may cost, as a share of the frames


def buckets(lengths, batch_frames=BATCH_FRAMES, mixed=True):
    """Batches of equal or, with `mixed`, of several lengths: a list of positions into `lengths`, each in the order of their lengths.

    A batch holds at most `batch_frames` frames, padding included, or one clip. With `mixed`, similar lengths go together, and what is left
    in small batches goes together whatever its length: many small batches cost a network more than gaps between clips (`lay_out`).
    """
    order = np.argsort(lengths, kind="stable")
    runs = [order[run] for run in _runs(lengths[order], batch_frames, SPARE if mixed else 0)]
    whole = [run for run in runs if not mixed or lengths[run].sum() >= batch_frames / 8]
    rest = np.concatenate([order[:0], *(run for run in runs if mixed and lengths[run].sum() < batch_frames / 8)])
    return whole + [rest[run] for run in _runs(lengths[rest], batch_frames, np.inf)]


def _runs(lengths, batch_frames, spare):
    """Ascending lengths as slices of at most `batch_frames` frames, in which rows of the longest waste at most `spare` of them."""
    runs, start, total = [], 0, 0
    for i, length in enumerate(lengths):
        waste = int(length) * (i - start) - total
        if i > start and (total + length + (waste if spare < np.inf else 0) > batch_frames or waste > spare * (total + length)):
            runs.append(slice(start, i))
            start, total = i, 0
        total += int(length)
    return [*runs, slice(start, len(lengths))] if len(lengths) else []


@contextmanager
def evaluating(net):
    """Eval mode without gradients, each module's own mode restored afterwards."""
    training = [module for module in net.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def can_mix(net):
    """Whether clips of several lengths may share a batch: not where a norm averages over time."""
    return not any(isinstance(module, nn.GroupNorm) for module in net.modules())


def lay_out(lengths, unit):
    """Where clips of these lengths lie in a batch: a row each where they are of similar length, else all in one row, a code (`unit`) apart.

    Returns (first frame of each clip when the rows are laid end to end, inside (rows, T) bool: what is a clip's).
    """
    longest = int(lengths.max())
    alike = longest * len(lengths) <= (1 + SPARE) * lengths.sum()
    places = np.arange(len(lengths)) * longest if alike else np.cumsum(lengths + unit) - lengths - unit
    inside = np.zeros(longest * len(lengths) if alike else places[-1] + lengths[-1], bool)
    for place, length in zip(places, lengths):
        inside[place:place + length] = True
    return places, inside.reshape(len(lengths) if alike else 1, -1)


def _taken_out(rows, places, lengths):
    """What `lay_out` laid out, (rows, T, …) → (N, longest, …), zero beyond each clip's end if it shared a row."""
    if len(rows) == len(lengths):
        return rows
    return pad_sequence([rows[0, place:place + length] for place, length in zip(places, lengths)], batch_first=True)


def _joined(clips, gap):
    """Clips (…, T) one after the other, `gap` zeros between them."""
    between = clips[0].new_zeros(*clips[0].shape[:-1], gap)
    return torch.cat([part for clip in clips for part in (between, clip)][1:], -1)


def _sizes(lengths, gap):
    """Of the pieces of what `_joined` joins: clip, gap, clip, …, clip."""
    return [size for length in lengths.tolist() for size in (gap, length)][1:]


@contextmanager
def apart(net, lengths):
    """Clips laid out by `lay_out` do not see each other: every convolution finds zeros beyond their ends, as if each were alone.

    What a bias writes there is put back to zero before each kernel that would carry it inside. For a kernel that reaches over the gap
    between the clips of a row, a dilated one, the gap is widened.
    """
    unit = 2 ** net.down_t
    _, inside = lay_out(lengths, unit)
    if inside.all():
        yield
        return
    frames, first = inside.shape[1], int(inside.all(0).argmin())  # before `first` there is nothing to put back
    masks, widened = {}, {}

    def cut(x):  # (N, C, T'), in place: nobody reads what is not a clip's
        rate = frames // x.shape[-1]  # lengths and gaps are whole codes
        if rate not in masks:
            masks[rate] = torch.from_numpy(inside[:, None, first::rate]).to(x)
        x[..., first // rate:].mul_(masks[rate])

    def prepare(conv, inputs):
        x, reach = inputs[0], conv.padding[0]
        rate = frames // x.shape[-1]
        if len(x) > 1 or reach <= unit // rate:
            return cut(x)
        widened[conv] = unit // rate, _sizes(lengths // rate, reach)
        return _joined(x.split(_sizes(lengths // rate, unit // rate), -1)[::2], reach)

    def restore(conv, _, output):
        if conv in widened:
            gap, sizes = widened.pop(conv)
            return _joined(output.split(sizes, -1)[::2], gap)

    modules = list(net.modules())
    convolutions = [module for module in modules if isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1]
    upsampled = [block[0] for block in modules if isinstance(block, nn.Sequential) and any(isinstance(part, nn.Upsample) for part in block)]
    hooks = [module.register_forward_pre_hook(prepare) for module in convolutions]
    hooks += [module.register_forward_hook(restore) for module in convolutions]
    hooks += [module.register_forward_hook(lambda _, __, output: cut(output)) for module in upsampled]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def forward_clips(net, clips, index, starts, lengths, device, decode=True):
    """Some clips through the net at once: x and out (N, T, D), zero beyond each clip's end, codes (N, T'), valid (N, T) bool.

    On the device; T is the longest length. Without `decode` the decoder rests, and out is x. Refuses what is not finite by name.
    """
    unit = 2 ** net.down_t
    places, inside = lay_out(lengths, unit)
    frames = np.zeros((inside.size, clips.frames.shape[1]), np.float32)
    for place, start, length in zip(places, starts, lengths):
        frames[place:place + length] = clips.frames[start:start + length]
    x = torch.from_numpy(frames).view(*inside.shape, -1).to(device, next(net.parameters()).dtype)
    with apart(net, lengths):
        codes = net.encode(x)
        out = net.forward_decoder(codes) if decode else x
    x, out, codes = _taken_out(x, places, lengths), _taken_out(out, places, lengths), _taken_out(codes, places // unit, lengths // unit)
    valid = torch.arange(x.shape[1], device=device) < torch.as_tensor(lengths, device=device)[:, None]
    if len(inside) == len(lengths) and not inside.all():
        out = torch.where(valid[..., None], out, 0.0)
    for values, what in ((x, "the clip"), (out, "its reconstruction"))[:1 + decode]:
        if bool(torch.isfinite(values.sum())):  # one number tells of all, but for an overflow
            continue
        finite = torch.isfinite(values).all(-1)                                                               # (N, T)
        if not bool(finite.all()):
            clip, frame = (int(i) for i in torch.nonzero(~finite)[0])
            raise UserError(f"{clips.names[index[clip]]}: {what} is NaN or Inf at frame {frame}; expected finite features: "
                            + ("mend the clip or leave it out with --skip-bad-clips" if values is x else "use an earlier checkpoint"))
    return x, out, codes, valid


def reconstruct_clips(net, clips, device=None, batch_frames=BATCH_FRAMES):
    """Every clip, cut to whole codes, through the net in batches; equals the clip-by-clip result, the last frames too.

    clips: `names`, normalised `frames` (F, D), `offsets` (n + 1,). Returns lists in the clips' order: reconstructions (T, D) float32
    arrays, normalised, and codes (T / 2**down_t,) int64. A clip shorter than one code gives empty arrays.
    """
    unit = 2 ** net.down_t
    device = device or next(net.parameters()).device
    lengths = np.diff(clips.offsets) // unit * unit
    out, codes = [[np.empty(shape, dtype)] * len(lengths) for shape, dtype in (((0, clips.frames.shape[1]), np.float32), ((0,), np.int64))]
    some = np.flatnonzero(lengths)
    with evaluating(net):
        for batch in (some[batch] for batch in buckets(lengths[some], batch_frames, can_mix(net))):
            _, y, k, _ = forward_clips(net, clips, batch, clips.offsets[batch], lengths[batch], device)
            for i, y_i, k_i in zip(batch, y.cpu().numpy(), k.cpu().numpy()):
                out[i], codes[i] = y_i[:lengths[i]], k_i[:lengths[i] // unit]
    return out, codes


def encode_clips(net, clips, index, starts, lengths, device=None, batch_frames=BATCH_FRAMES, done=None):
    """The codes of some clips (as `select_clips` returns them): a list of (T / 2**down_t,) int64 arrays, each as if its clip were alone.

    Only the encoder runs. `done(frames)` is called after each batch. Raises UserError, by name, for a clip that is not finite.
    """
    unit, codes = 2 ** net.down_t, [None] * len(index)
    device = device or next(net.parameters()).device
    with evaluating(net):
        for batch in buckets(lengths, batch_frames, can_mix(net)):
            rows = forward_clips(net, clips, index[batch], starts[batch], lengths[batch], device, decode=False)[2].cpu().numpy()
            for i, row in zip(batch, rows):
                codes[i] = row[:lengths[i] // unit].copy()
            if done:
                done(int(lengths[batch].sum()))
    return codes


def decode_rows(net, rows, device=None, batch_frames=BATCH_FRAMES):
    """Rows of codes, (T',) integers each, none empty → yields (position in rows, (T, D) float32 normalised features), batch by batch.

    Each as if its row were alone: a whole data set need not fit into memory.
    """
    unit, device = 2 ** net.down_t, device or next(net.parameters()).device
    lengths = np.array([len(row) for row in rows], np.int64) * unit
    for batch in buckets(lengths, batch_frames, can_mix(net)):
        places, inside = lay_out(lengths[batch], unit)
        codes = np.zeros(inside.size // unit, np.int64)
        for i, place in zip(batch, places // unit):
            codes[place:place + len(rows[i])] = rows[i]
        with evaluating(net), apart(net, lengths[batch]):  # left before anything is yielded
            out = net.forward_decoder(torch.from_numpy(codes).view(len(inside), -1).to(device)).cpu().flatten(0, 1).numpy()
        for i, place in zip(batch, places):
            yield int(i), out[place:place + lengths[i]]
