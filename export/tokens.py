"""Codes on disk: a file per clip or one packed array, and a manifest that says what the numbers mean.

    manifest.json    checkpoint, codebook, frame rate, counts; `complete` once everything beside it is written
    clips.txt        the clips' ids, one a line, in the order of the packed array
    ID.npy           (1, T') int64, one row of T' = T // 2**down_t codes: what T2M-GPT's second stage reads
    codes.npy, offsets.npy    instead, packed: all rows end to end, and where each begins (n + 1), both int64
"""
import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import torch

from export.clips import find_arrays
from utils.errors import UserError
from utils.files import load_array, save_array, write_atomically, write_json

FORMAT, VERSION = "motion-vq-tokens", 1
MANIFEST, IDS, CODES, OFFSETS = "manifest.json", "clips.txt", "codes.npy", "offsets.npy"


def weights_sha256(state):
    """SHA-256 over a state-dict's names and numbers: the same for one net in any kind of file."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode() + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_manifest(folder):
    """The manifest of a folder of codes, or None where it has none of this format."""
    try:
        manifest = json.loads(Path(folder, MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("format") == FORMAT else None


def _read_ids(folder):
    path = Path(folder, IDS)
    ids = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    outside = [name for name in ids if Path(name).is_absolute() or ".." in Path(name).parts or not name]
    if outside:  # files are removed and written by these names
        raise UserError(f"{path}: id {outside[0]!r} leaves the folder; expected plain clip names")
    return ids


def files_of(ids, packed):
    """The files that hold the codes of these clips, as paths within the folder."""
    return [CODES, OFFSETS] if packed else [f"{name}.npy" for name in ids]


def check_output(out, files=()):
    """Refuse, with a UserError, a folder that holds anything else than codes, or a file of somebody else's under a name of `files`.

    With `files` it is also made, so that one which cannot be written is refused before the work. Returns the paths within the folder that an
    earlier run wrote, or began to write.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder with --out")
    there = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if there and read_manifest(out) is None:
        raise UserError(f"{out}: holds other files ({', '.join(there[:3])}{', …' if len(there) > 3 else ''}) and no {MANIFEST} of codes; name a new "
                        "folder with --out")
    own = {*files_of(_read_ids(out), False), CODES, OFFSETS} if there else set()
    foreign = [name for name in files if name not in own and (out / name).exists()]
    if foreign:
        raise UserError(f"{out / foreign[0]}: was not written by this command; name a new folder with --out")
    if files:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{out}: cannot be made ({error.strerror}); name another folder with --out") from None
        if not os.access(out, os.W_OK | os.X_OK):
            raise UserError(f"{out}: cannot be written; name another folder with --out")
    return own


def write_tokens(out, ids, rows, manifest, packed, done=lambda: None):
    """Write rows of codes (T',) and their manifest; what an earlier run left and this one does not write is removed.

    Every file is whole or not there, and `complete` in the manifest turns true last, so a killed run is seen to be one. `done()` after each file.
    """
    out, files = Path(out), files_of(ids, packed)
    own = check_output(out, files)
    try:
        for path in out.rglob("*.tmp"):  # what a killed run was writing
            if re.sub(r"\.\d+\.tmp$", "", path.relative_to(out).as_posix()) in own | {MANIFEST, IDS}:
                path.unlink()
        manifest = dict(format=FORMAT, version=VERSION, complete=False, layout="packed" if packed else "clips", **manifest)
        write_json(out / MANIFEST, manifest)
        for name in own.difference(files):
            (out / name).unlink(missing_ok=True)
        write_atomically(out / IDS, lambda file: file.write("".join(f"{name}\n" for name in ids).encode()))
        if packed:
            save_array(out / CODES, np.concatenate(rows))
            save_array(out / OFFSETS, np.cumsum([0, *map(len, rows)], dtype=np.int64))
        else:
            for name, row in zip(files, rows):
                save_array(out / name, row[None])
                done()
        write_json(out / MANIFEST, {**manifest, "complete": True})
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); name another folder with --out") from None


def read_tokens(path):
    """Rows of codes at a path: ({name: array}, {name: its file}, manifest or None).

    path: a folder that `write_tokens` filled, any folder of .npy files, or one such file. Arrays are as they lie there, unchecked.
    """
    path, manifest = Path(path), read_manifest(path)
    beside = read_manifest(path.parent) if path.is_file() else None
    if manifest and not manifest.get("complete"):
        raise UserError(f"{path}: unfinished, the run that wrote it was stopped; run it again")
    if beside and beside["layout"] == "packed" and path.name in (CODES, OFFSETS):
        raise UserError(f"{path}: is the packed array of many clips; name its folder")
    if manifest and manifest["layout"] == "packed":
        ids, codes, offsets = _read_ids(path), load_array(path / CODES, mmap=True), load_array(path / OFFSETS)
        fits = offsets.shape == (len(ids) + 1,) and offsets.dtype.kind in "iu" and codes.ndim == 1
        if not fits or offsets[0] != 0 or offsets[-1] != len(codes) or (np.diff(offsets) < 0).any():
            raise UserError(f"{path}: {IDS}, {CODES} and {OFFSETS} do not belong together ({len(ids)} clips, {codes.shape} codes, {offsets.shape} "
                            "offsets); write them again")
        return {name: codes[a:b] for name, a, b in zip(ids, offsets, offsets[1:])}, dict.fromkeys(ids, path / CODES), manifest
    files = {name: path / f"{name}.npy" for name in _read_ids(path)} if manifest else find_arrays(path)
    return {name: load_array(file) for name, file in files.items()}, files, manifest or beside


def rows_of(codes, nb_code, name):
    """An array of codes as it came from a file → the list of its rows, (T',) int64 each, cut at the end token.

    codes: (T',) or (rows, T') integers. Below nb_code they are codes; the first nb_code ends the row (T2M-GPT's second stage ends its rows so
    and pads them with nb_code + 1), and what stands after it is left out. Raises UserError for other arrays and numbers.
    """
    if codes.dtype.kind not in "iu" or codes.ndim not in (1, 2):
        raise UserError(f"{name}: {codes.dtype} of shape {codes.shape}; expected integer codes of shape (1, T') or (T',)")
    rows = []
    for row in np.atleast_2d(codes):
        row = row.astype(np.int64)
        ends = np.flatnonzero(row == nb_code)
        end = ends[0] if len(ends) else len(row)
        wrong = np.flatnonzero((row < 0) | (row > nb_code + 1) | ((row > nb_code) & (np.arange(len(row)) < end)))
        if len(wrong):
            raise UserError(f"{name}: {row[wrong[0]]} at position {wrong[0]}; this codebook has codes 0 … {nb_code - 1}, the end token is {nb_code}, "
                            f"and {nb_code + 1} pads after it")
        rows.append(row[:end])
    return rows
