"""What a careful colleague would find in a training folder before a week of GPU time goes into it.

    python -m dataset.check dataset/HumanML3D
    python -m dataset.check dataset/KIT-ML --dataname kit --json

Reads every clip once. Exit codes: 0 clean, 1 warnings, 2 unusable as it is.
"""
import argparse
import sys

from utils.errors import UserError, exit_cleanly

NAMED = 5           # clips named in one finding; --json has them all
PUBLISHED = {"t2m": dict(train=23384, val=1460, test=4384)}
KNOWN_BAD = {"t2m": ("007975", "M007975")}     # NaN, as published
# The published statistics, by value: std of each feature group (yaw, x and z velocity, height, positions, rotations, velocities, contacts)
# and mean of the group's means. The evaluator's, which T2M-GPT trains with, has root and contact entries 25 times smaller.
STATISTICS = {
    "HumanML3D's published": ((0.0128256, 0.0169271, 0.153766, 0.122244, 0.299692, 0.0194703, 0.355933),
                              (-5.65246e-06, 0.00432924, 0.938551, 0.306471, 0.203531, 0.00291261, 0.854621)),
    "the evaluator's (T2M-GPT trains with it)": ((0.000514673, 0.000676928, 0.00612082, 0.122555, 0.300386, 0.0195406, 0.0140949),
                                                 (-5.65211e-06, 0.00433022, 0.917516, 0.306048, 0.202071, 0.00291324, 0.854617)),
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog="python -m dataset.check", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="DIR", help="folder in the HumanML3D layout")
    parser.add_argument("--dataname", choices=("t2m", "kit"), help="default: by the width of the clips")
    parser.add_argument("--meta-dir", metavar="DIR", help="folder of mean.npy and std.npy (default: DIR's Mean.npy and Std.npy)")
    parser.add_argument("--window-size", type=int, default=64, help="frames of a training window (default: 64)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser.parse_args(argv)


class Findings(list):
    """What was found: dictionaries of level (error, warning, note), text, and the ids it is about."""

    def add(self, level, text, ids=()):
        self.append(dict(level=level, text=text, ids=list(ids)))


def check_folder(root, dataname=None, meta_dir=None, window=64):
    """Look a folder over. Returns a dictionary: `findings`, `clips`, `frames`, `splits` (counts), `statistics` (text), `dataname`.

    Raises UserError when there is nothing to look at: no folder, no new_joint_vecs, no .npy in it.
    """
    from pathlib import Path

    from utils.motion_spec import SPECS
    root = Path(root)
    folder = root / "new_joint_vecs"
    if not folder.is_dir():
        raise UserError(f"{root}: {'has no folder new_joint_vecs' if root.is_dir() else 'no such folder'}; expected the HumanML3D layout")
    files = {path.stem: path for path in sorted(folder.glob("*.npy"))}
    if not files:
        raise UserError(f"{folder}: holds no .npy file; expected clips of (frames, 263) or (frames, 251)")
    dataname = dataname or _guess_dataname(files, SPECS)
    spec, findings = SPECS[dataname], Findings()
    splits = _check_splits(root, files, dataname, findings)
    clips = _check_clips(files, set().union(*splits.values()), spec, window, dataname, findings)
    _check_texts(root, clips, findings)
    which = _check_statistics(root, meta_dir, splits, clips, spec, findings)
    return dict(folder=str(root), dataname=dataname, clips=len(clips), frames=sum(clip["length"] for clip in clips.values()),
                seconds=sum(clip["length"] for clip in clips.values()) / spec.fps, splits={name: len(ids) for name, ids in splits.items()},
                statistics=which, findings=list(findings))


def _guess_dataname(files, specs):
    """By the width most of the first clips have."""
    import numpy as np
    votes = dict.fromkeys(("t2m", "kit"), 0)
    for path in list(files.values())[:20]:
        try:
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
        except (OSError, ValueError, EOFError):
            continue
        for name in votes:
            votes[name] += len(shape) == 2 and shape[1] == specs[name].width
    return max(votes, key=votes.get)


def _check_splits(root, files, dataname, findings):
    """{split: ids} of the split files that are there."""
    from dataset.motion_folder import read_ids
    splits, listed = {}, {}
    for split in ("train", "val", "test", "all"):
        path = root / f"{split}.txt"
        if not path.is_file():
            findings.add("error" if split == "train" else "warning" if split == "val" else "note", f"{split}.txt is missing")
            continue
        try:
            splits[split] = read_ids(path)
        except UserError as error:
            findings.add("error" if split == "train" else "warning", str(error))
            continue
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        if len(lines) > len(splits[split]):
            twice = sorted({name for name in lines if lines.count(name) > 1}) if len(lines) < 50000 else []
            findings.add("warning", f"{split}.txt names {len(lines) - len(splits[split])} clips more than once", twice)
        missing = [name for name in splits[split] if name not in files]
        if missing and split != "all":
            findings.add("error", f"{split}.txt: {len(missing)} of {len(splits[split])} clips have no file in new_joint_vecs", missing)
        for name in splits[split] if split != "all" else ():
            listed.setdefault(name, []).append(split)
    shared = [name for name, where in listed.items() if len(where) > 1]
    if shared:
        findings.add("warning", f"{len(shared)} clips are in more than one of train, val and test: the evaluation sees training clips", shared)
    leaked = [name for name, where in listed.items() if f"M{name}" in listed and listed[f"M{name}"] != where]
    if leaked:
        findings.add("warning", f"{len(leaked)} clips are in another split than their mirrored copy", leaked)
    if "all" in splits and listed and set(splits["all"]) != set(listed):
        odd = sorted(set(splits["all"]) ^ set(listed))
        findings.add("note", f"all.txt differs from train, val and test together by {len(odd)} clips", odd)
    extra = [name for name in files if name not in listed]
    if extra and listed:
        findings.add("note", f"{len(extra)} files in new_joint_vecs are in none of train, val and test", extra)
    published = PUBLISHED.get(dataname, {})
    counts = {split: len(splits[split]) for split in published if split in splits}
    if counts and sum(counts.values()) > 0.5 * sum(published.values()):
        for split, count in counts.items():
            if count != published[split]:
                findings.add("warning", f"{split}.txt names {count} clips; HumanML3D's published split has {published[split]}")
    return {name: ids for name, ids in splits.items() if name != "all"}


def _check_clips(files, listed, spec, window, dataname, findings):
    """Read every listed clip once (every file, when nothing is listed). Returns {id: {length, sum, square}} of the sound ones."""
    import numpy as np

    from dataset.clip_checks import find_odd, measure, ranges
    from utils.motion_spec import MAX_EVAL_FRAMES
    clips, problems = {}, {}
    names = [name for name in files if name in listed] if listed else list(files)
    for name in names:
        try:
            data = np.load(files[name], allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            problems.setdefault("unreadable", []).append((name, str(error).splitlines()[0][:80]))
            continue
        if data.ndim != 2 or data.shape[1] != spec.width or len(data) == 0:
            problems.setdefault("shape", []).append((name, f"{data.shape}"))
            continue
        if data.dtype != np.float32:
            problems.setdefault("dtype", []).append((name, str(data.dtype)))
            if data.dtype.kind != "f":
                continue
        if not np.isfinite(data.sum(dtype=np.float64)):  # one pass; the frames are searched only where there is something to find
            bad = np.flatnonzero(~np.isfinite(data).all(1))
            if len(bad):
                known = name in KNOWN_BAD.get(dataname, ())
                problems.setdefault("known" if known else "nan", []).append((name, f"frames {ranges(bad)}"))
                continue
        clips[name] = dict(length=len(data), **measure(data, spec))
        for kind, text in find_odd(clips[name], spec):
            problems.setdefault(kind, []).append((name, text))
    _report(problems, len(names), spec, findings)
    short = [name for name, clip in clips.items() if clip["length"] < window]
    if short:
        findings.add("note" if len(short) < len(clips) else "error", f"{len(short)} clips are shorter than a window of {window} frames: training "
                     "leaves them out", short)
    long = [name for name, clip in clips.items() if clip["length"] >= MAX_EVAL_FRAMES]
    brief = [name for name, clip in clips.items() if clip["length"] < spec.min_eval_frames]
    if long or brief:
        findings.add("note", f"evaluation leaves out {len(long)} clips of {MAX_EVAL_FRAMES} frames and more and {len(brief)} of fewer than "
                     f"{spec.min_eval_frames}", long + brief)
    return clips


def _report(problems, total, spec, findings):
    from dataset.clip_checks import KINDS
    for kind, (level, text) in KINDS.items():
        found = problems.get(kind, ())
        if found:
            findings.add(level, f"{len(found)} of {total} clips {text.format(width=spec.width)}", [f"{name} ({detail})" for name, detail in found])


def _check_texts(root, clips, findings):
    if not (root / "texts").is_dir():
        findings.add("note", "no folder texts: R-precision and matching score cannot be computed")
        return
    texts = {path.stem: path for path in (root / "texts").glob("*.txt")}
    missing = [name for name in clips if name not in texts]
    empty = [name for name in clips if name in texts and texts[name].stat().st_size == 0]
    if missing or empty:
        findings.add("warning", f"{len(missing)} clips have no text file and {len(empty)} an empty one", missing + empty)


def _check_statistics(root, meta_dir, splits, clips, spec, findings):
    """Which mean and std these are, in words."""
    from types import SimpleNamespace

    import numpy as np

    from dataset.motion_folder import find_statistics
    try:
        mean, std, folder = find_statistics(SimpleNamespace(meta_dir=meta_dir or str(root), data_root=str(root)), spec)
    except UserError as error:
        findings.add("error", str(error))
        return "none"
    groups = list(spec.slices.values())
    for name, (stds, means) in STATISTICS.items() if spec.width == 263 else ():
        if np.allclose([std[part].mean() for part in groups], stds, rtol=2e-3) and \
                np.allclose([mean[part].mean() for part in groups], means, rtol=2e-3, atol=1e-6):
            return f"{folder}: {name} mean and std, recognised by value"
    own = [clips[name] for name in splits.get("train", clips) if name in clips]
    if not own:
        return f"{folder}: unknown, there is no sound training clip to compare with"
    count = np.array([clip["length"] for clip in own], np.float64)
    means = np.array([clip["mean"] for clip in own])
    own_mean = count @ means / count.sum()
    spread = np.array([clip["square"] for clip in own]).sum(0) + count @ np.square(means - own_mean)
    own_std = np.sqrt(spread / count.sum())
    for part in groups:
        own_std[part] = own_std[part].mean()
    own_std[own_std < 1e-8] = 1     # as group_statistics has it
    shift, ratio = float(np.abs((mean - own_mean) / own_std).max()), std / own_std
    worst = int(np.abs(np.log(ratio)).argmax())
    name = next(name for name, part in spec.slices.items() if part.start <= worst < part.stop)
    off = f"mean off by up to {shift:.2g} standard deviations, std {ratio[worst]:.3g} times the training split's in {name}"
    if shift < 0.01 and np.abs(ratio - 1).max() < 0.01:
        return f"{folder}: the folder's own, of its training split"
    scaled = np.ones(spec.width)
    scaled[:4] = scaled[spec.slices["contacts"]] = 25
    if shift < 0.05 and np.abs(ratio * scaled - 1).max() < 0.05:
        return f"{folder}: the folder's own with the evaluator's bias (root and contacts 25 times smaller)"
    if shift > 0.5 or np.abs(np.log(ratio)).max() > np.log(1.5):
        findings.add("warning", f"mean and std are not the training split's: {off}")
    return f"{folder}: neither the training split's nor a published one; {off}"


@exit_cleanly
def main(argv=None):
    """Check as the command line `argv` says. Returns the exit code."""
    args = parse_args(argv)
    report = check_folder(args.root, args.dataname, args.meta_dir, args.window_size)
    levels = {finding["level"] for finding in report["findings"]}
    code = 2 if "error" in levels else 1 if "warning" in levels else 0
    if args.json:
        import json
        print(json.dumps(report | {"exit_code": code}, indent=1))
    else:
        _print(report, code)
    return code


def _print(report, code):
    splits = ", ".join(f"{name} {count}" for name, count in report["splits"].items()) or "no split"
    print(f"{report['folder']} ({report['dataname']}): {report['clips']} sound clips, {report['frames']} frames, "
          f"{report['seconds'] / 3600:.2f} hours; {splits}")
    print(f"statistics: {report['statistics']}")
    for level in ("error", "warning", "note"):
        for finding in report["findings"]:
            if finding["level"] == level:
                named = ", ".join(finding["ids"][:NAMED]) + (f", and {len(finding['ids']) - NAMED} more" if len(finding["ids"]) > NAMED else "")
                print(f"{level:>7}: {finding['text']}{': ' + named if named else ''}")
    print({0: "clean", 1: "usable, with warnings", 2: "not usable as it is"}[code])


if __name__ == "__main__":
    sys.exit(main())
