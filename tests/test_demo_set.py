"""The demo set as a folder: made on first use, whole, once."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dataset.motion_folder import read_ids
from dataset.prepare.demo_set import ensure_demo
from tests.helpers import small_args
from train_vq import main
from utils.errors import UserError

ROOT = Path(__file__).parent.parent


def test_the_folder_is_made_once_and_trains(tmp_path):
    root = tmp_path / "demo"
    args = small_args(root, tmp_path / "out", "--dataname", "demo", "--total-iter", "6")
    assert main(args) == 0
    log = (tmp_path / "out" / "run" / "run.log").read_text()
    assert "made the demo set" in log and "goes without validation" not in log
    assert len(read_ids(root / "all.txt")) >= 400
    assert ensure_demo(root) is None
    assert not list(tmp_path.glob("*.tmp"))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds something else"):
        ensure_demo(tmp_path)


def test_the_recipe_trains_on_the_demo_set_it_makes(tmp_path):
    """The README's first command, cut short."""
    result = subprocess.run([sys.executable, "train_vq.py", "@options/demo.args", "--data-root", str(tmp_path / "demo"), "--out-dir", str(tmp_path),
                             "--exp-name", "run", "--total-iter", "3", "--warm-up-iter", "2", "--batch-size", "4"],
                            cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    log = (tmp_path / "run/run.log").read_text()
    assert "made the demo set" in log and "MPJPE" in log
    assert f"weights in {tmp_path}/run/net_last.pth" in result.stderr + result.stdout
