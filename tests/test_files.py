"""Files: atomic writes, and the readers of arrays and text, on whole, damaged and foreign files."""
import os

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.files import atomic_write, load_array, read_text, remove_stale, save_array, write_json


def test_an_array_comes_back_as_it_was_saved(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    save_array(tmp_path / "new" / "x.npy", array)
    assert (load_array(tmp_path / "new" / "x.npy") == array).all()
    assert os.listdir(tmp_path / "new") == ["x.npy"]


def npz(path):
    np.savez(path.open("wb"), x=np.zeros(3))


def torch_file(path):
    torch.save(torch.zeros(3), path)


def objects(path):
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)


def words(path):
    np.save(path, np.array(["a", "b"]))


def cut(path):
    np.save(path, np.zeros(100))
    path.write_bytes(path.read_bytes()[:-8])


def header(text):
    def write(path):
        np.save(path, np.zeros(3))
        path.write_bytes(path.read_bytes().replace(b"'descr'", text))
    return write


def link(path):
    path.symlink_to("nowhere")


FOREIGN = {
    "npz": (npz, "is a zip archive"), "torch": (torch_file, "is a zip archive"),
    "objects": (objects, "Python objects"), "words": (words, "an array of <U1"),
    "cut": (cut, "damaged or cut short"), "token": (header(b"'descr\n"), "damaged or cut short"),
    "syntax": (header(b"}descr'"), "damaged or cut short"),
    "lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid"), "git lfs pull"),
    "page": (lambda path: path.write_text("\n<html>"), "a web page"),
    "empty": (lambda path: path.write_bytes(b""), "an empty file"),
    "text": (lambda path: path.write_text("1 2 3"), "a file of another kind"),
    "folder": (lambda path: path.mkdir(), "cannot be read"), "none": (lambda path: None, "no such file"),
    "link": (link, "a link to a file that is not there"),
}


@pytest.mark.parametrize(("make", "found"), FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_array_is_named(tmp_path, make, found):
    make(tmp_path / "x.npy")
    with pytest.raises(UserError, match=rf"x\.npy: .*{found}"):
        load_array(tmp_path / "x.npy")


@pytest.mark.parametrize("data", ["é\n".encode(), "é\n".encode("utf-8-sig")])
def test_text_reads_with_and_without_a_mark(tmp_path, data):
    (tmp_path / "x.txt").write_bytes(data)
    assert read_text(tmp_path / "x.txt", "text") == "é\n"


@pytest.mark.parametrize(("data", "found"), [
    ("id".encode("utf-16"), "UTF-16"), ("id".encode("utf-16-be"), "UTF-16"), (b"\xe9t\xe9", "or no text"),
    (b"version https://git-lfs", "git lfs pull"), (b"\x93NUMPY\x01", "an array of numpy.save")])
def test_what_is_no_text_is_named(tmp_path, data, found):
    (tmp_path / "x.txt").write_bytes(data)
    with pytest.raises(UserError, match=rf"{found}.*expected one id per line"):
        read_text(tmp_path / "x.txt", "one id per line")


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    for error in (OSError(28, "No space left on device"), ValueError(), RuntimeError(), KeyboardInterrupt()):
        seen = UserError if isinstance(error, OSError) else type(error)
        with pytest.raises(seen), atomic_write(path) as file:
            file.write(b"new")
            raise error
        assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["x.bin"]


@pytest.mark.parametrize("write", [
    lambda path: save_array(path, np.zeros(10 ** 5)), lambda path: write_json(path, "x" * 10 ** 6),
    lambda path: save_with_torch(path)], ids=["numpy", "json", "torch"])
def test_a_full_disk_gets_one_line(tmp_path, write):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"x\.bin: cannot be written \(.*free space, or write elsewhere"):
            write(tmp_path / "x.bin")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not os.listdir(tmp_path)


def save_with_torch(path):
    with atomic_write(path) as file:
        torch.save({"x": torch.zeros(10 ** 5)}, file)


def test_an_output_in_place_of_a_folder_is_one_line(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        save_array(tmp_path / "out" / "x.npy", np.zeros(3))


def test_temporary_files_go_and_no_others(tmp_path):
    for name in ("x.npy.1.tmp", "x.npy"):
        (tmp_path / name).write_bytes(b"part")
    remove_stale(tmp_path)
    assert os.listdir(tmp_path) == ["x.npy"]
