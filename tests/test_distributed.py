"""Any number of ranks trains the same net: real processes, compared in float64."""
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from models.loading import load_checkpoint
from models.vqvae import HumanVQVAE
from tests.helpers import SMALL_NET, small_args
from tests.ranks import RUNS
from tests.test_train_vq import ROOT, curves, same, weights
from training.distributed import check_ranks
from utils.errors import UserError

pytestmark = pytest.mark.slow


def launch(root, out, *flags):
    """Train by tests/ranks.py, in processes that it forks."""
    done = subprocess.run([sys.executable, "tests/ranks.py", root, out, *flags], cwd=ROOT, timeout=600,
                          env={**os.environ, "OMP_NUM_THREADS": "1"},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def wait_for(condition, process, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and process.poll() is None, "waited too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data_root):
    """Folder of the same runs by 1, 2 and 4 ranks: {ranks: folder}."""
    out = tmp_path_factory.mktemp("ranks")
    launch(data_root, out)
    return {ranks: out / f"{ranks}" for ranks in (1, 2, 4)}


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", RUNS)
def test_the_result_does_not_depend_on_the_number_of_ranks(runs, name, ranks):
    alone, together = (weights(runs[n] / name / "run") for n in (1, ranks))
    assert alone.keys() == together.keys()
    for key in alone:
        torch.testing.assert_close(together[key], alone[key], atol=1e-8, rtol=0, msg=key)
    x = torch.randn(6, 64, 263, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    files = [runs[n] / name / "run" / "net_last.pth" for n in (1, ranks)]
    codes = [HumanVQVAE.from_checkpoint(file).double().encode(x) for file in files]
    assert torch.equal(*codes) and len(codes[0].unique()) > 1


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", RUNS)
def test_curves_and_validation_are_one_runs(runs, name, ranks):
    alone, together = (curves(runs[n] / name / "run") for n in (1, ranks))
    assert alone.keys() == together.keys() and "./Test/mpjpe" in alone and "./Train/PPL" in alone
    for tag in alone:
        assert [step for step, _ in together[tag]] == [step for step, _ in alone[tag]]
        np.testing.assert_allclose([v for _, v in together[tag]], [v for _, v in alone[tag]], rtol=1e-6,
                                   err_msg=tag)


@pytest.mark.parametrize("ranks", [2, 4])
def test_in_float32_the_curves_agree(runs, ranks):
    alone, together = (curves(runs[n] / "float32" / "run") for n in (1, ranks))
    for tag in ("./Train/L1", "./Train/Vel", "./Train/Commit"):
        np.testing.assert_allclose([v for _, v in together[tag]], [v for _, v in alone[tag]], rtol=1e-3,
                                   err_msg=tag)


def test_parts_of_a_batch_equal_the_whole(runs):
    whole, parts = (weights(runs[1] / name / "run") for name in ("ema_reset", "parts"))
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], atol=1e-8, rtol=0, msg=key)


def test_a_killed_rank_is_restarted_and_a_signal_stops_all_at_one_step(data_root, tmp_path):
    """Under torchrun, and with the numbers of an undisturbed run, bit by bit."""
    flags = ("--print-iter", "20", "--save-iter", "20", "--eval-iter", "1000000")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               "--max-restarts", "3", "train_vq.py", *SMALL_NET, *flags, "--data-root", data_root,
               "--out-dir", tmp_path, "--exp-name", "run", "--batch-size", "4", "--window-size", "32",
               "--warm-up-iter", "4", "--nb-vis", "0", "--total-iter", "1000000", "--resume", "auto"]
    run = tmp_path / "run"
    log = run / "run.log"
    process = subprocess.Popen([*map(str, command)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def trains(starts, line):
        parts = log.read_text().split(" steps ") if log.exists() else []
        return len(parts) > starts and line in parts[-1]

    try:
        wait_for(lambda: trains(1, "Train iter 20"), process)
        workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout
        os.kill(int(workers.split()[-1]), signal.SIGKILL)
        wait_for(lambda: trains(2, "Train iter 60"), process)  # it was started again
    finally:
        process.terminate()
        process.communicate(timeout=240)
    state = load_checkpoint(run / "state_last.pth")
    assert f"Stopped by SIGTERM after step {state['iter']}" in log.read_text()
    launch(data_root, tmp_path, *flags, "--total-iter", str(state["iter"] - 3))
    whole = tmp_path / "2" / "run"
    assert same(state["net"], weights(whole, "state_last.pth"))
    expected = curves(whole)
    for tag, points in curves(run).items():
        assert points == expected[tag][:len(points)] and points, tag


@pytest.mark.parametrize(("flags", "words"), [
    (("--batch-size", "6"), "is no multiple of 4, ranks"),
    (("--vq-norm", "BN"), "BN cannot work on several ranks"),
    (("--batch-size", "8", "--grad-accum", "2", "--quantizer", "residual", "--shared-codebook"),
     "moves within a batch")])
def test_what_cannot_work_on_several_ranks_is_refused(flags, words):
    with pytest.raises(UserError, match=words):
        check_ranks(small_args("unused", "unused", *flags), 4)
