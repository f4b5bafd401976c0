"""AMASS motion capture to a training folder: HumanML3D, as its notebooks make it, or every clip by itself."""
import csv
import os
import re
import zipfile
from collections import Counter, namedtuple
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from dataset.motion_folder import read_ids
from dataset.prepare.convert import FEATURES, REPORT, TEXTS, write_dataset
from dataset.prepare.source import resample
from utils.errors import UserError
from utils.files import atomic_write, describe_file, load_array, read_text
from utils.motion_spec import T2M

INDEX, TEXT_ZIP, HUMANACT_ZIP = "index.csv", "HumanML3D/texts.zip", "pose_data/humanact12.zip"
# index.csv's folders → AMASS's folders today
TODAY = {"BioMotionLab_NTroje": "BMLrub", "DFaust_67": "DFaust", "MPI_HDM05": "HDM05", "MPI_mosh": "MoSh",
         "MPI_Limits": "PosePrior", "SSM_synced": "SSM", "Transitions_mocap": "Transitions",
         "EyesJapanDataset": "Eyes_Japan_Dataset", "pose_data": "humanact12"}
# frames at 20 fps without motion, cut off first
LEADING = {"Eyes_Japan_Dataset": 60, "HDM05": 60, "TotalCapture": 20, "PosePrior": 20, "Transitions": 10}

Row = namedtuple("Row", "name key start end")               # a clip: frames start to end of a source
Body = namedtuple("Body", "template shapes parents")        # of 22 joints: (22, 3), (22, 3, 10), (22,)


def key_of(path):
    """Return (data set, subject, name) of an AMASS file: the same under its old and its present name."""
    data_set, subject, name = Path("-", str(path).replace(" ", "_")).parts[-3:]
    return TODAY.get(data_set, data_set), subject, re.sub(r"\.np[yz]$", "", name)


def read_repo(repo):
    """Return the rows of HumanML3D's index.csv, and its splits {split: ids}.

    Raises UserError for a clone of its repository that lacks something.
    """
    for path in (Path(repo, TEXT_ZIP), Path(repo, HUMANACT_ZIP)):
        try:
            whole = zipfile.ZipFile(path).testzip() is None
        except Exception:  # zipfile raises nearly anything for a damaged file
            whole = False
        if not whole:
            found = f"is {describe_file(path)}" if path.is_file() else "no such file"
            raise UserError(f"{path}: {found}; expected a whole zip archive, of a clone of HumanML3D")
    path, expected = Path(repo, INDEX), "source_path,start_frame,end_frame,new_name"
    try:
        lines = csv.reader(read_text(path, expected).splitlines()[1:])
        rows = [Row(Path(name).stem, key_of(source), int(start), int(end))
                for source, start, end, name in filter(None, lines)]
    except ValueError as error:
        raise UserError(f"{path}: {error}; expected {expected}") from None
    return rows, {path.stem: read_ids(path) for path in Path(repo, "HumanML3D").glob("*.txt")}


def find_amass(folder):
    """Return {key: path} of the SMPL+H clips below a folder, and {data set: why} of what is of no use yet.

    Raises UserError where there is no clip, as in the SMPL-X release of AMASS.
    """
    clips, unusable = {}, {}
    for root, folders, names in os.walk(Path(folder).resolve(), followlinks=True):
        folders.sort()
        for path in (Path(root, name) for name in sorted(names)):
            if path.name.endswith("_poses.npz"):
                clips.setdefault(key_of(path), path)
            elif path.name.endswith("_stageii.npz"):
                unusable[key_of(path)[0]] = f"{path} is of the SMPL-X release; download the SMPL+H G files"
            elif path.suffix in (".bz2", ".gz", ".xz", ".tar", ".zip"):
                data_set, command = path.name.split(".")[0], "unzip" if path.suffix == ".zip" else "tar xf"
                unusable[TODAY.get(data_set, data_set)] = f"cd {path.parent}; {command} {path.name}"
    if not clips:
        hint = next(iter(unusable.values()), "--amass takes the folder that AMASS was unpacked in")
        raise UserError(f"{folder}: no *_poses.npz below it; {hint}")
    return clips, unusable


@lru_cache(maxsize=1)
def find_bodies(folder):
    """Return {gender: Body} of the SMPL+H models in or near a folder. Raises UserError without them."""
    near = [Path(folder), Path(folder).resolve().parent, *sorted(Path(folder).glob("*"))]
    for place in (place for path in near for place in (path, path / "smplh")):
        paths = {gender: place / gender / "model.npz" for gender in ("male", "female")}
        if all(path.is_file() for path in paths.values()):
            return {gender: read_body(path) for gender, path in paths.items()}
    raise UserError(f"{folder}: no smplh/male/model.npz and smplh/female/model.npz here, a level up or down; "
                    "they hold v_template, shapedirs, J_regressor, kintree_table (Extended SMPL+H model)")


def read_body(path):
    """Return the Body of a model file. Raises UserError for another kind of body."""
    try:
        with np.load(path) as file:
            regressor, parents = file["J_regressor"], file["kintree_table"][0].astype(np.int64)
            shapes = np.einsum("jv,vcs->jcs", regressor, file["shapedirs"][..., :10])
            template = regressor @ file["v_template"]
    except Exception as error:  # so does numpy
        raise UserError(f"{path}: {str(error)[:50]}; expected v_template, shapedirs, J_regressor, "
                        "kintree_table of the Extended SMPL+H model") from None
    if len(regressor) != 52:
        raise UserError(f"{path}: {len(regressor)} joints; expected SMPL+H's 52, not SMPL's or SMPL-X's")
    return Body(template[:T2M.joints], shapes[:T2M.joints], parents[:T2M.joints])


def pose_joints(poses, rest, parents):
    """Return joints (T, J, 3) by forward kinematics of axis-angle poses (T, 3 J) over rest joints (J, 3)."""
    turns = Rotation.from_rotvec(poses.reshape(-1, 3)).as_matrix().reshape(len(poses), -1, 3, 3)
    joints = np.repeat(rest[None], len(poses), 0)
    for joint, parent in list(enumerate(parents))[1:]:
        joints[:, joint] = joints[:, parent] + turns[:, parent] @ (rest[joint] - rest[parent])
        turns[:, joint] = turns[:, parent] @ turns[:, joint]
    return joints


@lru_cache(maxsize=1)   # several clips come of one file
def read_amass(path, body_models, published):
    """Return joints (T, 22, 3) float64 in metres, y up, at 20 fps, of an AMASS file after its LEADING frames.

    published: take every int(fps / 20)-th frame, as HumanML3D does. Raises UserError for another file.
    """
    with np.load(path) as file:
        fps = float(file["mocap_framerate"])
        step = int(fps / T2M.fps) if published else 1
        poses, trans = (file[name][::step].astype(np.float64) for name in ("poses", "trans"))
        body = find_bodies(body_models)["male" if file["gender"].item() == "male" else "female"]
        rest = body.template + body.shapes @ file["betas"][:10]
    if poses.shape[1:] != (156,) or trans.shape != (len(poses), 3):
        raise UserError(f"{path}: poses {poses.shape}, trans {trans.shape}; expected (T, 156) and (T, 3)")
    joints = pose_joints(poses[:, :3 * T2M.joints], rest, body.parents) + trans[:, None]
    joints = joints[..., [0, 2, 1]] * (-1, 1, 1)
    return (joints if published else resample(joints, fps, T2M.fps))[LEADING.get(key_of(path)[0], 0):]


def read_row(source, reading):
    """Return joints (T, 22, 3) of a clip, and nothing else found. Raises UserError where there is no motion.

    source: an archive, and the name of joints in it; or an AMASS file, None, first frame, last frame + 1.
    reading: folder of body models; whether frames are taken as published.
    """
    path, member, start, end = source
    if not os.path.exists(path):
        raise UserError(f"no source {path}")
    if member:
        return np.load(path)[member][:, :T2M.joints], {}
    clip = read_amass(path, *reading)[start:end]
    if len(clip) < 2:
        raise UserError(f"{len(clip)} frames from {start} to {end} of {path}")
    return clip, {}


def build(out, amass, body_models, repo=None, **settings):
    """Make HumanML3D of AMASS by a clone `repo` of its repository; without one, every AMASS clip by itself.

    settings: those of `write_dataset`. Raises UserError for what cannot be used, and, where `strict` is among
    them, for missing sources.
    """
    find_bodies(body_models)
    found, unusable = find_amass(amass)
    sources, splits = {key: (path, None) for key, path in found.items()}, None
    if repo:
        rows, splits = read_repo(repo)
        for name in np.load(Path(repo, HUMANACT_ZIP)).files:
            sources["humanact12", "humanact12", Path(name).stem] = (Path(repo, HUMANACT_ZIP), name)
    else:
        rows = [Row(re.sub(r"[^\w.-]", "_", "_".join(key)), key, 0, None) for key in sources]
    missing = Counter(row.key[0] for row in rows if row.key not in sources)
    for name in missing if repo else unusable:
        count = f", {missing[name]} rows of {INDEX}" * bool(repo)
        print(f"warning: {name} is missing{count}: {unusable.get(name, 'no such files')}")
    if settings.pop("strict") and missing:
        raise UserError(f"{amass}: lacks the sources of {sum(missing.values())} clips (--strict)")
    clips = [(row.name, (*sources.get(row.key, ("/".join(row.key), None)), row.start, row.end), ())
             for row in sorted(rows, key=lambda row: row.key)]
    report = write_dataset(out, clips, "t2m", reading=(body_models, bool(repo)), read=read_row, joints=False,
                           splits=splits, **settings)
    print(f"{out}: {len(report.records)} clips; {len(report.rejected)} left out, named in {REPORT}")
    for split, ids in (splits or {}).items():
        made = len(report.splits[split])
        print(f"{split}: {made} clips; {len(ids) - made} have no motion here")
    if repo:
        finish(Path(out), repo, report)


def finish(out, repo, report):
    """Write the captions, and print how far clip and statistics are from those that the repository holds."""
    with zipfile.ZipFile(Path(repo, TEXT_ZIP)) as archive:
        for path in map(Path, archive.namelist()):
            if path.suffix == ".txt" and path.stem.removeprefix("M") in report.records:
                with atomic_write(out / TEXTS / path.name) as file:
                    file.write(archive.read(path.as_posix()))
    for part in (f"{FEATURES}/012314.npy", "Mean.npy", "Std.npy"):
        if (out / part).is_file() and Path(repo, "HumanML3D", part).is_file():
            own, published = load_array(out / part), load_array(Path(repo, "HumanML3D", part))
            far = f"{np.abs(own - published).max():.1e}" if own.shape == published.shape else "another shape"
            print(f"{part}: largest difference from the published one: {far}")
    if "007975" in report.rejected or "007975" in report.records:
        print(f"007975, which was published with NaN: {report.rejected.get('007975', 'finite here')}")
