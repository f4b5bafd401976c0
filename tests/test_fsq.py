"""Finite-scalar codes: the grid, its indices and gradients, and a network that keeps its codes in use."""
import itertools
import math

import numpy as np
import pytest
import torch

from models.quantize_cnn import FiniteScalar
from models.vqvae import HumanVQVAE
from options.option_vq import get_args_parser
from tests.helpers import SMALL_NET
from utils.errors import UserError

LEVELS = [[8, 6, 5], [2, 3], [7, 5, 5, 5, 5], [4]]


def build(*flags):
    torch.manual_seed(0)
    sizes = [*SMALL_NET[:6], *SMALL_NET[8:]]  # --nb-code follows from the levels
    args = get_args_parser([*sizes, "--quantizer", "fsq", "--fsq-levels", "4", "3", "3", *flags])
    return HumanVQVAE.from_args(args)


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_equal_the_formula_entry_by_entry(levels):
    z = torch.randn(50, len(levels)) * 3
    codes = FiniteScalar(levels)(z)
    for row, found in zip(z.double().tolist(), codes.tolist()):
        for value, count, code in zip(row, levels, found):
            half, offset = (count - 1) * 1.001 / 2, 0.5 if count % 2 == 0 else 0.0
            bounded = math.tanh(value + math.atanh(offset / half)) * half - offset
            if abs(bounded - math.floor(bounded) - 0.5) > 1e-4:  # float32 may round a tie the other way
                assert code == pytest.approx(round(bounded) / (count // 2))


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_can_be_reached_and_has_its_own_index(levels):
    fsq, count = FiniteScalar(levels), math.prod(levels)
    indices = torch.arange(count)
    grid = fsq.codes(indices)
    assert torch.equal(fsq.indices(grid), indices)
    digits = [range(level) for level in reversed(levels)]  # the first level counts fastest
    expected = [[(d - level // 2) / (level // 2) for d, level in zip(reversed(row), levels)]
                for row in itertools.product(*digits)]
    np.testing.assert_allclose(grid, expected)
    torch.manual_seed(0)
    sizes = torch.tensor(levels)
    shift = torch.atanh((1 - sizes % 2) / ((sizes - 1) * 1.001))
    even = 1.999 * torch.rand(40 * count, len(levels)) - 0.9995  # over the bounded range
    z = torch.atanh(even) - shift
    assert len(fsq.indices(fsq(z)).unique()) > 0.8 * count


def test_the_gradient_is_that_of_the_bound():
    fsq, z = FiniteScalar([8, 5]), torch.randn(20, 2, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(fsq(z).sum(), z)
    half, offset = torch.tensor([3.5 * 1.001, 2 * 1.001]).double(), torch.tensor([0.5, 0.0]).double()
    slope = 1 - torch.tanh(z + torch.atanh(offset / half)) ** 2
    torch.testing.assert_close(found, slope * half / torch.tensor([4.0, 2.0]).double(), rtol=1e-6, atol=1e-9)


def test_half_precision_is_bounded_in_float32():
    z = torch.randn(1000, 3)
    with torch.autocast("cpu", torch.bfloat16):
        codes = FiniteScalar([8, 6, 5])(z.bfloat16())
    assert codes.dtype == torch.float32
    assert torch.equal(codes, FiniteScalar([8, 6, 5])(z.bfloat16().float()))


def test_a_net_encodes_decodes_and_counts():
    net, x = build().eval(), torch.randn(2, 32, 263)
    codes = net.encode(x)
    assert net.nb_code == 36 and codes.shape == (2, 8) and codes.max() < 36
    out, loss, perplexity = net(x)
    torch.testing.assert_close(net.forward_decoder(codes), out, atol=1e-5, rtol=0)
    counts = np.bincount(codes.flatten(), minlength=36)
    p = counts[counts > 0] / counts.sum()
    assert loss == 0 and perplexity == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
    assert net.half().encode(x.half()).shape == (2, 8)
    with pytest.raises(UserError, match="0 … 35"):
        net.forward_decoder(codes + 36)


def test_a_latent_that_is_not_finite_is_survived():
    net = build().train()
    x = torch.full((1, 32, 263), float("nan"))
    assert not torch.isfinite(net(x)[0]).any()


def test_the_codebook_does_not_collapse_while_the_latents_grow():
    net = build("--nb-code", "36").train()
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    x = torch.randn(16, 32, 263, generator=torch.Generator().manual_seed(1))
    for _ in range(60):
        optimizer.zero_grad()
        ((net(x)[0] - x) ** 2).mean().backward()
        optimizer.step()
    assert len(net.eval().encode(x).unique()) > 18
