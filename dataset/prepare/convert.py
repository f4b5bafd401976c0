"""Clips → a folder in the HumanML3D layout: `write_dataset`, which real motion capture and the demo set share."""
import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import signal
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple, dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dataset.prepare.captions import mirror_line, text_line
from dataset.prepare.source import Reading, read_clip
from utils.errors import UserError
from utils.files import write_atomically
from utils.motion_process import extract_features, group_statistics, mirror, recover_from_ric
from utils.motion_spec import get_spec

VERSION = 2                         # counts changes of the conversion: finished clips of another one are made again
JOINTS, FEATURES, TEXTS = "new_joints", "new_joint_vecs", "texts"
DONE = "prepared.jsonl"             # what was converted from what; only clips listed here are ever replaced or removed
SPLITS = ("train", "val", "test")
FRACTIONS = (0.8, 0.05, 0.15)       # HumanML3D's
MIN_BATCH = 32                      # fewer clips than this are not worth starting processes for


@dataclass
class Report:
    """What `write_dataset` did. Clips are counted with their mirrored copies."""

    splits: dict                                        # split → ids
    frames: int
    seconds: float
    converted: int                                      # of the sources, this time
    kept: int                                           # of the sources, finished before
    removed: int                                        # clips whose source is gone
    rejected: dict                                      # id → why
    found: dict = field(default_factory=dict)           # skeleton, unit, … → Counter of values, of all sources
    without_caption: int = 0


def split_of(name, fractions=FRACTIONS):
    """train, val or test for a clip's id, by its hash alone: adding clips never moves one."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2 ** 64 * sum(fractions)
    return next((split for split, end in zip(SPLITS, itertools.accumulate(fractions)) if share < end), SPLITS[-1])


def assign_splits(names, fractions=FRACTIONS):
    """{split: ids}, each in the order of `names`. A split that is wanted and stays empty is given one clip of the training split."""
    splits = {split: [] for split in SPLITS}
    for name in names:
        splits[split_of(name, fractions)].append(name)
    for split, fraction in zip(SPLITS, fractions):
        largest = max(splits.values(), key=len)
        if fraction > 0 and not splits[split] and len(largest) > 1:
            splits[split].append(largest.pop(min(range(len(largest)), key=lambda i: hashlib.sha256(largest[i].encode()).digest())))
    return splits


def write_dataset(out, clips, dataname, *, reading=None, fractions=FRACTIONS, mirrored=False, workers=None, strict=False, progress=True):
    """Convert clips into the folder `out`: joints, features, texts, splits, and mean and std of the training split.

    clips: iterable of (id, source, captions); a source is a path, read as `reading` says, or an array of joints (T, J, 3) in metres, y up, at
    the data set's rate; captions are sentences or HumanML3D text lines. mirrored: add the left-right mirrored copy of each, M + id, to its
    split. Clips finished earlier are kept while source and settings are the same; a file appears under its name only when whole.
    Clips made earlier whose source is not among `clips` any more are removed.
    Returns a Report. Raises UserError when `out` cannot be written, holds clips this function did not make or only clips of other sources,
    when no clip is left, and with `strict` for the first clip that cannot be used.
    """
    reading, out = reading or Reading(dataname), Path(out)
    clips = {name: (source, list(captions)) for name, source, captions in clips}
    _refuse_mirror_names(clips, mirrored)
    with _locked(out) as done:
        if done and not done.keys() & clips.keys():
            raise UserError(f"{out}: holds {len(done)} clips of other sources ({next(iter(done))}, …), which this run would remove; give all sources "
                            "in one command, or name another folder with --out")
        work, kept = {}, {}
        for name, (source, _) in clips.items():
            key = _key(source, reading, mirrored)
            if name in done and done[name]["key"] == key and all(path.is_file() for path in _paths(out, name, mirrored)):
                kept[name] = done[name]
            else:
                work[name] = (source, key)
        made, rejected = _convert(out, work, reading, mirrored, workers, strict, progress)
        records = {name: record for name, record in sorted((kept | made).items())}
        if not records:
            first = next(iter(rejected.items()), None)
            raise UserError(f"{out}: none of {len(clips)} clips can be used" + (f"; the first: {first[1]}" if first else ""))
        removed = _finish(out, done, records, {name: clips[name][1] for name in records}, fractions, mirrored, get_spec(dataname))
    splits = _with_mirrored(assign_splits(records, fractions), mirrored)
    frames = sum(record["frames"] for record in records.values()) * (1 + mirrored)
    found = {what: Counter(record["found"][what] for record in records.values() if what in record["found"])
             for what in ("skeleton", "unit", "fps", "start")}
    found = {what: values for what, values in found.items() if values}
    return Report(splits, frames, frames / get_spec(dataname).fps, len(made), len(kept), removed, rejected, found,
                  sum(not clips[name][1] for name in records))


def _refuse_mirror_names(clips, mirrored):
    both = [name for name in clips if mirrored and f"M{name}" in clips]
    if both:
        raise UserError(f"clips {both[0]} and M{both[0]}: the second is the name of the first one's mirrored copy; rename it, or go without --mirror")


@contextlib.contextmanager
def _locked(out):
    """Hold the folder for this process alone, made if need be. Yields the finished clips {id: record}."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = open(out / ".lock", "a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); name another folder with --out") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{out}: another process is preparing it; wait for it, or name another folder with --out") from None
        for folder in (FEATURES, JOINTS):
            if not (out / DONE).exists() and (out / folder).is_dir() and any((out / folder).iterdir()):
                raise UserError(f"{out}: holds clips in {folder} that were not prepared here (no {DONE}); name another folder with --out")
        done = {}
        for line in (out / DONE).read_text(encoding="utf-8").splitlines() if (out / DONE).exists() else ():
            with contextlib.suppress(ValueError):  # the last line of an interrupted run may be cut short: that clip is made again
                record = json.loads(line)
                done[record["id"]] = record
        for folder in (FEATURES, JOINTS, TEXTS, "."):
            for stale in (out / folder).glob("*.tmp"):
                stale.unlink(missing_ok=True)
        yield done


def _key(source, reading, mirrored):
    """Fingerprint of a source and of everything that shapes its conversion."""
    if isinstance(source, np.ndarray):
        what = hashlib.sha256(np.ascontiguousarray(source).view(np.uint8)).hexdigest()
    else:
        stat = os.stat(source)
        what = [str(Path(source).resolve()), stat.st_size, stat.st_mtime_ns]
    return hashlib.sha256(json.dumps([VERSION, what, mirrored, astuple(reading)], sort_keys=True).encode()).hexdigest()[:32]


def _paths(out, name, mirrored):
    return [out / folder / f"{clip}.npy" for clip in ([name, f"M{name}"] if mirrored else [name]) for folder in (JOINTS, FEATURES)]


def _convert(out, work, reading, mirrored, workers, strict, progress):
    """Convert {id: (source, key)}, each recorded in DONE as it is finished. Returns ({id: record}, {id: why not})."""
    for folder in (JOINTS, FEATURES):
        (out / folder).mkdir(exist_ok=True)
    made, rejected = {}, {}
    workers = 1 if len(work) < MIN_BATCH else min(workers or os.cpu_count() or 1, len(work))
    with open(out / DONE, "a", encoding="utf-8") as log, tqdm(total=len(work), unit="clip", disable=not progress or not work) as bar:

        def note(name, result):
            bar.update()
            if isinstance(result, str):
                if strict:
                    raise UserError(f"{result} (--strict)")
                rejected[name] = result
                return
            made[name] = dict(id=name, key=work[name][1], **result)
            log.write(json.dumps(made[name]) + "\n")
            log.flush()

        log.write("\n")  # ends a line that an interrupted run may have left open
        if workers == 1:
            for name, (source, _) in work.items():
                note(name, _convert_one(out, name, source, reading, mirrored))
            return made, rejected
        pool = ProcessPoolExecutor(workers, initializer=_ignore_interrupt)
        try:
            futures = {pool.submit(_convert_one, out, name, source, reading, mirrored): name for name, (source, _) in work.items()}
            for future in as_completed(futures):
                note(futures[future], future.result())
        except BrokenProcessPool:
            raise UserError(f"{out}: a worker process was killed (out of memory?) after {len(made)} of {len(work)} clips; run the command again "
                            "to go on, with fewer --workers") from None
        finally:
            pool.shutdown(cancel_futures=True)
    return made, {name: rejected[name] for name in sorted(rejected)}


def _ignore_interrupt():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)


def _convert_one(out, name, source, reading, mirrored):
    """Write one clip's files. Returns {frames, found}, or why it cannot be used."""
    spec, found = get_spec(reading.dataname), {}
    try:
        if isinstance(source, np.ndarray):
            joints = np.asarray(source, np.float64)
        else:
            joints, found = read_clip(source, reading)
        leg = sum(np.linalg.norm(joints[0, joint] - joints[0, spec.parents[joint]]) for joint in spec.leg)
        if not leg > 0:
            raise UserError(f"{source if found else name}: the right leg has no length in the first frame; expected hip, knee and ankle apart")
        versions = {name: joints} | ({f"M{name}": mirror(joints, spec)} if mirrored else {})
        features = {clip: extract_features(version / spec.unit, spec.name) for clip, version in versions.items()}
    except (UserError, ValueError) as error:
        return str(error)
    if not all(np.isfinite(array).all() for array in features.values()):
        return f"{source if found else name}: its features are not finite; expected joints within a few metres"
    for clip, array in features.items():
        positions = recover_from_ric(torch.from_numpy(array).double(), spec.joints).numpy().astype(np.float32)
        for folder, content in ((JOINTS, positions), (FEATURES, array)):
            _save(out / folder / f"{clip}.npy", content)
    return dict(frames=len(features[name]), found=found)


def _save(path, array):
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:  # without the fsync of write_atomically: a clip lost to a power cut is made again
        np.save(file, array)
    os.replace(temporary, path)


def _with_mirrored(splits, mirrored):
    return {split: [clip for name in names for clip in ([name, f"M{name}"] if mirrored else [name])] for split, names in splits.items()}


def _finish(out, done, records, captions, fractions, mirrored, spec):
    """Texts, statistics and splits of the clips in `records`; then what is left over goes. Returns how many clips went."""
    splits = _with_mirrored(assign_splits(records, fractions), mirrored)
    lines = {name: [text_line(caption) for caption in captions[name]] for name in records if captions[name]}
    if mirrored:
        lines |= {f"M{name}": [mirror_line(line) for line in own] for name, own in lines.items()}
    if lines:
        (out / TEXTS).mkdir(exist_ok=True)
    for name, own in lines.items():
        _write_text(out / TEXTS / f"{name}.txt", own)
    train = splits["train"] or next(ids for ids in splits.values() if ids)
    mean, std = group_statistics((np.load(out / FEATURES / f"{name}.npy") for name in train), spec)
    for name, array in (("Mean", mean), ("Std", std)):
        write_atomically(out / f"{name}.npy", lambda file, array=array: np.save(file, array))
    for split, ids in (*splits.items(), ("all", sorted(itertools.chain(*splits.values())))):
        if ids:
            _write_text(out / f"{split}.txt", ids)
        else:
            (out / f"{split}.txt").unlink(missing_ok=True)
    current = set(itertools.chain(*splits.values()))
    gone = {clip for name in done for clip in (name, f"M{name}")} - current
    removed = sum((out / FEATURES / f"{clip}.npy").is_file() for clip in gone)
    for clip in gone:
        for path in (out / JOINTS / f"{clip}.npy", out / FEATURES / f"{clip}.npy", out / TEXTS / f"{clip}.txt"):
            path.unlink(missing_ok=True)
    _write_text(out / DONE, [json.dumps(record) for record in records.values()])
    return removed


def _write_text(path, lines):
    content = "".join(f"{line}\n" for line in lines).encode()
    if path.is_file() and path.read_bytes() == content:
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
