"""Sources to a training folder: splits, captions, repeated, broken and killed runs, and mistakes."""
import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.prepare.__main__ import main
from dataset.prepare.convert import assign_splits, write_dataset
from dataset.prepare.demo import ensure_demo
from dataset.prepare.source import find_sources
from tests.test_motion_process import random_clip
from utils.errors import UserError
from utils.motion_process import extract_features, group_statistics
from utils.motion_spec import get_spec

T2M, KIT = get_spec("t2m"), get_spec("kit")
ROOT = Path(__file__).parent.parent


def run(*argv):
    """Exit code of the command."""
    try:
        return main([str(word) for word in argv])
    except SystemExit as end:
        return end.code


@pytest.fixture
def joints_folder(tmp_path):
    """Eight .npy clips."""
    folder = tmp_path / "joints"
    folder.mkdir()
    for i in range(8):
        np.save(folder / f"clip{i}.npy", random_clip(i, frames=30 + i).astype(np.float32))
    return folder


def files(folder):
    """Everything in a prepared folder: {path: bytes}."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


# splits

@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("abcdef0123", min_size=1, max_size=6), min_size=3, max_size=40, unique=True))
def test_a_clips_split_follows_from_its_name(names):
    splits, less = assign_splits(names), assign_splits(names[1:])
    assert splits.pop("all") == sorted(name for ids in splits.values() for name in ids) == sorted(names)
    assert all(splits.values())
    moved = sum(name not in splits[split] for split, ids in less.items() if split != "all" for name in ids)
    assert moved <= 2   # only out of a split that would have stayed empty
    assert assign_splits(list(reversed(names)))["val"][::-1] == splits["val"]


def test_split_shares_are_kept():
    splits = assign_splits([f"{i:06d}" for i in range(4000)], (0.8, 0.05, 0.15))
    np.testing.assert_allclose([len(ids) / 4000 for ids in splits.values()], (0.8, 0.05, 0.15, 1), atol=0.02)
    assert assign_splits("abc", (1, 0, 0)) == dict(train=[*"abc"], val=[], test=[], all=[*"abc"])


# the command


def test_a_folder_is_prepared_and_loads(tmp_path, joints_folder, capsys):
    from dataset.motion_folder import load_split
    out = tmp_path / "out"
    with open(tmp_path / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("id", "caption"),
                ("clip0", "a person walks, then turns left"),
                ("clip0", "someone walks"),
                ("gone", "x"),
            ]
        )
    assert run(joints_folder, "--out", out, "--mirror", "--captions", tmp_path / "captions.csv") == 0
    said = capsys.readouterr().out
    assert (
        "16 clips" in said
        and "8 converted" in said
        and "7 clips have none; 1 ids are no clip's" in said
    )
    assert (out / "texts/clip0.txt").read_text().splitlines() == [
        "a person walks, then turns left#a/OTHER person/OTHER walks/OTHER then/OTHER turns/OTHER "
        "left/OTHER#0.0#0.0",
        "someone walks#someone/OTHER walks/OTHER#0.0#0.0",
    ]
    assert "right/OTHER" in (out / "texts/Mclip0.txt").read_text()
    splits = {split: (out / f"{split}.txt").read_text().split() for split in ("train", "val", "test", "all")}
    assert (
        sorted(splits["train"] + splits["val"] + splits["test"]) == splits["all"] and len(splits["all"]) == 16
    )
    for ids in splits.values():
        assert all(f"M{name}" in ids for name in ids if not name.startswith("M"))
    features = {name: np.load(out / f"new_joint_vecs/{name}.npy") for name in splits["all"]}
    np.testing.assert_array_equal(
        features["clip2"], extract_features(random_clip(2, frames=32).astype(np.float32), "t2m")
    )
    mean, std = np.load(out / "Mean.npy"), np.load(out / "Std.npy")
    assert mean.dtype == std.dtype == np.float32
    for got, wanted in zip(
        (mean, std), group_statistics(np.concatenate([features[name] for name in splits["train"]]), T2M)
    ):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    clips = load_split(out, "train", T2M, mean.astype(float), std.astype(float))
    assert clips.names == splits["train"]
    joints = np.load(out / "new_joints/clip0.npy")
    assert joints.shape == (29, 22, 3) and joints.dtype == np.float32 and abs(joints[..., 1].min()) < 0.05


def test_a_second_run_converts_only_what_changed(tmp_path, joints_folder, capsys):
    out = tmp_path / "out"
    run(joints_folder, "--out", out)
    before, times = files(out), {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    np.save(joints_folder / "clip3.npy", random_clip(77))
    (joints_folder / "clip4.npy").unlink()
    capsys.readouterr()
    assert run(joints_folder, "--out", out) == 0
    said = capsys.readouterr().out
    assert "1 converted, 6 unchanged since the last run, 0 rejected, 1 earlier ones removed" in said
    changed = {name for name, content in files(out).items() if before.get(name) != content}
    assert {name for name in changed if "clip" in name} == {
        "new_joints/clip3.npy",
        "new_joint_vecs/clip3.npy",
    }
    assert (out / "new_joints/clip1.npy").stat().st_mtime_ns == times[out / "new_joints/clip1.npy"]
    assert not (out / "new_joint_vecs/clip4.npy").exists() and "clip4" not in (out / "all.txt").read_text()
    assert run(joints_folder, "--out", out, "--scale", "0.5") == 0
    assert "7 converted, 0 unchanged" in capsys.readouterr().out    # another setting


def test_other_sources_into_the_same_folder_remove_nothing(tmp_path, joints_folder, capsys):
    (tmp_path / "more").mkdir()
    np.save(tmp_path / "more/new.npy", random_clip(9))
    run(joints_folder, "--out", tmp_path / "out")
    before = files(tmp_path / "out")
    capsys.readouterr()
    assert run(tmp_path / "more", "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert (
        "holds clips of other sources, as clip" in said and said.count("\n") == 1
    )
    assert files(tmp_path / "out") == before
    assert run(joints_folder, tmp_path / "more", "--out", tmp_path / "out") == 0
    assert "1 converted, 8 unchanged" in capsys.readouterr().out


@pytest.mark.slow
def test_the_result_does_not_depend_on_processes_or_repetition(tmp_path):
    clips = [(f"c{i}", random_clip(i), [f"a person does {i}"]) for i in range(40)]
    for name, workers in (("one", 1), ("two", 2)):
        write_dataset(tmp_path / name, clips, "t2m", workers=workers)
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert one == two
    report = write_dataset(tmp_path / "one", clips, "t2m")
    assert report.kept == 40 and files(tmp_path / "one") == one


@pytest.mark.slow
def test_a_killed_run_leaves_whole_files_and_goes_on(tmp_path):
    source, out = tmp_path / "many", tmp_path / "out"
    source.mkdir()
    for i in range(60):
        np.save(source / f"clip{i:02d}.npy", random_clip(i, frames=400))
    command = [sys.executable, "-m", "dataset.prepare", str(source), "--out", str(out), "--workers", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while (
        len(list(out.glob("new_joint_vecs/*.npy"))) < 5
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = list(out.glob("new_joint_vecs/*.npy"))
    assert finished and all(np.load(path).shape == (399, 263) for path in finished)
    (out / "new_joints" / "clip59.npy.1.tmp").write_bytes(b"torn")
    with open(out / "prepared.jsonl", "a") as file:
        file.write('{"id": "clip')
    report = write_dataset(
        out, ((name, path, ()) for name, path in find_sources([source]).items()), "t2m"
    )
    assert len(report.records) == 60 and report.kept
    assert not list(out.rglob("*.tmp")) and len((out / "all.txt").read_text().split()) == 60


def test_bad_files_are_named_and_counted_and_the_others_converted(tmp_path, joints_folder, capsys):
    (joints_folder / "cut.bvh").write_text("HIERARCHY\nROOT hip\n{\n")
    np.save(joints_folder / "wide.npy", np.zeros((10, 25, 3)))
    np.save(joints_folder / "flat.npy", np.zeros((30, 22, 3)))
    np.save(joints_folder / "short.npy", random_clip(0, frames=4))
    broken = random_clip(0)
    broken[7:9, 3] = np.nan
    np.save(joints_folder / "nan.npy", broken)
    legless = random_clip(0)
    legless[:, [1, 2, 4, 5, 7, 8, 10, 11]] = legless[:, [0]]
    np.save(joints_folder / "legless.npy", legless)
    (joints_folder / "text.npy").write_text("not numpy")
    assert run(joints_folder, "--out", tmp_path / "out") == 0
    said = capsys.readouterr()
    assert "8 clips" in said.out and "8 converted" in said.out and "7 rejected" in said.out
    for words in (
        "cut.bvh: line 3: the skeleton ends",
        "wide.npy: float64 of shape (10, 25, 3)",
        "flat.npy: a leg has no length",
        "short.npy: 4 frames at 20 fps",
        "nan.npy: frame 7 is NaN or Inf (2 of 24 frames)",
        "text.npy: is a file of another kind",
        "legless.npy: a leg has no length",
    ):
        assert words in said.err, words
    assert run(joints_folder, "--out", tmp_path / "strict", "--strict") == 2
    assert "(--strict)" in capsys.readouterr().err


def test_one_file_that_breaks_the_reader_does_not_cost_the_others(
    tmp_path, joints_folder, monkeypatch, capsys
):
    from dataset.prepare import source
    load = source.load_array

    def read(path):
        if "clip3" in str(path):
            raise KeyError("an error nobody expects " * 20)
        return load(path)

    monkeypatch.setattr(source, "load_array", read)
    assert run(joints_folder, "--out", tmp_path / "out") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "rejected: " in line]
    assert (
        len(said) == 1
        and "clip3: unexpected, is the file sound? KeyError" in said[0]
        and len(said[0]) <= 211
    )
    assert len((tmp_path / "out/all.txt").read_text().split()) == 7
    assert run(joints_folder, "--out", tmp_path / "strict", "--strict") == 2


def test_a_clip_whose_source_went_bad_leaves_the_splits(tmp_path, joints_folder):
    run(joints_folder, "--out", tmp_path / "out")
    (joints_folder / "clip5.npy").write_bytes(b"")
    assert run(joints_folder, "--out", tmp_path / "out") == 0
    assert (
        "clip5" not in (tmp_path / "out/all.txt").read_text()
        and not (tmp_path / "out/new_joint_vecs/clip5.npy").exists()
    )


@pytest.mark.parametrize(
    "argv, message",
    [
        (["nowhere", "--out", "out"], "nowhere: no .bvh or .npy or .npz file"),
        (["--out", "out"], "give a source or --demo"),
        (["joints", "--demo", "--out", "out"], "not both"),
        (["joints", "--out", "out", "--scale", "-1"], "out of range"),
        (["joints", "--out", "out", "--split", "0", "0", "0"], "all zero"),
        (["joints", "--out", "out", "--seed", "3"], "--demo"),
        (["joints", "--out", "out", "--captions", "none.csv"], "no such file"),
        (["empty", "--out", "out"], "no .bvh or .npy or .npz file"),
        (["joints", "--out", "out", "--dataname", "kit"], "Give --fps"),
        (["joints", "--out", "theirs"], "of other sources"),
        (["joints", "--out", "joints/clip0.npy"], "cannot be written"),
    ],
)
def test_a_mistake_is_one_line_and_code_two(tmp_path, joints_folder, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "theirs/new_joint_vecs").mkdir(parents=True)
    (tmp_path / "theirs/new_joint_vecs/000000.npy").write_bytes(b"precious")
    assert run(*argv) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1] and "Traceback" not in "".join(said)
    assert (tmp_path / "theirs/new_joint_vecs/000000.npy").read_bytes() == b"precious"


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "holds no caption"),
        ("clip0\n", "line 1: 1 fields"),
        ("id,caption\nclip0,walks, turns\n", "line 2: 3 fields"),
        ("other,walks\n", "none of its ids"),
    ],
)
def test_bad_captions_are_refused(tmp_path, joints_folder, capsys, content, message):
    (tmp_path / "captions.csv").write_text(content)
    assert run(joints_folder, "--out", tmp_path / "out", "--captions", tmp_path / "captions.csv") == 2
    assert message in capsys.readouterr().err


def test_files_of_one_name_take_their_folders_names(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / "mocap" / folder).mkdir(parents=True)
        np.save(tmp_path / "mocap" / folder / "walk 1.npy", random_clip(0))
    np.save(tmp_path / "mocap" / "run:fast.npy", random_clip(0))
    assert list(find_sources([tmp_path / "mocap"])) == ["mocap_a_walk_1", "mocap_b_walk_1", "run_fast"]


def test_mirrored_copies_may_not_collide(tmp_path):
    with pytest.raises(UserError, match="Mwalk"):
        write_dataset(
            tmp_path / "out",
            [("walk", random_clip(0), ()), ("Mwalk", random_clip(1), ())],
            "t2m",
            mirrored=True,

        )


@pytest.mark.slow
def test_previews_are_pictures_that_move(tmp_path, joints_folder):
    from PIL import Image
    assert run(joints_folder, "--out", tmp_path / "out", "--preview", 2) == 0
    gifs = sorted((tmp_path / "out/previews").glob("*.gif"))
    assert len(gifs) == 2
    with Image.open(gifs[0]) as image:
        assert image.n_frames > 10


@pytest.mark.slow
def test_help_is_instant():
    code = "import sys; sys.argv[1:] = ['--help']; import runpy\n" \
           "try: runpy.run_module('dataset.prepare', run_name='__main__')\n" \
           "finally: print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout.endswith("False\n")


# the demo set

def test_the_demo_set_is_made_once_whole_and_always_the_same(tmp_path):
    report = ensure_demo(tmp_path / "demo", count=12)
    assert len(report.records) == 12 and not report.rejected
    assert ensure_demo(tmp_path / "demo", count=12) is None
    ensure_demo(tmp_path / "again", count=12)
    assert files(tmp_path / "demo") == files(tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "demo"]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="something else"):
        ensure_demo(tmp_path / "taken", count=12)
