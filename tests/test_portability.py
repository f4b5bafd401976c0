"""What a user does first, on a system without POSIX: its modules and signals are hidden, as on Windows."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import SMALL_NET
from tests.test_motion_process import random_clip

ROOT = Path(__file__).parent.parent
NET = " ".join(SMALL_NET)
COMMANDS = (
    "dataset.prepare mocap --out set --split 2 1 1 --workers 1",
    "dataset.check set --window-size 16",
    f"train_vq --data-root set --out-dir runs --exp-name run --total-iter 2 --warm-up-iter 1 --batch-size 2 "
    f"--window-size 16 --print-iter 1 --eval-iter 2 --nb-vis 0 {NET}",
    "tokenize_vq --resume-pth runs/run/net_last.pth --data-root set --out tokens --device cpu",
    "eval_vq runs/run/net_last.pth --data-root set --device cpu",
    "export_vq runs/run/net_last.pth --out model",
)
SCRIPT = """
import runpy, signal, sys
sys.path.insert(0, sys.argv[1])
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None        # importing it raises ModuleNotFoundError
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM"):
    delattr(signal, name)
for command in sys.argv[2:]:
    module, *sys.argv[1:] = command.split()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code and (module, end.code) != ("dataset.check", 1):     # 1: with warnings
            sys.exit(f"{command}: exit code {end.code}")
"""


@pytest.mark.slow
def test_everything_runs_without_posix_modules_and_signals(tmp_path):
    (tmp_path / "mocap").mkdir()
    for i in range(4):
        np.save(tmp_path / "mocap" / f"clip{i}.npy", random_clip(i, frames=60))
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(ROOT), *COMMANDS], cwd=tmp_path, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for words in ("wrote 4 files and manifest.json", "MPJPE root-aligned mm", "wrote model: ema_reset, 16"):
        assert words in done.stdout
    assert (tmp_path / "tokens" / "manifest.json").is_file()
    assert (tmp_path / "runs" / "run" / "eval_test.json").is_file()
