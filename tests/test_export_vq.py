"""A checkpoint out to other tools and back, bit by bit; ONNX against torch; clips as animations."""
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import bvhio
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import eval_vq
import tokenize_vq
from export_vq import main, parse_args
from models.vqvae import NET_ARGS, HumanVQVAE
from tests.helpers import save_small_net
from tests.test_draw import dance
from utils.motion_process import extract_features
from utils.motion_spec import T2M

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, data_root):
    return save_small_net(tmp_path_factory.mktemp("net") / "net_last.pth", data_root)


def read(path):
    return torch.load(path, weights_only=True)


def export(*argv):
    return main(parse_args([*map(str, argv)]))


def refused(capsys, *argv):
    """The one line that a refused call prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        export(*argv)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "\n" not in error
    return error


def make_net(quantizer="ema_reset", act="relu", norm=None, down_t=2, dataname="t2m"):
    torch.manual_seed(0)
    net = HumanVQVAE(SimpleNamespace(dataname=dataname, quantizer=quantizer, mu=0.99, beta=1.0), 16, 32, 32,
                     down_t, 2, 32, 2, 3, act, norm)
    net(torch.randn(4, 64, net.spec.width))
    return net.eval()


def save(net, path, **content):
    torch.save({"net": net.state_dict(), **content}, path)
    return path


def same(a, b):
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name])
                                        for name in a)


def test_the_pair_and_back_is_bit_exact(checkpoint, tmp_path, capsys):
    assert export(checkpoint, "--out", tmp_path / "model") == 0
    assert export(tmp_path / "model", "--to-pth", tmp_path / "net.pth") == 0
    before, after = read(checkpoint), read(tmp_path / "net.pth")
    assert same(before["net"], after["net"]) and before["iter"] == after["iter"]
    assert same({name: before[name] for name in ("mean", "std")},
                {name: after[name] for name in ("mean", "std")})
    assert {name: before["args"][name] for name in NET_ARGS} == {name: after["args"][name]
                                                                 for name in NET_ARGS}
    upstream = HumanVQVAE(SimpleNamespace(dataname="t2m", quantizer="ema_reset", mu=0.99, beta=1.0), 16, 32,
                          32, 2, 2, 32, 2, 3, "relu", None)
    upstream.load_state_dict(after["net"], strict=True)
    export(tmp_path / "net.pth", "--out", tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "model", "net.pth"]
    for path, words in (("net.pth", "is there already"), ("net.pth/net.pth", "cannot be written")):
        assert words in refused(capsys, tmp_path / "model", "--to-pth", tmp_path / path)


def test_the_config_says_what_the_net_is_and_nothing_of_the_machine(checkpoint, tmp_path):
    export(checkpoint, "--out", tmp_path)
    config, saved = json.loads((tmp_path / "config.json").read_text()), read(checkpoint)
    assert (config["dataname"], config["fps"], config["unit_length"], config["iteration"],
            config["format_version"]) == ("t2m", 20.0, 4, 15, 1)
    assert config["mean"] == saved["mean"].tolist() and config["std"] == saved["std"].tolist()
    assert set(config["args"]) == {*NET_ARGS, "recons_loss"}
    assert str(checkpoint.parent) not in (tmp_path / "config.json").read_text()
    from safetensors import safe_open
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(saved["net"])


@pytest.mark.parametrize("net", [dict(quantizer="orig", act="gelu", norm="GN"), dict(norm="BN", down_t=3),
                                 dict(dataname="kit", norm="LN")])
def test_every_kind_of_net_comes_back(net, tmp_path):
    net = make_net(**net)
    args = dict(dataname=net.spec.name, quantizer=net.vqvae.quant, mu=0.99, beta=1.0, nb_code=16, code_dim=32,
                output_emb_width=32, down_t=net.down_t,
                stride_t=2, width=32, depth=2, dilation_growth_rate=3, vq_act="gelu"
                if net.vqvae.quant == "orig" else "relu",
                vq_norm="GN" if net.vqvae.quant == "orig" else "LN" if net.spec.name == "kit" else "BN")
    mean, std = np.random.default_rng(0).uniform(0.1, 1, (2, net.spec.width))  # all digits of a float64 count
    save(net, tmp_path / "net.pth", args=args, mean=torch.from_numpy(mean), std=torch.from_numpy(std))
    export(tmp_path / "net.pth", "--out", tmp_path / "model")
    x = torch.randn(2, 64, net.spec.width)
    with torch.no_grad():
        for path in (tmp_path / "model", tmp_path / "model" / "model.safetensors"):
            back = HumanVQVAE.from_checkpoint(path)
            assert same(net.state_dict(), back.state_dict()) and torch.equal(net(x)[0], back(x)[0])
            assert (back.mean == mean).all() and (back.std == std).all()


KINDS = {"residual": dict(quantizer="residual", num_quantizers=3),
         "shared": dict(quantizer="residual", num_quantizers=3, shared_codebook=True),
         "fsq": dict(quantizer="fsq", fsq_levels=[4, 4], nb_code=16)}


@pytest.fixture(scope="module", params=KINDS)
def layered(request, tmp_path_factory, data_root):
    """A checkpoint of residual, shared residual or finite-scalar codes."""
    path = tmp_path_factory.mktemp(request.param) / "net_last.pth"
    return save_small_net(path, data_root, **KINDS[request.param])


def test_residual_and_finite_scalar_nets_come_back_bit_by_bit(layered, tmp_path):
    export(layered, "--out", tmp_path / "model")
    export(tmp_path / "model", "--to-pth", tmp_path / "net.pth")
    net, x = HumanVQVAE.from_checkpoint(layered), torch.randn(2, 64, 263)
    for path in (tmp_path / "model", tmp_path / "net.pth"):
        back = HumanVQVAE.from_checkpoint(path)
        assert same(net.state_dict(), back.state_dict()) and back.args == {**net.args, **back.args}
        assert (back.mean == net.mean).all() and (back.std == net.std).all()
        with torch.no_grad():
            assert torch.equal(net.encode(x), back.encode(x))
            assert torch.equal(net.forward_decoder(net.encode(x)), back.forward_decoder(net.encode(x)))


def momask_options(path):
    """Read an opt.txt as MoMask's utils/get_opt.py does."""
    values = {}
    for line in path.read_text().splitlines():
        key, value = line.split(": ")
        if value in ("True", "False"):
            value = value == "True"
        elif re.fullmatch(r"[-+]?\d+\.\d+", value):
            value = float(value)
        elif re.fullmatch(r"[-+]?\d+", value):
            value = int(value)
        values[key] = value
    return values


@pytest.mark.parametrize("shared", [False, True])
def test_momask_reads_what_is_written_for_it(shared, data_root, tmp_path):
    checkpoint = save_small_net(tmp_path / "net.pth", data_root, **KINDS["shared" if shared else "residual"],
                                vq_norm="LN", quantize_dropout_prob=0.3)
    folder, net = tmp_path / "checkpoints" / "t2m" / "rvq", HumanVQVAE.from_checkpoint(checkpoint)
    assert export(checkpoint, "--to-momask", folder) == 0
    expected = dict(
        name="rvq", dataset_name="t2m", checkpoints_dir=str(tmp_path / "checkpoints"), nb_code=16,
        code_dim=32, output_emb_width=32, down_t=2, stride_t=2, width=32, depth=2, dilation_growth_rate=3,
        vq_act="relu", vq_norm="LN", num_quantizers=3, shared_codebook=shared, quantize_dropout_prob=0.3,
        mu=0.99, unit_length=4)
    found = momask_options(folder / "opt.txt")
    assert {name: found[name] for name in expected} == expected
    content = read(folder / "model" / "net_best_fid.tar")
    assert same(content["vq_model"], {name.removeprefix("vqvae."): value
                                      for name, value in net.state_dict().items()})
    assert "quantizer.layers.2.codebook" in content["vq_model"] and content["total_it"] == 15
    for name in ("mean", "std"):
        array = np.load(folder / "meta" / f"{name}.npy")
        assert array.shape == (263,) and (array == getattr(net, name)).all()
    back, x = HumanVQVAE.from_checkpoint(folder), torch.randn(2, 64, 263)
    assert torch.equal(back.encode(x), net.encode(x)) and (back.std == net.std).all()
    assert back.args == net.args and back.iteration == 15
    assert not [line for line in back.remarks if "assumed" in line]


def test_what_momask_cannot_read_is_refused_in_one_line(checkpoint, data_root, tmp_path, capsys):
    out = tmp_path / "rvq"
    assert "--to-momask needs residual codes" in refused(capsys, checkpoint, "--to-momask", out)
    bare = save_small_net(tmp_path / "net.pth", data_root, **KINDS["residual"])
    content = {name: value for name, value in read(bare).items() if name not in ("mean", "std")}
    torch.save(content, bare)
    assert "name their folder with --meta-dir" in refused(capsys, bare, "--to-momask", out)
    assert not out.exists()
    assert export(bare, "--to-momask", out, "--meta-dir", data_root) == 0
    assert "rvq: is there already" in refused(capsys, bare, "--to-momask", out, "--meta-dir", data_root)


def test_evaluation_and_tokenizing_take_the_pair(checkpoint, data_root, tmp_path):
    export(checkpoint, "--out", tmp_path / "model")
    results, codes = [], []
    for path in (checkpoint, tmp_path / "model", tmp_path / "model" / "model.safetensors"):
        out = tmp_path / f"{len(results)}"
        flags = [str(path), "--data-root", str(data_root), "--device", "cpu"]
        eval_vq.main(eval_vq.parse_args([*flags, "--glove-dir", "nowhere"]))
        beside = checkpoint.parent if path == checkpoint else tmp_path / "model"
        results.append(json.loads((beside / "eval_test.json").read_text())["metrics"])
        tokenize_vq.main(tokenize_vq.parse_args([*flags, "--out", str(out)]))
        codes.append([file.read_bytes() for file in sorted(out.glob("*.npy"))])
    assert results[0] == results[1] == results[2] and codes[0] == codes[1] == codes[2]
    # codes of the one decode with the other: the weights are the same
    tokenize_vq.main(tokenize_vq.parse_args([str(checkpoint), "--decode", str(tmp_path / "2"), "--out",
                                             str(tmp_path / "motion"), "--to", "joints"]))


def test_statistics_for_a_file_that_carries_none(data_root, tmp_path, capsys):
    save(make_net(), tmp_path / "upstream.pth")
    export(tmp_path / "upstream.pth", "--out", tmp_path / "bare")
    assert HumanVQVAE.from_checkpoint(tmp_path / "bare").mean is None
    assert "no mean and std" in capsys.readouterr().out
    export(tmp_path / "upstream.pth", "--out", tmp_path / "model", "--meta-dir", data_root)
    np.testing.assert_array_equal(HumanVQVAE.from_checkpoint(tmp_path / "model").std,
                                  np.load(data_root / "Std.npy").astype(float))
    assert "carries its own" in refused(capsys, tmp_path / "model", "--out", tmp_path / "x", "--meta-dir",
                                        data_root)
    assert "name their folder with --meta-dir" in refused(capsys, tmp_path / "upstream.pth", "--out",
                                                          tmp_path / "y", "--onnx")
    assert not (tmp_path / "y").exists()
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "cannot be written" in refused(capsys, tmp_path / "upstream.pth", "--out", out)
    assert (tmp_path / "file").read_text() == "mine"


def test_damage_to_the_pair_is_named(checkpoint, tmp_path, capsys, monkeypatch):
    export(checkpoint, "--out", tmp_path / "whole")

    def broken(name, change):
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / name))
        change(folder)
        return refused(capsys, folder, "--to-pth", tmp_path / "x.pth")

    def edit(**changes):
        def change(folder):
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, **changes}))
        return change

    def flip(folder):
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[len(data) // 2] ^= 1
        (folder / "model.safetensors").write_bytes(data)

    assert "SHA-256" in broken("flipped", flip)
    for name, change in dict(
            alone=lambda folder: (folder / "config.json").unlink(),
            newer=edit(format_version=2), edited=edit(mean=[1.0]),
            other=lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
            empty=lambda folder: (folder / "model.safetensors").unlink()).items():
        assert f"{tmp_path / name}" in broken(name, change)
    assert "of something else" in refused(capsys, checkpoint, "--out", tmp_path / "other")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert "pip install safetensors" in refused(capsys, tmp_path / "whole", "--to-pth", tmp_path / "x.pth")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install onnx onnxscript" in refused(capsys, checkpoint, "--out", tmp_path / "z", "--onnx")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [dict(),
                                  dict(vq_act="gelu", vq_norm="GN", width=64, down_t=1, **KINDS["residual"]),
                                  dict(vq_norm="LN", down_t=1, **KINDS["fsq"])],
                         ids=["published", "residual", "fsq"])
def test_onnx_gives_torchs_codes_and_features_at_any_length(kind, data_root, tmp_path):
    export(save_small_net(tmp_path / "net.pth", data_root, depth=1, **kind), "--out", tmp_path, "--onnx")
    net = HumanVQVAE.from_checkpoint(tmp_path / "net.pth")
    unit, residual = 2 ** net.down_t, net.vqvae.quant == "residual"
    encoder, decoder = (onnxruntime.InferenceSession(tmp_path / f"{name}.onnx")
                        for name in ("encoder", "decoder"))
    clips = [np.load(path) for path in sorted((data_root / "new_joint_vecs").glob("*.npy"))]
    long = np.concatenate(clips)

    def decode(codes):
        features, = decoder.run(None, {"codes": codes})
        with torch.no_grad():
            known = torch.from_numpy(codes[..., :2] if (codes < 0).any() else codes)
            expected = net.forward_decoder(known).numpy() * net.std + net.mean
        assert features.dtype == np.float32 and np.abs(features - expected).max() < 1e-4

    same = []
    for raw in (np.stack([clip[:30] for clip in clips]), long[None, :500], long[None, :unit],
                long[None, :unit + 1], np.stack([long[:43], long[43:86]])):
        codes, = encoder.run(None, {"features": raw})
        length = raw.shape[1] // unit
        assert codes.dtype == np.int64 and codes.shape == (len(raw), length, *[3] * residual)
        x = torch.from_numpy((raw[:, :length * unit] - net.mean) / net.std).float()
        with torch.no_grad():
            same.extend((codes == net.encode(x).numpy()).flatten())
        decode(codes)
        if residual:  # no code: a layer left out
            decode(np.where(np.arange(3) < 2, codes, -1))
        for wrong in (-1 - residual, net.nb_code):  # an index from the end is none of the codebook
            changed = codes.copy()
            changed.reshape(-1)[-1] = wrong
            with pytest.raises(Exception, match=r"out of data bounds|invalid index"):
                decoder.run(None, {"codes": changed})
    assert np.mean(same) > 0.97  # but for ties
    raw = long[None, :8 * unit + unit - 1].copy()
    codes, = encoder.run(None, {"features": raw})
    raw[:, 8 * unit:] = 1e4  # frames past the last whole code do not matter
    np.testing.assert_array_equal(encoder.run(None, {"features": raw})[0], codes)
    expected = dict(fps="20.0", unit_length=str(unit), iteration="15", nb_code="16", dataname="t2m",
                    quantizer=net.vqvae.quant, layers=str(net.vqvae.quantizer.num_layers))
    for name in ("encoder", "decoder"):  # they say what they take, and nothing of the machine that wrote them
        model = onnx.load(tmp_path / f"{name}.onnx")
        onnx.checker.check_model(model)
        about = {entry.key: entry.value for entry in model.metadata_props}
        assert about["features"].startswith("raw") and {key: about[key] for key in expected} == expected
        data = (tmp_path / f"{name}.onnx").read_bytes()
        assert not any(str(path).encode() in data
                       for path in (ROOT, Path(torch.__file__).parent)) and b"stack_trace" not in data


def test_clips_of_a_data_folder_become_animations(tmp_path, capsys):
    joints = dance(T2M, 30, seed=2)
    features = extract_features(joints, "t2m")
    (tmp_path / "clips").mkdir()
    np.save(tmp_path / "clips" / "a.npy", features)
    np.save(tmp_path / "b.npy", joints)
    for kind in ("joints", "gif", "bvh"):
        assert export("--clips", tmp_path / "clips", tmp_path / "b.npy", "--to", kind, "--out",
                      tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{name}.{kind}" for name in "ab"
                                                                          for kind in ("bvh", "gif", "npy")]
    np.testing.assert_allclose(np.load(tmp_path / "out" / "b.npy"), joints, atol=1e-6)
    assert Image.open(tmp_path / "out" / "a.gif").n_frames == 29
    for name in "ab":
        written = np.load(tmp_path / "out" / f"{name}.npy")
        tree = bvhio.readAsHierarchy(str(tmp_path / "out" / f"{name}.bvh"))
        by_name = {joint.Name: joint for joint, _, _ in tree.layout()}
        tree.loadPose(17)
        read = np.array([tuple(by_name[joint].PositionWorld) for joint in T2M.joint_names]) / 100
        assert np.linalg.norm(read - written[17],
                              axis=-1).max() < 1e-3  # a clip's bones are rigid
    assert "is there already (2 of 2 files are)" in refused(capsys, "--clips", tmp_path / "clips",
                                                            tmp_path / "b.npy", "--to", "gif",
                                                                     "--out", tmp_path / "out")
    export("--clips", tmp_path / "clips", "--to", "gif", "--out", tmp_path / "out", "--overwrite")
    assert "replace what it is made of" in refused(capsys, "--clips", tmp_path / "b.npy", "--to", "joints",
                                                   "--out", tmp_path, "--overwrite")
    np.save(tmp_path / "c.npy", features[:, :100])
    assert "float32 of shape (29, 100); expected float features (T, 263)" in refused(capsys, "--clips",
                                                                                     tmp_path / "c.npy",
                                                                                     "--to", "bvh", "--out",
                                                                                      tmp_path / "out")
    features[3] = np.nan
    np.save(tmp_path / "c.npy", features)
    assert "frame 3 is NaN" in refused(capsys, "--clips", tmp_path / "c.npy", "--to", "bvh", "--out",
                                       tmp_path / "out")


@pytest.mark.parametrize(("flags", "words"), [
    ("--out x", "give one checkpoint, or clips"),
    ("n.pth m.pth --out x", "give one checkpoint, or clips"),
    ("--resume-pth n.pth", "name what to write"),
    ("n.pth --out x --to-pth y.pth", "name what to write"),
    ("n.pth --to-pth y.pth --onnx", "write into a folder: give --out"),
    ("n.pth --out x --to bvh", "come together"),
    ("n.pth --clips a.npy --to bvh --out x", "give one checkpoint, or clips"),
    ("--clips a.npy --out x", "come together"),
    ("--clips a.npy --to bvh --out x --onnx", "need a checkpoint"),
    ("--clips a.npy --to bvh --to-pth y.pth", "write into a folder: give --out"),
    ("--clips a.npy --to bvh --out x --to-momask y", "name what to write"),
])
def test_flags_that_cannot_work(flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_args(flags.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error and error.count("\n") == 1
