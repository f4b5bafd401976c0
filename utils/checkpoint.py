"""Reading and writing checkpoints: whole or not at all, hashed, and never a pickle that could run code."""
import hashlib
import json
import os
import pickle
import shutil
import zipfile

import torch

from utils.errors import UserError

HASHES = "hashes.json"  # beside the checkpoints: file name → the last few saved versions, {"iter", "sha256"}
MAX_BYTES = 8 << 30     # a larger declared size is refused before anything is unpacked


def load_checkpoint(path, verify=True):
    """Read a checkpoint onto the CPU: a dict with at least 'net' (a state-dict).

    Only tensors and Python primitives are admitted (`weights_only`), a declared size beyond 8 GiB or twice the file's is refused, and
    the SHA-256 is compared where a `hashes.json` beside the file records one. Raises UserError for everything that is wrong with it.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; expected a checkpoint (net_last.pth, state_last.pth, or upstream's net_last.pth)")
    if verify:
        _verify(path)
    try:
        _check_declared_size(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint ({reason[:160]}); expected tensors and primitives saved by torch.save") from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("net"), dict):
        raise UserError(f"{path}: no state-dict under 'net'; expected a checkpoint of this project or of T2M-GPT")
    checkpoint["net"] = strip_prefixes(checkpoint["net"])
    declared = sum(tensor.numel() * tensor.element_size() for tensor in checkpoint["net"].values() if torch.is_tensor(tensor))
    if declared > 2 * os.path.getsize(path) + (1 << 20):  # tensors may repeat one stored number over any shape
        raise UserError(f"{path}: its tensors declare {declared:,} bytes in a file of {os.path.getsize(path):,}; refused")
    return checkpoint


def strip_prefixes(state):
    """State-dict without the prefixes that wrappers leave on every key."""
    while state and (prefix := next((p for p in ("_orig_mod.", "module.") if all(key.startswith(p) for key in state)), None)):
        state = {key[len(prefix):]: value for key, value in state.items()}
    return state


def _check_declared_size(path):
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        declared = sum(entry.file_size for entry in archive.infolist())
    if declared > min(MAX_BYTES, 2 * os.path.getsize(path) + (1 << 20)):
        raise ValueError(f"it declares {declared:,} bytes in a file of {os.path.getsize(path):,}")


def sha256(path):
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def recorded_hashes(folder):
    """The folder's record of saved files, {name: [{"iter", "sha256"}, …]} oldest first; empty without one."""
    try:
        with open(os.path.join(folder, HASHES), encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _verify(path):
    folder, name = os.path.split(path)
    versions = recorded_hashes(folder).get(name)
    if versions and sha256(path) not in {version["sha256"] for version in versions}:
        last = versions[-1]
        raise UserError(f"{path}: SHA-256 mismatch: found {sha256(path)[:16]}…, recorded {last['sha256'][:16]}… (iteration {last['iter']}); "
                        "the file was damaged or changed after it was saved: use another checkpoint of the run")


def write_atomically(path, write, before_rename=None):
    """Call `write(file)` on a temporary file in the same folder, flush it to the disk, rename it to `path`.

    `before_rename(sha256)` runs when the new file is whole and the old one still in place. On any failure the temporary file is
    removed and `path` is left as it was. Raises OSError as the system does.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if before_rename:
            before_rename(sha256(temporary))
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
    descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY)  # the rename itself must reach the disk too
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path, content):
    """Write JSON atomically."""
    write_atomically(path, lambda file: file.write((json.dumps(content, indent=1) + "\n").encode()))


def save_checkpoint(path, checkpoint, keep_previous=None):
    """Write a checkpoint atomically and record its SHA-256; with `keep_previous`, the replaced file moves to that name first.

    The hash is recorded before the rename: whatever moment the process dies at, every file under its final name is whole and known.
    A failed write (a full disk) is tried once more; raises UserError if it fails again, with the old file still in place.
    """
    folder, name = os.path.split(path)

    def record(digest):
        hashes = recorded_hashes(folder)
        hashes[name] = [*hashes.get(name, [])[-2:], {"iter": checkpoint.get("iter", 0), "sha256": digest}]
        if keep_previous:
            hashes[keep_previous] = hashes[name]
        write_json(os.path.join(folder, HASHES), hashes)
        if keep_previous and os.path.exists(path):
            os.replace(path, os.path.join(folder, keep_previous))

    for attempt in (1, 2):
        try:
            return write_atomically(path, lambda file: torch.save(checkpoint, file), record)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            if attempt == 2:
                free = shutil.disk_usage(folder or ".").free
                raise UserError(f"{path}: cannot be saved ({str(error).splitlines()[0]}; {free:,} bytes free); the previous checkpoint is "
                                "untouched: free some space and go on with --resume auto") from error


def remove_stale(folder):
    """Remove the temporary files a killed process left in a run folder; returns their names."""
    stale = [name for name in os.listdir(folder) if name.endswith(".tmp")]
    for name in stale:
        os.remove(os.path.join(folder, name))
    return stale
