"""Checkpoints: whole or not at all, hashed, and never code."""
import json
import os
import pickle
import subprocess
import zipfile

import pytest
import torch

from models.loading import load_checkpoint
from training import checkpoint as module
from training.checkpoint import save_checkpoint
from utils.errors import UserError
from utils.files import remove_stale, write_atomically


def some(step):
    return {"net": {"w": torch.full((1000,), float(step))}, "iter": step}


def test_the_last_two_are_kept_and_their_hashes_recorded(tmp_path):
    path = tmp_path / "state_last.pth"
    for step in (1, 2, 3):
        save_checkpoint(str(path), some(step), keep_previous="state_prev.pth")
    assert load_checkpoint(path)["iter"] == 3
    assert load_checkpoint(tmp_path / "state_prev.pth")["iter"] == 2
    recorded = json.loads((tmp_path / "hashes.json").read_text())["state_last.pth"][-1]
    sums = subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, check=True).stdout
    assert sums.split()[0] == recorded["sha256"] and recorded["iter"] == 3


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_damage_is_named_by_its_hash(tmp_path, damage):
    path = tmp_path / "net_last.pth"
    save_checkpoint(str(path), some(7))
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data[:-500] if damage == "truncate" else data))
    with pytest.raises(UserError, match=r"SHA-256 mismatch.*iteration 7"):
        load_checkpoint(path)


def test_a_truncated_file_without_a_record_is_refused_too(tmp_path):
    torch.save(some(1), tmp_path / "x.pth")
    (tmp_path / "x.pth").write_bytes((tmp_path / "x.pth").read_bytes()[:-300])
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "x.pth")


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: pickle.dump(content, open(path, "wb"))])
def test_a_malicious_pickle_never_runs(tmp_path, save):
    save({"net": {}, "x": Canary(tmp_path / "canary")}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "canary").exists()


def test_bombs_are_refused_from_their_declared_size(tmp_path):
    torch.save({"net": {"w": torch.zeros(1).expand(10 ** 9)}}, tmp_path / "shape.pth")
    with pytest.raises(UserError, match="declare 4,000,000,000 bytes"):
        load_checkpoint(tmp_path / "shape.pth")
    with zipfile.ZipFile(tmp_path / "zip.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (64 << 20))
    with pytest.raises(UserError, match="declares"):
        load_checkpoint(tmp_path / "zip.pth")


@pytest.mark.parametrize("content", [[1, 2], {"other": 1}, {"net": torch.zeros(3)}])
def test_other_files_are_told_apart(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="no state-dict under 'net'"):
        load_checkpoint(tmp_path / "x.pth")
    with pytest.raises(UserError, match="no such file"):
        load_checkpoint(tmp_path / "y.pth")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_prefixes_are_stripped(tmp_path, prefix):
    torch.save({"net": {f"{prefix}w": torch.ones(2), f"{prefix}module.b": torch.ones(2)}}, tmp_path / "x.pth")
    assert list(load_checkpoint(tmp_path / "x.pth")["net"]) == ["w", "module.b"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(str(path), fail)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["x.pth"]


def test_a_full_disk_is_tried_twice_and_told_in_one_line(tmp_path, monkeypatch):
    path = tmp_path / "state_last.pth"
    save_checkpoint(str(path), some(1))
    tries = []

    def full(content, file):
        tries.append(file.write(b"partial"))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.torch, "save", full)
    with pytest.raises(UserError, match=r"No space left.*previous checkpoint is untouched"):
        save_checkpoint(str(path), some(2))
    monkeypatch.undo()
    assert len(tries) == 2 and load_checkpoint(path)["iter"] == 1
    assert sorted(os.listdir(tmp_path)) == ["hashes.json", "state_last.pth"]


def test_stale_temporary_files_are_removed(tmp_path):
    (tmp_path / "state_last.pth.123.tmp").write_bytes(b"x")
    (tmp_path / "net_last.pth").write_bytes(b"y")
    assert remove_stale(tmp_path) == ["state_last.pth.123.tmp"]
    assert os.listdir(tmp_path) == ["net_last.pth"]
