"""The quantizers against slow, obvious references, and what must hold for all of them."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.vqvae import QUANTIZERS

K, C, MU = 8, 6, 0.99
ALL = ["ema", "ema_reset", "orig", "reset"]
CODEBOOKS = ["ema", "ema_reset", "reset"]


def build(name, nb_code=K, **kwargs):
    torch.manual_seed(0)
    return QUANTIZERS[name](nb_code, C, SimpleNamespace(mu=MU, beta=0.5, **kwargs))


def latents(seed, windows=3, frames=4):
    return torch.randn(windows, C, frames, generator=torch.Generator().manual_seed(seed))


def rows_of(x):
    return x.permute(0, 2, 1).reshape(-1, x.shape[1])


def reference_step(name, codebook, code_sum, code_count, rows):
    """One update, code by code and row by row, in float64."""
    codebook, code_sum, code_count = (a.copy() for a in (codebook, code_sum, code_count))
    nearest = [int(np.argmin([((row - code) ** 2).sum() for code in codebook])) for row in rows]
    new = codebook.copy()
    for k in range(len(codebook)):
        mine = [row for row, index in zip(rows, nearest) if index == k]
        if name == "reset":
            if not mine:
                new[k] = rows[k]
            continue
        code_count[k] = MU * code_count[k] + (1 - MU) * len(mine)
        code_sum[k] = MU * code_sum[k] + (1 - MU) * sum(mine, np.zeros(C))
        new[k] = code_sum[k] / code_count[k] if name == "ema" or code_count[k] >= 1 else rows[k]
    return new, code_sum, code_count, nearest


@pytest.mark.parametrize("name", CODEBOOKS)
def test_updates_follow_the_reference(name):
    quantizer = build(name).train()
    first = rows_of(latents(0)).double().numpy()
    quantizer(latents(0))
    codebook, code_sum, code_count = first[:K], first[:K].copy(), np.ones(K)
    codebook, code_sum, code_count, _ = reference_step(name, codebook, code_sum, code_count, first)
    for seed in range(1, 6):
        np.testing.assert_allclose(quantizer.codebook.numpy(), codebook, atol=1e-5)
        x = latents(seed)
        before = quantizer.codebook.clone()
        out, loss, perplexity = quantizer(x)
        rows = rows_of(x).double().numpy()
        codebook, code_sum, code_count, nearest = reference_step(name, codebook, code_sum, code_count, rows)
        z = before[nearest]
        # the output uses the codebook from before the update
        torch.testing.assert_close(rows_of(out), z, atol=1e-6, rtol=0)
        torch.testing.assert_close(loss, (rows_of(x) - z).square().mean())
        p = np.bincount(nearest, minlength=K) / len(nearest)
        assert float(perplexity) == pytest.approx(np.exp(-(p * np.log(p + 1e-7)).sum()), rel=1e-5)


def test_orig_learns_by_gradient():
    quantizer, x = build("orig").train(), latents(1)
    before = quantizer.embedding.weight.detach().clone()
    assert before.abs().max() <= 1 / K
    _, loss, _ = quantizer(x)
    z = before[quantizer.quantize(rows_of(x))]
    torch.testing.assert_close(loss, 1.5 * (rows_of(x) - z).square().mean())  # beta is 0.5
    loss.backward()
    assert quantizer.embedding.weight.grad.abs().sum() > 0
    assert torch.equal(quantizer.embedding.weight, before)


@pytest.mark.parametrize("name", ALL)
def test_straight_through_gradient_is_the_identity(name):
    quantizer, x = build(name).train(), latents(2).requires_grad_()
    weight = torch.randn(3, C, 4)
    out, _, _ = quantizer(x)
    (out * weight).sum().backward()
    torch.testing.assert_close(x.grad, weight)


@pytest.mark.parametrize("name", ALL)
def test_evaluation_changes_nothing_and_equals_look_up(name):
    quantizer = build(name).train()
    quantizer(latents(0))
    quantizer.eval()
    values = dict([*quantizer.named_buffers(), *quantizer.named_parameters()])
    before = {key: value.clone() for key, value in values.items()}
    x = latents(3)
    out, _, _ = quantizer(x)
    torch.testing.assert_close(rows_of(out), quantizer.dequantize(quantizer.quantize(rows_of(x))))
    assert all(torch.equal(value, before[key]) for key, value in values.items())


def test_few_rows_are_tiled_with_little_noise():
    quantizer, x = build("ema_reset", nb_code=40).train(), latents(0, windows=1)
    quantizer.init_codebook(rows_of(x))
    spread = (quantizer.codebook - rows_of(x).repeat(10, 1)).std()
    assert 0.5 < spread / (0.01 / C ** 0.5) < 2


@pytest.mark.parametrize("name", CODEBOOKS)
def test_a_loaded_codebook_is_not_refilled_and_loses_no_code_at_once(name):
    source = build(name).train()
    source(latents(0))
    loaded = build(name)
    loaded.load_state_dict(source.state_dict())
    assert loaded.filled
    loaded.train()
    before = loaded.codebook.clone()
    loaded(latents(5, windows=1, frames=1))  # one row: most codes go unused
    if name != "reset":
        assert (loaded.codebook - before).abs().max() < 0.05 * before.abs().max()
        assert (loaded.code_count >= 0.99).all()
    loaded.reset_codebook()
    assert not loaded.filled
    x = latents(6)
    out, _, _ = loaded(x)
    # looked up in the new codebook, each row is its own code
    torch.testing.assert_close(rows_of(out)[:K], rows_of(x)[:K])


def test_training_state_carries_the_statistics():
    source = build("ema_reset").train()
    for seed in range(3):
        source(latents(seed))
    copy = build("ema_reset").train()
    copy.load_state_dict(source.state_dict())
    copy.load_training_state(source.training_state())
    for quantizer in (source, copy):
        quantizer(latents(9))
    assert torch.equal(source.codebook, copy.codebook)
    assert torch.equal(source.code_sum, copy.code_sum)
    assert list(source.state_dict()) == ["codebook"]


@pytest.mark.parametrize("name", CODEBOOKS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_latents_never_reach_the_codebook(name, bad):
    quantizer = build(name).train()
    x = latents(1)
    x[1, 2, 3] = bad
    quantizer(x)
    assert not quantizer.filled
    quantizer(latents(0))
    before = {key: value.clone() for key, value in quantizer.named_buffers()}
    quantizer(x)
    for key, value in quantizer.named_buffers():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", CODEBOOKS)
def test_a_refused_update_moves_nothing(name):
    quantizer = build(name).train()
    quantizer(latents(0))
    before = quantizer.codebook.clone()
    _, _, rows, idx = quantizer.look_up(latents(1))
    quantizer.update(rows, idx, refuse=torch.tensor(True))
    assert torch.equal(quantizer.codebook, before)


def test_autocast_leaves_the_quantizer_in_float32():
    quantizer = build("ema_reset").train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, loss, _ = quantizer(latents(0).bfloat16())
    assert out.dtype == loss.dtype == torch.float32


def test_an_unused_ema_code_stays_when_its_average_fades():
    quantizer = build("ema").train()
    quantizer(latents(0))
    quantizer.codebook[0] = 100.0
    quantizer.code_sum[0] = 0
    quantizer.code_count[0] = 0
    quantizer(latents(1))
    assert torch.isfinite(quantizer.codebook).all()
    assert (quantizer.codebook[0] == 100).all()
