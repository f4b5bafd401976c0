"""Find what is wrong with a training folder. Exit codes: 0 clean, 1 with warnings, 2 not usable as it is.

    python -m dataset.check dataset/HumanML3D
"""
from options.common import COUNT, Parser


def parse_args(argv=None):
    parser = Parser(prog="python -m dataset.check", description="Find what is wrong with a data folder.")
    parser.add_argument("root", metavar="DIR", help="folder in the HumanML3D layout")
    parser.add_argument("--dataname", choices=("t2m", "kit"), help="data set; None: by the clips' width")
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

from dataset.motion_folder import find_clips, find_statistics, id_hint, read_clip, read_ids
from dataset.prepare.axes import posture_problems
from utils.errors import UserError, exit_cleanly
from utils.files import load_array
from utils.motion_process import group_statistics
from utils.motion_spec import MAX_EVAL_FRAMES, SPECS

LEVELS = ("error", "warning", "note")
NAMED = 5               # clips named in one finding; --json has them all
ROOT_SPEED = 10.0       # metres per second of the root: sprinters reach 12, clips of HumanML3D 5
JOINT_SPEED = 20.0      # of any joint
FROZEN = 1.0            # seconds in which no feature changes by a millionth
LOWEST = (-0.1, 0.3)    # metres between which the lowest joint of a clip lies: it stands on the floor
DRIFT = 0.02            # share by which a bone's length may change within a clip
PUBLISHED = {"t2m": dict(train=23384, val=1460, test=4384)}
# HumanML3D's std and mean by feature group; the evaluator's are within 2 % of them, but for the bias
STDS = (0.0128256, 0.0169271, 0.153766, 0.122244, 0.299692, 0.0194703, 0.355933)
MEANS = (-5.65246e-06, 0.00432924, 0.938551, 0.306471, 0.203531, 0.00291261, 0.854621)
VARIANTS = {"": 1, " with the evaluator's bias, root and contacts 25 times smaller": 25}


def facing_joints(clip, spec):
    """Return the joints (T, J, 3) of a clip, in the data set's unit, each frame facing +z at the origin."""
    root = np.zeros((len(clip), 1, 3), np.float32)
    root[:, 0, 1] = clip[:, 3]
    return np.concatenate([root, clip[:, spec.slices["positions"]].reshape(len(clip), -1, 3)], 1)


# Checks of one clip's features (T, D) and joints (T, J, 3) in metres: what is wrong and where, or None.

def find_speed(clip, joints, spec):
    root = np.linalg.norm(clip[:, 1:3], axis=1)
    velocities = clip[:, spec.slices["velocities"]].reshape(len(clip), -1, 3)
    every = np.linalg.norm(velocities, axis=2).max(1)
    for name, steps, most in (("root", root, ROOT_SPEED), ("joint", every, JOINT_SPEED)):
        speeds = steps * spec.unit * spec.fps
        if speeds.max() > most:
            return f"{name} {speeds.max():.1f} m/s at frame {speeds.argmax()}"
    return None


def find_frozen(clip, joints, spec):
    moving = np.abs(np.diff(clip, axis=0)).max(1, initial=0) > 1e-6
    edges = np.flatnonzero(np.concatenate([[True], moving, [True]]))
    seconds = (np.diff(edges).max() - 1) / spec.fps
    return f"{seconds:.1f} s" if seconds > FROZEN else None


def find_floor(clip, joints, spec):
    lowest = joints[..., 1].min()
    return None if LOWEST[0] <= lowest <= LOWEST[1] else f"{lowest:.2f} m"


def find_drift(clip, joints, spec):
    lengths = np.linalg.norm(joints[:, 1:] - joints[:, spec.parents[1:]], axis=2)
    drift = np.abs(lengths / np.maximum(np.median(lengths, axis=0), 1e-6) - 1)
    frame, bone = np.unravel_index(drift.argmax(), drift.shape)
    most = drift.max()
    return f"{spec.joint_names[bone + 1]} by {most:.0%} at frame {frame}" if most > DRIFT else None


def find_posture(clip, joints, spec):
    return "; ".join(posture_problems(joints, spec))


CLIP_CHECKS = {  # what clips do, in a finding's words → the check of one clip
    f"have a root faster than {ROOT_SPEED:g} m/s or a joint faster than {JOINT_SPEED:g} m/s": find_speed,
    f"stand perfectly still for over {FROZEN:g} s: frozen capture": find_frozen,
    f"have their lowest joint outside {LOWEST} m: they do not stand on the floor": find_floor,
    f"have bones whose length changes by over {DRIFT:.0%}": find_drift,
    "do not look like a person who is up": find_posture,
}


def check_folder(root, dataname=None, meta_dir=None, window=64):
    """Check a data folder. Returns a dictionary: facts as `clips` and `frames`, and `findings`.

    A finding is a dictionary of level (error, warning, note), text, and the ids that it is about.
    Raises UserError when there is nothing to check: no folder, no new_joint_vecs, no .npy in it.
    """
    findings = []

    def add(level, text, ids=None):
        """Add a finding. One about clips begins with their number, and needs at least one."""
        if ids is None or ids:
            findings.append(dict(level=level, text=f"{len(ids)} {text}" if ids else text, ids=ids or []))

    folder = find_clips(root)
    files = {path.relative_to(folder).as_posix()[:-4] for path in folder.rglob("*.npy") if path.is_file()}
    if not files:
        raise UserError(f"{folder}: holds no .npy file; expected clips of (frames, 263) or (frames, 251)")
    spec = SPECS[dataname or _guess_dataname(folder, files)]
    splits = {}
    for split, level in dict(train="error", val="warning", test="note", all="note").items():
        try:
            splits[split] = read_ids(Path(root, f"{split}.txt"))
        except UserError as error:
            add(level, str(error))
    files |= {name for ids in splits.values() for name in ids if Path(folder, f"{name}.npy").is_file()}
    _compare_splits(splits, files, spec, add)
    lengths, statistics = _check_clips(folder, files, splits, spec, add)
    _check_lengths_and_texts(lengths, Path(root, "texts"), spec, window, add)
    which = _compare_statistics(root, meta_dir, statistics, spec, add)
    frames, counts = sum(lengths.values()), {name: len(ids) for name, ids in splits.items() if name != "all"}
    return dict(folder=str(root), dataname=spec.name, clips=len(lengths), frames=frames, splits=counts,
                seconds=frames / spec.fps, statistics=which, findings=findings)


def _guess_dataname(folder, files):
    """Return the data set whose width most of the first clips have."""
    widths = []
    for name in sorted(files)[:20]:
        with contextlib.suppress(UserError):  # named when it is read
            widths += load_array(folder / f"{name}.npy", mmap=True).shape[-1:]
    return max(("t2m", "kit"), key=lambda name: widths.count(SPECS[name].width))


def _compare_splits(splits, files, spec, add):
    """Compare the splits with the files, with each other, and with the published ones."""
    where = collections.defaultdict(list)       # id → its splits
    for split in [split for split in splits if split != "all"]:
        for name in splits[split]:
            where[name].append(split)
        count, missing = len(splits[split]), [name for name in splits[split] if name not in files]
        hint = id_hint(missing[0]) if missing else ""
        add("error", f"of {count} clips of {split}.txt have no file{hint}", missing)
        published = PUBLISHED.get(spec.name, {}).get(split, count)
        if published / 2 < count != published:
            add("warning", f"{split}.txt names {count} clips; the published split has {published}")
    add("warning", "clips are in more than one of train, val and test",
        [name for name, found in where.items() if len(found) > 1])
    add("warning", "clips are in another split than their mirrored copy",
        [name for name, found in where.items() if where.get(f"M{name}", found) != found])
    if where:
        add("note", "files are in none of train, val and test", sorted(files - set(where)))


def _check_clips(folder, files, splits, spec, add):
    """Run CLIP_CHECKS on every clip that a split names, or on every file where there is no split.

    Returns {id: frames} of the readable ones, and (mean, std) of the training clips or None.
    """
    named = {name for ids in splits.values() for name in ids} & files or files
    train = named & set(splits.get("train", named))
    problems, lengths = collections.defaultdict(list), {}

    def readable(names):
        for name in sorted(names):
            try:
                clip = read_clip(folder / f"{name}.npy", spec)
            except UserError as error:
                problems[None].append(str(error).removeprefix(f"{folder}/"))
                continue
            lengths[name] = len(clip)
            joints = facing_joints(clip, spec) * spec.unit
            for text, check in CLIP_CHECKS.items():
                if found := check(clip, joints, spec):
                    problems[text].append(f"{name} ({found})")
            yield clip

    try:
        statistics = group_statistics(readable(train), spec)
    except ValueError:  # no readable training clip
        statistics = None
    collections.deque(readable(named - train), maxlen=0)
    add("error", f"of {len(named)} clips cannot be used: mend them or use --skip-bad-clips", problems[None])
    for text in CLIP_CHECKS:
        add("warning", f"of {len(named)} clips {text}", problems[text])
    return lengths, statistics


def _check_lengths_and_texts(lengths, texts, spec, window, add):
    short = [name for name, length in lengths.items() if length < window]
    add("note" if len(short) < len(lengths) else "error",
        f"clips are shorter than a window of {window} frames: training leaves them out", short)
    least = spec.min_eval_frames
    odd = [name for name, length in lengths.items() if not least <= length < MAX_EVAL_FRAMES]
    add("note", f"clips are not of {least} to {MAX_EVAL_FRAMES - 1} frames: not evaluated", odd)
    if not texts.is_dir():
        add("note", "no folder texts: R-precision and matching score cannot be computed")
        return
    paths = {name: texts / f"{name}.txt" for name in lengths}
    without = [name for name, path in paths.items() if not path.is_file() or not path.stat().st_size]
    add("warning", "clips have no captions", without)


def _compare_statistics(root, meta_dir, own, spec, add):
    """Say which mean and std these are. own: the training split's, or None."""
    try:
        mean, std, folder = find_statistics(SimpleNamespace(meta_dir=meta_dir or root, data_root=root), spec)
    except UserError as error:
        add("error", str(error))
        return "none"
    groups = spec.slices.items()
    shift, ratio = (np.abs((mean - own[0]) / own[1]).max(), std / own[1]) if own else (np.inf, std)
    for variant, bias in VARIANTS.items():
        times = np.ones(spec.width)
        times[:4] = times[spec.slices["contacts"]] = bias
        stds, means = ([array[part].mean() for _, part in groups] for array in (std * times, mean))
        if spec.width == 263 and np.allclose(stds, STDS, 0.02) and np.allclose(means, MEANS, 0, 0.03):
            return f"{folder}: HumanML3D's published{variant}; recognised by value"
        if shift < 0.01 and np.abs(ratio * times - 1).max() < 0.01:
            return f"{folder}: the folder's own, of its training split{variant}"
    if own is None:
        return f"{folder}: unknown, there is no usable training clip to compare with"
    worst = int(np.abs(np.log(ratio)).argmax())
    name = next(name for name, part in groups if part.start <= worst < part.stop)
    off = f"mean off by up to {shift:.2g} std, std {ratio[worst]:.3g} times the training split's in {name}"
    if shift > 0.5 or not 1 / 1.5 < ratio[worst] < 1.5:
        add("warning", f"mean and std are not the training split's: {off}")
    return f"{folder}: neither the training split's nor a published one; {off}"


@exit_cleanly
def main(argv=None):
    """Check as the command line `argv` says. Returns the exit code."""
    args = parse_args(argv)
    report = check_folder(args.root, args.dataname, args.meta_dir, args.window_size)
    levels = {finding["level"] for finding in report["findings"]}
    report["exit_code"] = 2 if "error" in levels else 1 if "warning" in levels else 0
    print(json.dumps(report, indent=1) if args.json else format_report(report))
    return report["exit_code"]


def format_report(report):
    """Return the report of `check_folder` as text."""
    splits = ", ".join(f"{name} {count}" for name, count in report["splits"].items()) or "no split"
    size = f"{report['clips']} usable clips, {report['frames']} frames, {report['seconds'] / 3600:.2f} hours"
    lines = [f"{report['folder']} ({report['dataname']}): {size}; {splits}",
             f"statistics: {report['statistics']}"]
    for finding in sorted(report["findings"], key=lambda finding: LEVELS.index(finding["level"])):
        ids = finding["ids"]
        more = [f"and {len(ids) - NAMED} more"] * (len(ids) > NAMED)
        named = f": {', '.join(ids[:NAMED] + more)}" if ids else ""
        lines.append(f"{finding['level']:>7}: {finding['text']}{named}")
    lines.append(("clean", "usable, with warnings", "not usable as it is")[report["exit_code"]])
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
