"""From a network and a split to named numbers. Sums first, so that ranks can add theirs up; then means.

Nothing here draws random numbers, trains, logs or writes: the network's mode is restored and its codebook does not move.
n clips, N clips of one length, T frames, D features, J joints, K codes.
"""
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F

from utils import metrics
from utils.errors import UserError
from utils.metrics import joint_error, mm_per_unit
from utils.motion_process import recover_from_ric
from utils.motion_spec import MAX_EVAL_FRAMES, UNIT_LENGTH

LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss, "l1_smooth": F.smooth_l1_loss}
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


def buckets(lengths, batch_frames=BATCH_FRAMES):
    """Batches of equal lengths: a list of positions into `lengths`, each batch of at most `batch_frames` frames (or one clip).

    Equal lengths, because convolutions see the zeros beyond the end of a clip: padding would change its last frames.
    """
    batches = []
    for length in np.unique(lengths):
        same = np.flatnonzero(lengths == length)
        batches += np.split(same, range(max(1, batch_frames // int(length)), len(same), max(1, batch_frames // int(length))))
    return batches


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


def _pass(net, frames, starts, length, names, device):
    """Clips of one length through the net once: (x, out (N, T, D), codes (N, T')) on the device. Refuses what is not finite by name."""
    x = torch.from_numpy(np.stack([frames[start:start + length] for start in starts])).to(device)
    codes = net.encode(x)
    out = net.forward_decoder(codes)
    for values, what in ((x, "the clip"), (out, "its reconstruction")):
        finite = torch.isfinite(values).flatten(1).all(1)
        if not bool(finite.all()):
            clip = int(torch.argmin(finite.int()))
            frame = int(torch.argmin(torch.isfinite(values[clip]).all(-1).int()))
            raise UserError(f"{names[clip]}: {what} is NaN or Inf from frame {frame} on; expected finite features: "
                            + ("mend the clip or leave it out with --skip-bad-clips" if values is x else "use an earlier checkpoint"))
    return x, out, codes


def reconstruct_clips(net, clips, device=None, batch_frames=BATCH_FRAMES, unit=None):
    """Every clip, cut to whole codes, through the net in batches of equal length; equals the clip-by-clip result.

    clips: `names`, normalised `frames` (F, D), `offsets` (n + 1,). Returns lists in the clips' order: reconstructions (T, D) float32
    arrays, normalised, and codes (T / 2**down_t,) int64. A clip shorter than one code gives empty arrays.
    """
    unit = unit or 2 ** net.down_t
    device = device or next(net.parameters()).device
    lengths = np.diff(clips.offsets) // unit * unit
    out, codes = [[np.empty(shape, dtype)] * len(lengths) for shape, dtype in (((0, clips.frames.shape[1]), np.float32), ((0,), np.int64))]
    with evaluating(net):
        for batch in buckets(lengths, batch_frames):
            if lengths[batch[0]]:
                _, y, k = _pass(net, clips.frames, clips.offsets[batch], lengths[batch[0]], [clips.names[i] for i in batch], device)
                for i, y_i, k_i in zip(batch, y.cpu().numpy(), k.cpu().numpy()):
                    out[i], codes[i] = y_i, k_i
    return out, codes


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
        for batch in buckets(lengths, batch_frames)[rank::world_size]:
            x, out, codes = _pass(net, clips.frames, starts[batch], int(lengths[batch[0]]), [clips.names[i] for i in index[batch]], device)
            x_raw, out_raw = x * std_t + mean_t, out * std_t + mean_t
            real, pred = (recover_from_ric(raw, spec.joints) * scale for raw in (x_raw, out_raw))        # (N, T, J, 3) in mm
            row = {"recons": LOSSES[loss](out, x, reduction="none").mean(-1).sum(1), **_position_sums(pred, real)}
            if full:
                row.update(_motion_sums(pred, real, x_raw[..., spec.slices["contacts"]] > 0.5, spec))
            table[batch] = torch.cat([row[name].reshape(len(batch), -1) for name in columns], 1).cpu().double()
            counts += torch.bincount(codes.flatten(), minlength=net.nb_code).cpu()
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


def _position_sums(pred, real):
    """Position errors of clips (N, T, J, 3) in mm, summed over frames: of all joints (N,), and of each (N, J)."""
    joint, joint_global = joint_error(metrics.root_align(pred), metrics.root_align(real)).sum(1), joint_error(pred, real).sum(1)
    return dict(mpjpe=joint.mean(1), mpjpe_global=joint_global.mean(1), joint=joint, joint_global=joint_global)


def _motion_sums(pred, real, contacts, spec):
    """The full set's sums over frames of clips (N, T, J, 3) in mm; contacts (N, T, 4) bool, of the real motion."""
    rows = dict(
        pa_mpjpe=joint_error(metrics.procrustes_align(pred, real), real).mean(-1).sum(1),
        velocity=joint_error(metrics.difference(pred, 1), metrics.difference(real, 1)).mean(-1).sum(1),
        acceleration=joint_error(metrics.difference(pred, 2), metrics.difference(real, 2)).mean(-1).sum(1),
        drift=(pred[:, -1, 0] - real[:, -1, 0]).norm(dim=-1),
        contacts=contacts[:, :-1].sum((1, 2)))
    for name, joints in (("real", real), ("pred", pred)):
        slide = metrics.foot_slide(joints, spec.feet) * contacts[:, :-1]
        rows[f"jerk_{name}"] = metrics.difference(joints, 3).norm(dim=-1).mean(-1).sum(1)
        rows[f"slide_{name}"] = slide.sum((1, 2))
        rows[f"skating_{name}"] = (slide * spec.fps / 1000 > metrics.SKATE_SPEED).sum((1, 2))
        rows[f"penetration_{name}"] = metrics.foot_penetration(joints, spec.feet).sum(1)
        rows[f"kinetic_{name}"] = metrics.kinetic_features(joints / 1000, spec.fps)
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
            entropy_bits_per_second=spec.fps / unit * np.log2(max(result["perplexity"], 1)),
            kinetic_frechet=_kinetic_frechet(blocks["kinetic_real"], blocks["kinetic_pred"]))
    return {name: value if isinstance(value, int) else float(value) for name, value in result.items()}


def _kinetic_frechet(real, pred):
    """Fréchet distance of kinetic features (n, 3·J), each measured in standard deviations of the real ones; NaN for fewer than two clips."""
    if len(real) < 2:
        return float("nan")
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
