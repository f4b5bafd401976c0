"""Arrays on disk: .npy files read without running anything, and written whole or not at all."""
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from utils.errors import UserError


@contextmanager
def whole_file(path):
    """Yields a temporary path in the same folder, which gets the name `path` when the block ends without an error: never half a file.

    Not flushed to the disk one by one: thousands of small files would wait for it. Raises UserError where the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another folder with --out") from None
    finally:
        temporary.unlink(missing_ok=True)


def save_array(path, array):
    """Write an .npy file, whole or not at all."""
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


def load_array(path, mmap=False):
    """Read an .npy file, or map it; nothing that could run code. Raises UserError for what cannot be read."""
    try:
        return np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: unreadable ({str(error).splitlines()[0][:100]}); expected an array saved by numpy.save") from None
