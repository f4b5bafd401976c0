"""Reading a data folder: clean, unclean, and bad."""
import os
from types import SimpleNamespace

import numpy as np
import pytest

from dataset.motion_folder import find_data, find_statistics, load_split, read_ids
from tests.helpers import make_dataset
from utils.errors import UserError
from utils.motion_process import describe_statistics
from utils.motion_spec import get_spec

T2M = get_spec("t2m")


@pytest.fixture
def root(tmp_path):
    return make_dataset(tmp_path / "data")


def flags(**given):
    return SimpleNamespace(**{"dataname": None, "data_root": None, "meta_dir": None, **given})


def load(root, split="train", **kwargs):
    mean, std = (np.load(root / name).astype(np.float64) for name in ("Mean.npy", "Std.npy"))
    return load_split(root, split, T2M, mean, std, **kwargs)


def test_frames_are_normalised_clip_after_clip(root):
    clips = load(root)
    assert clips.names == read_ids(root / "train.txt")
    raw = np.concatenate([np.load(root / "new_joint_vecs" / f"{name}.npy") for name in clips.names])
    mean, std = (np.load(root / name).astype(np.float64) for name in ("Mean.npy", "Std.npy"))
    expected = (raw - mean) / std
    np.testing.assert_allclose(clips.frames, expected, rtol=1e-6)
    assert clips.frames.flags.c_contiguous and clips.frames.dtype == np.float32


def test_unclean_split_files_read_as_clean_ones(root):
    clean = read_ids(root / "train.txt")
    text = "\ufeff" + "\r\n\r\n".join([*clean, clean[0], "  "])
    (root / "train.txt").write_bytes(text.encode("utf-8"))
    assert read_ids(root / "train.txt") == clean


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "C:\\x", "..\\x"])
def test_ids_that_leave_the_folder_are_refused(root, name):
    (root / "train.txt").write_text(f"000000\n{name}\n")
    with pytest.raises(UserError, match=r"train\.txt, line 2.*is no clip id"):
        load(root)


def spoil_truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def spoil_empty(path):
    path.write_bytes(b"")


def spoil_object(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_malicious_npy_never_runs(root, tmp_path):
    canary = np.array([Canary(tmp_path / "canary")], dtype=object)
    np.save(root / "new_joint_vecs" / "000001.npy", canary, allow_pickle=True)
    with pytest.raises(UserError, match="Python objects"):
        load(root)
    assert not (tmp_path / "canary").exists()


def spoil_nan(path):
    clip = np.load(path)
    clip[7, 5] = np.nan
    np.save(path, clip)


def spoil_rank(path):
    np.save(path, np.zeros(263, np.float32))


def spoil_integer(path):
    np.save(path, np.zeros((80, 263), np.int64))


def spoil_width(path):
    np.save(path, np.zeros((80, 251), np.float32))


def spoil_bomb(path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (10 ** 12, 263)}
    np.lib.format.write_array_header_1_0(path.open("wb"), header)


def spoil_joints(path):
    np.save(path, np.zeros((80, 22, 3), np.float32))


def spoil_link(path):
    path.unlink()
    path.symlink_to("nowhere")


SPOILS = {spoil_truncate: "damaged or cut short", spoil_empty: "an empty file",
          spoil_object: "Python objects", spoil_nan: r"frame 7 is NaN or Inf",
          spoil_rank: r"shape \(263,\)", spoil_integer: "int64",
          spoil_width: r"251 features are KIT-ML's",
          spoil_joints: r"dataset\.prepare makes features of joints", spoil_bomb: "damaged or cut short",
          spoil_link: "a link to a file that is not there", lambda path: path.unlink(): "no such file"}


@pytest.mark.parametrize(("spoil", "words"), SPOILS.items())
def test_bad_clips_are_named_or_left_out(root, spoil, words):
    spoil(root / "new_joint_vecs" / "000001.npy")
    with pytest.raises(UserError, match=rf"1 of 6 clips.*--skip-bad-clips.*000001\.npy.*{words}"):
        load(root)
    clips = load(root, skip_bad=True)
    assert "000001" not in clips.names and len(clips.names) == 5 and len(clips.bad) == 1
    assert np.isfinite(clips.frames).all() and len(clips.frames) == clips.offsets[-1]


def test_many_bad_clips_are_counted(tmp_path):
    root = make_dataset(tmp_path / "data", lengths=(30,) * 20)
    for path in (root / "new_joint_vecs").glob("*.npy"):
        path.unlink()
    with pytest.raises(UserError, match=r"18 of 18 clips.*the first: .*000000\.npy") as error:
        load(root)
    assert len(error.value.details) == 18 and "000017.npy" in error.value.details[-1]
    with pytest.raises(UserError, match=r"none of its 18 clips can be used"):
        load(root, skip_bad=True)


def test_missing_folder_and_splits_say_what_to_do(root):
    with pytest.raises(UserError, match=r"no such folder.*--data-root.*dataset\.prepare"):
        load_split(root / "nowhere", "train", T2M, np.zeros(263), np.ones(263))
    (root / "train.txt").write_text("\n\n")
    with pytest.raises(UserError, match="holds no clip id"):
        load(root)
    (root / "train.txt").unlink()
    with pytest.raises(UserError, match="no such file"):
        load(root)


@pytest.mark.parametrize(("name", "array", "words"), [
    ("Mean.npy", np.zeros(251), r"shape \(251,\).*251 features are KIT-ML's"),
    ("Mean.npy", np.zeros((1, 263)), r"shape \(1, 263\).*reshape\(-1\)$"),
    ("Std.npy", np.zeros(263), "entry 0 is 0, too small a std"),
    ("Std.npy", np.full(263, 1e-12), "entry 0 is 1e-12, too small a std"),
    ("Std.npy", np.full(263, np.nan), "not finite"),
    ("Mean.npy", None, "no mean and std")])
def test_bad_statistics_are_refused(root, name, array, words):
    (root / name).unlink()
    if array is not None:
        np.save(root / name, array)
    with pytest.raises(UserError, match=words):
        find_statistics(flags(data_root=root), T2M)


def test_meta_dir_wins_and_its_kind_is_told(root, tmp_path):
    meta = tmp_path / "meta"
    meta.mkdir()
    std = np.load(root / "Std.npy").astype(np.float64)
    std[:4] /= 25
    std[-4:] /= 25
    np.save(meta / "mean.npy", np.zeros(263))
    np.save(meta / "std.npy", std)
    _, found, folder = find_statistics(flags(data_root=root, meta_dir=meta), T2M)
    assert folder == str(meta) and (found == std).all()
    assert describe_statistics(found) == "evaluator"
    assert describe_statistics(np.load(root / "Std.npy")) == "data set"
    assert describe_statistics(found * 1e-3) == describe_statistics(found * 1e3) == "unknown"


def make_net(root, spec=T2M, **recipe):
    """As much of a HumanVQVAE as `find_data` looks at, with the folder's statistics."""
    mean, std, _ = find_statistics(flags(data_root=root), spec)
    return SimpleNamespace(spec=spec, recipe=recipe, mean=mean, std=std)


def test_a_checkpoint_finds_the_data_it_was_trained_on(root, tmp_path):
    net = make_net(root, data_root=str(root))
    assert find_data("x.pth", net, flags()) == (T2M, str(root), [])
    assert find_data("x.pth", net, flags(data_root=str(tmp_path)))[1:] == (str(tmp_path), [])
    (remark,) = find_data("x.pth", net, flags(meta_dir=str(tmp_path)))[2]
    assert "own mean and std are used" in remark and str(tmp_path) in remark


def test_a_checkpoint_without_mean_and_std_takes_the_folders(root, tmp_path):
    net, expected = make_net(root), make_net(root).std
    net.mean = net.std = None
    spec, _, remarks = find_data("x.pth", net, flags(data_root=str(root)))
    assert spec is T2M and (net.std == expected).all() and "data set variant" in remarks[0]
    net.mean = None
    with pytest.raises(UserError, match="--meta-dir"):
        find_data("x.pth", net, flags(data_root=str(tmp_path)))


def test_advice_does_not_go_in_circles(root, tmp_path):
    """Data of kit and of t2m under each other's network: no flag is named that would be refused next."""
    kit_root, kit = make_dataset(tmp_path / "kit", "kit"), get_spec("kit")
    for net, other in ((make_net(root), kit), (make_net(kit_root, kit), T2M)):
        words = f"cannot take {other.name}'s {other.width}.*or another checkpoint$"
        with pytest.raises(UserError, match=words):
            find_data("x.pth", net, flags(dataname=other.name))
    with pytest.raises(UserError, match=r"251 features are KIT-ML's \(--dataname kit\)$"):
        load_split(kit_root, "train", T2M, np.zeros(263), np.ones(263))


@pytest.mark.parametrize(("text", "words"), [
    ("000000.npy\n000001.npy\n", "ids come without .npy"), ("000000, 000001", "no such file"),
    (", ".join(f"{i:06d}" for i in range(99)), "is no clip id"),
    ("000000\n000001\n".encode("utf-16"), "is UTF-16 text"),
    ("000000\n".encode("utf-16-le"), "is UTF-16 text"),
    (b"caf\xe9\n", "or no text"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    (b"<!DOCTYPE html>", "a web page")])
def test_split_files_of_another_kind_are_named(root, text, words):
    (root / "train.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError, match=words):
        load(root)


def test_a_split_that_is_a_folder_is_one_line(root):
    (root / "train.txt").unlink()
    (root / "train.txt").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        load(root)


def test_links_to_nothing_that_no_split_names_do_not_matter(root):
    (root / "new_joint_vecs" / ".#000001.npy").symlink_to("user@host.123:456")
    (root / "new_joint_vecs" / "other.npy").symlink_to("nowhere")
    assert len(load(root).names) == 6


def test_frames_that_do_not_look_normalised_are_told(tmp_path):
    root = make_dataset(tmp_path / "data", lengths=(90,) * 40)
    assert load(root).warning is None
    mean, std = np.load(root / "Mean.npy"), np.load(root / "Std.npy")
    for path in (root / "new_joint_vecs").glob("*.npy"):
        np.save(path, (np.load(path) - mean) / std)
    warning = load(root).warning
    assert warning.startswith(str(root / "train.txt")) and "worst, entry" in warning
