"""Codes for a second stage as users meet them: written, read as T2M-GPT reads them, and decoded back."""
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import bvhio
import numpy as np
import pytest
import torch
from PIL import Image

from export.bvh import solve_skeleton
from models.vqvae import HumanVQVAE
from tests.helpers import excess, make_clip, make_dataset, save_small_net
from tokenize_vq import main, parse_args
from utils.motion_process import recover_from_ric

LENGTHS = (80, 101, 64, 70, 30, 90, 66, 75)  # of the small set


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, data_root):
    return save_small_net(tmp_path_factory.mktemp("net") / "net_last.pth", data_root)


@pytest.fixture(scope="module")
def net(checkpoint):
    return HumanVQVAE.from_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("clips") / "t2m", lengths=LENGTHS)


@pytest.fixture(scope="module")
def tokens(checkpoint, data, tmp_path_factory):
    """A folder of codes; tests that change it copy it."""
    out = tmp_path_factory.mktemp("tokens") / "codes"
    assert tokenize(checkpoint, "--data-root", data, "--out", out) == 0
    return out


def tokenize(checkpoint, *argv):
    return main(parse_args([str(checkpoint), "--device", "cpu", *map(str, argv)]))


def refused(capsys, *argv):
    """The one line that a refused call prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        tokenize(*argv)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "\n" not in error
    return error


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_every_clip_gets_its_own_codes_whatever_shared_its_batch(tokens, net, data):
    names = (data / "all.txt").read_text().split()
    assert sorted(path.stem for path in tokens.glob("*.npy")) == sorted(names)
    assert (tokens / "clips.txt").read_text().split() == names
    for name, frames in zip(names, LENGTHS):
        codes = np.load(tokens / f"{name}.npy")
        assert codes.dtype == np.int64 and codes.shape == (1, frames // 4)
        clip = np.load(data / "new_joint_vecs" / f"{name}.npy")[:frames // 4 * 4]
        x = torch.from_numpy(((clip - net.mean) / net.std).astype(np.float32))[None]
        assert excess(net, x, codes[0])[0] < 1e-5


def test_the_manifest_says_what_the_numbers_are(tokens, checkpoint):
    manifest = manifest_of(tokens)
    rows = np.concatenate([np.load(path)[0] for path in tokens.glob("*.npy")])
    expected = dict(checkpoint="net_last.pth", iteration=15, quantizer="ema_reset", nb_code=16, code_dim=32,
                    fps=20.0,
                    unit_length=4, dataname="t2m", statistics="data set", splits=["all"], clips=8,
                    codes=len(rows),
                    frames=4 * len(rows), codes_used=len(set(rows)), end_token=16, pad_token=17,
                    complete=True,
                    rows=1, skipped={})
    assert {name: manifest[name] for name in expected} == expected
    assert str(checkpoint.parent) not in json.dumps(manifest)


def test_stage_two_reads_the_files_and_decodes_with_the_checkpoint(tokens, checkpoint):
    """T2M-GPT's second stage: rows of ID.npy, times cut out of them, its own net loaded strictly."""
    fps, unit_length = 20, 4
    token_lists, tags = {}, {"000000": (0.0, 0.0), "000001": (1.0, 3.5), "000005": (0.4, 2.0)}
    for name in (tokens / "clips.txt").read_text().splitlines():
        token_list = np.load(tokens / f"{name}.npy")
        begin, end = tags.get(name, (0.0, 0.0))
        if begin == end == 0.0:
            token_lists[name] = token_list
        else:
            token_lists[name] = [row[int(begin * fps / unit_length):int(end * fps / unit_length)]
                                 for row in token_list]
    assert [len(token_lists[name][0]) for name in tags] == [20, 12, 8]  # 5…17 and 2…10
    args = SimpleNamespace(dataname="t2m", quantizer="ema_reset", mu=0.99, beta=1.0)
    net = HumanVQVAE(args, 16, 32, 32, 2, 2, 32, 2, 3, "relu", None)
    net.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["net"], strict=True)
    net.eval()
    for rows in token_lists.values():
        row = torch.from_numpy(np.asarray(rows[0])).long()
        batch = torch.cat([row, torch.tensor([net.nb_code])])  # the end token is appended
        assert batch.dtype == torch.int64 and row.max() < net.nb_code
        with torch.no_grad():
            assert net.forward_decoder(row).shape == (1, 4 * len(row), 263)


def test_which_clips_are_taken(checkpoint, data, tmp_path, capsys):
    root = Path(shutil.copytree(data, tmp_path / "data"))
    np.save(root / "new_joint_vecs" / "short.npy", make_clip("t2m", 3, 1))
    (root / "train.txt").write_text("000000\n000004\nshort\n000001\n")
    tokenize(checkpoint, "--data-root", root, "--out", tmp_path / "a", "--split", "train")
    assert (tmp_path / "a" / "clips.txt").read_text().split() == ["000000", "000004", "000001"]
    assert "skipped 1 (shorter than 4 frames): short" in capsys.readouterr().out
    assert manifest_of(tmp_path / "a")["skipped"] == {"shorter than 4 frames": ["short"]}
    # several splits, each clip once, and T2M-GPT's bounds
    tokenize(checkpoint, "--data-root", root, "--out", tmp_path / "b", "--split", "train", "all",
             "--min-frames", "40", "--max-frames", "101")
    assert (tmp_path / "b" / "clips.txt").read_text().split() == ["000000", "000002", "000003", "000005",
                                                                  "000006", "000007"]
    skipped = {"shorter than 40 frames": ["000004", "short"], "101 frames or longer": ["000001"]}
    assert manifest_of(tmp_path / "b")["skipped"] == skipped
    # no all.txt: train, val and test, which here share clips
    (root / "all.txt").unlink()
    tokenize(checkpoint, "--data-root", root, "--out", tmp_path / "c")
    assert manifest_of(tmp_path / "c")["splits"] == ["train", "val", "test"]
    assert (tmp_path / "c" / "clips.txt").read_text().split() == ["000000", "000004", "000001", "000006",
                                                                  "000007"]


def test_bad_clips_are_named(checkpoint, data, tmp_path, capsys):
    root = Path(shutil.copytree(data, tmp_path / "data"))
    clip = np.load(root / "new_joint_vecs" / "000003.npy")
    clip[7, 5] = np.nan
    np.save(root / "new_joint_vecs" / "000003.npy", clip)
    assert "000003.npy: frame 7 is NaN" in refused(capsys, checkpoint, "--data-root", root, "--out",
                                                   tmp_path / "a")
    tokenize(checkpoint, "--data-root", root, "--out", tmp_path / "a", "--skip-bad-clips")
    assert "skipped 1 (cannot be used)" in capsys.readouterr().out
    assert not (tmp_path / "a" / "000003.npy").exists()
    assert "frame 7 is NaN" in manifest_of(tmp_path / "a")["skipped"]["cannot be used"][0]


def test_running_again_replaces_its_own_files_and_nothing_else(checkpoint, data, tokens, tmp_path, capsys):
    out = Path(shutil.copytree(tokens, tmp_path / "codes"))
    (out / "notes.txt").write_text("mine")
    (out / "000001.npy").write_bytes(b"damaged")
    (out / "000002.npy.123.tmp").write_bytes(b"of a killed run")
    tokenize(checkpoint, "--data-root", data, "--out", out, "--split", "val", "train")
    assert np.load(out / "000001.npy").shape == (1, 25)
    assert (out / "notes.txt").read_text() == "mine"
    assert not list(out.glob("*.tmp"))
    tokenize(checkpoint, "--data-root", data, "--out", out, "--split", "val")
    assert sorted(path.name for path in out.iterdir()) == ["000006.npy", "000007.npy", "clips.txt",
                                                           "manifest.json", "notes.txt"]


def test_a_folder_of_something_else_is_refused_and_left_alone(checkpoint, data, tmp_path, capsys):
    root = Path(shutil.copytree(data, tmp_path / "data"))
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for out in (root, root / "new_joint_vecs", root / "all.txt", root / "all.txt" / "below"):
        assert "with --out" in refused(capsys, checkpoint, "--data-root", root, "--out", out)
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "app"}')
    assert "web: holds other files" in refused(capsys, checkpoint, "--data-root", root, "--out",
                                                          tmp_path / "web")
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_decoding_gives_back_what_one_row_alone_gives(tokens, net, checkpoint, tmp_path):
    for kind in ("features", "joints"):
        assert tokenize(checkpoint, "--decode", tokens, "--out", tmp_path / kind, "--to", kind) == 0
    for name in (tokens / "clips.txt").read_text().split():
        codes = torch.from_numpy(np.load(tokens / f"{name}.npy"))
        with torch.no_grad():
            alone = net.forward_decoder(codes)[0].numpy() * net.std + net.mean
        features, joints = (np.load(tmp_path / kind / f"{name}.npy") for kind in ("features", "joints"))
        assert features.dtype == joints.dtype == np.float32 and joints.shape == (4 * codes.shape[1], 22, 3)
        np.testing.assert_allclose(features, alone, atol=2e-5)
        np.testing.assert_allclose(joints, recover_from_ric(torch.from_numpy(features), 22), atol=1e-6)


def test_pictures_and_animations(tokens, checkpoint, net, tmp_path):
    file = tokens / "000004.npy"
    for kind in ("gif", "bvh", "joints"):
        tokenize(checkpoint, "--decode", file, "--out", tmp_path, "--to", kind)
    assert Image.open(tmp_path / "000004.gif").n_frames == 28
    joints, tree = np.load(tmp_path / "000004.npy"), bvhio.readAsHierarchy(str(tmp_path / "000004.bvh"))
    by_name = {joint.Name: joint for joint, _, _ in tree.layout()}
    cleaned = solve_skeleton(joints, net.spec)[2]
    for frame in (0, 13, 27):
        tree.loadPose(frame)
        read = np.array([tuple(by_name[name].PositionWorld) for name in net.spec.joint_names]) / 100
        assert np.abs(read - cleaned[frame]).max() < 1e-3


@pytest.fixture(scope="module")
def residual(tmp_path_factory, data_root):
    """A checkpoint of three residual layers."""
    path = tmp_path_factory.mktemp("residual") / "net_last.pth"
    return save_small_net(path, data_root, quantizer="residual", num_quantizers=3)


@pytest.fixture(scope="module")
def layered(residual, data, tmp_path_factory):
    """Folders of residual codes, of all three layers, of two, and of one."""
    out = tmp_path_factory.mktemp("layered")
    for layers in (3, 2, 1):
        flags = [] if layers == 3 else ["--layers", layers]
        assert tokenize(residual, "--data-root", data, "--out", out / f"{layers}", *flags) == 0
    return out


def test_residual_codes_have_their_layers_last(layered, residual, data):
    net = HumanVQVAE.from_checkpoint(residual)
    for name, frames in zip((data / "all.txt").read_text().split(), LENGTHS):
        clip = np.load(data / "new_joint_vecs" / f"{name}.npy")[:frames // 4 * 4]
        x = torch.from_numpy(((clip - net.mean) / net.std).astype(np.float32))[None]
        with torch.no_grad():
            codes = net.encode(x)[0].numpy()
        whole, two, coarse = (np.load(layered / layers / f"{name}.npy") for layers in "321")
        assert whole.dtype == np.int64 and whole.shape == (frames // 4, 3)
        assert (whole != codes).mean() < 0.05  # but for ties
        np.testing.assert_array_equal(two, whole[:, :2])
        np.testing.assert_array_equal(coarse, whole[None, :, 0])  # (1, T'), as T2M-GPT reads
    codes = np.concatenate([np.load(path) for path in (layered / "2").glob("*.npy")])
    for layers in (1, 2, 3):
        manifest = manifest_of(layered / f"{layers}")
        assert (manifest["layers"], manifest["nb_code"], manifest["quantizer"]) == (layers, 16, "residual")
        assert (manifest["codes"], manifest["frames"]) == (layers * len(codes), 4 * len(codes))
    used = sum(len(set(column)) for column in codes.T.tolist())
    assert manifest_of(layered / "2")["codes_used"] == used


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_any_number_of_layers_is_decoded(layers, layered, residual, tmp_path):
    net, tokens = HumanVQVAE.from_checkpoint(residual), layered / f"{layers}"
    assert tokenize(residual, "--decode", tokens, "--out", tmp_path / "joints", "--to", "joints") == 0
    for name in (tokens / "clips.txt").read_text().split():
        codes = np.load(layered / "3" / f"{name}.npy")[:, :layers]
        joints = np.load(tmp_path / "joints" / f"{name}.npy")
        np.testing.assert_allclose(joints, net.decode_joints(codes), atol=1e-4)
    # without a manifest the shape tells: (1, T') and (T',) are the coarse layer
    file, codes = tmp_path / "bare.npy", np.load(tokens / "000000.npy")
    for i, array in enumerate([codes] if layers > 1 else [codes, codes[0]]):
        np.save(file, array)
        tokenize(residual, "--decode", file, "--out", tmp_path / f"{i}", "--to", "joints")
        alone = np.load(tmp_path / f"{i}" / "bare.npy")
        np.testing.assert_allclose(alone, np.load(tmp_path / "joints" / "000000.npy"), atol=1e-4)


def test_a_short_row_of_the_coarse_layer_is_not_one_frame_of_all(layered, residual, tmp_path):
    out = Path(shutil.copytree(layered / "1", tmp_path / "codes"))
    np.save(out / "000000.npy", np.array([[3, 5, 7]]))
    tokenize(residual, "--decode", out / "000000.npy", "--out", tmp_path, "--to", "joints")
    assert len(np.load(tmp_path / "000000.npy")) == 12  # by the manifest; (1, 3) alone would be one frame


@pytest.mark.parametrize(("codes", "words"), [
    (np.array([[1, 2, 3], [4, 16, -1]]), "16 at position 1; expected -1 … 15"),
    (np.array([[1, 2, -2], [4, 5, -1]]), "-2 at position 0; expected -1 … 15"),
    (np.zeros((5, 4), int), "would be 5 clips of 4 codes"),
    (np.zeros((2, 5, 3), int), "int64 of shape (2, 5, 3)"),
    (np.zeros((5, 3)), "float64 of shape (5, 3)"),
])
def test_residual_codes_that_cannot_be_are_one_line(codes, words, residual, tmp_path, capsys):
    np.save(tmp_path / "x.npy", codes)
    argv = ("--decode", tmp_path / "x.npy", "--out", tmp_path / "out", "--to", "features")
    assert words in refused(capsys, residual, *argv)
    assert not (tmp_path / "out").exists()


def test_more_layers_than_there_are_is_one_line(residual, checkpoint, data, tmp_path, capsys):
    for path, words in ((residual, "has 3 layers of codes, not 4"), (checkpoint, "has 1 layers of codes")):
        assert words in refused(capsys, path, "--data-root", data, "--out", tmp_path / "out", "--layers", 4)
    assert not (tmp_path / "out").exists()


def test_rows_end_at_the_end_token(tokens, checkpoint, net, tmp_path, capsys):
    codes = np.load(tokens / "000000.npy")[0]
    np.save(tmp_path / "whole.npy", codes[:7].astype(np.uint16))  # one row, any integers
    np.save(tmp_path / "two.npy", np.stack([np.r_[codes[:7], 16, 17, 17], np.r_[codes[:9], 16]]))
    np.save(tmp_path / "empty.npy", np.array([[16, 17, 3]]))
    assert "shape (2, 10) would be 2 clips of 10 codes" in refused(
        capsys, checkpoint, "--decode", tmp_path, "--out", tmp_path / "out", "--to", "features")
    manifest = dict(manifest_of(tokens), rows=2)  # of samples, two a file
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    tokenize(checkpoint, "--decode", tmp_path, "--out", tmp_path / "out", "--to", "features")
    printed = capsys.readouterr().out
    assert "skipped 1 (no code before the end token): empty" in printed
    whole, two, three = (np.load(tmp_path / "out" / f"{name}.npy") for name in ("whole", "two_0", "two_1"))
    np.testing.assert_allclose(whole, two, atol=2e-5)
    assert len(three) == 36 and sorted(path.name for path in (tmp_path / "out").iterdir()) == ["two_0.npy",
                                                                                               "two_1.npy",
                                                                                               "whole.npy"]


@pytest.mark.parametrize(("codes", "words"), [
    (np.array([[1, 2, 18]]), "18 at position 2; expected 0 … 15, then the end token 16"),
    (np.array([[1, -1]]), "-1 at position 1"),
    (np.array([[1, 17, 16]]), "17 at position 1"),  # padding before any end
    (np.array([[1, 16, 99]]), "99 at position 2"),
    (np.array([[1.0, 2.0]]), "float64 of shape (1, 2); expected integers"),
    (np.zeros((2, 3, 4), int), "(2, 3, 4)"),
    (np.zeros((50, 6), int), "shape (50, 6) would be 50 clips of 6 codes"),  # another tokenizer's levels
    (np.zeros((50, 1), int), "shape (50, 1) would be 50 clips of 1 codes"),
    (np.zeros((0, 6), int), "shape (0, 6)"),
    (np.array(3), "int64 of shape ()"),
    (np.array([[16]]), "no code before an end token"),
])
def test_what_cannot_be_decoded_is_one_line(codes, words, checkpoint, tmp_path, capsys):
    np.save(tmp_path / "x.npy", codes)
    assert words in refused(capsys, checkpoint, "--decode", tmp_path / "x.npy", "--out", tmp_path / "out",
                            "--to", "features")
    assert not (tmp_path / "out").exists()


def test_codes_of_another_checkpoint_and_other_mistakes(tokens, checkpoint, data, tmp_path, capsys):
    other = torch.load(checkpoint, weights_only=True)
    other["net"]["vqvae.quantizer.codebook"][0] += 1
    torch.save(other, tmp_path / "other.pth")
    argv = ("--out", tmp_path / "out", "--to", "features")
    error = refused(capsys, tmp_path / "other.pth", "--decode", tokens, *argv)
    assert "codes of net_last.pth at iteration 15, which has other weights" in error
    assert "other weights" in refused(capsys, tmp_path / "other.pth", "--decode", tokens / "000000.npy",
                                        *argv)
    copy = Path(shutil.copytree(tokens, tmp_path / "codes"))
    (copy / "manifest.json").unlink()
    tokenize(tmp_path / "other.pth", "--decode", copy, *argv)  # nothing says whose they are
    assert "000000.npy: is there already (8 of 8 files are)" in refused(capsys, checkpoint, "--decode",
                                                                        tokens, *argv)
    tokenize(checkpoint, "--decode", tokens, *argv, "--overwrite")
    assert "replace what it is made of" in refused(capsys, checkpoint, "--decode", copy, "--out", copy,
                                                   "--to", "features", "--overwrite")
    assert "no such file, nor a folder" in refused(capsys, checkpoint, "--decode", tmp_path / "gone", *argv)
    (copy / "manifest.json").write_text((tokens / "manifest.json").read_text()[:300])
    for path in (copy, copy / "000000.npy"):
        assert "manifest.json: is damaged or cut off" in refused(capsys, checkpoint, "--decode", path, *argv)
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "file: is a file; name a folder" in refused(capsys, checkpoint, "--decode", tokens, "--out",
                                                           out, *argv[2:])
    assert "no such file" in refused(capsys, tmp_path / "gone.pth", "--decode", tokens, *argv)


@pytest.mark.parametrize(("flags", "words"), [
    ("--decode x", "--to features, joints, gif or bvh"),
    ("--to bvh", "come together"),
    ("--layers 1 --decode x --to bvh", "only on codes that are written"),
    ("other.pth", "give one checkpoint"),
])
def test_flags_that_cannot_work(flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_args(["--resume-pth", "net.pth", "--out", "x", *flags.split()])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error and error.count("\n") == 1
