"""From a network and a split to named numbers. Sums first, so that ranks can add theirs up; then means.

Nothing here draws random numbers, trains, logs or writes: the network's mode is restored and its codebook does not move.
n clips, N clips of a batch, T frames, D features, J joints, K codes.
"""
import numpy as np
import torch

from evaluation import metrics
from evaluation.metrics import joint_error, mm_per_unit
from models.batches_old import BATCH_FRAMES, buckets, can_mix, evaluating, forward_clips
from utils.errors import UserError
from utils.losses import LOSSES
from utils.motion_process import recover_from_ric
from utils.motion_spec import MAX_EVAL_FRAMES, UNIT_LENGTH

PART_FRAMES = 2048  # in one pass of metrics
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
