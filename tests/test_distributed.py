"""Any number of ranks trains the same net: real processes under torchrun, compared in float64."""
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
from tests.helpers import SMALL_NET, make_dataset, small_args
from tests.ranks import RUNS
from tests.test_train_vq import ROOT, curves, same, weights
from training.distributed import check_ranks
from utils.errors import UserError

pytestmark = pytest.mark.slow


def torchrun(ranks, *command, restarts=3):
    """A torchrun of `ranks` processes on this machine alone."""
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone",
                             "--nproc-per-node", str(ranks),
                             "--max-restarts", str(restarts), *map(str, command)],
                            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_line(log, line, seconds=240):
    end = time.monotonic() + seconds
    while not (log.exists() and line in log.read_text()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of the same runs by 1, 2 and 4 ranks: {ranks: folder}."""
    root = make_dataset(tmp_path_factory.mktemp("data") / "t2m")
    folders = {}
    for ranks in (1, 2, 4):
        folders[ranks] = tmp_path_factory.mktemp(f"ranks{ranks}")
        process = torchrun(ranks, "tests/ranks.py", root, folders[ranks])
        output = process.communicate(timeout=600)[0]
        assert process.returncode == 0, output[-3000:]
    return folders


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


COMMAND = ("train_vq.py", *SMALL_NET, "--exp-name", "run", "--window-size", "32", "--warm-up-iter", "4",
           "--print-iter", "20", "--save-iter", "20", "--nb-vis", "0")


def test_a_killed_rank_is_restarted_and_the_run_is_bit_identical(data_root, tmp_path):
    flags = ("--data-root", data_root, "--batch-size", "4", "--total-iter", "60", "--eval-iter", "60",
             "--resume", "auto")
    whole = torchrun(2, *COMMAND, *flags, "--out-dir", tmp_path / "whole")
    output = whole.communicate(timeout=300)[0]
    assert whole.returncode == 0, output[-3000:]
    process = torchrun(2, *COMMAND, *flags, "--out-dir", tmp_path / "parts")
    log = tmp_path / "parts" / "run" / "run.log"
    wait_for_line(log, "Train iter 20")
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output[-3000:]
    assert log.read_text().count(" steps ") >= 2  # it was started again
    assert same(weights(tmp_path / "whole" / "run"), weights(tmp_path / "parts" / "run"))
    assert curves(tmp_path / "whole" / "run") == curves(tmp_path / "parts" / "run")


def test_a_signal_stops_all_ranks_at_one_step(data_root, tmp_path):
    process = torchrun(2, *COMMAND, "--data-root", data_root, "--batch-size", "4", "--total-iter", "1000000",
                       "--out-dir", tmp_path, restarts=0)
    log = tmp_path / "run" / "run.log"
    wait_for_line(log, "Train iter")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=240)
    state = load_checkpoint(tmp_path / "run" / "state_last.pth")
    assert f"Stopped by SIGTERM after step {state['iter']}" in log.read_text()


@pytest.mark.parametrize(("flags", "words"), [
    (("--batch-size", "6"), "is no multiple of 4, ranks"),
    (("--vq-norm", "BN"), "BN cannot work on several ranks"),
    (("--batch-size", "8", "--grad-accum", "2", "--quantizer", "residual", "--shared-codebook"),
     "moves within a batch")])
def test_what_cannot_work_on_several_ranks_is_refused(flags, words):
    with pytest.raises(UserError, match=words):
        check_ranks(small_args("unused", "unused", *flags), 4)
