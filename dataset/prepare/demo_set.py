"""The demo set as a folder: animated by `demo`, converted as any motion capture is."""
import os
import shutil
from pathlib import Path

from dataset.prepare.convert import FEATURES, write_dataset
from dataset.prepare.demo import make_clips
from utils.errors import UserError

COUNT = 480
SEED = 0


def ensure_demo(root, seed=SEED, count=COUNT, progress=True):
    """Make the demo set in `root` unless it is there, whole or not at all. Returns its Report, or None when it was there.

    Deterministic by seed and count; a few seconds. Raises UserError when `root` cannot be written, or holds something else.
    """
    root = Path(root)
    if (root / FEATURES).is_dir() and (root / "train.txt").is_file():
        return None
    if root.is_dir() and any(root.iterdir()):
        raise UserError(f"{root}: holds something else than the demo set; name an empty folder, or remove it")
    temporary = root.with_name(f"{root.name}.{os.getpid()}.tmp")
    try:
        report = write_dataset(temporary, make_clips(seed, count), "demo", progress=progress)
        try:
            temporary.rename(root)
        except OSError:
            if not (root / "train.txt").is_file():  # otherwise another process was quicker, and its set is the same
                raise
    except OSError as error:
        raise UserError(f"{root}: cannot be written ({error.strerror}); name another folder with --data-root") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report
