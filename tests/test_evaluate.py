"""A split's numbers: equal to the clip-by-clip ones, to hand-made ones, over ranks, without a trace."""
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dataset.motion_folder import load_split
from evaluation import evaluate
from evaluation.evaluate import METRICS, evaluate_clips, select_clips
from models.quantize_cnn import BaseQuantizer
from models.vqvae import HumanVQVAE
from tests.helpers import excess, make_clip
from utils.errors import UserError
from utils.motion_process import recover_from_ric
from utils.motion_spec import KIT, T2M

MEAN, STD = np.zeros(263), np.ones(263)
MEAN[3] = 0.9


def make_net(norm=None, down_t=2, seed=0, dataname="t2m", **kwargs):
    torch.manual_seed(seed)
    args = SimpleNamespace(dataname=dataname, quantizer="ema_reset", mu=0.99, beta=1.0)
    net = HumanVQVAE(args, 16, 32, 32, down_t, 2, 32, 3, 3, norm=norm, **kwargs)
    net(torch.randn(4, 64, net.spec.width))  # fills the codebook
    net.mean, net.std = MEAN, STD
    return net


def make_clips(lengths, dataname="t2m"):
    clips = [make_clip(dataname, frames, i) for i, frames in enumerate(lengths)]
    frames = np.concatenate(clips)
    frames[:, 3] -= 0.9
    return SimpleNamespace(names=[f"c{i}" for i in range(len(clips))], frames=frames,
                           offsets=np.cumsum([0, *lengths]), split="test", bad=[])


def in_ranks(monkeypatch, module, run, world=3):
    """Run `run()` as each of several ranks, then as each with the sums of all: (shares, results)."""
    shares, results = [], []
    for rank in range(world):
        seen = []
        monkeypatch.setattr(module, "rank_and_world", lambda rank=rank: (rank, world))
        monkeypatch.setattr(module, "all_reduce", lambda tensor, seen=seen: seen.append(tensor.clone())
                            or tensor)
        run()
        shares.append(seen)
    for rank in range(world):
        totals = iter([sum(parts) for parts in zip(*shares)])
        monkeypatch.setattr(module, "rank_and_world", lambda rank=rank: (rank, world))
        monkeypatch.setattr(module, "all_reduce", lambda tensor, totals=totals: tensor.copy_(next(totals)))
        results.append(run())
    return shares, results


LENGTHS = (43, 61, 40, 80, 81, 199, 39, 200, 64, 61, 120, 44)


def test_each_clip_is_measured_as_if_alone():
    net, clips = make_net().eval(), make_clips(LENGTHS)
    together, names = evaluate_clips(net, clips), ("recons", "mpjpe", "mpjpe_global")
    sums, frames = dict.fromkeys(names, 0), 0
    for i, (start, end) in enumerate(zip(clips.offsets, clips.offsets[1:])):
        if clips.names[i] not in ("c6", "c7"):  # too short and too long
            one = SimpleNamespace(names=[clips.names[i]], frames=clips.frames[start:end],
                                  offsets=np.array([0, end - start]), bad=[])
            alone = evaluate_clips(net, one)
            sums = {name: sums[name] + alone[name] * alone["frames"] for name in names}
            frames += alone["frames"]
    assert together["frames"] == frames
    for name in names:
        assert together[name] == pytest.approx(sums[name] / frames, rel=1e-5)
    for part in (64, 200, 1000):
        parts = evaluate_clips(net, clips, full=True, batch_frames=part)
        assert parts["mpjpe"] == pytest.approx(together["mpjpe"], rel=1e-5)


def test_every_metric_is_in_the_documentation():
    text = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_0-9]+)`", text))
    assert not [name for name in METRICS if name not in named]


def test_metrics_equal_a_plain_loop_over_clips():
    net, clips = make_net().eval(), make_clips(LENGTHS)
    result = evaluate_clips(net, clips, full=True)
    sums, frames, used = np.zeros(6), np.zeros(6), []
    for start, length in zip(clips.offsets, np.diff(clips.offsets)):
        if not 40 <= length < 200:
            continue
        x = torch.from_numpy(clips.frames[start:start + length // 4 * 4])[None]
        with torch.no_grad():
            out, codes = net(x)[0], net.encode(x)[0]
        used += codes.tolist()
        assert excess(net, x, codes)[1] > 1e-5  # no ties: the counts below hang on no last bit
        real, pred = (recover_from_ric(y * torch.tensor(STD) + torch.tensor(MEAN), 22)[0].double() * 1000
                      for y in (x, out))
        error = pred - real
        aligned = error - error[:, :1]
        rows = (torch.nn.functional.smooth_l1_loss(out, x, reduction="none").mean(-1)[0],
                aligned.norm(dim=-1).mean(-1),
                error.norm(dim=-1).mean(-1), error.diff(dim=0).norm(dim=-1).mean(-1),
                error.diff(n=2, dim=0).norm(dim=-1).mean(-1),
                pred.diff(n=3, dim=0).norm(dim=-1).mean(-1))
        sums += [float(row.sum()) for row in rows]
        frames += [len(row) for row in rows]
    names = ("recons", "mpjpe", "mpjpe_global", "velocity_error", "acceleration_error", "jerk")
    np.testing.assert_allclose([result[name] for name in names], sums / frames, rtol=1e-3)
    assert result["codes_used"] == len(set(used)) and result["dead_codes"] == 16 - len(set(used))
    assert result["counts"] == [np.bincount(used, minlength=16).tolist()]
    p = np.bincount(used)[np.bincount(used) > 0] / len(used)
    assert result["perplexity"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    assert result["bits_per_second"] == 20 / 4 * 4
    assert (result["clips"], result["frames"]) == (10, int(frames[0]))
    assert result["skipped"] == {"shorter than 40 frames": ["c6"], "200 frames or longer": ["c7"]}


class Edited(torch.nn.Module):
    """A stand-in network whose reconstruction is an edit of its input: metrics of known motions."""

    def __init__(self, edit, spec=T2M, mean=MEAN):
        super().__init__()
        self.edit, self.down_t, self.nb_code, self.weight = edit, 2, 4, torch.nn.Parameter(torch.zeros(1))
        self.spec, self.mean, self.std = spec, mean, np.ones(spec.width)
        self.vqvae = SimpleNamespace(quantizer=BaseQuantizer(self.nb_code, 1))

    def encode(self, x):
        self.x = x
        return torch.zeros(x.shape[0], x.shape[1] // 4, dtype=torch.int64)

    def forward_decoder(self, codes):
        return self.edit(self.x.clone())


def still(frames=48, contacts=1.0):
    """One clip that stands: only the root's height and the contacts are not zero."""
    clip = np.zeros((frames, 263), np.float32)
    clip[:, T2M.slices["contacts"]] = contacts
    return SimpleNamespace(names=["still"], frames=clip, offsets=np.array([0, frames]), bad=[])


def test_a_perfect_reconstruction_has_no_error():
    result = evaluate_clips(Edited(lambda x: x), make_clips(LENGTHS), full=True)
    for name in ("recons", "mpjpe", "mpjpe_global", "velocity_error", "acceleration_error", "root_drift"):
        assert result[name] == 0
    assert result["pa_mpjpe"] < 1
    for name in ("jerk", "skating", "slide"):
        assert result[name] == result[f"{name}_real"]


def test_a_root_that_glides_skates_and_drifts():
    def glide(x):
        x[..., 1] = 0.05   # m/frame along x: 1 m/s
        return x
    result = evaluate_clips(Edited(glide), still(), full=True)
    assert result["mpjpe"] == pytest.approx(0, abs=1e-3)
    assert result["mpjpe_global"] == pytest.approx(50 * 47 / 2, rel=1e-4)
    assert result["velocity_error"] == pytest.approx(50, rel=1e-4)
    assert result["acceleration_error"] == pytest.approx(0, abs=1e-2)
    assert result["root_drift"] == pytest.approx(50 * 47, rel=1e-4)
    assert (result["skating"], result["skating_real"], result["slide_real"]) == (1, 0, 0)
    assert result["slide"] == pytest.approx(50, rel=1e-4)
    airborne = evaluate_clips(Edited(glide), still(contacts=0.0), full=True)
    assert airborne["skating"] == 0 and airborne["slide"] == 0


def test_the_error_of_one_joint_is_told():
    def sink(x):
        x[..., 4 + 3 * (7 - 1) + 1] = -0.02   # the left ankle
        return x
    result = evaluate_clips(Edited(sink), still(), full=True)
    assert result["joints"]["left_ankle"][1] == pytest.approx(20, rel=1e-4)
    assert result["joints"]["head"][1] == 0
    assert result["mpjpe_global"] == pytest.approx(20 / 22, rel=1e-4)


def test_millimetre_data_are_not_scaled_again():
    mean = np.zeros(251)
    mean[3] = 900.0

    def raise_root(x):
        x[..., 3] += 7.0
        return x
    clips = SimpleNamespace(names=["k"], frames=np.zeros((48, 251), np.float32), offsets=np.array([0, 48]),
                            bad=[])
    result = evaluate_clips(Edited(raise_root, KIT, mean), clips, full=True)
    assert result["root_drift"] == pytest.approx(7, rel=1e-4) and result["bits_per_second"] == 12.5 / 4 * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_network_is_measured_in_single(dtype):
    net, clips = make_net().eval(), make_clips(LENGTHS[:5])
    expected = evaluate_clips(net, clips, full=True)
    result = evaluate_clips(net.to(dtype), clips, full=True)
    for name in ("jerk_real", "skating_real", "slide_real"):
        assert result[name] == expected[name]
    assert result["recons"] == pytest.approx(expected["recons"], rel=0.05)


def test_ranks_add_up_to_the_whole(monkeypatch):
    net, clips = make_net().eval(), make_clips(LENGTHS)
    whole = evaluate_clips(net, clips, full=True, batch_frames=256)
    shares, results = in_ranks(monkeypatch, evaluate,
                               lambda: evaluate_clips(net, clips, full=True, batch_frames=256))
    assert results == [whole] * 3
    filled = torch.stack([share[0] > 0 for share in shares])
    assert (filled.sum(0) == 1).all() and filled.any(1).all()  # each clip was measured by one rank


def test_a_rank_without_a_batch_takes_part(monkeypatch):
    net, clips = make_net().eval(), make_clips([64, 64])
    whole = evaluate_clips(net, clips)
    assert in_ranks(monkeypatch, evaluate, lambda: evaluate_clips(net, clips))[1] == [whole] * 3


def test_it_leaves_network_modes_and_random_streams_as_they_were():
    net, clips = make_net("BN"), make_clips(LENGTHS)
    net.train()
    net.vqvae.encoder.eval()
    modes = [module.training for module in net.modules()]
    before = {name: value.clone() for name, value in net.named_buffers()}
    streams = torch.get_rng_state(), np.random.get_state()[1].copy()
    evaluate_clips(net, clips, full=True)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    assert torch.equal(torch.get_rng_state(), streams[0]) and (np.random.get_state()[1] == streams[1]).all()
    net(torch.randn(2, 64, 263))[0].sum().backward()  # still trains


def test_a_nan_clip_and_a_nan_network_are_refused_by_name():
    net, clips = make_net().eval(), make_clips(LENGTHS)
    clips.frames[clips.offsets[3] + 17, 5] = np.nan
    with pytest.raises(UserError, match="c3: frame 17 is NaN or Inf"):
        evaluate_clips(net, clips)
    with torch.no_grad():
        net.vqvae.decoder.model[-1].bias[0] = np.nan
    with pytest.raises(UserError, match="the reconstruction of c0: frame 0 is NaN"):
        evaluate_clips(net, make_clips([64]))


def test_bounds_and_a_split_without_a_clip():
    clips = make_clips(LENGTHS)
    assert len(select_clips(clips, T2M, max_frames=None)[0]) == 11
    assert len(select_clips(clips, KIT)[0]) == 11  # 24 frames are enough there
    with pytest.raises(UserError, match=r"test: no clip to evaluate \(2 shorter than 40 frames\)"):
        evaluate_clips(make_net(), make_clips([30, 20]))


def test_a_folder_is_evaluated_as_it_is_read(data_root):
    clips = load_split(data_root, "all", T2M, MEAN, STD)
    result = evaluate_clips(make_net().eval(), clips)
    assert result["clips"] == 7 and result["skipped"] == {"shorter than 40 frames": ["000004"]}
