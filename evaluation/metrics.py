"""Motion, codebook and embedding metrics: pure functions of joints (…, T, J, 3) and embeddings (n, E)."""
import numpy as np
import torch

SKATE_SPEED = 0.5  # m/s over the floor; a foot in contact that is faster skates (as in GMD, arXiv 2305.12577)


def length(vectors):
    """Return the Euclidean length of (…, 3), as (…)."""
    x, y, z = vectors.unbind(-1)  # three times as fast as torch.norm over so short an axis
    return (x * x + y * y + z * z).sqrt()


def nearest_rotation(h):
    """Return the rotation R with the greatest tr(Rᵀ h) for each of h (…, 3, 3) (Umeyama 1991)."""
    u, _, vh = torch.linalg.svd(h)
    u[..., 2] *= torch.linalg.det(u @ vh).sign()[..., None]  # the smallest axis flips: no reflection
    return u @ vh


def procrustes_align(pred, real):
    """Rotate, move and scale each frame of pred (…, J, 3) as close to real as can be (least squares).

    Reflections are ruled out. A frame whose joints all coincide is only moved.
    """
    real_centre = real.mean(-2, keepdim=True)
    p = pred - pred.mean(-2, keepdim=True)
    h = p.mT @ (real - real_centre)                                          # (…, 3, 3)
    rotation, size = nearest_rotation(h), p.square().sum((-1, -2))
    fit = (rotation * h).sum((-1, -2)) / size.clamp(min=torch.finfo(size.dtype).tiny)
    scale = torch.where(size > 0, fit, 1.0)
    return p @ (scale[..., None, None] * rotation) + real_centre


def foot_slide(joints, feet):
    """Return how far each foot joint moves over the floor to the next frame, (…, T - 1, len(feet))."""
    step = joints[..., list(feet), :].diff(dim=-3)
    return torch.hypot(step[..., 0], step[..., 2])


def code_perplexity(counts):
    """Return exp of the entropy of code counts (K,); 0 where nothing was counted."""
    counts = np.asarray(counts, dtype=np.float64)
    p = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0


def gaussian(x):
    """Return the mean (E,) and unbiased covariance (E, E) of rows (n, E)."""
    return x.mean(0), np.cov(x, rowvar=False)


def frechet_distance(mean_a, cov_a, mean_b, cov_b):
    """Return ‖μa - μb‖² + tr(Σa + Σb - 2 (Σa Σb)^½), the squared Fréchet distance (arXiv 1706.08500)."""
    # the eigenvalues of the symmetric Σa^½ Σb Σa^½ give the trace of the root, of singular covariances too
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = root @ cov_b @ root
    shared = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * shared)


def diversity(embeddings, pairs, rng):
    """Return the mean distance of `pairs` ≤ n random pairs of rows (n, E); rng: a NumPy Generator."""
    first, second = (rng.choice(len(embeddings), pairs, replace=False) for _ in range(2))  # as upstream
    return float(np.linalg.norm(embeddings[first] - embeddings[second], axis=1).mean())


def retrieval(text, motion, batch=32, top=3):
    """Return R-precision top 1 … `top`, (top,), and the matching score of paired rows (n, E), n ≥ batch.

    Each caption ranks the motions of its batch, the last partial one left out, by distance; the score is the
    mean distance of the true pairs.
    """
    whole, exact = len(text) // batch * batch, "donot_use_mm_for_euclid_dist"
    text, motion = (torch.from_numpy(x[:whole]).unflatten(0, (-1, batch)) for x in (text, motion))
    distance = torch.cdist(text, motion, compute_mode=exact)                 # (B, 32, 32)
    order = distance.argsort(stable=True)
    rank = (order == torch.arange(batch)[:, None]).int().argmax(-1)          # of the true motion
    shares = np.array([float((rank <= k).double().mean()) for k in range(top)])
    return shares, float(distance.diagonal(dim1=-2, dim2=-1).mean())
