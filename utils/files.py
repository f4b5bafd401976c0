"""Files: the one atomic write, the one lock, and the readers of arrays and text."""
import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
import numpy as np

from utils.errors import UserError

ARRAY, EMPTY, UNKNOWN = "an array of numpy.save", "an empty file", "a file of another kind"
SIGNATURES = (  # what a file is, by its first bytes
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with git lfs pull"),
    (b"<", "a web page: download the file itself"),
    (b"PK\x03\x04", "a zip archive (.npz, or a file of torch.save)"),
    (b"\x80", "a Python pickle"),
    ((b"BZh", b"\x1f\x8b"), "a packed archive: unpack it first"),
    (b"\x93NUMPY", ARRAY),
)


@contextmanager
def atomic_write(path, flush=False):
    """Yield a binary file that takes the name `path`, in a folder made if need be, after the block.

    flush: wait until the content is on the disk. Raises UserError where the system cannot write.
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
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save wraps the system's
        if not isinstance(cause, OSError):
            raise
        raise UserError(f"{path}: cannot be written ({cause.strerror or cause}); free space, or write "
                        "elsewhere") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def remove_stale(folder):
    """Remove the temporary files that killed processes left in `folder`."""
    for path in Path(folder).glob("*.tmp"):
        path.unlink(missing_ok=True)


def write_json(path, content):
    """Write JSON atomically."""
    with atomic_write(path, flush=True) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def exclusive_lock(folder, advice):
    """Make `folder` and hold it for this process alone: with … Raises UserError, ending in `advice`."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(Path(folder, ".lock"), timeout=0).acquire()
    except OSError as error:
        locked = isinstance(error, filelock.Timeout)
        reason = "in use by another process" if locked else f"cannot be written ({error.strerror or error})"
        raise UserError(f"{folder}: {reason}; {advice}") from None


def describe_file(path):
    """Say what kind of file `path` is, by its first bytes. Raises UserError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(64).lstrip(b"\xef\xbb\xbf \r\n")
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})"
        if isinstance(error, FileNotFoundError):
            reason = "is a link to a file that is not there" if os.path.islink(path) else "no such file"
        raise UserError(f"{path}: {reason}") from None
    kinds = (what for start, what in SIGNATURES if head.startswith(start))
    return next(kinds, UNKNOWN) if head else EMPTY


def read_text(path, expected):
    """Read a UTF-8 file. Raises UserError for any other; expected: what it should hold, for the message."""
    found = describe_file(path)
    if found in (UNKNOWN, EMPTY):
        with suppress(UnicodeDecodeError):
            text = Path(path).read_bytes().decode("utf-8-sig")
            if "\0" not in text:
                return text
        found = "UTF-16 text or no text: save it as UTF-8"
    raise UserError(f"{path}: is {found}; expected {expected}")


def load_array(path):
    """Read an array of numbers from an .npy file, running nothing. Raises UserError for any other."""
    found = describe_file(path)
    if found == ARRAY:
        try:
            array = np.load(path, allow_pickle=False)
            if array.dtype.kind in "biuf":
                return array
            found = f"an array of {str(array.dtype)[:40]}"
        except Exception as error:  # numpy evaluates the header as Python: it may raise anything
            objects = "object" in str(error).lower()
            found = "an array of Python objects" if objects else "damaged or cut short"
    raise UserError(f"{path}: is {found}; expected an array of numbers saved by numpy.save")


def save_array(path, array):
    """Write an .npy file atomically."""
    with atomic_write(path) as file:
        np.save(file, array)
