"""Reading a data folder: clean, unclean, and bad; and its packed cache."""
import multiprocessing
import os
import subprocess
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from dataset.motion_folder import find_statistics, load_split, read_ids
from options.option_vq import get_args_parser
from tests.helpers import make_dataset
from utils.errors import UserError
from utils.motion_process import describe_statistics
from utils.motion_spec import get_spec

T2M = get_spec("t2m")


@pytest.fixture
def root(tmp_path):
    return make_dataset(tmp_path / "data")


def load(root, split="train", **kwargs):
    mean, std = (np.load(root / name).astype(np.float64) for name in ("Mean.npy", "Std.npy"))
    return load_split(root, split, T2M, mean, std, **kwargs)


def test_frames_are_normalised_clip_after_clip(root):
    clips = load(root, cache=False)
    assert clips.names == read_ids(root / "train.txt")
    raw = np.concatenate([np.load(root / "new_joint_vecs" / f"{name}.npy") for name in clips.names])
    expected = (raw - np.load(root / "Mean.npy").astype(np.float64)) / np.load(root / "Std.npy").astype(np.float64)
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
    with pytest.raises(UserError, match=r"train\.txt, line 2.*leaves the folder"):
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
    np.save(root / "new_joint_vecs" / "000001.npy", np.array([Canary(tmp_path / "canary")], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="unreadable"):
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
    np.lib.format.write_array_header_1_0(path.open("wb"), {"descr": "<f4", "fortran_order": False, "shape": (10 ** 12, 263)})


SPOILS = {spoil_truncate: "unreadable", spoil_empty: "unreadable", spoil_object: "unreadable", spoil_nan: r"frame 7 is NaN or Inf",
          spoil_rank: r"shape \(263,\)", spoil_integer: "int64", spoil_width: r"looks like kit: use --dataname kit",
          spoil_bomb: "unreadable", lambda path: path.unlink(): "no such file"}


@pytest.mark.parametrize(("spoil", "words"), SPOILS.items())
def test_bad_clips_are_named_or_left_out(root, spoil, words):
    spoil(root / "new_joint_vecs" / "000001.npy")
    with pytest.raises(UserError, match=rf"1 of 6 clips.*000001\.npy.*{words}.*--skip-bad-clips") as error:
        load(root)
    assert "\n" not in str(error.value)
    clips = load(root, skip_bad=True)
    assert "000001" not in clips.names and len(clips.names) == 5 and len(clips.bad) == 1
    assert np.isfinite(clips.frames).all() and len(clips.frames) == clips.offsets[-1]


def test_many_bad_clips_are_counted(tmp_path):
    root = make_dataset(tmp_path / "data", lengths=(30,) * 20)
    for path in (root / "new_joint_vecs").glob("*.npy"):
        path.unlink()
    with pytest.raises(UserError, match=r"18 of 18 clips.*and 8 more"):
        load(root)
    with pytest.raises(UserError, match=r"none of its 18 clips can be used"):
        load(root, skip_bad=True)


def test_missing_folder_and_splits_say_what_to_do(root):
    with pytest.raises(UserError, match=r"does not exist.*--data-root.*dataset\.prepare"):
        load_split(root / "nowhere", "train", T2M, np.zeros(263), np.ones(263))
    (root / "train.txt").write_text("\n\n")
    with pytest.raises(UserError, match="holds no clip id"):
        load(root)
    (root / "train.txt").unlink()
    with pytest.raises(UserError, match="no such file"):
        load(root)


@pytest.mark.parametrize(("name", "array", "words"), [
    ("Mean.npy", np.zeros(251), r"shape \(251,\).*looks like kit"),
    ("Std.npy", np.zeros(263), "expected every std over 0"),
    ("Std.npy", np.full(263, np.nan), "not finite"),
    ("Mean.npy", None, "no mean and std")])
def test_bad_statistics_are_refused(root, name, array, words):
    (root / name).unlink()
    if array is not None:
        np.save(root / name, array)
    with pytest.raises(UserError, match=words):
        find_statistics(get_args_parser(["--data-root", str(root)]), T2M)


def test_meta_dir_wins_and_its_kind_is_told(root, tmp_path):
    meta = tmp_path / "meta"
    meta.mkdir()
    std = np.load(root / "Std.npy").astype(np.float64)
    std[:4] /= 25
    std[-4:] /= 25
    np.save(meta / "mean.npy", np.zeros(263))
    np.save(meta / "std.npy", std)
    _, found, folder = find_statistics(get_args_parser(["--data-root", str(root), "--meta-dir", str(meta)]), T2M)
    assert folder == str(meta) and (found == std).all()
    assert describe_statistics(found) == "evaluator" and describe_statistics(np.load(root / "Std.npy")) == "data set"


def test_the_cache_maps_the_same_clips(root):
    fresh = load(root)
    mapped = load(root)
    assert isinstance(mapped.frames, np.memmap) and not isinstance(fresh.frames, np.memmap)
    assert (mapped.frames == fresh.frames).all() and mapped.names == fresh.names
    assert (mapped.offsets == fresh.offsets).all() and mapped.content == fresh.content


def change_clip(root):
    path = root / "new_joint_vecs" / "000002.npy"
    np.save(path, np.load(path) + 1)
    os.utime(path, ns=(1, 1))


def change_statistics(root):
    np.save(root / "Mean.npy", np.load(root / "Mean.npy") + 1)


def change_ids(root):
    (root / "train.txt").write_text("000000\n000001\n")


def tear_cache(root):
    path = next((root / ".packed").glob("train-*.npy"))
    path.write_bytes(path.read_bytes()[:-4000])


def flip_cache(root):
    path = next((root / ".packed").glob("train-*.npy"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def swap_cache(root):
    """Two blocks of a MiB each have changed places: the sum of all words is the same."""
    path = next((root / ".packed").glob("train-*.npy"))
    data = path.read_bytes()
    start, block = 128, 1 << 20
    path.write_bytes(data[:start] + data[start + block:start + 2 * block] + data[start:start + block] + data[start + 2 * block:])


def garble_index(root):
    (root / ".packed" / "train.json").write_text("{")


@pytest.mark.parametrize("change", [change_clip, change_statistics, change_ids, tear_cache, flip_cache, swap_cache, garble_index])
def test_a_stale_or_damaged_cache_is_rebuilt(tmp_path, change):
    root = make_dataset(tmp_path / "data", lengths=(900,) * 8)      # several MiB of frames
    load(root)
    assert isinstance(load(root).frames, np.memmap)
    change(root)
    again, direct = load(root), load(root, cache=False)
    assert again.names == direct.names and (again.frames == direct.frames).all()
    assert isinstance(load(root).frames, np.memmap)
    assert len(list((root / ".packed").glob("train-*.npy"))) == 1


def test_what_a_killed_process_left_is_removed_and_a_running_ones_is_not(root):
    (root / ".packed").mkdir()
    for name, time in (("train.1.tmp", 1), ("train.2.tmp", None)):
        (root / ".packed" / name).write_bytes(b"part")
        if time:
            os.utime(root / ".packed" / name, (time, time))
    load(root)
    assert sorted(path.name for path in (root / ".packed").glob("*.tmp")) == ["train.2.tmp"]


def load_digest(root):
    clips = load(root)
    return clips.content, type(clips.frames).__name__


def test_processes_that_start_at_once_do_not_hurt_each_other(tmp_path):
    root = make_dataset(tmp_path / "data", lengths=(400,) * 12)
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(load_digest, [root] * 8))
    assert {content for content, _ in results} == {load(root, cache=False).content}
    assert isinstance(load(root).frames, np.memmap)
    assert sorted(path.name.split("-")[0] for path in (root / ".packed").iterdir()) == ["train", "train.json"]


@pytest.fixture
def read_only(root):
    """The folder, unwritable for root too: mounted read-only."""
    if os.geteuid():
        root.chmod(0o555)
        yield root
        root.chmod(0o755)
        return
    if subprocess.run(["mount", "--bind", "-o", "ro", root, root], capture_output=True).returncode:
        pytest.skip("mounting a folder read-only needs more rights")
    yield root
    subprocess.run(["umount", root], check=True)


def test_a_read_only_folder_works_without_a_cache(read_only):
    with pytest.raises(OSError):
        (read_only / "x").write_text("")
    assert len(load(read_only).names) == len(load(read_only).names) == 6
    assert not (read_only / ".packed").exists()


def test_a_folder_whose_cache_cannot_be_made_works_without(root):
    (root / ".packed").write_text("a file where the folder would be")
    assert len(load(root).names) == len(load(root).names) == 6
