"""Clips → a folder in the HumanML3D layout: `write_dataset`, for motion capture and the demo set alike."""
import contextlib
import hashlib
import itertools
import json
import os
import signal
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple, dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.prepare.captions import mirror_line, text_line
from dataset.prepare.joint_maps import describe_entry
from dataset.prepare.source import Reading, read_clip
from utils.errors import UserError
from utils.files import atomic_write, exclusive_lock, remove_stale, save_array
from utils.motion_process import extract_features, group_statistics, mirror, recover_from_ric
from utils.motion_spec import get_spec

VERSION = 2                         # raised when the conversion changes, so that old clips are made again
JOINTS, FEATURES, TEXTS = "new_joints", "new_joint_vecs", "texts"
REPORT = "report.txt"               # what was recognised in each source, and why others were left out
DONE = "prepared.jsonl"             # the clips made here; no other file is ever replaced or removed
SPLITS = ("train", "val", "test")
FRACTIONS = (0.8, 0.05, 0.15)       # HumanML3D's
LINE = 180                          # characters of a message, beside what is said around it
MIN_BATCH = 32                      # fewer clips than this are not worth starting processes for


@dataclass
class Report:
    """What `write_dataset` did. Clips are counted with their mirrored copies."""

    splits: dict                                        # split → ids
    frames: int
    seconds: float
    converted: int                                      # sources converted by this run
    kept: int                                           # sources converted by an earlier run
    removed: int                                        # clips whose source is gone
    rejected: dict                                      # id → why
    found: dict = field(default_factory=dict)           # skeleton, unit, … → Counter of values
    without_caption: int = 0


def split_of(name, fractions=FRACTIONS):
    """Return train, val or test for a clip's id. Its hash decides."""
    share = _hash(name) / 2 ** 64 * sum(fractions)
    ends = zip(SPLITS, itertools.accumulate(fractions))
    return next((split for split, end in ends if share < end), SPLITS[-1])


def assign_splits(names, fractions=FRACTIONS):
    """Return {split: ids} in the order of `names`. A wanted split that stays empty gets one training clip."""
    splits = {split: [] for split in SPLITS}
    for name in names:
        splits[split_of(name, fractions)].append(name)
    for split, fraction in zip(SPLITS, fractions):
        largest = max(splits.values(), key=len)
        if fraction > 0 and not splits[split] and len(largest) > 1:
            moved = min(largest, key=_hash)
            largest.remove(moved)
            splits[split].append(moved)
    return splits


def _hash(name):
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def write_dataset(out, clips, dataname, *, reading=None, fractions=FRACTIONS, mirrored=False, workers=None,
                  strict=False, progress=True):
    """Convert clips into the folder `out`: joints, features, texts, splits, mean and std. Return a Report.

    clips: iterable of (id, source, captions). A source is a path, read as `reading` says, or joints (T, J, 3)
    in metres, y up, at the data set's frame rate. Captions are sentences or HumanML3D text lines.
    mirrored: add the left-right mirrored copy M + id of each clip, to the same split.
    Clips made earlier are kept while source and settings stay, and removed when their source is gone.
    Raises UserError when `out` cannot be written, or holds clips of other origin, or of other sources only;
    when no clip is left; and with `strict` for the first clip that cannot be used.
    """
    reading, out = reading or Reading(dataname), Path(out)
    clips = {name: (source, list(captions)) for name, source, captions in clips}
    for name in clips:
        if mirrored and f"M{name}" in clips:
            raise UserError(f"{name}: its mirrored copy would take the name of M{name}; rename that clip")
    with exclusive_lock(out, "name another folder with --out"):
        done = _read_done(out)
        if done and not done.keys() & clips.keys():
            raise UserError(f"{out}: holds {len(done)} clips of other sources ({next(iter(done))}, …), which "
                            "would be removed; give all sources at once, or another folder with --out")
        work, kept = {}, {}
        for name, (source, _) in clips.items():
            key = _key(source, reading, mirrored)
            files = [path for clip in with_copies([name], mirrored) for path in _arrays(out, clip)]
            if name in done and done[name]["key"] == key and all(path.is_file() for path in files):
                kept[name] = done[name]
            else:
                work[name] = (source, key)
        made, rejected = _convert(out, work, reading, mirrored, workers, strict, progress)
        records = dict(sorted((kept | made).items()))
        if not records:
            first = "; the first: " + next(iter(rejected.values())) if rejected else ""
            raise UserError(f"{out}: none of {len(clips)} clips can be used{first}"[:LINE + 20])
        splits = assign_splits(records, fractions)
        splits = {split: with_copies(names, mirrored) for split, names in splits.items()}
        _write_texts(out, {name: clips[name][1] for name in records}, mirrored)
        _write_splits(out, splits, get_spec(dataname))
        removed = _remove_others(out, done, set(itertools.chain(*splits.values())))
        write_lines(out / DONE, map(json.dumps, records.values()))
        write_lines(out / REPORT, _describe(records, rejected))
    frames = sum(record["frames"] for record in records.values()) * (1 + mirrored)
    return Report(splits, frames, frames / get_spec(dataname).fps, len(made), len(kept), removed, rejected,
                  _count_found(records), sum(not clips[name][1] for name in records))


def _read_done(out):
    """Return the clips made earlier, {id: record}. Raises UserError for a folder of other origin."""
    done = {}
    if (out / DONE).exists():
        for line in (out / DONE).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # an interrupted run may have cut the last line short
                record = json.loads(line)
                done[record["id"]] = record
    for folder in (FEATURES, JOINTS):
        if not (out / DONE).exists() and (out / folder).is_dir() and any((out / folder).iterdir()):
            raise UserError(f"{out}: holds clips in {folder} that were not prepared here (no {DONE}); "
                            "name another folder with --out")
    for folder in (FEATURES, JOINTS, TEXTS, "."):
        remove_stale(out / folder)
    return done


def _key(source, reading, mirrored):
    """Return a fingerprint of a source and of every setting that shapes its conversion."""
    if isinstance(source, np.ndarray):
        what = hashlib.sha256(np.ascontiguousarray(source).view(np.uint8)).hexdigest()
    else:
        stat = os.stat(source)
        what = [str(Path(source).resolve()), stat.st_size, stat.st_mtime_ns]
    settings = json.dumps([VERSION, what, mirrored, astuple(reading)], sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:32]


def with_copies(names, mirrored):
    return [clip for name in names for clip in ([name, f"M{name}"] if mirrored else [name])]


def _arrays(out, clip):
    return [out / folder / f"{clip}.npy" for folder in (JOINTS, FEATURES)]


def _convert(out, work, reading, mirrored, workers, strict, progress):
    """Convert {id: (source, key)} and record each in DONE. Return ({id: record}, {id: why not})."""
    made, rejected = {}, {}
    jobs = [(out, name, source, reading, mirrored) for name, (source, _) in work.items()]
    workers = 1 if len(work) < MIN_BATCH else min(workers or os.cpu_count() or 1, len(work))
    bar = tqdm(total=len(work), unit="clip", disable=not progress or not work)
    with open(out / DONE, "a", encoding="utf-8") as log, bar:
        log.write("\n")  # ends a line that an interrupted run may have cut short
        several = in_processes(out, _convert_one, jobs, workers)
        for name, result in map(_convert_one, jobs) if workers == 1 else several:
            bar.update()
            if isinstance(result, dict):
                made[name] = dict(id=name, key=work[name][1], **result)
                log.write(json.dumps(made[name]) + "\n")
                log.flush()
            elif strict:
                raise UserError(f"{result} (--strict)")
            else:
                rejected[name] = result
    return made, dict(sorted(rejected.items()))


def in_processes(out, function, jobs, workers):
    """Yield function(job) of each job as it is finished, run in worker processes."""
    pool, finished = ProcessPoolExecutor(workers, initializer=_start_worker), 0
    try:
        for future in as_completed([pool.submit(function, job) for job in jobs]):
            yield future.result()
            finished += 1
    except BrokenProcessPool:
        raise UserError(f"{out}: a worker was killed (out of memory?) after {finished} of {len(jobs)} clips; "
                        "run the command again to go on, with fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _convert_one(job):
    """Write one clip's arrays. Return its id, and {frames, found} or why it cannot be used."""
    out, name, source, reading, mirrored = job
    spec, found, where = get_spec(reading.dataname), {}, name if isinstance(source, np.ndarray) else source
    try:
        if isinstance(source, np.ndarray):
            joints = np.asarray(source, np.float64)
        else:
            joints, found = read_clip(source, reading)
        leg = sum(np.linalg.norm(joints[0, joint] - joints[0, spec.parents[joint]]) for joint in spec.leg)
        if not leg > 0:
            raise UserError(f"{where}: the right leg has no length in the first frame; expected a body")
        versions = {name: joints} | ({f"M{name}": mirror(joints, spec)} if mirrored else {})
        features = {clip: extract_features(own / spec.unit, spec.name) for clip, own in versions.items()}
        if not all(np.isfinite(array).all() for array in features.values()):
            raise UserError(f"{where}: its features are not finite; expected joints within a few metres")
    except UserError as error:
        return name, _in_a_line(error, source)
    except Exception as error:  # whatever is wrong with one file, the others are converted
        found = f"{type(error).__name__}: {error}"
        return name, _in_a_line(f"{where}: unexpected, is the file sound? {found}", source)
    import torch  # here, for other preparation does without
    for clip, array in features.items():
        positions = recover_from_ric(torch.from_numpy(array).double(), spec.joints).numpy()
        for path, content in zip(_arrays(out, clip), (positions.astype(np.float32), array)):
            save_array(path, content)
    return name, dict(frames=len(features[name]), found=found)


def _in_a_line(error, source):
    """Return an error in at most LINE characters: the file's folders go first."""
    text = " ".join(str(error).split())
    if len(text) > LINE and not isinstance(source, np.ndarray):
        text = text.replace(str(source), Path(source).name)
    return text if len(text) <= LINE else text[:LINE - 1] + "…"


def _write_texts(out, captions, mirrored):
    for name, sentences in captions.items():
        lines = [text_line(caption) for caption in sentences]
        if lines:
            write_lines(out / TEXTS / f"{name}.txt", lines)
        if lines and mirrored:
            write_lines(out / TEXTS / f"M{name}.txt", map(mirror_line, lines))


def _write_splits(out, splits, spec):
    """Write the split files, and mean and std of the training split."""
    train = splits["train"] or next(ids for ids in splits.values() if ids)
    mean, std = group_statistics((np.load(out / FEATURES / f"{name}.npy") for name in train), spec)
    save_array(out / "Mean.npy", mean)
    save_array(out / "Std.npy", std)
    for split, ids in (*splits.items(), ("all", sorted(itertools.chain(*splits.values())))):
        if ids:
            write_lines(out / f"{split}.txt", ids)
        else:
            (out / f"{split}.txt").unlink(missing_ok=True)


def _remove_others(out, done, current):
    """Remove the files of clips made earlier that are not `current`. Return how many clips went."""
    gone = set(with_copies(done, True)) - current
    removed = sum((out / FEATURES / f"{clip}.npy").is_file() for clip in gone)
    for clip in gone:
        for path in (*_arrays(out, clip), out / TEXTS / f"{clip}.txt"):
            path.unlink(missing_ok=True)
    return removed


def _count_found(records):
    found = {}
    for record in records.values():
        for what in record["found"].keys() - {"map"}:
            value = record["found"][what]
            found.setdefault(what, Counter())[value] += 1
    return found


def _describe(records, rejected):
    """Yield the lines of the report: every source with what was found, and its joints."""
    for name, record in records.items():
        found = dict(record["found"])
        joints = found.pop("map", {})
        yield "; ".join([f"{name}: {record['frames']} frames", *(f"{what} {found[what]}" for what in found)])
        yield from (f"    {target} = {describe_entry(entry)}" for target, entry in joints.items())
    yield from (f"rejected: {why}" for why in rejected.values())


def write_lines(path, lines):
    with atomic_write(path) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
