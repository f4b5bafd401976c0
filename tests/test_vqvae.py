"""The network's shapes, keys and rebuilding."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.encdec import Decoder, UpBlock
from models.resnet import Resnet1D
from models.vqvae import VQVAE_251, HumanVQVAE
from tests.helpers import make_clip
from tests.test_player import data_of, unpack
from tests.test_draw import dance
from utils.errors import UserError
from utils.motion_process import extract_features, recover_from_ric
from utils.motion_spec import KIT, T2M

PUBLISHED = SimpleNamespace(dataname="t2m", quantizer="ema_reset", mu=0.99, beta=1.0)


def small(dataname="t2m", quantizer="ema_reset", act="relu", norm=None, width=32):
    args = SimpleNamespace(dataname=dataname, quantizer=quantizer, mu=0.99, beta=1.0)
    torch.manual_seed(0)
    return HumanVQVAE(args, 16, width, width, 2, 2, width, 3, 3, act, norm)


def published_keys():
    """Every key and shape of the published net's state-dict, spelled out from the paper's sizes."""
    keys = {}

    def conv(name, out, into, kernel):
        keys[f"vqvae.{name}.weight"], keys[f"vqvae.{name}.bias"] = (out, into, kernel), (out,)

    conv("encoder.model.0", 512, 263, 3)
    conv("encoder.model.4", 512, 512, 3)
    conv("decoder.model.0", 512, 512, 3)
    conv("decoder.model.4", 512, 512, 3)
    conv("decoder.model.6", 263, 512, 3)
    for i in (2, 3):
        conv(f"encoder.model.{i}.0", 512, 512, 4)
        conv(f"decoder.model.{i}.2", 512, 512, 3)
        for j in range(3):
            for side in (f"encoder.model.{i}.1", f"decoder.model.{i}.0"):
                conv(f"{side}.model.{j}.conv1", 512, 512, 3)
                conv(f"{side}.model.{j}.conv2", 512, 512, 1)
    keys["vqvae.quantizer.codebook"] = (512, 512)
    return keys


def test_published_state_dict_and_shapes():
    net = HumanVQVAE(PUBLISHED, 512, 512, 512, 2, 2, 512, 3, 3, "relu", None).eval()
    assert {key: tuple(value.shape) for key, value in net.state_dict().items()} == published_keys()
    assert len(net.state_dict()) == 67
    assert sum(value.numel() for value in net.state_dict().values()) == 19_436_807 + 512 * 512
    x = torch.randn(2, 64, 263)
    assert net.vqvae.encoder(x.transpose(1, 2)).shape == (2, 512, 16)
    codes = net.encode(x)
    assert codes.shape == (2, 16) and codes.dtype == torch.int64
    assert net.forward_decoder(codes).shape == (2, 64, 263)
    assert net.forward_decoder(codes[0]).shape == (1, 64, 263)


def test_dilations_run_from_wide_to_narrow():
    dilations = [block.conv1.dilation[0] for block in Resnet1D(8, 3, 3).model]
    assert dilations == [9, 3, 1]
    assert [block.conv1.dilation[0] for block in Resnet1D(8, 3, 3, reverse_dilation=False).model] == [1, 3, 9]


def test_joined_upsampling_equals_upsampling_then_convolution():
    block = Decoder(5, 8, 1, 2, 8, 2, 3).double().model[2]
    assert isinstance(block, UpBlock)
    x = torch.randn(2, 8, 7, dtype=torch.float64)
    torch.testing.assert_close(block(x), torch.nn.Sequential(*block)(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("quantizer", ["ema_reset", "orig", "ema", "reset"])
@pytest.mark.parametrize(("dataname", "act", "norm"), [("t2m", "gelu", "LN"), ("kit", "silu", "GN"), ("t2m", "relu", "BN")])
def test_every_variant_runs_both_ways(quantizer, dataname, act, norm):
    net = small(dataname, quantizer, act, norm)
    width = 263 if dataname == "t2m" else 251
    out, loss, perplexity = net(torch.randn(4, 32, width))
    (out.square().mean() + loss).backward()
    assert out.shape == (4, 32, width) and 1 <= float(perplexity) <= 16
    assert all(torch.isfinite(p.grad).all() for p in net.vqvae.encoder.parameters())
    key = "vqvae.quantizer.embedding.weight" if quantizer == "orig" else "vqvae.quantizer.codebook"
    assert key in net.state_dict()


@pytest.mark.parametrize("quantizer", ["ema_reset", "orig"])
def test_decoding_the_codes_is_the_eval_output(quantizer):
    net = small(quantizer=quantizer)
    net(torch.randn(8, 32, 263))
    net.eval()
    x = torch.randn(3, 32, 263)
    torch.testing.assert_close(net.forward_decoder(net.encode(x)), net(x)[0], atol=1e-5, rtol=0)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="output_emb_width"):
        VQVAE_251(PUBLISHED, code_dim=16, output_emb_width=32, width=32)
    with pytest.raises(ValueError, match="stride_t"):
        VQVAE_251(PUBLISHED, code_dim=32, output_emb_width=32, width=32, stride_t=4)


@pytest.mark.parametrize("quantizer", ["ema_reset", "orig"])
def test_an_upstream_file_rebuilds_its_net(tmp_path, quantizer):
    net = small(quantizer=quantizer)
    net(torch.randn(8, 32, 263))
    torch.save({"net": net.state_dict()}, tmp_path / "net_last.pth")
    rebuilt = HumanVQVAE.from_checkpoint(tmp_path / "net_last.pth")
    x = torch.randn(2, 32, 263)
    torch.testing.assert_close(rebuilt(x)[0], net.eval()(x)[0])
    with pytest.raises(UserError, match="no statistics"):
        rebuilt.reconstruct(x[0])
    rebuilt.mean, rebuilt.std = np.zeros(263), np.ones(263)
    assert rebuilt.reconstruct(x[0].numpy()[:30]).shape == (28, 22, 3)


def test_a_checkpoint_of_another_network_is_refused_whole(tmp_path):
    other = small("kit", width=64)
    torch.save({"net": other.state_dict()}, tmp_path / "kit.pth")
    assert HumanVQVAE.from_checkpoint(tmp_path / "kit.pth").spec.name == "kit"
    from models.loading import load_checkpoint
    from models.vqvae import load_net
    net = small()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(UserError, match=r"another network.*encoder\.model\.0\.weight"):
        load_net(net, load_checkpoint(tmp_path / "kit.pth"))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


# raw motion in, codes and joints out

LENGTHS = (64, 7, 30, 64, 45, 4, 131)


def ready(dataname="t2m", norm=None, down_t=2):
    """A net with a filled codebook and statistics, in training mode, where the helpers must not be."""
    torch.manual_seed(0)
    args = SimpleNamespace(dataname=dataname, quantizer="ema_reset", mu=0.99, beta=1.0)
    net = HumanVQVAE(args, 16, 32, 32, down_t, 2, 32, 2, 3, norm=norm)
    net(torch.randn(8, 32, net.spec.width))
    net.mean, net.std = (np.linspace(*ends, net.spec.width) for ends in ((-0.2, 0.3), (0.4, 1.5)))
    return net


@pytest.mark.parametrize(("dataname", "norm", "down_t"), [("t2m", None, 2), ("kit", "LN", 3), ("t2m", "GN", 1)])
def test_clips_of_any_lengths_come_out_as_if_alone(dataname, norm, down_t):
    net, unit = ready(dataname, norm, down_t), 2 ** down_t
    clips = [make_clip(dataname, frames, seed) for seed, frames in enumerate(LENGTHS) if frames >= unit]
    codes, joints = net.tokenize(clips), net.reconstruct(clips)
    assert net.training and isinstance(codes, list) and isinstance(joints, list)
    net.eval()
    for clip, row, motion, decoded in zip(clips, codes, joints, net.decode_joints(codes)):
        x = torch.from_numpy(((clip - net.mean) / net.std).astype(np.float32))[None, :len(clip) // unit * unit]
        with torch.no_grad():
            out = net(x)[0][0] * torch.tensor(net.std) + torch.tensor(net.mean)
        assert row.dtype == torch.int64 and torch.equal(row, net.encode(x)[0])
        assert motion.dtype == torch.float32 and motion.shape == (len(row) * unit, net.nb_joints, 3)
        expected = recover_from_ric(out, net.nb_joints)
        for found in (motion, decoded, net.reconstruct(clip), net.decode_joints(row)):
            torch.testing.assert_close(found.double(), expected, atol=2e-4, rtol=0)


def test_a_batch_comes_out_as_a_batch():
    net = ready()
    clips = np.stack([make_clip("t2m", 30, seed) for seed in range(3)])
    assert net.tokenize(clips).shape == (3, 7) and net.reconstruct(torch.from_numpy(clips)).shape == (3, 28, 22, 3)
    torch.testing.assert_close(net.reconstruct(clips)[1], net.reconstruct(clips[1]), atol=1e-4, rtol=0)
    row = [1, 2, 3]
    for codes in (row, np.array(row, np.uint16), torch.tensor(row)):
        assert torch.equal(net.decode_joints(codes), net.decode_joints(torch.tensor([row]))[0])
    assert net.decode_joints([[1, 2], [3]])[1].shape == (4, 22, 3)


@pytest.mark.parametrize("spec", [T2M, KIT])
def test_joints_are_taken_through_their_features(spec):
    net, joints = ready(spec.name), [dance(spec, frames, seed=frames) for frames in (41, 30)]
    features = [extract_features(each, spec.name) for each in joints]
    for found, expected in zip(net.tokenize(joints), net.tokenize(features)):
        assert torch.equal(found, expected)
    assert net.tokenize(joints[0]).shape == (10,) and net.reconstruct(joints[1]).shape == (28, spec.joints, 3)
    assert torch.equal(net.tokenize(np.stack([joints[0], joints[0]])), net.tokenize(features[0]).expand(2, -1))


def test_the_helpers_leave_the_net_as_it_was():
    net = ready(norm="BN")  # whose statistics move in training mode
    before = {key: value.clone() for key, value in net.state_dict().items()}
    joints = net.reconstruct(make_clip("t2m", 40, 0))
    joints += 1  # an ordinary tensor, not one of inference mode
    assert net.training and net.vqvae.quantizer.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_what_is_no_motion_and_no_code_is_said():
    net, clip = ready(), make_clip("t2m", 40, 0)
    for wrong in (clip[:3], clip[:, :251], clip[0], dance(T2M, 4), []):
        with pytest.raises(UserError, match="expected"):
            net.tokenize(wrong)
    broken = clip.copy()
    broken[17, 5] = np.nan
    with pytest.raises(UserError, match="clip 1 is NaN or Inf, first in frame 17"):
        net.tokenize([clip, broken])
    for wrong in ([1, 16], [-1], [0.5], np.zeros((1, 0), int), np.zeros((1, 2, 3), int), []):
        with pytest.raises(UserError, match="expected"):
            net.decode_joints(wrong)


def test_a_net_tells_what_it_is(trained):
    net = HumanVQVAE.from_checkpoint(trained / "net_last.pth")
    table = net._repr_html_()
    for text in ("t2m: 22 joints", "ema_reset, 16 codes of 32 channels", "4 frames, 0.2 s: 20 bits/s", "15, warm-up included", "the data set's kind"):
        assert text in table
    untrained = small(quantizer="ema")._repr_html_()
    assert "not filled yet" in untrained and "not known" in untrained and "none: set net.mean" in untrained


@pytest.mark.parametrize("down_t", [1, 2, 3])
def test_a_clip_and_a_row_of_codes_play(down_t):
    net, joints, unit = ready(down_t=down_t), dance(T2M, 50), 2 ** down_t
    data = data_of(net.play(joints, title="dance").html)
    assert data["codes"] == net.tokenize(joints).tolist() and data["per"] == unit and data["title"] == "dance"
    assert data["frames"] == 49 // unit * unit == len(data["error"])
    original = recover_from_ric(torch.from_numpy(extract_features(joints, "t2m")), 22)[:data["frames"]].numpy()
    for name, expected in (("original", original), ("motion", net.reconstruct(joints).numpy())):
        assert np.abs(unpack(data[name], data["scale"], T2M) - expected).max() < data["scale"]
    assert "original" not in data_of(net.play(net.tokenize(joints)).html)
