"""Residual quantization against a slow, obvious reference, and the promises of its layers."""
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.residual_vq import ResidualVQ
from models.vqvae import HumanVQVAE
from options.option_vq import get_args_parser
from tests.helpers import SMALL_NET
from training.step import build_objective, train_step
from utils.errors import UserError

Q, K, C = 3, 8, 6


def build(dropout=0.0, temperature=0.0, shared=False):
    torch.manual_seed(0)
    args = SimpleNamespace(mu=0.9, num_quantizers=Q, shared_codebook=shared, quantize_dropout_prob=dropout,
                           sample_codebook_temp=temperature)
    return ResidualVQ(K, C, args)


def filled(**options):
    quantizer = build(**options).train()
    quantizer(latents(0, windows=8))
    return quantizer


def latents(seed, windows=3, frames=5):
    return torch.randn(windows, C, frames, generator=torch.Generator().manual_seed(seed))


def nearest(codebook, row):
    return int(((codebook - row) ** 2).sum(1).argmin())


@pytest.mark.parametrize("shared", [False, True])
def test_codes_equal_a_loop_over_rows_and_layers(shared):
    quantizer, x = filled(shared=shared).eval(), latents(1)
    rows = quantizer.to_rows(x)
    codes = quantizer.quantize(rows)
    for row, found in zip(rows, codes.tolist()):
        for layer, code in zip(quantizer.layers, found):
            assert code == nearest(layer.codebook, row)
            row = row - layer.codebook[code]
    assert codes.shape == (15, Q)


def test_a_training_step_equals_the_layers_one_by_one():
    quantizer, x = filled(), latents(1)
    books = [layer.codebook.clone() for layer in quantizer.layers]
    sums = [(layer.code_sum.clone(), layer.code_count.clone()) for layer in quantizer.layers]
    x.requires_grad_()
    out, loss, perplexity = quantizer(x)
    rows, losses, perplexities, total = quantizer.to_rows(x.detach()), [], [], 0
    first = rows
    for layer, book, (code_sum, code_count) in zip(quantizer.layers, books, sums):
        codes = torch.tensor([nearest(book, row) for row in rows])
        picked, counts = book[codes], torch.bincount(codes, minlength=K).float()
        losses.append(F.mse_loss(rows, picked))
        p = counts / counts.sum()
        perplexities.append(torch.exp(-(p * torch.log(p + 1e-7)).sum()))
        expected = 0.9 * code_sum + 0.1 * torch.stack([rows[codes == k].sum(0) for k in range(K)])
        count = 0.9 * code_count + 0.1 * counts
        moved = torch.where(count[:, None] >= 1, expected / count[:, None], rows[:K])
        torch.testing.assert_close(layer.codebook, moved)
        rows, total = rows - picked, total + picked
    torch.testing.assert_close(quantizer.to_rows(out), total)
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    torch.testing.assert_close(perplexity, torch.stack(perplexities).mean())
    # each layer passes the gradient straight through: Q times it in all, beside the commitment losses'
    weight = torch.randn_like(out)
    (through,) = torch.autograd.grad((out * weight).sum(), x, retain_graph=True)
    torch.testing.assert_close(through, Q * weight)
    (committed,) = torch.autograd.grad(loss, x)
    residual, pull = first, 0
    for book in books:
        picked = book[[nearest(book, row) for row in residual]]
        pull, residual = pull + 2 * (residual - picked) / first.numel() / Q, residual - picked
    torch.testing.assert_close(quantizer.to_rows(committed), pull)


def test_dropout_draws_a_last_layer_for_a_share_of_the_batches():
    torch.manual_seed(1)
    quantizer, drawn = build(dropout=0.3), Counter()
    for _ in range(4000):
        quantizer.draw_layers()
        used = int(quantizer.active.sum())
        assert quantizer.active.tolist() == [True] * used + [False] * (Q - used)
        drawn[used] += 1
    for used, share in {1: 0.1, 2: 0.1, 3: 0.8}.items():
        assert drawn[used] / 4000 == pytest.approx(share, abs=0.02)  # 4 standard deviations of 0.1


def test_a_skipped_layer_gives_no_code_no_loss_and_does_not_move():
    quantizer, x = filled(), latents(1)
    quantizer.draw_layers = lambda: None
    quantizer.active = torch.tensor([True, False, False])
    before = [layer.codebook.clone() for layer in quantizer.layers]
    out, loss, rows, idx = quantizer.look_up(x)
    assert (idx[:, 1:] == -1).all() and (idx[:, 0] >= 0).all()
    torch.testing.assert_close(quantizer.to_rows(out), before[0][idx[:, 0]])
    torch.testing.assert_close(loss, F.mse_loss(rows, before[0][idx[:, 0]]))
    counts = quantizer.update(rows, idx)
    assert counts[1:].sum() == 0 and counts[0].sum() == len(rows)
    stayed = [torch.equal(layer.codebook, book) for layer, book in zip(quantizer.layers, before)]
    assert stayed == [False, True, True]


def test_a_code_is_drawn_by_its_distance_and_temperature():
    quantizer = filled(temperature=0.5)
    row = torch.randn(1, C)
    quantizer.layers[0].codebook.copy_(row + 0.4 * torch.randn(K, C))
    torch.manual_seed(2)
    codes = quantizer._choose(quantizer.layers[0], row.expand(20000, C))
    distance = ((quantizer.layers[0].codebook - row) ** 2).sum(1)
    expected = torch.softmax(-distance / 0.5, 0)
    torch.testing.assert_close(torch.bincount(codes, minlength=K) / 20000, expected, atol=0.015, rtol=0)
    nearest_codes = quantizer.eval()._choose(quantizer.layers[0], row.expand(50, C))
    assert set(nearest_codes.tolist()) == {int(expected.argmax())}


def test_missing_layers_and_minus_one_count_as_zero():
    quantizer = filled().eval()
    codes = quantizer.quantize(quantizer.to_rows(latents(1)))
    books = [layer.codebook for layer in quantizer.layers]
    whole = sum(book[codes[:, i]] for i, book in enumerate(books))
    torch.testing.assert_close(quantizer.dequantize(codes), whole)
    coarse = books[0][codes[:, 0]]
    torch.testing.assert_close(quantizer.dequantize(codes[:, :1]), coarse)
    skipped = codes.clone()
    skipped[:, 1:] = -1
    torch.testing.assert_close(quantizer.dequantize(skipped), coarse)


def test_a_shared_codebook_has_every_layers_key_and_one_storage():
    quantizer = filled(shared=True)
    state = quantizer.state_dict()
    assert [*state] == [f"layers.{i}.codebook" for i in range(Q)]
    assert len({value.data_ptr() for value in state.values()}) == 1
    again = build(shared=True)
    again.load_state_dict(state)
    again.load_training_state(quantizer.training_state())
    assert torch.equal(again.layers[2].codebook, quantizer.layers[0].codebook)
    assert torch.equal(again.layers[2].code_sum, quantizer.layers[0].code_sum) and again.filled


def small_net(*flags):
    torch.manual_seed(0)
    args = get_args_parser([*SMALL_NET, "--quantizer", "residual", "--num-quantizers", "3", *flags])
    return HumanVQVAE.from_args(args).train(), args


def stepper(net, args):
    objective = build_objective(net, args)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, fused=True)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return lambda *parts: train_step(objective, net, optimizer, scaler, parts)


def snapshot(net):
    state = {**net.state_dict(), **net.vqvae.quantizer.training_state()}
    return {name: torch.as_tensor(value).clone() for name, value in state.items()}


@pytest.mark.parametrize("shared", [[], ["--shared-codebook"]])
def test_a_refused_step_moves_no_layer(shared):
    net, args = small_net(*shared)
    step = stepper(net, args)
    step(torch.randn(4, 32, 263))
    before = snapshot(net)
    x = torch.randn(4, 32, 263)
    x[1, 3, 5] = float("nan")
    assert bool(step(x).refused)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(net).items())


def test_micro_batches_add_up_to_the_batch():
    x, nets = torch.randn(8, 32, 263), []
    for parts in (1, 4):
        net, args = small_net("--float64", "--quantize-dropout-prob", "0.5")
        step = stepper(net.double(), args)
        for _ in range(3):
            step(*x.double().chunk(parts))
        nets.append(net)
    for name, value in nets[0].state_dict().items():
        torch.testing.assert_close(nets[1].state_dict()[name], value, atol=1e-9, rtol=0)


def test_the_training_step_and_the_network_agree():
    x, results = torch.randn(4, 32, 263), []
    for trained in (False, True):
        net, args = small_net("--shared-codebook", "--quantize-dropout-prob", "0")
        if trained:
            result = stepper(net, args)(x)
            results.append((result.losses[2], result.perplexity))
        else:
            results.append(net(x)[1:])
        results[-1] = [*results[-1], net.vqvae.quantizer.layers[0].codebook.clone()]
    for one, other in zip(*results):
        torch.testing.assert_close(one, other)


def test_codes_of_a_net_have_their_layers_last():
    net, _ = small_net()
    x = torch.randn(2, 32, 263)
    net(x)
    net.eval()
    codes = net.encode(x)
    assert codes.shape == (2, 8, 3) and codes.dtype == torch.int64
    torch.testing.assert_close(net.forward_decoder(codes), net(x)[0], atol=1e-5, rtol=0)
    assert net.forward_decoder(codes[0]).shape == (1, 32, 263)
    assert net.forward_decoder(codes[..., :1]).shape == (2, 32, 263)
    for wrong in (codes[0, :, 0], torch.zeros(2, 8, 4, dtype=torch.int64), codes - 2, codes + 16):
        with pytest.raises(UserError, match="codes"):
            net.forward_decoder(wrong)


def test_players_of_more_and_more_layers_stand_side_by_side():
    net, _ = small_net()
    net(torch.randn(4, 32, 263))
    net.eval()
    net.mean, net.std = np.zeros(263), np.ones(263)
    motion = np.random.default_rng(0).standard_normal((33, 263)).astype(np.float32)
    page = net.play(motion, layers=range(1, 4)).html
    assert [page.count(f'"title":"{title}"') for title in ("1 layer", "2 layers", "3 layers")] == [1, 1, 1]
    assert page.count('"original"') == 3 and page.count('class="view"') == 3
    row = net.tokenize(motion)
    assert row.shape == (8, 3) and net.play(row[:, 0]).html.count('class="view"') == 1
    torch.testing.assert_close(net.decode_joints(row[:, :2]), net.decode_joints([row[:, :2]])[0])
