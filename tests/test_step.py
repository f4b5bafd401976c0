"""One step of training: what it reports, what it never waits for, precision, micro-batches, compilation."""
import copy

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.vqvae import HumanVQVAE
from tests.helpers import small_args
from train_vq import main
from training.meter import Meter
from training.step import Objective, build_objective, learning_rate, train_step
from utils.losses import ReConsLoss


def setup(*flags, scale=2.0 ** 16):
    """A small net with everything a step takes, and windows (4, 32, 263)."""
    args = small_args("unused", "unused", *flags)
    torch.manual_seed(0)
    net = HumanVQVAE.from_args(args).train()
    objective = build_objective(net, args)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=args.amp == "fp16")
    x = torch.randn(4, 32, 263, generator=torch.Generator().manual_seed(1))
    return net, objective, optimizer, scaler, x


def snapshot(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def unchanged(net, before):
    return all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_step_equals_the_public_forward_and_plain_adamw():
    net, objective, optimizer, scaler, x = setup()
    reference = copy.deepcopy(net)
    plain = torch.optim.AdamW(reference.parameters(), lr=1e-3)
    loss_fn = ReConsLoss("l1_smooth", 22)
    for _ in range(3):
        done = train_step(objective, net, optimizer, scaler, [x])
        out, commit, perplexity = reference(x)
        recons, vel = loss_fn(out, x), loss_fn.forward_vel(out, x)
        total = recons + 0.02 * commit + 0.5 * vel
        plain.zero_grad()
        total.backward()
        plain.step()
        torch.testing.assert_close(done.losses, torch.stack([recons, vel, commit, total]).detach())
        torch.testing.assert_close(done.perplexity, perplexity)
        norms = torch.stack([p.grad.norm() for p in reference.parameters()])
        torch.testing.assert_close(done.norm, norms.norm())
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[key], msg=key)


class CountSyncs(TorchDispatchMode):
    """Count what makes a host wait for its device: a tensor read as a number, a size that is data."""

    SYNCS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "item")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name.startswith(self.SYNCS):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("quantizer", ["ema_reset", "orig", "ema", "reset"])
def test_a_step_never_waits_for_the_device(quantizer):
    net, objective, optimizer, scaler, x = setup("--quantizer", quantizer)
    # the first one fills the codebook, and looks at it once
    train_step(objective, net, optimizer, scaler, [x])
    with CountSyncs() as counted:
        train_step(objective, net, optimizer, scaler, [x[:2], x[2:]])
    assert not counted.found
    with CountSyncs() as counted:  # the counter counts
        float(x.sum())
    assert counted.found == ["_local_scalar_dense"]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_is_for_the_convolutions_alone(amp):
    net, objective, _, _, x = setup("--amp", amp)
    seen = []
    net.vqvae.encoder.register_forward_hook(lambda module, _, out: seen.append(out.dtype))
    values, rows, _ = objective(x)
    assert seen == [getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}[amp])]
    assert values.dtype == rows.dtype == net.vqvae.quantizer.codebook.dtype == torch.float32
    full = Objective(net, small_args("unused", "unused"))(x)[0]
    torch.testing.assert_close(values, full, rtol=0.05, atol=1e-3)
    assert not torch.equal(values, full)
    values[-1].backward()
    assert all(p.grad.dtype == torch.float32 for p in net.parameters() if p.grad is not None)


def test_an_overflow_in_fp16_moves_nothing_and_halves_the_scale():
    net, objective, optimizer, scaler, x = setup("--amp", "fp16", scale=2.0 ** 40)
    net.vqvae.quantizer.init_codebook(torch.randn(32, 32))
    before = snapshot(net)
    done = train_step(objective, net, optimizer, scaler, [x])
    assert bool(done.refused) and not bool(done.bad)
    assert torch.isfinite(done.losses).all() and unchanged(net, before)
    assert scaler.get_scale() == 2.0 ** 39
    for _ in range(30):
        done = train_step(objective, net, optimizer, scaler, [x])
    assert not bool(done.refused) and not unchanged(net, before)


def test_the_heading_counts_where_it_is_asked_for():
    net, objective, optimizer, scaler, x = setup("--loss-heading", "0.5")
    train_step(objective, net, optimizer, scaler, [x])  # fills the codebook
    net.eval()
    recons, vel, commit, total = objective(x)[0].detach()
    heading = objective.loss_fn.forward_heading(net(x)[0].detach(), x)
    expected = recons + 0.02 * commit + 0.5 * vel + 0.5 * heading
    assert float(heading) > 0 and float(total) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("where", ["window", "loss"])
def test_a_step_that_is_not_finite_moves_nothing(where, monkeypatch):
    net, objective, optimizer, scaler, x = setup()
    train_step(objective, net, optimizer, scaler, [x])
    before = snapshot(net)
    if where == "window":
        x[1, 3] = float("nan")
    else:
        monkeypatch.setattr(objective.args, "loss_vel", float("inf"))
    done = train_step(objective, net, optimizer, scaler, [x])
    assert bool(done.refused) and bool(done.bad) and unchanged(net, before)


@pytest.mark.parametrize("norm", ["none", "GN", "LN"])
def test_parts_of_a_batch_equal_the_whole(norm):
    whole, parts = setup("--vq-norm", norm, "--float64"), setup("--vq-norm", norm, "--float64")
    for net, objective, optimizer, scaler, x in (whole, parts):
        net.double()
        x = x[:3].double()  # a third is no binary fraction
        for _ in range(3):
            train_step(objective, net, optimizer, scaler, [x] if net is whole[0] else list(x.split(1)))
    for key, value in whole[0].state_dict().items():
        torch.testing.assert_close(parts[0].state_dict()[key], value, atol=1e-12, rtol=0, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", [
    "ema_reset", "orig", "residual --num-quantizers 3 --quantize-dropout-prob 0.5", "fsq --fsq-levels 4 4"])
def test_the_step_is_one_graph_and_compiled_once(quantizer):
    net, objective, optimizer, scaler, x = setup("--quantizer", *quantizer.split(), "--amp", "bf16")
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(objective, fullgraph=True, backend=keep)
    for chunks in ([x[:2], x[2:]], [x[2:], x[:2]]):
        train_step(compiled, net, optimizer, scaler, chunks)
    assert len(graphs) == 1
    assert not any(key.startswith("_orig_mod") for key in net.state_dict())


@pytest.mark.slow
def test_a_compiled_run_trains_as_the_plain_one(data_root, tmp_path):
    from tests.test_train_vq import curves, weights
    flags = ("--depth", "1", "--down-t", "1")
    for name, more in (("plain", ()), ("compiled", ("--compile",))):
        assert main(small_args(data_root, tmp_path / name, *flags, *more)) == 0
    plain, compiled = (weights(tmp_path / name / "run") for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    for tag in ("./Train/L1", "./Train/PPL"):
        values = [[v for _, v in curves(tmp_path / name / "run")[tag]] for name in ("plain", "compiled")]
        np.testing.assert_allclose(*values, rtol=1e-3)


@pytest.mark.slow
def test_without_a_compiler_compilation_is_refused(data_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/nowhere"))
    torch._dynamo.reset()
    with pytest.raises(SystemExit):
        main(small_args(data_root, tmp_path, "--compile"))
    assert "--compile does not work here" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_trains_and_resumes_exactly(data_root, tmp_path, amp):
    from tests.test_train_vq import curves, same, weights
    assert main(small_args(data_root, tmp_path / "whole", "--amp", amp)) == 0
    assert main(small_args(data_root, tmp_path / "parts", "--amp", amp, "--total-iter", "7")) == 0
    assert main(small_args(data_root, tmp_path / "parts", "--amp", amp, "--resume", "auto")) == 0
    assert same(weights(tmp_path / "whole" / "run"), weights(tmp_path / "parts" / "run"))
    points = dict(curves(tmp_path / "whole" / "run")["./Train/L1"])
    assert all(np.isfinite(value) for value in points.values())


@pytest.mark.slow
def test_tf32_is_refused_where_it_does_nothing(data_root, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(small_args(data_root, tmp_path, "--tf32"))
    assert stop.value.code == 2 and "--tf32 acts only on CUDA" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("flags", [(), ("--amp", "bf16"), ("--amp", "fp16"), ("--tf32",), ("--compile",)])
def test_the_gpu_trains_without_waiting(data_root, tmp_path, flags):
    from tests.test_train_vq import curves
    assert main(small_args(data_root, tmp_path, "--device", "cuda", *flags)) == 0
    assert all(np.isfinite(value) for _, value in curves(tmp_path / "run")["./Train/L1"])
    net, objective, optimizer, scaler, x = setup()
    net.cuda()
    train_step(objective, net, optimizer, scaler, [x.cuda()])
    x = x.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(objective, net, optimizer, scaler, [x])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("warm_up", [0, 1, 2, 5])
@pytest.mark.parametrize("milestones", [[4], [3, 9], [1, 1]])
def test_the_schedule_is_upstreams_at_every_step(warm_up, milestones):
    args = small_args("unused", "unused", "--warm-up-iter", str(warm_up),
                      "--lr-scheduler", *map(str, milestones))
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=args.lr)
    expected = []
    for i in range(1, warm_up):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * (i + 1) / (warm_up + 1)
        expected.append(optimizer.param_groups[0]["lr"])
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=milestones, gamma=args.gamma)
    for _ in range(args.total_iter):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    rates = [learning_rate(step, args) for step in range(1, len(expected) + 1)]
    assert rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("flags", "shape"), [((), (16,)), (("--quantizer", "residual"), (6, 16))])
def test_running_totals_have_the_shape_that_saved_states_hold(flags, shape):
    net = setup(*flags)[0]
    meter = Meter(net.vqvae.quantizer, torch.device("cpu"))
    meter.load_state_dict({"sums": torch.ones(6), "used": torch.ones(shape, dtype=torch.bool)})
    assert meter.read()["Codebook_use"] == 1.0
