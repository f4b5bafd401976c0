"""Find what is wrong with a training folder. Exit codes: 0 clean, 1 with warnings, 2 not usable as it is.

    python -m dataset.check dataset/HumanML3D
"""
from options.common import COUNT, Parser


def parse_args(argv=None):
    parser = Parser(prog="python -m dataset.check", description="Find what is wrong with a data folder.")
    parser.add_argument("root", metavar="DIR", help="folder in the HumanML3D layout")
    parser.add_argument("--dataname", choices=("t2m", "kit"), help="data set; None: by DIR/Mean.npy")
    parser.add_argument("--meta-dir", metavar="DIR", help="folder of mean.npy and std.npy; None: DIR")
    parser.add_argument("--window-size", type=COUNT, default=64, help="frames of a training window")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":  # before the slow imports: --help and refusals are instant
    parse_args()

import collections
import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from dataset.motion_folder import find_clips, find_statistics, read_clip, read_ids
from dataset.prepare.axes import posture_problems
from utils.errors import UserError, exit_cleanly
from utils.files import load_array
from utils.motion_process import describe_statistics, group_statistics
from utils.motion_spec import KIT, MAX_EVAL_FRAMES, SPECS

LEVELS = dict(error=2, warning=1, note=0)       # of a finding → exit code
ROOT_SPEED = 10.0       # metres per second of the root: sprinters reach 12, clips of HumanML3D 5
JOINT_SPEED = 20.0      # of any joint
FROZEN = 1.0            # seconds in which no feature changes by a millionth
DRIFT = 0.02            # share by which a bone's length may change within a clip
PUBLISHED = {"t2m": dict(train=23384, val=1460, test=4384)}


def clip_problems(clip, spec):
    """Yield what is wrong with a clip's features (T, D), each as (what such clips do, where in this one)."""
    velocities = clip[:, spec.slices["velocities"]].reshape(len(clip), -1, 3)
    for name, step, most in (("root", clip[:, None, 1:3], ROOT_SPEED), ("joint", velocities, JOINT_SPEED)):
        speed = np.linalg.norm(step, axis=2).max(1) * spec.unit * spec.fps
        if speed.max() > most:
            yield f"have a {name} faster than {most} m/s", f"{speed.max():.1f} m/s at frame {speed.argmax()}"
    moving = np.abs(np.diff(clip, axis=0)).max(1, initial=0) > 1e-6
    still = (np.diff(np.flatnonzero([True, *moving, True])).max() - 1) / spec.fps
    if still > FROZEN:
        yield f"stand perfectly still for over {FROZEN} s: frozen capture", f"{still:.1f} s"
    joints = np.insert(clip[:, spec.slices["positions"]].reshape(len(clip), -1, 3), 0, 0, axis=1)
    joints[:, 0, 1] = clip[:, 3]    # at the origin in every frame, facing +z
    lengths = np.maximum(np.linalg.norm(joints[:, 1:] - joints[:, spec.parents[1:]], axis=2), 1e-6)
    drift = np.abs(lengths / np.median(lengths, axis=0) - 1)
    if drift.max() > DRIFT:
        name = spec.joint_names[1 + drift.max(0).argmax()]
        yield f"have bones whose length changes by over {DRIFT:.0%}", f"{name} by {drift.max():.0%}"
    if posture := posture_problems(joints * spec.unit, spec):
        yield "do not look like a person who is up", "; ".join(posture)


def check_folder(root, dataname=None, meta_dir=None, window=64):
    """Check a data folder. Returns a dictionary: facts as `clips` and `frames`, and `findings`.

    A finding has level (error, warning, note), text, and ids. Raises UserError where there is no clip.
    """
    folder, found = find_clips(root), collections.defaultdict(list)     # (level, text) → ids
    files = {path.relative_to(folder).as_posix()[:-4] for path in folder.rglob("*.npy") if path.is_file()}
    if not files:
        raise UserError(f"{folder}: holds no .npy file; expected clips of (frames, 263) or (frames, 251)")
    splits, lengths, own, mean = {}, {}, None, Path(root, "Mean.npy")
    is_kit = mean.is_file() and load_array(mean).size == KIT.width
    spec = SPECS[dataname or ("kit" if is_kit else "t2m")]
    for split, level in dict(train="error", val="warning", test="note", all="note").items():
        try:
            splits[split] = read_ids(Path(root, f"{split}.txt"))
        except UserError as error:
            found[level, str(error)] = []
    files |= {name for ids in splits.values() for name in ids if Path(folder, f"{name}.npy").is_file()}
    named = {name for ids in splits.values() for name in ids} & files or files
    train = set(splits.get("train", named))
    splits.pop("all", None)
    _check_splits(splits, files, spec, found)
    with contextlib.suppress(ValueError):  # no readable training clip
        own = group_statistics(_check_clips(folder, named, train, spec, found, lengths), spec)
    texts, least, most = Path(root, "texts"), spec.min_eval_frames, MAX_EVAL_FRAMES - 1
    level = "note" if max(lengths.values(), default=0) >= window else "error"
    for name, length in lengths.items():
        if length < window:
            found[level, f"clips are shorter than a window of {window} frames: not trained on"].append(name)
        if not least <= length <= most:
            found["note", f"clips are not of {least} to {most} frames: not evaluated"].append(name)
        if not (texts / f"{name}.txt").is_file() or not (texts / f"{name}.txt").stat().st_size:
            found["warning" if texts.is_dir() else "note", "clips have no captions"].append(name)
    statistics = _name_statistics(root, meta_dir, own, spec, found)
    findings = [dict(level=level, text=f"{len(ids)} {text}" if ids else text, ids=ids)
                for (level, text), ids in sorted(found.items(), key=lambda item: -LEVELS[item[0][0]])]
    return dict(folder=str(root), dataname=spec.name, clips=len(lengths), frames=sum(lengths.values()),
                splits=dict(zip(splits, map(len, splits.values()))), statistics=statistics, findings=findings)


def _check_splits(splits, files, spec, found):
    """Compare train, val and test with the files, with each other, and with the published ones."""
    where = collections.defaultdict(list)       # id → its splits
    for split, ids in splits.items():
        for name in ids:
            where[name].append(split)
            if name not in files:
                found["error", f"clips of {split}.txt have no file (one id a line, no .npy)"].append(name)
        published = PUBLISHED.get(spec.name, {}).get(split, len(ids))
        if published / 2 < len(ids) != published:
            found["warning", f"{split}.txt names {len(ids)} clips; the published split has {published}"] = []
    for name, own in where.items():
        if len(own) > 1:
            found["warning", "clips are in more than one of train, val and test"].append(name)
        if where.get(f"M{name}", own) != own:
            found["warning", "clips are in another split than their mirrored copy"].append(name)
    for name in sorted(files - where.keys()) if where else ():
        found["note", "files are in none of train, val and test"].append(name)


def _check_clips(folder, named, train, spec, found, lengths):
    """Check the clips `named`, and yield those of `train`. Enter {id: frames} of the usable in `lengths`."""
    for name in sorted(named):
        try:
            clip = read_clip(folder / f"{name}.npy", spec)
        except UserError as error:
            text = str(error).removeprefix(f"{folder}/")
            found["error", "clips cannot be used: mend them or use --skip-bad-clips"].append(text)
            continue
        lengths[name] = len(clip)
        for text, where in clip_problems(clip, spec):
            found["warning", f"clips {text}"].append(f"{name} ({where})")
        if name in train:
            yield clip


def _name_statistics(root, meta_dir, own, spec, found):
    """Return which mean and std these are, in words. own: the training split's, or None."""
    try:
        mean, std, folder = find_statistics(SimpleNamespace(meta_dir=meta_dir or root, data_root=root), spec)
    except UserError as error:
        found["error", str(error)] = []
        return "none"
    kind = f"{folder}: {describe_statistics(std)} variant"
    if own is None:
        return f"{kind}; there is no usable training clip to compare with"
    biased = std[-1] < 0.2 * own[1][-1]     # the evaluator's root and contacts
    std[[0, 1, 2, 3, -4, -3, -2, -1]] *= 25 if biased else 1
    shift, ratio = np.abs((mean - own[0]) / own[1]).max(), std / own[1]
    if shift < 0.01 and np.abs(ratio - 1).max() < 0.01:
        return f"{kind}, the folder's own, of its training split"
    off = f"mean off by up to {shift:.2g} std, std {ratio.min():.3g} to {ratio.max():.3g} times its own"
    if shift > 0.5 or ratio.min() < 1 / 1.5 or ratio.max() > 1.5:
        found["warning", f"mean and std are not the training split's: {off}"] = []
    return f"{kind}, not the training split's: {off}"


@exit_cleanly
def main(argv=None):
    """Check as the command line `argv` says. Returns the exit code."""
    args = parse_args(argv)
    report = check_folder(args.root, args.dataname, args.meta_dir, args.window_size)
    code = report["exit_code"] = max((LEVELS[each["level"]] for each in report["findings"]), default=0)
    if args.json:
        print(json.dumps(report, indent=1))
        return code
    print("{folder} ({dataname}): {clips} usable clips, {frames} frames, splits {splits}".format(**report))
    print(f"statistics: {report['statistics']}")
    for finding in report["findings"]:
        ids = finding["ids"]
        more = f", and {len(ids) - 5} more, which --json names" * (len(ids) > 5)
        print(f"{finding['level']:>7}: {finding['text']}{': ' * bool(ids)}{', '.join(ids[:5])}{more}")
    print(("clean", "usable, with warnings", "not usable as it is")[code])
    return code


if __name__ == "__main__":
    sys.exit(main())
