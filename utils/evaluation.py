"""From a network and a split to named numbers. Sums first, so that ranks can add theirs up; then means.

Nothing here draws random numbers, trains, logs or writes: the network's mode is restored and its codebook does not move.
n clips, N clips of a batch, T frames, D features, J joints, K codes.
"""
import time
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn as nn
from torch.nn.utils.rnn import pad_sequence

from utils import metrics
from utils.errors import UserError
from utils.losses import LOSSES
from utils.metrics import joint_error, mm_per_unit
from utils.motion_process import recover_from_ric
from utils.motion_spec import MAX_EVAL_FRAMES, UNIT_LENGTH

BATCH_FRAMES = 8192  # frames in one forward pass
PART_FRAMES = 2048   # and in one pass of metrics
SPARE = 0.05         # padding that similar lengths may cost, as a share of the frames
CLIP_METRICS = ("recons", "mpjpe", "mpjpe_global")  # what `per_clip` and a breakdown show


def select_clips(clips, spec, unit=UNIT_LENGTH, min_frames=None, max_frames=MAX_EVAL_FRAMES):
    """Which clips evaluation takes, and how much of each.

    Taken are clips of min_frames (default: the data set's) ≤ T < max_frames (None: no bound), cut to a multiple of `unit`.
    Returns (index (m,) into clips.names, first row (m,), length (m,), skipped {reason: names}).
    """
    low = spec.min_eval_frames if min_frames is None else min_frames
    lengths = np.diff(clips.offsets)
    short, long = lengths < max(low, unit), lengths >= (np.inf if max_frames is None else max_frames)
    skipped = {reason: [clips.names[i] for i in np.flatnonzero(mask)]
               for reason, mask in ((f"shorter than {max(low, unit)} frames", short), (f"{max_frames} frames or longer", long)) if mask.any()}
    index = np.flatnonzero(~short & ~long)
    return index, clips.offsets[index], lengths[index] // unit * unit, skipped


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


def evaluate_clips(net, clips, spec, mean, std, device=None, full=False, loss="l1_smooth", min_frames=None, max_frames=MAX_EVAL_FRAMES,
                   batch_frames=BATCH_FRAMES, rank=0, world_size=1, reduce=None):
    """Reconstruction metrics of a split as a dict of named numbers, means over frames unless the name says otherwise.

    net: HumanVQVAE. clips: as `load_split` returns, normalised with mean and std ((D,) float64). loss: l1 | l2 | l1_smooth, over the
    normalised features. full: the whole set of docs/evaluation.md, not only recons, mpjpe, mpjpe_global (mm), codes_used, perplexity.
    rank, world_size: this process takes every world_size-th batch; `reduce(tensor)` adds a float64 CPU tensor up over the ranks, in place.
    Also holds `skipped` {reason: clip names}, `counts` [K numbers] how often each code is used, `joints` {joint: (root-aligned, global) mm}
    and `per_clip` {clip: {metric: value}}.
    Raises UserError when no clip can be taken, or a clip or its reconstruction is not finite.
    """
    unit = max(UNIT_LENGTH, 2 ** net.down_t)
    index, starts, lengths, skipped = select_clips(clips, spec, unit, min_frames, max_frames)
    if not len(index):
        reasons = "; ".join(f"{len(names)} {reason}" for reason, names in skipped.items())
        raise UserError(f"{getattr(clips, 'split', 'the split')}: no clip to evaluate ({reasons}); expected clips of "
                        f"{spec.min_eval_frames if min_frames is None else min_frames} frames or more and fewer than {max_frames}")
    device = device or next(net.parameters()).device
    mean_t, std_t = (torch.as_tensor(np.asarray(a), dtype=next(net.parameters()).dtype, device=device) for a in (mean, std))
    scale = mm_per_unit(mean)
    columns = _columns(spec, full)
    table = torch.zeros(len(index), sum(columns.values()), dtype=torch.float64)  # a row per clip: sums over its frames
    counts = torch.zeros(net.nb_code, dtype=torch.float64)
    with evaluating(net):
        for batch in buckets(lengths, batch_frames, can_mix(net))[rank::world_size]:
            x, out, codes, valid = forward_clips(net, clips, index[batch], starts[batch], lengths[batch], device)
            for part in _parts(lengths[batch]):
                rows = _clip_sums(x[part], out[part], valid[part], lengths[batch][part].max(), spec, mean_t, std_t, scale, loss, full)
                table[batch[part]] = torch.cat([rows[name].reshape(len(batch[part]), -1) for name in columns], 1).cpu().double()
            counts += torch.bincount(codes[valid[:, ::2 ** net.down_t]], minlength=net.nb_code).cpu()
    if reduce:
        reduce(table)
        reduce(counts)
    blocks = dict(zip(columns, (block.numpy() for block in table.split(list(columns.values()), 1))))
    names = [clips.names[i] for i in index]
    return {**_finalise(blocks, lengths, spec, full, net.nb_code, counts.numpy(), unit=2 ** net.down_t),
            "skipped": skipped, "counts": counts.long().tolist(),
            "joints": _per_joint(blocks, lengths, spec), "per_clip": _per_clip(blocks, lengths, names)}


def _parts(lengths):
    """Slices of a batch, shortest clip first, in which metrics neither compute much padding nor leave the processor's caches."""
    count = -(-int(lengths.max()) * len(lengths) // PART_FRAMES)
    edges = np.linspace(0, len(lengths), min(count, len(lengths)) + 1).astype(int)
    return [slice(a, b) for a, b in zip(edges, edges[1:])]


def _clip_sums(x, out, valid, length, spec, mean, std, scale, loss, full):
    """What `_columns` names, of clips (N, T ≥ length, D), normalised, and their reconstructions: sums over each one's frames, (N,) or (N, ·)."""
    x, out, valid = x[:, :length], out[:, :length], valid[:, :length]
    used, feet = slice(spec.slices["positions"].stop), spec.slices["contacts"]
    real, pred = (recover_from_ric(y[..., used] * std[used] + mean[used], spec.joints) * scale for y in (x, out))      # (N, T, J, 3) in mm
    rows = {"recons": _over_time(LOSSES[loss](out, x, reduction="none").mean(-1), valid), **_position_sums(pred - real, valid)}
    if full:
        contacts = (x[..., feet] * std[feet] + mean[feet] > 0.5) & valid[..., None]
        rows.update(_motion_sums(pred, real, contacts, valid, spec))
    return rows


def _columns(spec, full):
    """Name → width of what is gathered of each clip."""
    columns = dict(recons=1, mpjpe=1, mpjpe_global=1, joint=spec.joints, joint_global=spec.joints)
    if full:
        columns.update(pa_mpjpe=1, velocity=1, acceleration=1, jerk_real=1, jerk_pred=1, contacts=1, skating_real=1, skating_pred=1,
                       slide_real=1, slide_pred=1, penetration_real=1, penetration_pred=1, drift=1,
                       kinetic_real=3 * spec.joints, kinetic_pred=3 * spec.joints)
    return columns


def _over_time(values, valid):
    """Sum over each clip's own frames: (N, T - k, …) → (N, …). A difference of order k ends at frame k or later."""
    valid = valid[:, valid.shape[1] - values.shape[1]:]
    return torch.where(valid.view(valid.shape + (1,) * (values.dim() - 2)), values, 0).sum(1)


def _position_sums(error, valid):
    """Position errors of clips (N, T, J, 3) in mm, summed over frames: of all joints (N,), and of each (N, J)."""
    joint, joint_global = (_over_time(metrics.length(vectors), valid) for vectors in (metrics.root_align(error), error))
    return dict(mpjpe=joint.mean(1), mpjpe_global=joint_global.mean(1), joint=joint, joint_global=joint_global)


def _motion_sums(pred, real, contacts, valid, spec):
    """The full set's sums over frames of clips (N, T, J, 3) in mm; contacts (N, T, 4) bool, of the real motion."""
    velocity = metrics.difference(pred - real, 1)  # of the error: the difference of the two velocities
    acceleration = metrics.difference(velocity, 1)
    last = torch.arange(len(pred), device=pred.device), valid.sum(1) - 1
    planted = contacts[:, :-1] & valid[:, 1:, None]  # a contact speaks of the step to the next frame
    rows = dict(
        pa_mpjpe=_over_time(joint_error(metrics.procrustes_align(pred, real), real).mean(-1), valid),
        velocity=_over_time(metrics.length(velocity).mean(-1), valid), acceleration=_over_time(metrics.length(acceleration).mean(-1), valid),
        drift=joint_error(pred[:, :, 0][last], real[:, :, 0][last]),
        contacts=planted.sum((1, 2)))
    for name, joints in (("real", real), ("pred", pred)):
        slide = metrics.foot_slide(joints, spec.feet) * planted
        rows[f"jerk_{name}"] = _over_time(metrics.length(metrics.difference(joints, 3)).mean(-1), valid)
        rows[f"slide_{name}"] = slide.sum((1, 2))
        rows[f"skating_{name}"] = (slide * spec.fps / 1000 > metrics.SKATE_SPEED).sum((1, 2))
        rows[f"penetration_{name}"] = _over_time(metrics.foot_penetration(joints, spec.feet), valid)
        rows[f"kinetic_{name}"] = metrics.kinetic_features(joints / 1000, spec.fps, valid)
    return rows


def _finalise(blocks, lengths, spec, full, nb_code, counts, unit):
    """Per-clip sums → named means."""
    total = {name: block.sum() for name, block in blocks.items()}
    frames, clips = int(lengths.sum()), len(lengths)
    result = {name: total[name] / frames for name in CLIP_METRICS}
    result.update(codes_used=int((counts > 0).sum()), perplexity=metrics.code_perplexity(counts), clips=clips, frames=frames)
    if full:
        contacts = max(total["contacts"], 1)
        result.update(
            pa_mpjpe=total["pa_mpjpe"] / frames,
            velocity_error=total["velocity"] / (frames - clips),
            acceleration_error=total["acceleration"] / (frames - 2 * clips),
            jerk_real=total["jerk_real"] / (frames - 3 * clips), jerk=total["jerk_pred"] / (frames - 3 * clips),
            skating_real=total["skating_real"] / contacts, skating=total["skating_pred"] / contacts,
            slide_real=total["slide_real"] / contacts, slide=total["slide_pred"] / contacts,
            penetration_real=total["penetration_real"] / frames, penetration=total["penetration_pred"] / frames,
            root_drift=total["drift"] / clips,
            dead_codes=nb_code - result["codes_used"],
            bits_per_second=spec.fps / unit * np.log2(nb_code),
            entropy_bits_per_second=spec.fps / unit * np.log2(max(result["perplexity"], 1)))
        if clips > 1:
            result["kinetic_frechet"] = _kinetic_frechet(blocks["kinetic_real"], blocks["kinetic_pred"])
    return {name: value if isinstance(value, int) else float(value) for name, value in result.items()}


def _kinetic_frechet(real, pred):
    """Fréchet distance of kinetic features (n, 3·J), each measured in standard deviations of the real ones. Two clips or more."""
    spread = real.std(0)
    spread[spread < 1e-8] = 1.0  # a joint that never moves
    return metrics.frechet_distance(*metrics.gaussian(real / spread), *metrics.gaussian(pred / spread))


def _per_joint(blocks, lengths, spec):
    aligned, whole = (blocks[name].sum(0) / lengths.sum() for name in ("joint", "joint_global"))
    return {name: (float(a), float(g)) for name, a, g in zip(spec.joint_names, aligned, whole)}


def _per_clip(blocks, lengths, names):
    values = np.concatenate([blocks[name] for name in CLIP_METRICS], 1) / lengths[:, None]
    return {name: dict(zip(CLIP_METRICS, map(float, row)), frames=int(length)) for name, row, length in zip(names, values, lengths)}


def break_down(per_clip, groups):
    """Frames-weighted CLIP_METRICS of groups of clips. groups {group: clip names}; clips that were skipped do not count.

    Returns {group: {metric: mean, "clips": n, "frames": F}}, largest group first, empty groups left out.
    """
    result = {}
    for group, names in groups.items():
        rows = [per_clip[name] for name in names if name in per_clip]
        frames = sum(row["frames"] for row in rows)
        if rows:
            result[group] = {name: sum(row[name] * row["frames"] for row in rows) / frames for name in CLIP_METRICS}
            result[group].update(clips=len(rows), frames=frames)
    return dict(sorted(result.items(), key=lambda item: -item[1]["frames"]))


def measure_cost(net, clips, spec, mean, std, repeats=5, window=128):
    """What evaluating a split costs: median seconds of `evaluate_clips(full=True)`, and of the network's forward alone over as many frames.

    The forward sees the same frames, cut into windows and full batches; both are run in turn, after one unmeasured run each. On the CPU it is
    the process's own time, so that other processes do not count. Raises UserError as `evaluate_clips` does. Returns (evaluation, forward).
    """
    device = next(net.parameters()).device
    _, starts, lengths, _ = select_clips(clips, spec, max(UNIT_LENGTH, 2 ** net.down_t))
    frames = np.concatenate([clips.frames[start:start + length] for start, length in zip(starts, lengths)])
    windows = torch.from_numpy(frames[:len(frames) // window * window]).view(-1, window, frames.shape[1])

    def forward():
        with evaluating(net):
            for x in windows.split(max(BATCH_FRAMES // window, 1)):
                net(x.to(device))

    def seconds(run):
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - start

    rows = [[seconds(lambda: evaluate_clips(net, clips, spec, mean, std, full=True)), seconds(forward)] for _ in range(repeats + 1)]
    evaluation, alone = np.median(rows[1:], 0)
    return float(evaluation), float(alone * len(frames) / (len(windows) * window))
