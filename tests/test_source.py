"""From a source file to joints in metres, y up, at the data set's rate: units, axes, sides, rates, shapes."""
import numpy as np
import pytest

from dataset.prepare.axes import find_unit, posture_problems
from dataset.prepare.convert import write_dataset
from dataset.prepare.demo import make_clips
from dataset.prepare.joint_maps import to_kit
from dataset.prepare.source import Reading, find_sources, leading_pose, read_clip, resample
from export.bvh import write_bvh
from tests.test_motion_process import random_clip
from tests.test_prepare import run
from utils.errors import UserError
from utils.motion_process import extract_features
from utils.motion_spec import get_spec

T2M, KIT = get_spec("t2m"), get_spec("kit")


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
