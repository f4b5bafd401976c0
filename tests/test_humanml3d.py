"""HumanML3D from AMASS: the protocol spelled out on a made body and tree, and what people run into."""
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dataset.prepare import humanml3d
from dataset.prepare.__main__ import main
from utils.motion_process import extract_features, group_statistics, mirror
from utils.motion_spec import T2M

ROOT = Path(__file__).parent.parent
PARENTS = [*T2M.parents, *[20] * 15, *[21] * 15]
# file below amass/ → (frames per second, gender, frames)
FILES = {"KIT/3/walk_poses.npz": (100.0, "male", 200),
         "Eyes_Japan_Dataset/hamada/a_b_poses.npz": (59.94, "female", 190),
         "nested/BMLrub/rub001/jog_poses.npz": (250.0, "neutral", 500)}
INDEX = """source_path,start_frame,end_frame,new_name
./pose_data/KIT/3/walk_poses.npy,0,30,000000.npy
./pose_data/KIT/3/walk_poses.npy,10,90,000001.npy
./pose_data/Eyes_Japan_Dataset/hamada/a b_poses.npy,5,35,000002.npy
./pose_data/BioMotionLab_NTroje/rub001/jog_poses.npy,0,40,000003.npy
./pose_data/humanact12/P01.npy,0,-1,000004.npy
./pose_data/KIT/3/walk_poses.npy,39,40,000005.npy
./pose_data/ACCAD/s/stand_poses.npy,0,60,000006.npy
./pose_data/KIT/3/walk_poses.npy,50,80,000007.npy
"""
MADE = ["000000", "000001", "000002", "000003", "000004"]


def body(seed, joints=52):
    rng = np.random.default_rng(seed)
    regressor = rng.random((joints, 80)) ** 8
    parents = np.array([2 ** 32 - 1, *PARENTS[1:]], np.uint32)[:joints]
    return dict(v_template=rng.normal(0, 0.8, (80, 3)), shapedirs=rng.normal(0, 0.02, (80, 3, 16)),
                J_regressor=regressor / regressor.sum(1, keepdims=True),
                kintree_table=np.stack([parents, np.arange(joints, dtype=np.uint32)]))


def motion(frames, seed):
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 1, frames)[:, None]
    poses = 0.4 * np.sin(6 * time * rng.random(156) + rng.uniform(0, 6, 156))
    return dict(poses=poses, trans=np.cumsum(rng.normal(0, 0.002, (frames, 3)), 0), betas=rng.normal(size=16))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A clone of HumanML3D's repository, a folder of AMASS and one of body models, all made up."""
    root = tmp_path_factory.mktemp("tree")
    for i, gender in enumerate(("male", "female")):
        (root / "bodies/smplh" / gender).mkdir(parents=True)
        np.savez(root / "bodies/smplh" / gender / "model.npz", **body(i))
    for i, (name, (fps, gender, frames)) in enumerate(FILES.items()):
        (root / "amass" / name).parent.mkdir(parents=True)
        np.savez(root / "amass" / name, **motion(frames, i), gender=gender, mocap_framerate=fps)
        np.savez((root / "amass" / name).with_name("shape.npz"), betas=np.zeros(16))
    (root / "repo/HumanML3D").mkdir(parents=True)
    (root / "repo/pose_data").mkdir()
    (root / "repo/index.csv").write_text(INDEX)
    np.save(root / "P01.npy", np.random.default_rng(9).normal(size=(30, 24, 3)))
    with zipfile.ZipFile(root / "repo/pose_data/humanact12.zip", "w") as file:
        file.write(root / "P01.npy", "humanact12/P01.npy")
    ids = [clip for i in range(8) for clip in (f"{i:06d}", f"M{i:06d}")]
    with zipfile.ZipFile(root / "repo/HumanML3D/texts.zip", "w") as file:
        for clip in ids:
            file.writestr(f"texts/{clip}.txt", f"walks {clip}#walks/VERB#0.0#0.0\n")
    for split, own in (("train", ids[:6] + ids[-4:]), ("val", ids[6:8]), ("test", ids[8:10]), ("all", ids)):
        (root / f"repo/HumanML3D/{split}.txt").write_text("".join(f"{clip}\n" for clip in own))
    return root


def run(tree, out, *flags, **folders):
    folders = dict(humanml3d=tree / "repo", amass=tree / "amass", body_models=tree / "bodies") | folders
    named = [f"--{name.replace('_', '-')}={path}" for name, path in folders.items() if path]
    return main([*named, "--out", str(out), "--workers", "2", *flags])


@pytest.fixture(scope="module")
def made(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    assert run(tree, out) == 0
    return out


def expected_joints(name, model, cut):
    """The joints of frames `cut` of an AMASS file, by 4 x 4 matrices, one frame and joint at a time."""
    fps, _, frames = FILES[name]
    clip = motion(frames, list(FILES).index(name))
    rest = model["J_regressor"] @ (model["v_template"] + model["shapedirs"][..., :10] @ clip["betas"][:10])
    result = []
    for pose, trans in zip(clip["poses"][::int(fps / 20)][cut], clip["trans"][::int(fps / 20)][cut]):
        placed = []
        for joint, parent in enumerate(PARENTS[:22]):
            own = np.eye(4)
            own[:3, :3] = Rotation.from_rotvec(pose[3 * joint:3 * joint + 3]).as_matrix()
            own[:3, 3] = rest[joint] - (rest[parent] if joint else 0)
            placed.append(placed[parent] @ own if joint else own)
        result.append([matrix[:3, 3] + trans for matrix in placed])
    x, y, z = np.moveaxis(np.array(result), -1, 0)
    return np.stack([-x, z, y], -1)


@pytest.mark.parametrize("clip, name, gender, frames", [
    ("000000", "KIT/3/walk_poses.npz", 0, slice(0, 30)), ("000001", "KIT/3/walk_poses.npz", 0, slice(10, 90)),
    ("000002", "Eyes_Japan_Dataset/hamada/a_b_poses.npz", 1, slice(65, 95)),
    ("000003", "nested/BMLrub/rub001/jog_poses.npz", 1, slice(0, 40))])
def test_clips_equal_the_protocol_spelled_out(made, clip, name, gender, frames):
    joints = expected_joints(name, body(gender), frames)
    for prefix, own in (("", joints), ("M", mirror(joints, T2M))):
        features = np.load(made / f"new_joint_vecs/{prefix}{clip}.npy")
        np.testing.assert_allclose(features, extract_features(own, "t2m"), atol=1e-5)


def test_clips_of_humanact12_are_taken_whole(made, tree):
    expected = extract_features(np.load(tree / "P01.npy")[:, :22], "t2m")
    np.testing.assert_array_equal(np.load(made / "new_joint_vecs/000004.npy"), expected)


def test_splits_texts_and_statistics_hold_the_clips_that_could_be_made(made):
    ids = [clip for name in MADE for clip in (name, f"M{name}")]
    assert sorted(path.stem for path in (made / "new_joint_vecs").iterdir()) == sorted(ids)
    assert (made / "all.txt").read_text().split() == ids
    assert (made / "train.txt").read_text().split() == ids[:6]
    assert (made / "val.txt").read_text().split() == ids[6:8]
    assert sorted(path.stem for path in (made / "texts").iterdir()) == sorted(ids)
    assert (made / "texts/M000003.txt").read_text() == "walks M000003#walks/VERB#0.0#0.0\n"
    mean, std = group_statistics([np.load(made / f"new_joint_vecs/{clip}.npy") for clip in ids], T2M)
    np.testing.assert_allclose(np.load(made / "Mean.npy"), mean, atol=1e-6)
    np.testing.assert_allclose(np.load(made / "Std.npy"), std, atol=1e-6)


def test_what_is_left_out_is_named(made):
    report = (made / "report.txt").read_text().splitlines()
    assert [line[:6] for line in report if "rejected" in line] == ["000006", "000005", "000007"]
    assert "no source ACCAD/s/stand_poses" in report[0]
    assert "1 frames" in report[1] and "0 frames" in report[2] and "KIT/3/walk_poses" in report[2]


def test_a_second_run_goes_on(made, tree, capsys):
    folder = made / "new_joint_vecs"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "000001.npy").unlink()
    (folder / "000003.npy.99.tmp").write_bytes(b"half")
    assert run(tree, made) == 0
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} == {"000001.npy", "M000001.npy"}
    assert "ACCAD is missing, 1 rows" in capsys.readouterr().out


def test_the_published_references_are_compared_with(made, tree, capsys):
    reference = tree / "repo/HumanML3D/Mean.npy"
    np.save(reference, np.load(made / "Mean.npy") + np.eye(263)[7] * 0.25)
    try:
        assert run(tree, made) == 0
    finally:
        reference.unlink()
    assert "Mean.npy: largest difference from the published one: 2.5e-01" in capsys.readouterr().out


def test_every_clip_by_itself_without_humanml3d(tree, tmp_path):
    assert run(tree, tmp_path / "out", humanml3d=None) == 0
    lengths = {path.stem: len(np.load(path)) for path in (tmp_path / "out/new_joint_vecs").iterdir()}
    # 2 s at 20 fps, and 3.17 s of which 3 are cut off
    assert lengths == {"KIT_3_walk_poses": 39, "BMLrub_rub001_jog_poses": 39,
                       "Eyes_Japan_Dataset_hamada_a_b_poses": 3}
    assert sorted((tmp_path / "out/all.txt").read_text().split()) == sorted(lengths)


def refused(tree, tmp_path, capsys, *flags, **folders):
    """What the command says when it refuses before any work."""
    with pytest.raises(SystemExit, match="2"):
        run(tree, tmp_path / "out", *flags, **folders)
    assert not (tmp_path / "out").exists()
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return said


def test_missing_sources_with_strict(tree, tmp_path, capsys):
    assert "lacks the sources of 1 clips" in refused(tree, tmp_path, capsys, "--strict")


def test_a_broken_index_is_refused(tree, tmp_path, capsys):
    shutil.copytree(tree / "repo", tmp_path / "repo")
    (tmp_path / "repo/index.csv").write_text(INDEX.replace("0,30", "0,x"))
    assert "index.csv: invalid literal" in refused(tree, tmp_path, capsys, humanml3d=tmp_path / "repo")


def test_an_archive_left_packed_is_named_with_its_command(tree, tmp_path, capsys):
    (tmp_path / "amass").mkdir()
    for path in (tree / "amass").iterdir():
        (tmp_path / "amass" / path.name).symlink_to(path)
    (tmp_path / "amass/ACCAD.tar.bz2").write_bytes(b"BZh")
    assert run(tree, tmp_path / "out", amass=tmp_path / "amass") == 0
    said = capsys.readouterr().out
    assert "ACCAD is missing, 1 rows of index.csv" in said and "tar xf ACCAD.tar.bz2" in said
    assert run(tree, tmp_path / "own", amass=tmp_path / "amass", humanml3d=None) == 0
    assert "ACCAD is missing: " in capsys.readouterr().out


def test_smplx_is_refused_by_name(tree, tmp_path, capsys):
    (tmp_path / "KIT/3").mkdir(parents=True)
    np.savez(tmp_path / "KIT/3/walk_stageii.npz", surface_model_type="smplx")
    said = refused(tree, tmp_path, capsys, amass=tmp_path)
    assert "SMPL-X" in said and "SMPL+H G" in said


@pytest.mark.parametrize("place", ["bodies/smplh", "bodies/smplh/male", "."])
def test_body_models_are_found_a_level_up_or_down(tree, place):
    assert humanml3d.find_bodies(tree / place).keys() == {"male", "female"}


def test_other_body_models_are_refused(tree, tmp_path, capsys):
    assert "no smplh/male/model.npz" in refused(tree, tmp_path, capsys, body_models=tree / "amass/KIT/3")
    for gender in ("male", "female"):
        (tmp_path / "smpl" / gender).mkdir(parents=True)
        np.savez(tmp_path / "smpl" / gender / "model.npz", **body(0, 24))
    assert "24 joints; expected SMPL+H" in refused(tree, tmp_path, capsys, body_models=tmp_path / "smpl")
    np.savez(tmp_path / "smpl/male/model.npz", v_template=0)
    assert "expected v_template" in refused(tree, tmp_path, capsys, body_models=tmp_path / "smpl")


@pytest.mark.parametrize("part", ["HumanML3D/texts.zip", "pose_data/humanact12.zip"])
def test_a_clone_without_its_archives_is_refused(tree, tmp_path, capsys, part):
    shutil.copytree(tree / "repo", tmp_path / "repo")
    (tmp_path / "repo" / part).write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "Git LFS" in refused(tree, tmp_path, capsys, humanml3d=tmp_path / "repo")
    (tmp_path / "repo" / part).write_bytes((tree / "repo" / part).read_bytes()[:-30])
    assert "expected a whole zip" in refused(tree, tmp_path, capsys, humanml3d=tmp_path / "repo")
    damaged = bytearray((tree / "repo" / part).read_bytes())
    damaged[60] ^= 255  # within the first member
    (tmp_path / "repo" / part).write_bytes(damaged)
    assert "expected a whole zip" in refused(tree, tmp_path, capsys, humanml3d=tmp_path / "repo")
    (tmp_path / "repo" / part).unlink()
    assert "no such file" in refused(tree, tmp_path, capsys, humanml3d=tmp_path / "repo")


def test_a_folder_of_other_clips_is_left_alone(tree, tmp_path, capsys):
    (tmp_path / "out/new_joint_vecs").mkdir(parents=True)
    np.save(tmp_path / "out/new_joint_vecs/000000.npy", np.zeros(3))
    with pytest.raises(SystemExit, match="2"):
        run(tree, tmp_path / "out")
    assert "of other sources" in capsys.readouterr().err
    assert np.load(tmp_path / "out/new_joint_vecs/000000.npy").shape == (3,)


@pytest.fixture
def walks(tree, tmp_path):
    """A copy of the tree's AMASS folder."""
    return shutil.copytree(tree / "amass", tmp_path / "amass")


def test_a_damaged_file_costs_its_own_clips_only(tree, tmp_path, walks):
    path = walks / "KIT/3/walk_poses.npz"
    path.write_bytes(path.read_bytes()[:5000])
    assert run(tree, tmp_path / "out", amass=walks) == 0
    assert (tmp_path / "out/test.txt").read_text().split() == ["000004", "M000004"]
    assert (tmp_path / "out/train.txt").read_text().split() == ["000002", "M000002"]
    report = (tmp_path / "out/report.txt").read_text()
    assert f"000001: rejected: {path}: unexpected, is the file sound? BadZipFile" in report


def test_a_file_of_another_body_is_left_out(tree, tmp_path, walks):
    clip = motion(200, 0) | dict(poses=np.zeros((200, 165)), gender="male", mocap_framerate=100)
    np.savez(walks / "KIT/3/walk_poses.npz", **clip)
    assert run(tree, tmp_path / "out", amass=walks) == 0
    assert "poses (40, 165), trans (40, 3); expected" in (tmp_path / "out/report.txt").read_text()


def test_a_disk_that_cannot_be_written_stops_the_run(tree, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/new_joint_vecs").write_text("a file where a folder is expected")
    with pytest.raises(SystemExit, match="2"):
        run(tree, tmp_path / "out")
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.slow
def test_no_torch_is_needed(tree, tmp_path):
    code = "import sys; from dataset.prepare.__main__ import main; main(); sys.exit('torch' in sys.modules)"
    flags = ["--humanml3d", tree / "repo", "--amass", tree / "amass", "--body-models", tree / "bodies"]
    subprocess.run([sys.executable, "-c", code, *flags, "--out", tmp_path / "out"], cwd=ROOT, check=True)
    assert (tmp_path / "out/Std.npy").is_file()


@pytest.mark.slow
def test_what_comes_out_trains(made, tmp_path):
    from tests.helpers import small_args
    from train_vq import main as train
    short = ("--window-size", "16", "--total-iter", "2", "--warm-up-iter", "1")
    assert train(small_args(made, tmp_path, *short)) == 0
