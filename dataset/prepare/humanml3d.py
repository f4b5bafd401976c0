"""AMASS motion capture to a training folder: HumanML3D, as its notebooks make it, or every clip by itself."""
import csv
import glob
import os
import re
import zipfile
import zlib
from collections import Counter
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
BODY = ("v_template", "shapedirs", "J_regressor", "kintree_table")


def key_of(path):
    """Return (data set, subject, name) of an AMASS file: the same under its old and its present name."""
    data_set, subject, name = Path("-", str(path).replace(" ", "_")).parts[-3:]
    return TODAY.get(data_set, data_set), subject, re.sub(r"\.np[yz]$", "", name)


def is_whole_zip(path):
    """Return whether a file is a zip archive whose members all fit their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError):
        return False


def read_repo(repo):
    """Return HumanML3D's clips [(key, id, first frame, last + 1)], and its splits {split: ids}.

    Raises UserError for a clone of its repository that lacks something.
    """
    for path in (Path(repo, TEXT_ZIP), Path(repo, HUMANACT_ZIP)):
        if not is_whole_zip(path):
            found = f"is {describe_file(path)}" if path.is_file() else "no such file"
            raise UserError(f"{path}: {found}; expected a whole zip archive, of a clone of HumanML3D")
    path, expected = Path(repo, INDEX), "source_path,start_frame,end_frame,new_name"
    try:
        lines = csv.reader(read_text(path, expected).splitlines()[1:])
        rows = [(key_of(source), Path(name).stem, int(start), int(end))
                for source, start, end, name in filter(None, lines)]
    except ValueError as error:
        raise UserError(f"{path}: {error}; expected {expected}") from None
    return rows, {path.stem: read_ids(path) for path in Path(repo, "HumanML3D").glob("*.txt")}


def find_amass(folder):
    """Return {key: (path, None)} of the SMPL+H clips below a folder, and {data set: why it is of no use yet}.

    Raises UserError where there is no clip, as in the SMPL-X release of AMASS.
    """
    clips, unusable, root = {}, {}, Path(folder).resolve()
    for path in (root / name for name in sorted(glob.glob("**/*.*", root_dir=root, recursive=True))):
        if path.name.endswith("_poses.npz"):
            clips.setdefault(key_of(path), (path, None))
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
    """Return {gender: (joints (22, 3), shapes (22, 3, 10))} of the SMPL+H models in or near a folder.

    Raises UserError where there are none, or other bodies.
    """
    near = [Path(folder), Path(folder).resolve().parent, *sorted(Path(folder).glob("*"))]
    for place in (place for path in near for place in (path, path / "smplh")):
        paths = {gender: place / gender / "model.npz" for gender in ("male", "female")}
        if all(path.is_file() for path in paths.values()):
            return {gender: read_body(path) for gender, path in paths.items()}
    raise UserError(f"{folder}: no smplh/male/model.npz and smplh/female/model.npz here, a level up or down; "
                    f"they hold {', '.join(BODY)} (Extended SMPL+H model)")


def read_body(path):
    try:
        with np.load(path) as file:
            template, shapes, regressor, _ = (file[part] for part in BODY)
    except Exception as error:  # numpy raises nearly anything for a damaged file
        raise UserError(f"{path}: {str(error)[:50]}; expected {', '.join(BODY)} of SMPL+H") from None
    if len(regressor) != 52:
        raise UserError(f"{path}: {len(regressor)} joints; expected SMPL+H's 52, not SMPL's or SMPL-X's")
    regressor = regressor[:T2M.joints]
    return regressor @ template, np.einsum("jv,vcs->jcs", regressor, shapes[..., :10])


@lru_cache(maxsize=1)   # several clips come of one file
def read_amass(path, body_models, published):
    """Return joints (T, 22, 3) float64 in metres, y up, at 20 fps, of an AMASS file after its LEADING frames.

    published: take every int(fps / 20)-th frame, as HumanML3D does. Raises UserError for another file.
    """
    with np.load(path) as file:
        fps = float(file["mocap_framerate"])
        step = int(fps / T2M.fps) if published else 1
        poses, trans = (file[name][::step].astype(np.float64) for name in ("poses", "trans"))
        template, shapes = find_bodies(body_models)["male" if file["gender"].item() == "male" else "female"]
        rest = template + shapes @ file["betas"][:10]
    if poses.shape[1:] != (156,) or trans.shape != (len(poses), 3):
        raise UserError(f"{path}: poses {poses.shape}, trans {trans.shape}; expected (T, 156) and (T, 3)")
    turns = Rotation.from_rotvec(poses[:, :3 * T2M.joints].reshape(-1, 3)).as_matrix()
    turns = turns.reshape(len(poses), T2M.joints, 3, 3)
    joints = rest + trans[:, None]
    for joint, parent in list(enumerate(T2M.parents))[1:]:
        joints[:, joint] = joints[:, parent] + turns[:, parent] @ (rest[joint] - rest[parent])
        turns[:, joint] = turns[:, parent] @ turns[:, joint]
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
    (sources, unusable), splits = find_amass(amass), None
    if repo:
        rows, splits = read_repo(repo)
        for name in np.load(Path(repo, HUMANACT_ZIP)).files:
            sources["humanact12", "humanact12", Path(name).stem] = (Path(repo, HUMANACT_ZIP), name)
    else:
        rows = [(key, re.sub(r"[^\w.-]", "_", "_".join(key)), 0, None) for key in sources]
    missing = Counter(key[0] for key, *_ in rows if key not in sources)
    for name in missing if repo else unusable:
        count = f", {missing[name]} rows of {INDEX}" * bool(repo)
        print(f"warning: {name} is missing{count}: {unusable.get(name, 'no such files')}")
    if settings.pop("strict") and missing:
        raise UserError(f"{amass}: lacks the sources of {sum(missing.values())} clips (--strict)")
    clips = [(name, (*sources.get(key, ("/".join(key), None)), start, end), ())
             for key, name, start, end in sorted(rows)]
    report = write_dataset(out, clips, "t2m", reading=(body_models, bool(repo)), read=read_row, joints=False,
                           splits=splits, **settings)
    print(f"{out}: {len(report.records)} clips; {len(report.rejected)} left out, named in {REPORT}")
    if not repo:
        return
    for split, ids in splits.items():
        made = len(report.splits[split])
        print(f"{split}: {made} clips; {len(ids) - made} have no motion here")
    with zipfile.ZipFile(Path(repo, TEXT_ZIP)) as archive:
        for path in map(Path, archive.namelist()):
            if path.suffix == ".txt" and path.stem.removeprefix("M") in report.records:
                with atomic_write(Path(out, TEXTS, path.name)) as file:
                    file.write(archive.read(path.as_posix()))
    for part in (f"{FEATURES}/012314.npy", "Mean.npy", "Std.npy"):
        paths = Path(out, part), Path(repo, "HumanML3D", part)
        if all(path.is_file() for path in paths):
            own, published = map(load_array, paths)
            far = f"{np.abs(own - published).max():.1e}" if own.shape == published.shape else "another shape"
            print(f"{part}: largest difference from the published one: {far}")
