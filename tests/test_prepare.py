"""Motion capture to a training folder: units, axes, rates, splits, captions, repeated and broken runs."""
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
from dataset.prepare.axes import find_unit, posture_problems
from dataset.prepare.captions import mirror_line, text_line
from dataset.prepare.convert import assign_splits, write_dataset
from dataset.prepare.demo import ensure_demo, make_clips
from dataset.prepare.joint_maps import to_kit
from dataset.prepare.source import Reading, find_sources, leading_pose, read_clip, resample
from export.bvh import write_bvh
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


# units, axes, rates

@pytest.mark.parametrize("unit, scale", [
    ("m", 1), ("dm", 10), ("cm", 100), ("mm", 1000), ("inches", 1 / 0.0254), ("feet", 1 / 0.3048)])
def test_the_unit_is_found_from_the_leg(unit, scale):
    assert find_unit(random_clip(0) * scale, T2M)[0] == unit


def test_an_unknown_unit_gives_a_typical_leg():
    name, scale = find_unit(random_clip(0) * 17.7, T2M)
    assert "none known" in name and scale == pytest.approx(1 / 17.7, rel=0.02)


def test_z_up_is_turned_upright_and_keeps_its_sides(tmp_path):
    joints = random_clip(2)
    np.save(tmp_path / "y.npy", joints)
    np.save(tmp_path / "z.npy", joints[..., [0, 2, 1]] * (1, -1, 1))    # y up → z up, right-handed
    for clip in ("y", "z"):
        np.testing.assert_allclose(
            read_clip(tmp_path / f"{clip}.npy", Reading(up=clip))[0], joints, atol=1e-12
        )


@pytest.mark.parametrize("fps", [20, 24, 30, 60, 120, 12.5])
def test_resampling_keeps_a_slow_sine_and_steady_motion(fps):
    time, target = np.arange(int(3 * fps) + 1)[:, None, None] / fps, np.arange(61)[:, None, None] / 20
    sine = resample(np.sin(2 * np.pi * time), fps, 20)
    assert len(sine) == 61 - (fps == 12.5)     # 37 steps of 0.08 s end before three seconds
    np.testing.assert_allclose(sine[2:-2], np.sin(2 * np.pi * target[:len(sine)])[2:-2], atol=0.012)
    np.testing.assert_allclose(resample(3 * time - 1, fps, 20), 3 * target[:len(sine)] - 1, atol=1e-9)


def test_resampling_takes_fast_shaking_away_instead_of_folding_it():
    time = np.arange(361) / 120
    shaking = np.sin(2 * np.pi * 38 * time)[:, None, None]      # dropping frames alone would show it at 2 Hz
    assert np.abs(shaking[::6]).max() > 0.9
    assert np.abs(resample(shaking, 120, 20)[2:-2]).max() < 0.01


def test_a_leading_pose_is_found_and_a_start_in_motion_is_not():
    joints = np.repeat(random_clip(0, frames=60), 2, 0) + np.linspace(0, 1, 120)[:, None, None]
    assert leading_pose(joints, 120) == 0
    joints[:3] += 1
    assert leading_pose(joints, 120) == 3


def test_bvh_and_joints_give_the_same_features(tmp_path):
    joints = random_clip(3, frames=50)
    held = write_bvh(tmp_path / "clip.bvh", joints, T2M)
    clip, found = read_clip(tmp_path / "clip.bvh", Reading())
    assert found.pop("map")["left_knee"] == "left_knee"
    floor = "sinks by over 0.3 m, put on the floor"
    assert found == dict(skeleton="recognised (100%)", unit="cm", up="y", fps="20", floor=floor)
    np.testing.assert_allclose(clip, held, atol=1e-5)
    np.testing.assert_allclose(extract_features(clip, "t2m"), extract_features(held, "t2m"), atol=2e-3)


def test_kit_joints_come_from_the_same_skeleton(tmp_path):
    write_bvh(tmp_path / "clip.bvh", random_clip(3, frames=80), T2M)
    clip, _ = read_clip(tmp_path / "clip.bvh", Reading("kit"))
    assert clip.shape[1:] == (21, 3) and extract_features(clip, "kit").shape[1] == 251
    names = KIT.joint_names
    assert (clip[:, names.index("left_toe")] != clip[:, names.index("left_foot")]).any()


@pytest.mark.parametrize("scale", [1, 1000])
def test_kit_folders_are_in_millimetres_whatever_the_source_is_in(tmp_path, scale):
    from dataset.check import check_folder
    from visualize.skeleton import unit_in_metres
    clips = [to_kit(random_clip(seed, frames=40)) for seed in range(3)]
    (tmp_path / "joints").mkdir()
    for seed, clip in enumerate(clips):
        np.save(tmp_path / f"joints/clip{seed}.npy", clip * scale)
    assert run(tmp_path / "joints", "--out", tmp_path / "out", "--dataname", "kit", "--scale", 1 / scale) == 0
    features, joints = (
        np.load(tmp_path / f"out/{folder}/clip0.npy") for folder in ("new_joint_vecs", "new_joints")
    )
    np.testing.assert_allclose(features, extract_features(clips[0] * 1000, "kit"), rtol=1e-5, atol=1e-2)
    heights = clips[0][:-1, 0, 1] - clips[0][..., 1].min()
    np.testing.assert_allclose(joints[:, 0, 1], 1000 * heights, rtol=1e-5)
    assert unit_in_metres(joints, KIT) == 0.001 == KIT.unit
    assert not [
        finding
        for finding in check_folder(tmp_path / "out")["findings"]
        if "floor" in finding["text"] or "faster" in finding["text"]
    ]


def test_the_contact_rule_of_kit_is_in_millimetres(tmp_path):
    standing = np.repeat(to_kit(random_clip(0, frames=1)), 30, 0)
    standing[:, :, 2] += 0.0002 * np.arange(30)[:, None]  # a fifth of a millimetre a frame: 0.04, below 0.05
    sliding = standing + 0.0001 * np.arange(30)[:, None, None] * np.array(
        [0, 0, 1]
    )  # with it three tenths: 0.09
    write_dataset(
        tmp_path,
        [("standing", standing, ()), ("sliding", sliding, ()), ("x", standing, ())],
        "kit",

    )
    for name, contact in (("standing", 1), ("sliding", 0)):
        assert (np.load(tmp_path / f"new_joint_vecs/{name}.npy")[:, -4:] == contact).all(), name


# axes, sides, shapes: a person who walks, from the demo set

@pytest.fixture(scope="module")
def walk():
    """Joints (T, 22, 3) of a person who walks, y up, on the floor."""
    return next(joints for name, joints, _ in make_clips(0, 40) if "walk" in name)


def read_joints(tmp_path, joints, **how):
    np.save(tmp_path / "clip.npy", joints)
    return read_clip(tmp_path / "clip.npy", Reading(**how))


TURNED = {"y": ((0, 1, 2), (1, 1, 1)), "z": ((0, 2, 1), (1, -1, 1)), "-y": ((0, 1, 2), (1, -1, -1)),
          "-z": ((0, 2, 1), (1, 1, -1))}


@pytest.mark.parametrize("up", TURNED)
def test_up_is_found_from_the_motion(tmp_path, walk, up):
    axes, signs = TURNED[up]
    clip, found = read_joints(tmp_path, walk[..., axes] * signs)
    assert found["up"] == up
    np.testing.assert_allclose(clip, walk, atol=1e-6)


def test_who_lies_is_not_stood_up_without_being_asked(tmp_path, walk):
    still = walk - walk[:, :1] * (1, 0, 1)
    lying = np.stack([still[..., 1], -still[..., 0], still[..., 2]], -1)       # along x
    lying[..., 1] -= lying[..., 1].min()
    assert read_joints(tmp_path, lying)[1]["up"] == "y"
    floating = (still - still[:, :1])[..., [0, 2, 1]] * (1, -1, 1)  # z up, or lying along z: no floor to tell
    with pytest.raises(UserError, match=r"up may be z .* or y .*give --up=z or --up=y"):
        read_joints(tmp_path, floating)
    assert read_joints(tmp_path, floating, up="z")[1]["up"] == "z"


@pytest.mark.parametrize("joints, unit", [(22, 1), (24, 1), (52, 1000), (55, 0.01)])
def test_arrays_of_smpl_begin_with_our_joints(tmp_path, walk, joints, unit):
    more = np.concatenate([walk, np.repeat(walk[:, -1:], joints - 22, 1)], 1)
    clip, _ = read_joints(tmp_path, more * unit)
    np.testing.assert_allclose(clip / clip[0, 0, 1], walk / walk[0, 0, 1], atol=1e-6)
    assert read_joints(tmp_path, walk.reshape(len(walk), 66))[0].shape == walk.shape
    np.savez(tmp_path / "one.npz", joints=more, betas=np.zeros(16))
    assert read_clip(tmp_path / "one.npz", Reading())[0].shape == walk.shape


def test_mirrored_joints_are_refused_and_mended_by_a_flag(tmp_path, walk):
    with pytest.raises(UserError, match=r"mirrored: .*--swap-sides"):
        read_joints(tmp_path, walk * (-1, 1, 1))
    clip, _ = read_joints(tmp_path, walk * (-1, 1, 1), swap_sides=True)
    np.testing.assert_allclose(clip[:, 1], walk[:, 2] * (-1, 1, 1), atol=1e-6)


def test_another_joint_order_is_refused(tmp_path, walk):
    chains = [0, 1, 4, 7, 10, 2, 5, 8, 11, 3, 6, 9, 12, 15, 13, 16, 18, 20, 14, 17, 19, 21]
    for order in (chains, chains[::-1], list(range(21, -1, -1)), np.random.default_rng(0).permutation(22)):
        with pytest.raises(UserError, match=r"another order|no person|differ|no length"):
            read_joints(tmp_path, walk[:, order])


def test_a_quadruped_with_a_persons_names_is_refused(tmp_path, walk):
    joints = np.repeat(walk[:1] - walk[:1, :1] + (0, 0.9, 0), 30, 0)
    names = T2M.joint_names
    upper = [
        names.index(name)
        for name in names
        if not any(leg in name for leg in ("hip", "knee", "ankle", "foot"))
    ]
    joints[:, upper] = joints[:, [0]] + (joints[:, upper] - joints[:, [0]])[..., [0, 2, 1]] * (
        1,
        1,
        1,
    )  # level
    for side in ("left", "right"):
        shoulder = joints[:, names.index(f"{side}_shoulder")]
        for joint, depth in (("elbow", 0.35), ("wrist", 0.7)):
            joints[:, names.index(f"{side}_{joint}")] = shoulder - (0, depth, 0)
    with pytest.raises(UserError, match="walks on four legs"):
        read_joints(tmp_path, joints)


@pytest.mark.parametrize(
    "name, message",
    [
        ("amass.npz", "--amass"),
        ("two.npz", "holds 2 arrays"),
        ("cut.npz", "damaged"),
        ("walk.pkl", "numpy.save"),
        ("walk.fbx", "BVH"),
        ("walk.c3d", "markers"),
        ("walk.glb", "Blender"),
    ],
)
def test_other_formats_are_refused_with_what_to_do(tmp_path, walk, name, message):
    (tmp_path / name).write_bytes(b"PK")
    if name == "amass.npz":
        np.savez(tmp_path / name, poses=np.zeros((5, 156)), trans=np.zeros((5, 3)))
    if name == "two.npz":
        np.savez(tmp_path / name, a=walk, b=walk)
    path = find_sources([tmp_path])[name.split(".")[0]]
    with pytest.raises(UserError, match=message) as error:
        read_clip(path, Reading())
    assert len(str(error.value).replace(str(tmp_path), "")) <= 200


def test_a_clip_is_looked_over_for_its_posture(walk):
    order = np.random.default_rng(0).permutation(22)
    assert posture_problems(walk, T2M) == []
    for clip, problem in (
        (walk * (1, -1, -1), "upside down"),
        (walk * (-1, 1, 1), "mirrored"),
        (walk + (0, 1, 0), "floating"),
        (walk[..., [0, 2, 1]] * (1, -1, 1), "lying"),
        (walk[:, order], ""),
    ):
        found = posture_problems(clip, T2M)
        assert found and any(problem in text for text in found), problem


def test_what_is_recognised_is_explained_and_reported(tmp_path, walk, capsys):
    (tmp_path / "in").mkdir()
    write_bvh(tmp_path / "in/walk.bvh", walk, T2M)
    assert run("--explain", tmp_path / "in/walk.bvh") == 0
    said = capsys.readouterr().out
    for words in (
        "left_knee       left_knee",
        "unit            cm",
        "up              y",
        "fps             20",
        "usable",
    ):
        assert words in said, words
    assert list(tmp_path.iterdir()) == [tmp_path / "in"]
    (tmp_path / "in/bad.bvh").write_text("HIERARCHY\n")
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 0
    report = (tmp_path / "out/report.txt").read_text()
    assert "left_knee       left_knee" in report and "rejected: " in report and "bad.bvh" in report


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


# splits and captions

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


@pytest.mark.parametrize("caption, line", [
    ("a person walks  slowly", "a person walks slowly#a/OTHER person/OTHER walks/OTHER slowly/OTHER#0.0#0.0"),
    ("A man #2 sits down.", "A man 2 sits down.#a/OTHER man/OTHER 2/OTHER sits/OTHER down/OTHER#0.0#0.0"),
    ("already#al/ADV#1.0#2.0", "already#al/ADV#1.0#2.0")])
def test_a_caption_becomes_a_text_line(caption, line):
    assert text_line(caption) == line


def test_mirrored_captions_change_sides_and_back():
    line = text_line("Left hand up, turns counter-clockwise to the right, leftover")
    mirrored = mirror_line(line)
    assert (
        mirrored.startswith("Right hand up, turns clockwise to the left, leftover#right/OTHER")
        and "counter" not in mirrored
    )
    assert mirror_line(mirrored) == line.replace("counter-clockwise", "counterclockwise")


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
