"""AMASS motion capture to a training folder: HumanML3D, as its notebooks make it, or every clip by itself."""
import csv
import os
import re
import zipfile
import zlib
from collections import Counter, namedtuple
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from dataset.prepare.convert import FEATURES, TEXTS, assign_splits, in_processes, with_copies, write_lines
from dataset.prepare.source import resample
from utils.errors import UserError
from utils.files import atomic_write, describe_file, exclusive_lock, load_array, remove_stale, save_array
from utils.motion_process import extract_features, group_statistics, mirror
from utils.motion_spec import T2M

INDEX, TEXT_ZIP, HUMANACT_ZIP = "index.csv", "HumanML3D/texts.zip", "pose_data/humanact12.zip"
SPLITS = [f"HumanML3D/{split}.txt" for split in ("train", "val", "test", "all", "train_val")]
REPORT = "report.txt"               # what is left out; it also tells a folder that was made here
# index.csv's folders → AMASS's folders today
TODAY = {"BioMotionLab_NTroje": "BMLrub", "DFaust_67": "DFaust", "MPI_HDM05": "HDM05", "MPI_mosh": "MoSh",
         "MPI_Limits": "PosePrior", "SSM_synced": "SSM", "Transitions_mocap": "Transitions",
         "EyesJapanDataset": "Eyes_Japan_Dataset", "pose_data": "humanact12"}
# frames at 20 fps without motion, cut off first
LEADING = {"Eyes_Japan_Dataset": 60, "HDM05": 60, "TotalCapture": 20, "PosePrior": 20, "Transitions": 10}
UNREADABLE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error)

Row = namedtuple("Row", "name key start end")               # a clip: frames start to end of a source
Body = namedtuple("Body", "template shapes parents")        # of 22 joints: (22, 3), (22, 3, 10), (22,)


def key_of(path):
    """Return (data set, subject, name) of an AMASS file: the same under its old and its present name."""
    data_set, subject, name = Path("-", str(path).replace(" ", "_")).parts[-3:]
    return TODAY.get(data_set, data_set), subject, re.sub(r"\.np[yz]$", "", name)


def read_index(repo):
    """Return the rows of HumanML3D's index.csv. Raises UserError for a clone that lacks something."""
    for path in (Path(repo, part) for part in (INDEX, TEXT_ZIP, HUMANACT_ZIP, *SPLITS[:4])):
        if not path.is_file():
            raise UserError(f"{path}: no such file; --humanml3d takes a clone of HumanML3D's repository")
        try:
            damaged = zipfile.ZipFile(path).testzip() if path.suffix == ".zip" else None
        except UNREADABLE:
            damaged = path
        if damaged:
            raise UserError(f"{path}: is {describe_file(path)}; expected a whole zip archive")
    try:
        lines = csv.reader(Path(repo, INDEX).read_text(encoding="utf-8").splitlines()[1:])
        return [Row(Path(name).stem, key_of(source), int(start), int(end))
                for source, start, end, name in filter(None, lines)]
    except ValueError as error:
        expected = "expected source_path,start_frame,end_frame,new_name"
        raise UserError(f"{repo}/{INDEX}: {error}; {expected}") from None


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
    except UNREADABLE as error:
        raise UserError(f"{path}: {str(error)[:50]}; expected v_template, shapedirs, J_regressor, "
                        "kintree_table of the Extended SMPL+H model") from None
    if len(regressor) != 52:
        raise UserError(f"{path}: {len(regressor)} joints; expected SMPL+H's 52, not SMPL's or SMPL-X's")
    return Body(template[:T2M.joints], shapes[:T2M.joints], parents[:T2M.joints])


def read_amass(path, bodies, every_frame=False):
    """Return joints (T, 22, 3) float64 in metres, y up, of an AMASS file, and its frame rate.

    T: every int(fps / 20)-th frame, as HumanML3D does, or every one. Raises UserError for another file.
    """
    try:
        with np.load(path) as file:
            fps = float(file["mocap_framerate"])
            step = 1 if every_frame else int(fps / T2M.fps)
            poses, trans = (file[name][::step].astype(np.float64) for name in ("poses", "trans"))
            body = bodies["male" if file["gender"].item() == "male" else "female"]
            rest = body.template + body.shapes @ file["betas"][:10]
    except UNREADABLE as error:
        raise UserError(f"{path}: not a whole AMASS file of SMPL+H ({str(error)[:60]})") from None
    if poses.shape[1:] != (156,) or trans.shape != (len(poses), 3):
        raise UserError(f"{path}: poses {poses.shape}, trans {trans.shape}; expected (T, 156) and (T, 3)")
    joints = pose_joints(poses[:, :3 * T2M.joints], rest, body.parents) + trans[:, None]
    return joints[..., [0, 2, 1]] * (-1, 1, 1), fps


def pose_joints(poses, rest, parents):
    """Return joints (T, J, 3) by forward kinematics of axis-angle poses (T, 3 J) over rest joints (J, 3)."""
    turns = Rotation.from_rotvec(poses.reshape(-1, 3)).as_matrix().reshape(len(poses), -1, 3, 3)
    joints = np.repeat(rest[None], len(poses), 0)
    for joint, parent in list(enumerate(parents))[1:]:
        joints[:, joint] = joints[:, parent] + turns[:, parent] @ (rest[joint] - rest[parent])
        turns[:, joint] = turns[:, parent] @ turns[:, joint]
    return joints


def convert(job):
    """Write the features of the clips of one source. Return {name: why it was left out, or None}.

    A source is an AMASS file, or an .npz archive of joints and a name in it.
    """
    out, source, rows, bodies, published, mirrored = job
    try:
        if isinstance(source, tuple):
            joints = np.load(source[0])[source[1]][:, :T2M.joints]
        else:
            joints, fps = read_amass(source, bodies, every_frame=not published)
            joints = joints if published else resample(joints, fps, T2M.fps)
            joints = joints[LEADING.get(key_of(source)[0], 0):]
    except (UserError, *UNREADABLE) as error:
        return {row.name: str(error) for row in rows}
    made = {}
    for row in rows:
        clip = joints[row.start:row.end]
        if len(clip) < 2:
            made[row.name] = f"{len(clip)} frames from {row.start} to {row.end} of {source}"
            continue
        clips = {row.name: clip} | ({f"M{row.name}": mirror(clip, T2M)} if mirrored else {})
        clips = {name: extract_features(clip, "t2m") for name, clip in clips.items()}
        finite = all(np.isfinite(features).all() for features in clips.values())
        made[row.name] = None if finite else f"not finite: frames {row.start} to {row.end} of {source}"
        for name, features in clips.items() if finite else ():
            save_array(out / FEATURES / f"{name}.npy", features)
    return made


def build(out, amass, body_models, repo=None, fractions=(), mirrored=True, workers=None, strict=False):
    """Make HumanML3D of AMASS by a clone `repo` of its repository; without one, every AMASS clip by itself.

    Clips made earlier are kept. Raises UserError for what cannot be used, with `strict` for missing sources.
    """
    out, bodies, (sources, unusable) = Path(out), find_bodies(body_models), find_amass(amass)
    if repo:
        rows, archive = read_index(repo), Path(repo, HUMANACT_ZIP)
        rows = [row._replace(start=0, end=None) if row.key[0] == "humanact12" else row for row in rows]
        for name in np.load(archive).files:
            sources[key_of(Path("pose_data/humanact12", Path(name).name))] = (archive, name)
    else:
        rows = [Row(re.sub(r"[^\w.-]", "_", "_".join(key)), key, 0, None) for key in sources]
        print("".join(f"warning: {name} is not read: {hint}\n" for name, hint in unusable.items()), end="")
    left_out = {row.name: f"no source {'/'.join(row.key)}" for row in rows if row.key not in sources}
    for name, count in Counter(row.key[0] for row in rows if row.key not in sources).most_common():
        print(f"warning: {name} is missing, {count} rows of {INDEX}: {unusable.get(name, 'no such files')}")
    if strict and left_out:
        raise UserError(f"{amass}: lacks the sources of {len(left_out)} clips (--strict)")
    with exclusive_lock(out, "name another folder with --out"):
        there = {path.stem for path in (out / FEATURES).glob("*.npy")}
        if there and not (out / REPORT).is_file():
            raise UserError(f"{out}: holds clips that were not made here; name another folder with --out")
        write_lines(out / REPORT, ["unfinished"])
        remove_stale(out / FEATURES)
        work = {}
        for row in rows:
            if row.key in sources and not there.issuperset(with_copies([row.name], mirrored)):
                work.setdefault(row.key, []).append(row)
        jobs = [(out, sources[key], own, bodies, bool(repo), mirrored) for key, own in work.items()]
        with tqdm(total=sum(map(len, work.values())), unit="clip", disable=not jobs) as bar:
            for made in in_processes(out, convert, jobs, workers):
                left_out |= {name: why for name, why in made.items() if why}
                bar.update(len(made))
        write_lines(out / REPORT, (f"{name}: {why}" for name, why in left_out.items()))
        names = [row.name for row in rows if row.name not in left_out]
        if not names:
            raise UserError(f"{out}: none of {len(rows)} clips can be made; {out / REPORT} says why")
        write_splits(out, names, repo, fractions, mirrored)
    print(f"{out}: {len(names)} clips{', each with its mirrored copy' * mirrored}; {len(left_out)} left out")
    print(f"{out / REPORT}: names what was left out, and why")
    if repo:
        compare(out, repo, left_out)


def write_splits(out, names, repo, fractions, mirrored):
    """Write splits, captions, and mean and std of all clips, as published."""
    made = dict.fromkeys(with_copies(names, mirrored))
    clips = (load_array(out / FEATURES / f"{clip}.npy") for clip in tqdm(made, "mean and std", unit="clip"))
    for name, array in zip(("Mean", "Std"), group_statistics(clips, T2M)):
        save_array(out / f"{name}.npy", array)
    if repo:
        paths = [path for path in (Path(repo, split) for split in SPLITS) if path.is_file()]
        splits = {path.stem: path.read_text().split() for path in paths}
        with zipfile.ZipFile(Path(repo, TEXT_ZIP)) as archive:
            for member in archive.namelist():
                if member.endswith(".txt") and Path(member).stem in made:
                    with atomic_write(out / TEXTS / Path(member).name) as file:
                        file.write(archive.read(member))
    else:
        splits = assign_splits(names, fractions) | {"all": names}
        splits = {split: with_copies(own, mirrored) for split, own in splits.items()}
    for split, wanted in splits.items():
        own = [clip for clip in wanted if clip in made]
        write_lines(out / f"{split}.txt", own)
        print(f"{split}: {len(own)} clips; {len(wanted) - len(own)} have no motion here")


def compare(out, repo, left_out):
    """Print the largest differences from the clip and the statistics that HumanML3D's repository holds."""
    for part in ("new_joint_vecs/012314.npy", "Mean.npy", "Std.npy"):
        if (out / part).is_file() and Path(repo, "HumanML3D", part).is_file():
            own, published = load_array(out / part), load_array(Path(repo, "HumanML3D", part))
            far = f"{np.abs(own - published).max():.1e}" if own.shape == published.shape else "another shape"
            print(f"{part}: largest difference from the published one: {far}")
    if "007975" in left_out or (out / FEATURES / "007975.npy").is_file():
        print(f"007975, which was published with NaN: {left_out.get('007975', 'finite here')}")
