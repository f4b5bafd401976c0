"""Each number against an analytic answer."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.spatial.transform import Rotation

from evaluation import metrics
from utils.motion_spec import T2M

RNG = np.random.default_rng


def body(frames=12, joints=22, seed=0, clips=2):
    return torch.from_numpy(RNG(seed).normal(size=(clips, frames, joints, 3)))


def distance(a, b):
    return metrics.length(a - b)


def rotation(seed):
    q, _ = np.linalg.qr(RNG(seed).normal(size=(3, 3)))
    return torch.from_numpy(q * np.sign(np.linalg.det(q)))


# joints

@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10))
def test_procrustes_undoes_rotation_translation_and_scale(seed, scale):
    real = body(seed=seed)
    pred = scale * real @ rotation(seed + 1) + torch.tensor([1.0, -2.0, 3.0])
    assert distance(metrics.procrustes_align(pred, real), real).max() < 1e-9


def test_procrustes_does_not_mirror_and_never_loses_to_the_unaligned():
    real, mirrored = body(), body() * torch.tensor([-1.0, 1.0, 1.0])
    assert distance(metrics.procrustes_align(mirrored, real), real).mean() > 0.1
    pred = real + 0.1 * body(seed=5)
    centred = distance(pred - pred.mean(-2, keepdim=True),
                                  real - real.mean(-2, keepdim=True)).square().sum(-1)
    aligned = distance(metrics.procrustes_align(pred, real), real).square().sum(-1)
    assert (aligned <= centred + 1e-9).all()


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_procrustes_rotates_as_scipy_does(mirror):
    real = body(clips=1)[0]
    pred = body(seed=3, clips=1)[0] + real * torch.tensor([mirror, 1.0, 1.0])
    aligned = metrics.procrustes_align(pred, real)
    for a, p, r in zip(aligned.numpy(), pred.numpy(), real.numpy()):
        p, r = p - p.mean(0), r - r.mean(0)
        turned = p @ Rotation.align_vectors(r, p)[0].as_matrix().T
        np.testing.assert_allclose(a - a.mean(0), turned * (turned * r).sum() / (p * p).sum(), atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 0.3, 0.1), (1, 0.3, 1e-3), (1, 0.3, 0), (1, 0, 0)])
def test_the_nearest_rotation_of_bodies_flat_thin_and_mirrored(shape, dtype):
    real = body(clips=40) * torch.tensor(shape)
    pred = real @ rotation(1) + 0.05 * body(seed=5, clips=40) * torch.tensor(shape)
    pred[::2] *= torch.tensor([-1.0, 1.0, 1.0])
    h = (pred.mT @ real).to(dtype)
    result = metrics.nearest_rotation(h)
    eps = 1000 * torch.finfo(dtype).eps
    torch.testing.assert_close(result @ result.mT, torch.eye(3, dtype=dtype).expand_as(h), atol=eps, rtol=0)
    assert (torch.linalg.det(result) > 0).all()
    s = torch.linalg.svdvals(h)
    greatest = s[..., 0] + s[..., 1] + s[..., 2] * torch.linalg.det(h).sign()
    torch.testing.assert_close((result * h).sum((-1, -2)), greatest, atol=float(eps * s.max()), rtol=0)


def test_procrustes_of_a_point_is_finite():
    assert torch.isfinite(metrics.procrustes_align(torch.zeros(1, 4, 22, 3), torch.ones(1, 4, 22, 3))).all()


def test_a_foot_slides_by_what_it_moves_over_the_floor():
    joints = torch.zeros(1, 5, 22, 3)
    joints[:, :, 7, 0] = 3.0 * torch.arange(5)
    joints[:, :, 7, 2] = 4.0 * torch.arange(5)
    joints[:, :, 8, 1] = 7.0 * torch.arange(5)   # height does not count
    slide = metrics.foot_slide(joints, T2M.feet)
    assert slide.shape == (1, 4, 4)
    assert slide[..., 0].unique().tolist() == [5.0] and slide[..., 1:].abs().max() == 0


@pytest.mark.parametrize("counts, expected", [([5, 5, 5, 5], 4), ([7, 0, 0], 1), ([0, 0], 0),
                                              ([1, 3], 4 / 27 ** 0.25)])
def test_code_perplexity(counts, expected):
    assert metrics.code_perplexity(counts) == pytest.approx(expected)


# distributions

def test_frechet_distance_of_equal_covariances_is_that_of_the_means():
    cov = np.cov(RNG(0).normal(size=(50, 6)), rowvar=False)
    assert metrics.frechet_distance(np.zeros(6), cov, np.full(6, 2.0), cov) == pytest.approx(24)


def test_frechet_distance_of_diagonal_gaussians():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 1.0])
    assert metrics.frechet_distance(np.zeros(3), np.diag(a), np.ones(3),
                                    np.diag(b)) == pytest.approx(3 + 1 + 0 + 4)


def test_frechet_distance_agrees_with_the_matrix_root():
    a = metrics.gaussian(RNG(1).normal(size=(300, 20)))
    b = metrics.gaussian(RNG(2).normal(size=(300, 20)) * 1.5 + 0.2)
    expected = ((a[0] - b[0]) ** 2).sum() + np.trace(a[1] + b[1] - 2 * sqrtm(a[1] @ b[1]).real)
    assert metrics.frechet_distance(*a, *b) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_with_fewer_clips_than_dimensions():
    x = RNG(3).normal(size=(10, 64))
    assert metrics.frechet_distance(*metrics.gaussian(x), *metrics.gaussian(x)) == pytest.approx(0, abs=1e-4)
    # orthogonal supports share nothing: what remains is the traces
    y = np.zeros((10, 64))
    x[:, 32:], y[:, 32:] = 0, RNG(4).normal(size=(10, 32))
    (m, s), (n, r) = metrics.gaussian(x), metrics.gaussian(y)
    total = metrics.frechet_distance(m, s, n, r)
    assert isinstance(total, float)
    assert total == pytest.approx(((m - n) ** 2).sum() + np.trace(s) + np.trace(r), rel=1e-6)


def test_diversity_of_known_points():
    assert metrics.diversity(np.ones((10, 4)), 10, RNG(0)) == 0
    line = np.arange(4.0)[:, None]
    mean = np.mean([metrics.diversity(line, 4, RNG(seed)) for seed in range(2000)])
    assert mean == pytest.approx(20 / 16, abs=0.03)   # of all ordered pairs, equal ones too


def test_retrieval_of_a_permutation_ranks_each_caption_by_its_place():
    text = np.eye(32)
    order = np.arange(32)
    order[:4] = [1, 0, 3, 2]
    shares, score = metrics.retrieval(text, text[order])
    assert shares[0] == pytest.approx(28 / 32)
    assert score == pytest.approx(4 * 2 ** 0.5 / 32)
    shares, score = metrics.retrieval(text, text)
    assert shares.tolist() == [1, 1, 1] and score == 0


def test_retrieval_counts_within_batches_and_drops_the_partial_one():
    places = np.arange(70.0)[:, None] * 10
    motion = places.copy()
    motion[:32] += 11                              # the motions of the two captions before are nearer
    motion[64:] = 1e6                              # beyond the last whole batch
    shares, score = metrics.retrieval(places, motion)
    np.testing.assert_allclose(shares, [33 / 64, 34 / 64, 1])
    assert score == pytest.approx(11 / 2)


def test_retrieval_of_collapsed_embeddings_is_chance_and_not_perfect():
    assert metrics.retrieval(np.ones((64, 3)), np.ones((64, 3)))[0].tolist() == [1 / 32, 2 / 32, 3 / 32]
