"""Write the checkpoints of a run."""
import os
import shutil

import torch

from models.loading import HASHES, recorded_hashes, sha256
from utils.errors import UserError
from utils.files import write_atomically, write_json


def save_checkpoint(path, checkpoint, keep_previous=None):
    """Write a checkpoint atomically and record its SHA-256; with `keep_previous`, the replaced file moves to that name first.

    The hash is recorded before the rename: whatever moment the process dies at, every file under its final name is whole and known.
    A failed write (a full disk) is tried once more; raises UserError if it fails again, with the old file still in place.
    """
    folder, name = os.path.split(path)

    def record(temporary):
        hashes = recorded_hashes(folder)
        hashes[name] = [*hashes.get(name, [])[-2:], {"iter": checkpoint.get("iter", 0), "sha256": sha256(temporary)}]
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
