"""From a network and a split to named numbers, which docs/evaluation.md defines."""
from collections import namedtuple

import numpy as np
import torch

from evaluation import metrics
from models.batches import BATCH_FRAMES, equal_length_batches, evaluating, forward_clips
from utils.device import all_reduce, rank_and_world
from utils.errors import UserError
from utils.losses import LOSSES
from utils.motion_process import recover_from_ric
from utils.motion_spec import MAX_EVAL_FRAMES, UNIT_LENGTH

LESS, MORE, NEITHER = -1, 1, 0  # which is better
Metric = namedtuple("Metric", "heading digits better per", defaults=(None,))
METRICS = {  # per: what the number is a mean over. The real motion's number is called NAME_real
    "recons": Metric("recons loss", 4, LESS, "frame"),
    "mpjpe": Metric("MPJPE root-aligned mm", 2, LESS, "frame"),
    "mpjpe_global": Metric("MPJPE global mm", 1, LESS, "frame"),
    "pa_mpjpe": Metric("PA-MPJPE mm", 2, LESS, "frame"),
    "velocity_error": Metric("velocity error mm/frame", 2, LESS, "first difference"),
    "acceleration_error": Metric("acceleration error mm/frame²", 2, LESS, "second difference"),
    "root_drift": Metric("root drift mm", 1, LESS, "clip"),
    "jerk": Metric("jerk mm/frame³", 2, NEITHER, "third difference"),
    "skating": Metric("skating, share of contacts", 3, LESS, "contact"),
    "slide": Metric("foot slide mm/frame", 2, LESS, "contact"),
    "codes_used": Metric("codes used", 0, NEITHER),
    "dead_codes": Metric("dead codes", 0, NEITHER),
    "perplexity": Metric("perplexity", 1, MORE),
    "tokens_per_second": Metric("tokens/s", 1, NEITHER),
    "bits_per_second": Metric("bits/s", 1, NEITHER),
    "fid": Metric("FID", 4, LESS),  # from here on: with the extractors, evaluation/text.py
    "diversity": Metric("diversity", 3, NEITHER),
    "top1": Metric("top 1", 3, MORE),
    "top2": Metric("top 2", 3, MORE),
    "top3": Metric("top 3", 3, MORE),
    "matching_score": Metric("matching score", 3, LESS),
}


def select_clips(clips, spec, unit=UNIT_LENGTH, min_frames=None, max_frames=MAX_EVAL_FRAMES):
    """Choose the clips of min_frames (None: the data set's) ≤ T < max_frames (None: any), cut to whole units.

    Returns (index (m,) into clips.names, first row (m,), length (m,), skipped {reason: names or messages}).
    """
    low, high = max(min_frames or spec.min_eval_frames, unit), max_frames or np.inf
    lengths = np.diff(clips.offsets)
    reasons = {f"shorter than {low} frames": lengths < low, f"{high} frames or longer": lengths >= high}
    skipped = {reason: [clips.names[i] for i in np.flatnonzero(out)] for reason, out in reasons.items()}
    skipped = {reason: names for reason, names in [*skipped.items(), ("cannot be used", clips.bad)] if names}
    index = np.flatnonzero((lengths >= low) & (lengths < high))
    return index, clips.offsets[index], lengths[index] // unit * unit, skipped


def describe_skipped(skipped):
    """Return a line for each reason of {reason: clip names}, with the first five names."""
    return [f"skipped {len(names)} ({reason}): {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
            for reason, names in skipped.items()]


def evaluate_clips(net, clips, full=False, loss="l1_smooth", batch_frames=BATCH_FRAMES, layers=None):
    """Return a split's reconstruction metrics, {name: number}. Each rank takes a share of the batches.

    net: HumanVQVAE with mean and std. clips: of `load_split`, normalised with them. loss: l1, l2, l1_smooth.
    full: all of METRICS but the extractors'; else recons, mpjpe, mpjpe_global, codes_used and perplexity.
    layers: how many layers of residual codes to decode and count, None: all. The result also holds `clips`,
    `frames`, `skipped`, `counts` (Q, K) uses of each code, and `joints` {joint: (root-aligned, global) mm}.
    Raises UserError where no clip can be taken, or a clip or its reconstruction is not finite.
    """
    spec, unit, (rank, world) = net.spec, 2 ** net.down_t, rank_and_world()
    index, starts, lengths, skipped = select_clips(clips, spec, max(UNIT_LENGTH, unit))
    if not len(index):
        reasons = "; ".join(f"{len(names)} {reason}" for reason, names in skipped.items())
        raise UserError(f"{clips.split}: no clip to evaluate ({reasons})")
    still = torch.zeros(1, UNIT_LENGTH, spec.width)  # shows the shape of each sum
    sums = {name: torch.zeros(len(index), *rows.shape[1:], dtype=torch.float64)
            for name, rows in _sum_clips(net, still, still, loss, full).items()}
    counts = torch.zeros(net.vqvae.quantizer.num_layers, net.nb_code, dtype=torch.float64)
    with evaluating(net):
        for batch in equal_length_batches(lengths, batch_frames)[rank::world]:
            x, out, codes = forward_clips(net, clips, index[batch], starts[batch], lengths[batch[0]], layers)
            for name, rows in _sum_clips(net, x, out, loss, full).items():
                sums[name][batch] = rows.cpu().double()
            counts += net.vqvae.quantizer.count(codes.flatten(0, 1)).cpu()
    for tensor in (*sums.values(), counts):
        all_reduce(tensor)
    sums = {name: rows.numpy() for name, rows in sums.items()}
    errors = [(sums[name].sum(0) / lengths.sum()).tolist() for name in ("joint", "joint_global")]
    return dict(_means(sums, lengths, counts.numpy()[:layers], spec.fps / unit), clips=len(index),
                frames=int(lengths.sum()), skipped=skipped, counts=counts.long().tolist(),
                joints=dict(zip(spec.joint_names, zip(*errors))))


def _sum_clips(net, x, out, loss, full):
    """Return sums over time of normalised clips x (N, T, D) and reconstructions: {name: (N,) or (N, ·)}."""
    spec, scale = net.spec, 1000 * net.spec.unit
    mean, std = (torch.as_tensor(np.asarray(a)).to(x) for a in (net.mean, net.std))
    real, pred = (scale * recover_from_ric(y * std + mean, spec.joints) for y in (x, out))  # (N, T, J, 3), mm
    error = pred - real
    joint, joint_global = (metrics.length(e).sum(1) for e in (error - error[:, :, :1], error))
    sums = dict(recons=LOSSES[loss](out, x, reduction="none").mean(-1).sum(1), mpjpe=joint.mean(1),
                mpjpe_global=joint_global.mean(1), joint=joint, joint_global=joint_global)
    if not full:
        return sums
    velocity, feet = error.diff(dim=1), spec.slices["contacts"]
    planted = (x[..., feet] * std[feet] + mean[feet] > 0.5)[:, :-1]  # to the next frame
    sums.update(pa_mpjpe=metrics.length(metrics.procrustes_align(pred, real) - real).mean(-1).sum(1),
                velocity_error=metrics.length(velocity).mean(-1).sum(1),
                acceleration_error=metrics.length(velocity.diff(dim=1)).mean(-1).sum(1),
                root_drift=metrics.length(error[:, -1, 0]), contacts=planted.sum((1, 2)))
    for end, joints in (("", pred), ("_real", real)):
        slide = metrics.foot_slide(joints, spec.feet) * planted
        sums[f"jerk{end}"] = metrics.length(joints.diff(3, dim=1)).mean(-1).sum(1)
        sums[f"skating{end}"] = (slide * spec.fps / 1000 > metrics.SKATE_SPEED).sum((1, 2))
        sums[f"slide{end}"] = slide.sum((1, 2))
    return sums


def _means(sums, lengths, counts, code_rate):
    """Return {metric: number} from sums over each clip {name: (n, ·)} and the uses of each code (Q, K)."""
    frames, clips, contacts = int(lengths.sum()), len(lengths), sums.get("contacts", np.zeros(1))
    over = {"frame": frames, "first difference": frames - clips, "second difference": frames - 2 * clips,
            "third difference": frames - 3 * clips, "clip": clips, "contact": max(1, contacts.sum())}
    names = [(name + end, metric.per) for name, metric in METRICS.items() for end in ("", "_real")]
    result = {name: float(sums[name].sum() / over[per]) for name, per in names if per and name in sums}
    result["perplexity"] = float(np.mean([metrics.code_perplexity(row) for row in counts]))
    result["codes_used"] = int((counts > 0).sum())
    if "contacts" in sums:
        rate = len(counts) * code_rate
        result.update(dead_codes=int((counts == 0).sum()), tokens_per_second=rate,
                      bits_per_second=rate * np.log2(counts.shape[1]))
    return result
