"""Clips → a folder in the HumanML3D layout: `write_dataset`, for motion capture and the demo set alike."""
import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tqdm import tqdm

from dataset.prepare.captions import mirror_line, text_line
from dataset.prepare.source import Reading, read_clip
from utils.errors import UserError
from utils.files import atomic_write, exclusive_lock, load_array, remove_stale, save_array
from utils.motion_process import extract_features, group_statistics, mirror, recover_from_ric
from utils.motion_spec import get_spec

VERSION = 2                         # raised when the conversion changes, so that old clips are made again
FEATURES, JOINTS, TEXTS = "new_joint_vecs", "new_joints", "texts"
REPORT = "report.txt"               # what was recognised in each source, and why others were left out
DONE = "prepared.jsonl"             # the clips made here; no other file is ever replaced or removed
SPLITS, FRACTIONS = ("train", "val", "test"), (0.8, 0.05, 0.15)     # HumanML3D's
LINE = 180                          # characters of a message, beside what is said around it
MIN_BATCH = 32                      # fewer clips than this are not worth starting processes for


def assign_splits(names, fractions=FRACTIONS, mirrored=False):
    """Return {split: ids} of clips, each by the hash of its name. No wanted split is left empty."""
    share = {name: int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 2 ** 64 for name in names}
    chosen = np.searchsorted(np.cumsum(fractions)[:-1] / sum(fractions), list(share.values()), "right")
    splits = {split: [name for name, k in zip(share, chosen) if k == i] for i, split in enumerate(SPLITS)}
    for own, fraction in zip(splits.values(), fractions):
        largest = max(splits.values(), key=len)
        if fraction and not own and len(largest) > 1:
            own.append(min(largest, key=share.get))
            largest.remove(own[0])
    splits = {split: with_copies(own, mirrored) for split, own in splits.items()}
    return splits | {"all": sorted(with_copies(names, mirrored))}


def write_dataset(out, clips, dataname, *, reading=None, read=read_clip, joints=True, splits=None,
                  fractions=FRACTIONS, mirrored=False, workers=None, strict=False):
    """Convert clips into the folder `out`: joints, features, texts, splits, mean and std.

    clips: iterable of (id, source, captions). A source is joints (T, J, 3) in metres, y up, at the data set's
    frame rate, or a path, or a tuple with a path first, for `read(source, reading)`. Captions are sentences
    or HumanML3D text lines. joints: whether to write new_joints, which takes torch.
    splits: {split: ids}, with mean and std of all; None: by name and `fractions`, of the training split.
    mirrored: add the left-right mirrored copy M + id of each clip, to the same split.
    Clips made earlier are kept while source and settings stay, and removed when their source is gone.
    Returns a namespace: `splits`; `records` {id: {frames, found, …}} of the clips without their copies;
    `rejected` {id: why}; how many sources were `kept` from an earlier run, and how many `removed`.
    Raises UserError when `out` cannot be written or holds other clips only, when no clip is left, and with
    `strict` for the first clip that cannot be used.
    """
    reading, out, spec = reading or Reading(dataname), Path(out), get_spec(dataname)
    clips = {name: (source, captions) for name, source, captions in clips}
    for name in clips:
        if mirrored and f"M{name}" in clips:
            raise UserError(f"{name}: its mirrored copy would take the name of M{name}; rename that clip")
    with exclusive_lock(out, "name another folder with --out"):
        done, records, rejected = _read_done(out, clips), {}, {}
        jobs = [(name, source, done.get(name)) for name, (source, _) in clips.items()]
        convert = partial(_convert, out, spec, reading, read, joints, mirrored)
        results = _in_processes(out, convert, jobs, workers)
        with open(out / DONE, "a", buffering=1, encoding="utf-8") as log:
            log.write("\n")  # ends a line that an interrupted run may have cut short
            for name, result in tqdm(results, total=len(jobs), unit="clip"):
                if isinstance(result, dict):
                    records[name] = result
                    log.write(json.dumps(result) + "\n")
                elif strict:
                    raise UserError(f"{result} (--strict)")
                else:
                    rejected[name] = result
        if not records:
            first = next(iter(rejected.values()), "none is given")
            raise UserError(f"{out}: none of {len(clips)} clips can be used: {first}"[:LINE + 20])
        records = dict(sorted(records.items()))
        every = dict.fromkeys(with_copies(records, mirrored))
        published, splits = splits, splits or assign_splits(records, fractions, mirrored)
        splits = {split: [name for name in ids if name in every] for split, ids in splits.items()}
        for name in (name for name in records if clips[name][1]):
            lines = [text_line(caption) for caption in clips[name][1]]
            for copy, own in ((name, lines), (f"M{name}", map(mirror_line, lines)))[:1 + mirrored]:
                _write_lines(out / TEXTS / f"{copy}.txt", own)
        _write_splits(out, splits, every if published else splits["train"] or every, spec)
        gone = set(with_copies(done, True)).difference(every)
        for path in (*_arrays(out, gone), *(out / TEXTS / f"{name}.txt" for name in gone)):
            path.unlink(missing_ok=True)
        _write_lines(out / DONE, map(json.dumps, records.values()))
        lines = [f"{name}: rejected: {why}" for name, why in rejected.items()]
        for name, record in records.items():
            lines += [f"{name}: {record['frames']} frames", *describe(record["found"])]
        _write_lines(out / REPORT, lines)
    return SimpleNamespace(splits=splits, records=records, rejected=rejected,
                           kept=sum(done.get(name) == record for name, record in records.items()),
                           removed=len(done.keys() - records))


def _read_done(out, clips):
    """Return the clips made earlier, {id: record}. Raises UserError where `clips` are none of those there."""
    done, path = {}, out / DONE
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):  # an interrupted run may have cut the last line short
            record = json.loads(line)
            done[record["id"]] = record
    there = next(out.glob("new_joint*/*.npy"), None)
    if there and (done or not path.exists()) and not done.keys() & clips.keys():
        raise UserError(f"{out}: holds clips of other sources, as {there.name}, which would be removed; give "
                        "all sources at once, or another folder with --out")
    for folder in (FEATURES, JOINTS, TEXTS, "."):
        remove_stale(out / folder)
    return done


def _key(source, settings):
    """Return a fingerprint of a source and of every setting that shapes its conversion."""
    if isinstance(source, np.ndarray):
        content = source.tobytes()
    else:
        path, *part = source if isinstance(source, tuple) else [source]
        facts = os.path.exists(path) and (os.path.getsize(path), os.path.getmtime(path))
        content = repr((os.path.realpath(path), part, facts)).encode()
    return hashlib.sha256(repr((VERSION, settings)).encode() + content).hexdigest()[:32]


def with_copies(names, mirrored):
    return [clip for name in names for clip in (name, f"M{name}")[:1 + mirrored]]


def _arrays(out, names, joints=True):
    folders = (FEATURES, JOINTS)[:1 + joints]
    return [out / folder / f"{name}.npy" for name in names for folder in folders]


def _in_processes(out, function, jobs, workers):
    """Yield function(job) of each job, in worker processes where there are many."""
    if workers == 1 or len(jobs) < MIN_BATCH:
        yield from map(function, jobs)
        return
    try:
        # Ctrl-C is the parent's to handle
        with ProcessPoolExecutor(workers, None, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
            yield from pool.map(function, jobs, chunksize=4)
    except BrokenProcessPool:
        raise UserError(f"{out}: a worker was killed (out of memory?); run the command again to go on, with "
                        "fewer --workers") from None


def _convert(out, spec, reading, read, joints, mirrored, job):
    """Write one clip's arrays, unless they are there. Return its id, and its record or why it has none."""
    name, source, record = job
    key, paths = _key(source, (reading, mirrored)), _arrays(out, with_copies([name], mirrored), joints)
    if record and record["key"] == key and all(path.is_file() for path in paths):
        return name, record
    try:
        clip, found = (source, {}) if isinstance(source, np.ndarray) else read(source, reading)
        versions = (clip, mirror(clip, spec))[:1 + mirrored]
        features = [extract_features(version / spec.unit, spec.name) for version in versions]
        if not np.isfinite(features).all():
            raise UserError(f"{name}: its features are not finite; expected a body within a few metres")
    except UserError as error:
        return name, str(error)[-LINE:]     # the file's folders go first
    except Exception as error:  # whatever is wrong with one file, the others are converted
        where = source[0] if isinstance(source, tuple) else name
        text = f"{where}: unexpected, is the file sound? {type(error).__name__}: {error}"
        return name, " ".join(text.split())[:LINE]
    for copy, array in zip(with_copies([name], mirrored), features):
        save_array(out / FEATURES / f"{copy}.npy", array)
        if joints:
            import torch  # here, for other preparation does without
            if multiprocessing.parent_process():
                torch.set_num_threads(1)
            positions = recover_from_ric(torch.from_numpy(array).double(), spec.joints)
            save_array(out / JOINTS / f"{copy}.npy", positions.float().numpy())
    return name, dict(id=name, key=key, frames=len(features[0]), found=found)


def describe(found):
    """Yield a line for each thing that was found in a source, its joints last."""
    for what, value in {**found, **found.get("map", {})}.items():
        if isinstance(value, list):  # a point between two joints
            value = "{2:g} of the way from {0} to {1}".format(*value)
        if what != "map":
            yield f"    {what:<16}{value}"


def _write_splits(out, splits, counted, spec):
    """Write the split files, and mean and std of the clips `counted`."""
    paths = (out / FEATURES / f"{name}.npy" for name in tqdm(counted, "mean and std", unit="clip"))
    for name, array in zip(("Mean", "Std"), group_statistics(map(load_array, paths), spec)):
        save_array(out / f"{name}.npy", array)
    for split, ids in splits.items():
        if ids:
            _write_lines(out / f"{split}.txt", ids)
        else:
            (out / f"{split}.txt").unlink(missing_ok=True)


def _write_lines(path, lines):
    with atomic_write(path) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
