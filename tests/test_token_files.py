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
ids = [f"{i:06d}" for i in range(20000)]
write_tokens(sys.argv[1], ids, [np.arange(500)] * len(ids), {}, False)
"""


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
    write_tokens(out, ["a", "b"], [np.arange(3), np.arange(4)], {}, False)  # the next run puts all of it right
    assert sorted(path.name for path in out.iterdir()) == ["a.npy", "b.npy", "clips.txt", "manifest.json"]
    assert [len(row[0]) for row in read_tokens(out)[0].values()] == [3, 4]


def test_ids_in_subfolders_come_back_under_their_names(tmp_path):
    write_tokens(tmp_path / "codes", ["walk/1", "run/1"], [np.arange(3), np.arange(4)], {}, False)
    arrays, files, manifest = read_tokens(tmp_path / "codes")
    assert list(arrays) == ["walk/1", "run/1"] and files["run/1"] == tmp_path / "codes" / "run" / "1.npy" and manifest["complete"]


def test_ids_that_leave_the_folder_are_refused(tmp_path):
    out, victim = tmp_path / "codes", tmp_path / "victim.npy"
    write_tokens(out, ["a"], [np.arange(3)], {}, False)
    np.save(victim, np.arange(3))
    (out / "clips.txt").write_text("../victim\n")
    for touch in (lambda: read_tokens(out), lambda: write_tokens(out, ["b"], [np.arange(3)], {}, False)):
        with pytest.raises(UserError, match=r"'../victim' leaves the folder"):
            touch()
    assert victim.exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="with --out"):
        write_tokens(tmp_path / "file" / "codes", ["a"], [np.arange(3)], {}, False)


def test_the_weights_digest_follows_numbers_and_names_alone():
    state = {"a": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}
    same = {"n": torch.tensor(3), "a": torch.arange(6.0).view(3, 2).t().contiguous().t().reshape(2, 3)}
    assert weights_sha256(state) == weights_sha256(same)
    changed = [{**state, "a": state["a"] + 1e-6}, {**state, "a": state["a"].view(3, 2)}, {"b": state["a"], "n": state["n"]},
               {**state, "a": state["a"].bfloat16()}]
    assert len({weights_sha256(other) for other in [state, *changed]}) == 5


def test_a_manifest_of_something_else_is_none(tmp_path):
    for text in ("[]", "{}", "not json", json.dumps(dict(format="other"))):
        (tmp_path / "manifest.json").write_text(text)
        assert read_manifest(tmp_path) is None
