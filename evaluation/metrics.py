"""What the reported numbers are: pure functions on joints, codes and embeddings. No files, no loggers, no networks.

Joints are torch tensors (…, T, J, 3) in one unit; whoever calls multiplies by `mm_per_unit`. Embeddings are NumPy arrays (n, E).
"""
import numpy as np
import torch

SKATE_SPEED = 0.5  # m/s over the floor; a planted foot faster than this skates (the threshold of GMD, arXiv 2305.12577)


def mm_per_unit(mean):
    """Millimetres in one unit of the data: 1000 for metres, 1 for KIT-ML's millimetres, told by the mean root height mean[3]."""
    return 1.0 if mean[3] > 20 else 1000.0


# joints

def root_align(joints):
    """(…, T, J, 3) with each frame's root moved to the origin; the heading stays."""
    return joints - joints[..., :1, :]


def length(vectors):
    """Euclidean length of (…, 3), (…); `torch.norm` over so short an axis takes three times as long."""
    x, y, z = vectors.unbind(-1)
    return (x * x + y * y + z * z).sqrt()


def joint_error(pred, real):
    """Euclidean distance of each joint, (…, T, J). Its mean is the global MPJPE; of root-aligned joints, the root-aligned one."""
    return length(pred - real)


def nearest_rotation(h):
    """The rotation R with the greatest tr(Rᵀ h) for each of h (…, 3, 3).

    Newton's iteration to the polar factor, scaled by the determinant (Higham 1986): several times faster than so many small SVDs. Where it
    ends in a reflection, or not in six steps (h all but singular), the SVD decides: the smallest axis flips (Umeyama 1991).
    """
    rotation = h
    for _ in range(6):
        a, b, c = rotation.unbind(-2)
        cofactors = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], -2)
        det = (a * cofactors[..., 0, :]).sum(-1)[..., None, None]
        scale = det.abs() ** (-1 / 3)
        rotation = (scale * rotation + cofactors / (scale * det)) / 2  # cofactors / det is the transposed inverse
    error = (rotation @ rotation.mT - torch.eye(3, dtype=h.dtype, device=h.device)).abs().amax((-1, -2))
    left = ~((error < 100 * torch.finfo(h.dtype).eps) & (det[..., 0, 0] > 0))  # NaN is left too
    if left.any():
        u, _, vh = torch.linalg.svd(h[left])
        u[..., 2] *= torch.linalg.det(u @ vh).sign()[..., None]
        rotation[left] = u @ vh
    return rotation


def procrustes_align(pred, real):
    """Each frame of pred (…, J, 3) under the rotation, translation and scale that bring it closest to real (least squares).

    Reflections are ruled out. A frame whose joints all coincide is only moved.
    """
    real_centre = real.mean(-2, keepdim=True)
    p = pred - pred.mean(-2, keepdim=True)
    h = p.mT @ (real - real_centre)                                          # (…, 3, 3)
    rotation, size = nearest_rotation(h), p.square().sum((-1, -2))
    scale = torch.where(size > 0, (rotation * h).sum((-1, -2)) / size.clamp(min=torch.finfo(size.dtype).tiny), 1.0)
    return p @ (scale[..., None, None] * rotation) + real_centre


def difference(joints, order):
    """Finite difference over time: 1 velocity, 2 acceleration, 3 jerk, per frame**order. (…, T - order, J, 3)."""
    return torch.diff(joints, n=order, dim=-3)


def foot_slide(joints, feet):
    """Distance over the floor that each foot joint goes to the next frame, (…, T - 1, len(feet)); heights do not count."""
    step = difference(joints[..., list(feet), :], 1)
    return torch.hypot(step[..., 0], step[..., 2])


def foot_penetration(joints, feet):
    """Depth of the lowest foot joint below the floor y = 0, (…, T); 0 where no foot is below."""
    return (-joints[..., list(feet), 1].amin(-1)).clamp(min=0)


def kinetic_features(joints, fps, valid=None):
    """One row per clip of how it moves, (…, 3·J): each joint's mean squared ground speed, squared vertical speed, acceleration.

    joints (…, T, J, 3) in metres, T at least 3; valid (…, T) bool, true up to each clip's last frame (None: all of them). In m²/s²,
    m²/s² and m/s². After the kinetic features of Onuma et al. 2008, as used for dance by AIST++ (arXiv 2101.08779).
    """
    if valid is None:
        valid = torch.ones(joints.shape[:-2], dtype=torch.bool, device=joints.device)

    def mean(values):  # (…, T - k, J) → (…, J)
        weight = valid[..., valid.shape[-1] - values.shape[-2]:, None]
        return torch.where(weight, values, 0).sum(-2) / weight.sum(-2)

    velocity, acceleration = difference(joints, 1) * fps, difference(joints, 2) * fps ** 2
    ground = velocity[..., 0] ** 2 + velocity[..., 2] ** 2
    return torch.cat([mean(ground), mean(velocity[..., 1] ** 2), mean(length(acceleration))], -1)


# codes

def code_perplexity(counts):
    """exp of the entropy of code counts (K,): the number of codes that equal use would need. 0 when nothing was counted."""
    counts = np.asarray(counts, dtype=np.float64)
    p = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0


# distributions and embeddings

def gaussian(x):
    """Mean (E,) and unbiased covariance (E, E), float64, of rows (n, E)."""
    x = np.asarray(x, dtype=np.float64)
    return x.mean(0), np.cov(x, rowvar=False).reshape(x.shape[1], x.shape[1])


def frechet_distance(mean_a, cov_a, mean_b, cov_b):
    """Squared Fréchet distance of two Gaussians: ‖μa - μb‖² + tr(Σa + Σb - 2 (Σa Σb)^½).

    The trace of the root is taken from the eigenvalues of the symmetric Σa^½ Σb Σa^½, which are real and, up to rounding, not negative,
    so that singular covariances (fewer clips than dimensions) give a number too. float64. Raises ValueError for statistics that are
    not finite. Source: arXiv 1706.08500.
    """
    mean_a, cov_a, mean_b, cov_b = (np.asarray(a, dtype=np.float64) for a in (mean_a, cov_a, mean_b, cov_b))
    if not all(np.isfinite(a).all() for a in (mean_a, cov_a, mean_b, cov_b)):
        raise ValueError("the Fréchet distance needs finite means and covariances (at least two rows each)")
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = root @ cov_b @ root
    shared = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * shared)


def diversity(embeddings, pairs, rng):
    """Mean distance of `pairs` random pairs of rows (n, E): two draws without repetition, independent of each other, as upstream.

    rng: numpy Generator. Raises ValueError for more pairs than rows.
    """
    first, second = (rng.choice(len(embeddings), pairs, replace=False) for _ in range(2))
    return float(np.linalg.norm(embeddings[first] - embeddings[second], axis=1).mean())


def distance_matrix(a, b):
    """Euclidean distances (…, n, m) of rows (…, n, E) and (…, m, E), float64."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    squared = (a * a).sum(-1)[..., :, None] + (b * b).sum(-1)[..., None, :] - 2 * a @ np.swapaxes(b, -1, -2)
    return np.sqrt(squared.clip(min=0))


def retrieval(text, motion, batch=32, top=3):
    """R-precision top 1 … `top` and matching score of paired rows (n, E), within consecutive batches; the last partial one is left out.

    Each caption ranks the batch's motions by distance. Returns (shares (top,), mean distance of the true pairs).
    Raises ValueError for fewer rows than a batch.
    """
    whole = len(text) // batch * batch
    if not whole:
        raise ValueError(f"R-precision needs at least {batch} clips, got {len(text)}")
    distance = distance_matrix(*(np.asarray(x)[:whole].reshape(-1, batch, x.shape[-1]) for x in (text, motion)))  # (B, 32, 32)
    rank = (np.argsort(distance, axis=-1, kind="stable") == np.arange(batch)[:, None]).argmax(-1)              # of the true motion
    shares = np.array([(rank <= k).mean() for k in range(top)])
    return shares, float(np.diagonal(distance, axis1=-2, axis2=-1).mean())


def confidence(values):
    """Mean and half-width of the 95 % interval, 1.96·std/√n (population std, as published tables use)."""
    values = np.asarray(values, dtype=np.float64)
    return float(values.mean()), float(1.96 * values.std() / np.sqrt(len(values)))
