"""The network's shapes, keys, and motion in and out."""
import copy
import io
import pickle
import warnings
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.encdec import Decoder, UpBlock
from models.resnet import Resnet1D
from models.vqvae import QUANTIZERS, VQVAE_251, HumanVQVAE, load_net
from options import common
from tests.helpers import make_clip
from tests.test_draw import dance
from tests.test_player import data_of, unpack
from utils.errors import UserError
from utils.motion_process import extract_features, group_statistics, recover_from_ric
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
    net.vqvae.quantizer.init_codebook(torch.randn(512, 512))
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
@pytest.mark.parametrize(("dataname", "act", "norm"),
                         [("t2m", "gelu", "LN"), ("kit", "silu", "GN"), ("t2m", "relu", "BN")])
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


def test_the_flags_know_every_quantizer():
    assert tuple(QUANTIZERS) == common.QUANTIZERS


def test_both_constructors_have_one_signature():
    import inspect
    names = list(inspect.signature(HumanVQVAE).parameters)
    assert names == list(inspect.signature(VQVAE_251).parameters) == [
        "args", "nb_code", "code_dim", "output_emb_width", "down_t", "stride_t", "width", "depth",
        "dilation_growth_rate", "activation", "norm"]


def test_features_are_turned_for_the_encoder_and_back():
    vqvae, x = small().vqvae, torch.randn(2, 8, 263)
    for given in (x, x.double(), (10 * x).int()):
        turned = vqvae.preprocess(given)
        assert turned.dtype == torch.float32 and torch.equal(turned, given.float().transpose(1, 2))
        assert torch.equal(vqvae.postprocess(turned), given.float())
    assert vqvae.postprocess(x.half().transpose(1, 2)).dtype == torch.float32


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


def test_another_network_is_refused_whole():
    net, other = small(), small("kit", width=64)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(UserError, match=r"another network.*encoder\.model\.0\.weight"):
        load_net(net, {"net": other.state_dict(), "args": {}})
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", torch.device("cuda")])
def test_a_device_that_is_not_there_is_refused(tmp_path, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    net = small(quantizer="orig")
    torch.save({"net": net.state_dict()}, tmp_path / "net.pth")
    with pytest.raises(UserError, match="this machine's torch has none"):
        HumanVQVAE.from_checkpoint(tmp_path / "net.pth", device=device)
    with pytest.raises(UserError, match="unknown"):
        HumanVQVAE.from_checkpoint(tmp_path / "net.pth", device="gpu")
    assert HumanVQVAE.from_checkpoint(tmp_path / "net.pth", device=torch.device("cpu")).nb_code == 16


@pytest.mark.parametrize("quantizer", ["ema_reset", "ema", "reset"])
def test_a_codebook_that_was_never_filled_encodes_nothing(quantizer):
    net, x = small(quantizer=quantizer).eval(), torch.randn(2, 32, 263)
    net.mean, net.std = np.zeros(263), np.ones(263)
    for encode in (net, net.encode, net.vqvae.encode, net.tokenize, net.reconstruct):
        with pytest.raises(UserError, match="never filled"):
            encode(x)
    with pytest.raises(UserError, match="never filled"):
        net.train().tokenize(x)
    net(x)  # training fills it
    assert net.eval().encode(x).shape == (2, 8)
    by_hand = small(quantizer=quantizer).eval()
    by_hand.vqvae.quantizer.codebook.normal_()
    assert by_hand.encode(x).shape == (2, 8)


@pytest.mark.parametrize("way", ["pickled", "sent to a process", "copied", "saved whole"])
@pytest.mark.parametrize("quantizer", ["ema_reset", "orig"])
def test_a_net_survives(way, quantizer):
    net, x = small(quantizer=quantizer), torch.randn(2, 32, 263)
    net(x)
    if way == "saved whole":
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        pickler = ForkingPickler if way == "sent to a process" else pickle
        other = copy.deepcopy(net) if way == "copied" else pickler.loads(pickler.dumps(net))
    assert torch.equal(other.eval().encode(x), net.eval().encode(x))
    other.load_state_dict(small(quantizer=quantizer).state_dict())  # with its hooks
    assert other.vqvae.quantizer.filled == (quantizer == "orig")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("quantizer", ["ema_reset", "orig"])
def test_half_precision_works_throughout(dtype, quantizer):
    net = ready(quantizer=quantizer, norm="LN").to(dtype)
    clip = make_clip("t2m", 40, 0)
    x = net.normalise(clip)[None]
    for mode in (net.train(), net.eval()):
        out, loss, _ = mode(x)
        assert out.dtype == torch.float32 and torch.isfinite(out).all() and torch.isfinite(loss)
    codes = net.tokenize(clip)
    assert torch.equal(codes, net.encode(x)[0])
    for joints in (net.decode_joints(codes), net.reconstruct(clip)):
        assert joints.dtype == torch.float32 and torch.isfinite(joints).all()


def test_features_of_every_number_type_are_taken():
    net = ready().eval()
    x = torch.randn(2, 32, 263)
    codes, out = net.encode(x), net(x)[0]
    for given in (x.double(), x.numpy(), x.numpy()[:, ::-1][:, ::-1], x.double().numpy(), x.tolist()):
        assert torch.equal(net.encode(given), codes) and torch.equal(net(given)[0], out)
    assert torch.equal(net.encode((9 * x).int()), net.encode((9 * x).int().float()))
    for given in (codes.numpy().astype(np.uint16), codes.int(), codes.tolist()):
        assert torch.equal(net.forward_decoder(given), net.forward_decoder(codes))


def test_wrong_features_and_codes_are_refused_in_our_words():
    net, x = ready().eval(), torch.randn(2, 32, 263)
    for wrong in (x[0], x[:, :3], x[..., :251], x.tolist()[0]):
        for f in (net.encode, net):
            with pytest.raises(UserError, match="expected"):
                f(wrong)
    x[1, 5, 7] = np.inf
    with pytest.raises(UserError, match="NaN or Inf"):
        net.encode(x)
    for wrong in ([[0, 16]], [-1], [0.5], [], np.zeros((1, 2, 3), int), 3):
        with pytest.raises(UserError, match="expected"):
            net.forward_decoder(wrong)


# raw motion in, codes and joints out

LENGTHS = (64, 7, 30, 64, 45, 4, 131)


def ready(dataname="t2m", norm=None, down_t=2, quantizer="ema_reset"):
    """A net with a filled codebook and statistics, in training mode, where the helpers must not be."""
    torch.manual_seed(0)
    args = SimpleNamespace(dataname=dataname, quantizer=quantizer, mu=0.99, beta=1.0)
    net = HumanVQVAE(args, 16, 32, 32, down_t, 2, 32, 2, 3, norm=norm)
    net(torch.randn(8, 32, net.spec.width))
    net.mean, net.std = (np.linspace(*ends, net.spec.width) for ends in ((-0.2, 0.3), (0.4, 1.5)))
    return net


@pytest.mark.parametrize(("dataname", "norm", "down_t"),
                         [("t2m", None, 2), ("kit", "LN", 3), ("t2m", "GN", 1)])
def test_clips_of_any_lengths_come_out_as_if_alone(dataname, norm, down_t):
    net, unit = ready(dataname, norm, down_t), 2 ** down_t
    clips = [make_clip(dataname, frames, seed) for seed, frames in enumerate(LENGTHS) if frames >= unit]
    codes, joints = net.tokenize(clips), net.reconstruct(clips)
    assert net.training and isinstance(codes, list) and isinstance(joints, list)
    net.eval()
    for clip, row, motion, decoded in zip(clips, codes, joints, net.decode_joints(codes)):
        x = torch.from_numpy(((clip - net.mean) / net.std).astype(np.float32))
        x = x[None, :len(clip) // unit * unit]
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
    assert net.tokenize(clips).shape == (3, 7)
    assert net.reconstruct(torch.from_numpy(clips)).shape == (3, 28, 22, 3)
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
    assert net.tokenize(joints[0]).shape == (10,)
    assert net.reconstruct(joints[1]).shape == (28, spec.joints, 3)
    twice = net.tokenize(np.stack([joints[0], joints[0]]))
    assert torch.equal(twice, net.tokenize(features[0]).expand(2, -1))


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


def test_features_normalised_beforehand_are_noticed_once():
    net, clips = ready(), [make_clip("t2m", 40, seed) for seed in range(3)]
    net.mean, net.std = group_statistics(clips, T2M)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.tokenize(clips)
    with pytest.warns(UserWarning, match="clip 1 does not look raw") as caught:
        net.tokenize([clips[0], *((clip - net.mean) / net.std for clip in clips)])
    assert len(caught) == 1


def test_a_net_tells_what_it_is():
    net = ready()
    net.iteration, net.remarks = 15, ["assumed: vq_act relu"]
    for text in ("t2m: 22 joints", "ema_reset: 16 codes of 4 frames, width 32\n",
                 "iteration: 15; mean and std: ", "assumed: vq_act relu"):
        assert text in repr(net)
    assert "not filled yet" in repr(small(quantizer="ema")) and "not set" in repr(small())


@pytest.mark.parametrize("down_t", [1, 2, 3])
def test_a_clip_and_a_row_of_codes_play(down_t):
    net, joints, unit = ready(down_t=down_t), dance(T2M, 50), 2 ** down_t
    data = data_of(net.play(joints, title="dance").html)
    assert data["codes"] == net.tokenize(joints).tolist()
    assert data["per"] == unit and data["title"] == "dance"
    assert data["frames"] == 49 // unit * unit == len(data["error"])
    features = torch.from_numpy(extract_features(joints, "t2m"))
    original = recover_from_ric(features, 22)[:data["frames"]].numpy()
    for name, expected in (("original", original), ("motion", net.reconstruct(joints).numpy())):
        assert np.abs(unpack(data[name], data["scale"], T2M) - expected).max() < data["scale"]
    assert "original" not in data_of(net.play(net.tokenize(joints)).html)
