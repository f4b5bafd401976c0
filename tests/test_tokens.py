"""Folders of codes: whole or seen to be unfinished, and never a step outside."""
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from export.tokens import read_manifest, read_tokens, weights_sha256, write_tokens
from utils.errors import UserError

ROOT = Path(__file__).parent.parent
WRITER = """
import sys, numpy as np
from export.tokens import write_tokens
write_tokens(sys.argv[1], {f"{i:06d}": np.arange(500) for i in range(20000)}, {})
"""


@pytest.mark.slow
def test_a_killed_run_leaves_whole_files_and_is_seen_to_be_unfinished(tmp_path):
    out = tmp_path / "codes"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(out)], cwd=ROOT)
    end = time.time() + 60
    while process.poll() is None and time.time() < end and not (out / "000100.npy").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    files = list(out.glob("*.npy"))
    assert 100 < len(files) < 20000 and all(np.load(file).shape == (1, 500) for file in files)
    assert read_manifest(out)["complete"] is False
    with pytest.raises(UserError, match="unfinished"):
        read_tokens(out)
    write_tokens(out, {"a": np.arange(3), "b": np.arange(4)}, {})  # the next run puts all of it right
    assert sorted(path.name for path in out.iterdir()) == ["a.npy", "b.npy", "clips.txt", "manifest.json"]
    assert [len(row[0]) for row in read_tokens(out)[0].values()] == [3, 4]


def test_ids_in_subfolders_come_back_under_their_names(tmp_path):
    write_tokens(tmp_path / "codes", {"walk/1": np.arange(3), "run/1": np.arange(4)}, {})
    arrays, files, manifest = read_tokens(tmp_path / "codes")
    assert list(arrays) == ["run/1", "walk/1"]
    assert files["run/1"] == tmp_path / "codes" / "run" / "1.npy"
    assert manifest["complete"]


def test_ids_that_leave_the_folder_are_refused(tmp_path):
    out, victim = tmp_path / "codes", tmp_path / "victim.npy"
    write_tokens(out, {"a": np.arange(3)}, {})
    np.save(victim, np.arange(3))
    (out / "clips.txt").write_text("../victim\n")
    with pytest.raises(UserError, match="an id leaves the folder"):
        write_tokens(out, {"b": np.arange(3)}, {})
    assert victim.exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="with --out"):
        write_tokens(tmp_path / "file" / "codes", {"a": np.arange(3)}, {})


def test_the_weights_digest_follows_numbers_and_names_alone():
    state = {"a": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}
    same = {"n": torch.tensor(3), "a": torch.arange(6.0).view(3, 2).t().contiguous().t().reshape(2, 3)}
    assert weights_sha256(state) == weights_sha256(same)
    changed = [{**state, "a": state["a"] + 1e-6}, {**state, "a": state["a"].view(3, 2)},
               {"b": state["a"], "n": state["n"]},
               {**state, "a": state["a"].bfloat16()}]
    assert len({weights_sha256(other) for other in [state, *changed]}) == 5


def test_a_manifest_of_something_else_counts_as_none(tmp_path):
    for text in ("[]", "{}", json.dumps(dict(format="other"))):
        (tmp_path / "manifest.json").write_text(text)
        assert read_manifest(tmp_path) == {}


def test_a_manifest_cut_off_is_refused_wherever_it_is_cut(tmp_path):
    write_tokens(tmp_path, {"a": np.arange(3)}, dict(checkpoint="net.pth"))
    whole = (tmp_path / "manifest.json").read_bytes()
    for end in (0, 1, 20, len(whole) - 3):
        (tmp_path / "manifest.json").write_bytes(whole[:end])
        for path in (tmp_path, tmp_path / "a.npy"):
            with pytest.raises(UserError, match="is damaged or cut off"):
                read_tokens(path)
    for content in (b"\xff\xfe\x00", b"[" * 100_000):
        (tmp_path / "manifest.json").write_bytes(content)
        with pytest.raises(UserError, match="is damaged or cut off"):
            read_tokens(tmp_path)


def test_an_editors_lock_is_no_row_of_codes(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))
    (tmp_path / ".#a.npy").symlink_to("gone")
    assert list(read_tokens(tmp_path)[0]) == ["a"]


@pytest.mark.parametrize("content, words", [
    (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"), (b"PK\x03\x04", "zip archive"),
    (b"", "empty file"),
    (b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'shape': (9", "damaged or cut short")])
def test_a_file_that_is_no_array_is_named(tmp_path, content, words):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_tokens(tmp_path / "a.npy")
