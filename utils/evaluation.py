"""From a network and a split to named numbers. Sums first, so that ranks can add theirs up; then means.

Nothing here draws random numbers, trains, logs or writes: the network's mode is restored and its codebook does not move.
n clips, N clips of a batch, T frames, D features, J joints, K codes.
"""
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn as nn

from utils import metrics
from utils.errors import UserError
from utils.losses import LOSSES
from utils.metrics import joint_error, mm_per_unit
from utils.motion_process import recover_from_ric
from utils.motion_spec import MAX_EVAL_FRAMES, UNIT_LENGTH

BATCH_FRAMES = 8192  # frames in one forward pass
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
    """Batches of equal or, with `mixed`, of similar lengths: a list of positions into `lengths`, shortest clips first.

    A batch holds at most `batch_frames` frames, padding included, or one clip. Lengths are mixed only to bring a batch to a size that
    keeps a device busy (a quarter of `batch_frames`), and only where less than a tenth of it, or 256 frames, would be padding: what another
    batch costs.
    """
    order = np.argsort(lengths, kind="stable")
    batches, start, total = [], 0, 0
    for i, length in enumerate(lengths[order]):
        padded = int(length) * (i - start + 1)
        grows = length > lengths[order[start]]
        waste = padded - total - length
        if i > start and (padded > batch_frames or (grows and (not mixed or total >= batch_frames / 4 or waste > max(padded / 10, 256)))):
            batches.append(order[start:i])
            start, total = i, 0
        total += int(length)
    return [*batches, order[start:]] if len(order) else []


@contextmanager
def evaluating(net):
    """Eval mode without gradients, each module's own mode restored afterwards."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def can_mix(net):
    """Whether clips of several lengths may share a batch: not where a norm averages over time."""
    return not any(isinstance(module, nn.GroupNorm) for module in net.modules())


@contextmanager
def _ends_at(net, valid):
    """Every convolution sees zeros beyond the end of a clip, as if it were alone: valid (N, T) bool, true up to each clip's length.

    What a bias writes beyond the end is put back to zero before each kernel that would carry it inside.
    """
    full = int(valid.all(0).sum())  # frames that every clip has
    if full == valid.shape[1]:
        yield
        return
    masks = {}

    def cut(x):  # (N, C, T'), in place: nothing beyond the end is read by anyone
        rate = valid.shape[1] // x.shape[-1]  # lengths are whole codes, so every rate-th frame of the mask is the mask
        if rate not in masks:
            masks[rate] = valid[:, None, full::rate].to(x.dtype)
        x[..., full // rate:].mul_(masks[rate])

    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1]
    upsampled = [block[0] for block in net.modules() if isinstance(block, nn.Sequential) and any(isinstance(m, nn.Upsample) for m in block)]
    hooks = [module.register_forward_pre_hook(lambda _, inputs: cut(inputs[0])) for module in convolutions]
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
    frames = np.zeros((len(index), lengths.max(), clips.frames.shape[1]), np.float32)
    for row, start, length in zip(frames, starts, lengths):
        row[:length] = clips.frames[start:start + length]
    x = torch.from_numpy(frames).to(device)
    valid = torch.arange(x.shape[1], device=device) < torch.as_tensor(lengths, device=device)[:, None]
    with _ends_at(net, valid):
        codes = net.encode(x)
        out = torch.where(valid[..., None], net.forward_decoder(codes), 0.0) if decode else x
    for values, what in ((x, "the clip"), (out, "its reconstruction"))[:1 + decode]:
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

    Each as if its row were alone, shortest rows first: a whole data set need not fit into memory.
    """
    unit, device = 2 ** net.down_t, device or next(net.parameters()).device
    lengths = np.array([len(row) for row in rows], np.int64) * unit
    for batch in buckets(lengths, batch_frames, can_mix(net)):
        codes = np.zeros((len(batch), lengths[batch].max() // unit), np.int64)
        for padded, i in zip(codes, batch):
            padded[:len(rows[i])] = rows[i]
        valid = torch.arange(codes.shape[1] * unit, device=device) < torch.as_tensor(lengths[batch], device=device)[:, None]
        with evaluating(net), _ends_at(net, valid):  # left before anything is yielded
            out = net.forward_decoder(torch.from_numpy(codes).to(device)).cpu().numpy()
        for i, features in zip(batch, out):
            yield int(i), features[:lengths[i]]


def evaluate_clips(net, clips, spec, mean, std, device=None, full=False, loss="l1_smooth", min_frames=None, max_frames=MAX_EVAL_FRAMES,
                   batch_frames=BATCH_FRAMES, rank=0, world_size=1, reduce=None):
    """Reconstruction metrics of a split as a dict of named numbers, means over frames unless the name says otherwise.

    net: HumanVQVAE. clips: as `load_split` returns, normalised with mean and std ((D,) float64). loss: l1 | l2 | l1_smooth, over the
    normalised features. full: the whole set of docs/evaluation.md, not only recons, mpjpe, mpjpe_global (mm), codes_used, perplexity.
    rank, world_size: this process takes every world_size-th batch; `reduce(tensor)` adds a float64 CPU tensor up over the ranks, in place.
    Also holds `skipped` {reason: clip names}, `joints` {joint: (root-aligned, global) mm} and `per_clip` {clip: {metric: value}}.
    Raises UserError when no clip can be taken, or a clip or its reconstruction is not finite.
    """
    unit = max(UNIT_LENGTH, 2 ** net.down_t)
    index, starts, lengths, skipped = select_clips(clips, spec, unit, min_frames, max_frames)
    if not len(index):
        reasons = "; ".join(f"{len(names)} {reason}" for reason, names in skipped.items())
        raise UserError(f"{getattr(clips, 'split', 'the split')}: no clip to evaluate ({reasons}); expected clips of "
                        f"{spec.min_eval_frames if min_frames is None else min_frames} frames or more and fewer than {max_frames}")
    device = device or next(net.parameters()).device
    mean_t, std_t = (torch.as_tensor(np.asarray(a), dtype=torch.float32, device=device) for a in (mean, std))
    scale = mm_per_unit(mean)
    columns = _columns(spec, full)
    table = torch.zeros(len(index), sum(columns.values()), dtype=torch.float64)  # a row per clip: sums over its frames
    counts = torch.zeros(net.nb_code, dtype=torch.float64)
    with evaluating(net):
        for batch in buckets(lengths, batch_frames, can_mix(net))[rank::world_size]:
            x, out, codes, valid = forward_clips(net, clips, index[batch], starts[batch], lengths[batch], device)
            x_raw, out_raw = x * std_t + mean_t, out * std_t + mean_t
            real, pred = (recover_from_ric(raw, spec.joints) * scale for raw in (x_raw, out_raw))        # (N, T, J, 3) in mm
            row = {"recons": _over_time(LOSSES[loss](out, x, reduction="none").mean(-1), valid), **_position_sums(pred, real, valid)}
            if full:
                contacts = (x_raw[..., spec.slices["contacts"]] > 0.5) & valid[..., None]
                row.update(_motion_sums(pred, real, contacts, valid, spec))
            table[batch] = torch.cat([row[name].reshape(len(batch), -1) for name in columns], 1).cpu().double()
            counts += torch.bincount(codes[valid[:, ::2 ** net.down_t]], minlength=net.nb_code).cpu()
    if reduce:
        reduce(table)
        reduce(counts)
    blocks = dict(zip(columns, (block.numpy() for block in table.split(list(columns.values()), 1))))
    names = [clips.names[i] for i in index]
    return {**_finalise(blocks, lengths, spec, full, net.nb_code, counts.numpy(), unit=2 ** net.down_t),
            "skipped": skipped, "joints": _per_joint(blocks, lengths, spec), "per_clip": _per_clip(blocks, lengths, names)}


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


def _position_sums(pred, real, valid):
    """Position errors of clips (N, T, J, 3) in mm, summed over frames: of all joints (N,), and of each (N, J)."""
    joint = _over_time(joint_error(metrics.root_align(pred), metrics.root_align(real)), valid)
    joint_global = _over_time(joint_error(pred, real), valid)
    return dict(mpjpe=joint.mean(1), mpjpe_global=joint_global.mean(1), joint=joint, joint_global=joint_global)


def _motion_sums(pred, real, contacts, valid, spec):
    """The full set's sums over frames of clips (N, T, J, 3) in mm; contacts (N, T, 4) bool, of the real motion."""

    def difference_error(order):
        return _over_time(joint_error(metrics.difference(pred, order), metrics.difference(real, order)).mean(-1), valid)

    last = torch.arange(len(pred), device=pred.device), valid.sum(1) - 1
    planted = contacts[:, :-1] & valid[:, 1:, None]  # a contact speaks of the step to the next frame
    rows = dict(
        pa_mpjpe=_over_time(joint_error(metrics.procrustes_align(pred, real), real).mean(-1), valid),
        velocity=difference_error(1), acceleration=difference_error(2),
        drift=(pred[:, :, 0][last] - real[:, :, 0][last]).norm(dim=-1),
        contacts=planted.sum((1, 2)))
    for name, joints in (("real", real), ("pred", pred)):
        slide = metrics.foot_slide(joints, spec.feet) * planted
        rows[f"jerk_{name}"] = _over_time(metrics.difference(joints, 3).norm(dim=-1).mean(-1), valid)
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
