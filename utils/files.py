"""Files: the one atomic write, the one lock, and the one reader of arrays."""
import json
import os
from contextlib import contextmanager
from pathlib import Path

import filelock
import numpy as np

from utils.errors import UserError

SIGNATURES = (  # what a file is, by its first bytes
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with git lfs pull"),
    (b"<", "a web page: download the file itself"),
    (b"PK\x03\x04", "a zip archive (.npz, or a file of torch.save)"),
    (b"\x80", "a Python pickle"),
    (b"BZh", "a packed archive: unpack it first"),
    (b"\x1f\x8b", "a packed archive: unpack it first"),
    (b"\x93NUMPY", "an array of numpy.save"),
)


@contextmanager
def atomic_write(path, flush=False):
    """Yield a binary file that gets the name `path` once the block has ended without an error.

    path: its folder is made if need be. flush: wait until the content and the name are on the disk.
    Until then a file of that name stays as it was; after an error the temporary file is removed.
    Raises UserError where the system cannot write.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if flush and os.name != "nt":
            _flush_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); free space, or write elsewhere") from None
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)


def _flush_folder(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale(folder):
    """Remove the temporary files that a killed process left in `folder`, which nobody else may be writing to."""
    for path in Path(folder).glob("*.tmp"):
        path.unlink(missing_ok=True)


def write_atomically(path, write, before_rename=None):
    """Call `write(file)` on a temporary file in the same folder, flush it to the disk, rename it to `path`.

    `before_rename(path)` runs when the new file is whole and the old one still in place. On any failure the temporary file is
    removed and `path` is left as it was. Raises OSError as the system does.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if before_rename:
            before_rename(temporary)
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
    with atomic_write(path, flush=True) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


@contextmanager
def exclusive_lock(folder, advice):
    """Make `folder` if need be and hold its lock file `.lock` for this process alone.

    advice: how to get on, for the message. Raises UserError where another process holds the lock.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(Path(folder, ".lock"))
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"{folder}: in use by another process; wait for it, or {advice}") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); {advice}") from None
    try:
        yield
    finally:
        lock.release()


def describe_file(path):
    """Say what kind of file `path` is, judged by its first bytes."""
    with open(path, "rb") as file:
        head = file.read(64).lstrip(b"\xef\xbb\xbf \r\n")
    if not head:
        return "an empty file"
    return next((what for start, what in SIGNATURES if head.startswith(start)), "a file of another kind")


def load_array(path, mmap=False):
    """Read an .npy file, or map it. Nothing in it is run.

    Raises UserError for a missing file, a file of another kind, a damaged one, and an array of Python objects.
    """
    try:
        found = describe_file(path)
        if not found.startswith("an array"):
            raise UserError(f"{path}: is {found}; expected an array of numpy.save")
        array = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # numpy evaluates the header as Python: a damaged one raises nearly anything
        objects = "Object arrays" in str(error)
        found = "holds Python objects" if objects else "is damaged or cut short"
        raise UserError(f"{path}: {found}; expected an array of numbers saved by numpy.save") from None
    return array


def save_array(path, array):
    """Write an .npy file atomically."""
    with atomic_write(path) as file:
        np.save(file, array)


@contextmanager
def whole_file(path):
    """Yield a temporary path in the same folder, which gets the name `path` when the block ends without an error."""
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
