"""The training script on small data: what it computes, writes, refuses and survives."""
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dataset.motion_folder import load_split
from evaluation.evaluate import evaluate_clips
from models.loading import load_checkpoint
from models.vqvae import HumanVQVAE
from options.option_vq import get_args_parser
from tests.helpers import SMALL_NET, make_dataset, signal_at, small_args
from tests.test_evaluator_wrapper import make_extractors
from train_vq import main
from training.step import Objective

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def weights(run, name="net_last.pth"):
    return load_checkpoint(Path(run) / name)["net"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def curves(run):
    """{tag: [(step, value), …]} of everything but speed."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"] if "per_s" not in tag}


# a run and what it leaves

def test_a_run_leaves_weights_curves_and_arguments(trained):
    files = {"net_last.pth", "net_best_mpjpe.pth", "state_last.pth", "state_prev.pth", "args.json", "run.log"}
    assert files <= set(os.listdir(trained))
    raw = torch.load(trained / "net_last.pth", weights_only=True)
    assert raw["iter"] == 15 and raw["args"]["nb_code"] == 16 and raw["mean"].shape == (263,)
    net = HumanVQVAE.from_checkpoint(trained / "net_last.pth")
    assert not net.training and net.vqvae.quantizer.filled
    clip = np.load(Path(raw["args"]["data_root"]) / "new_joint_vecs" / "000000.npy")
    assert net.reconstruct(clip).shape == (80, 22, 3)
    found = curves(trained)
    for tag in ("./Train/L1", "./Train/PPL", "./Train/Commit", "./Train/Vel", "./Train/LR",
                "./Train/Grad_norm", "./Train/Codebook_use"):
        assert [step for step, _ in found[tag]] == [5, 10, 12], tag
    assert not any("Warmup" in tag for tag in found)
    assert [step for step, _ in found["./Test/mpjpe"]] == [6, 12]
    assert "Warmup iter 3" in (trained / "run.log").read_text()


@pytest.mark.parametrize("quantizer", ["orig", "ema", "reset"])
def test_the_other_quantizers_train(data_root, tmp_path, quantizer):
    assert main(small_args(data_root, tmp_path, "--quantizer", quantizer)) == 0
    assert HumanVQVAE.from_checkpoint(tmp_path / "run" / "net_last.pth").vqvae.quant == quantizer


def test_kit_trains_and_the_loss_falls(tmp_path):
    root = make_dataset(tmp_path / "kit", "kit")
    args = small_args(root, tmp_path, "--dataname", "kit", "--total-iter", "60", "--print-iter", "20",
                      "--lr", "2e-3")
    assert main(args) == 0
    values = [value for _, value in curves(tmp_path / "run")["./Train/L1"]]
    assert values[-1] < 0.85 * values[0]


def test_a_missing_validation_split_is_said_and_skipped(tmp_path):
    root = make_dataset(tmp_path / "data")
    np.save(root / "new_joint_vecs" / "000006.npy", np.load(root / "new_joint_vecs" / "000006.npy")[:39])
    (root / "val.txt").write_text("000006\n")  # a frame too short
    assert main(small_args(root, tmp_path)) == 0
    assert "no clip of 40 to 199 frames" in (tmp_path / "run" / "run.log").read_text()
    (root / "val.txt").unlink()
    assert main(small_args(root, tmp_path, "--overwrite")) == 0
    assert "No validation" in (tmp_path / "run" / "run.log").read_text()


def test_validation_does_not_disturb_training(data_root, tmp_path, trained):
    assert main(small_args(data_root, tmp_path, "--eval-iter", "1000")) == 0
    assert same(weights(tmp_path / "run"), weights(trained))


# resuming

# inside the warm-up, at its end, at an epoch's end (five clips, batches of four), at the milestone, after it,
# and before the last step
@pytest.mark.parametrize(("at", "quantizer"), [
    (2, "ema_reset"), (3, "orig"), (5, "ema"), (9, "ema_reset"), (10, "reset"), (14, "ema_reset"),
    (8, "residual --num-quantizers 3 --quantize-dropout-prob 0.5 --sample-codebook-temp 0.5 "
        "--block-dropout 0.2 --ema-weights 0.9"),
    (4, "residual --num-quantizers 2 --shared-codebook"),
    (9, "fsq --fsq-levels 8 8")])
def test_a_resumed_run_is_bit_identical(data_root, tmp_path, quantizer, at, monkeypatch):
    # 64 codes for 32 rows a batch: rows are repeated with noise, so the random numbers must go on
    flags = ("--lr-scheduler", "6", "--eval-iter", "4", "--nb-code", "64", "--quantizer", *quantizer.split())
    assert main(small_args(data_root, tmp_path / "whole", *flags)) == 0
    signal_at(monkeypatch, at)
    assert main(small_args(data_root, tmp_path / "parts", *flags)) == 128 + signal.SIGUSR1
    monkeypatch.undo()
    # the clock may be anything: what counts is the recorded iteration
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    assert load_checkpoint(tmp_path / "parts" / "run" / "state_last.pth")["iter"] == at
    torch.manual_seed(999)  # whatever the process did in between
    assert main(small_args(data_root, tmp_path / "parts", *flags, "--resume", "auto")) == 0
    for key in ("net", "ema"):
        assert same(*(load_checkpoint(tmp_path / name / "run" / "net_last.pth")[key]
                      for name in ("whole", "parts")))
    assert curves(tmp_path / "whole" / "run") == curves(tmp_path / "parts" / "run")


def test_ctrl_c_during_validation_finishes_it_and_saves(data_root, tmp_path, trained, monkeypatch):
    import train_vq
    real = train_vq.validate

    def interrupt(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(train_vq, "validate", interrupt)
    assert main(small_args(data_root, tmp_path)) == 128 + signal.SIGINT
    monkeypatch.undo()
    # the signal is seen at the next step
    assert load_checkpoint(tmp_path / "run" / "state_last.pth")["iter"] == 10
    assert main(small_args(data_root, tmp_path, "--resume", "auto")) == 0
    assert same(weights(tmp_path / "run"), weights(trained))


def test_ctrl_c_while_the_data_is_read_shows_no_traceback(data_root, tmp_path, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("train_vq.load_split", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(small_args(data_root, tmp_path))
    assert stop.value.code == 130 and "Traceback" not in capsys.readouterr().err


def test_a_finished_run_goes_on_with_a_longer_total(data_root, tmp_path, trained):
    assert main(small_args(data_root, tmp_path, "--total-iter", "7")) == 0
    assert main(small_args(data_root, tmp_path, "--resume-pth",
                           str(tmp_path / "run" / "state_last.pth"))) == 0
    assert same(weights(tmp_path / "run"), weights(trained))


def refused(args, capsys, words):
    with pytest.raises(SystemExit) as stop:
        main(args)
    shown = capsys.readouterr()
    assert stop.value.code == 2 and "Traceback" not in shown.err
    assert words in shown.err.splitlines()[-1], shown.err
    assert shown.err.splitlines()[-1].removeprefix("error: ") not in shown.out  # once, not twice


def test_changed_flags_are_shown_and_refused(data_root, tmp_path, capsys):
    assert main(small_args(data_root, tmp_path)) == 0
    refused(small_args(data_root, tmp_path, "--resume", "auto", "--commit", "0.5"), capsys,
            "--commit 0.02 → 0.5")
    refused(small_args(data_root, tmp_path, "--resume", "auto", "--total-iter", "5"), capsys,
            "larger --total-iter")
    assert main(small_args(data_root, tmp_path, "--resume", "auto", "--commit", "0.5", "--force",
                           "--total-iter", "14")) == 0


def test_an_existing_run_is_not_overwritten_unasked(data_root, tmp_path, capsys):
    assert main(small_args(data_root, tmp_path)) == 0
    refused(small_args(data_root, tmp_path), capsys, "--overwrite")
    weight_file = str(tmp_path / "run" / "net_last.pth")
    refused(small_args(data_root, tmp_path, "--resume-pth", weight_file), capsys, "--overwrite")
    assert main(small_args(data_root, tmp_path, "--overwrite")) == 0


def test_a_damaged_state_gives_way_to_the_one_before(data_root, tmp_path, trained):
    assert main(small_args(data_root, tmp_path)) == 0
    path = tmp_path / "run" / "state_last.pth"
    os.utime(tmp_path / "run" / "state_prev.pth", (1, 1))  # time stamps do not matter
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
    assert main(small_args(data_root, tmp_path, "--resume", "auto")) == 0
    assert "cannot read a state" in (tmp_path / "run" / "run.log").read_text()
    assert same(weights(tmp_path / "run"), weights(trained))


@pytest.mark.parametrize("quantizer", ["ema_reset", "orig"])
def test_weights_of_upstream_are_a_start(data_root, tmp_path, quantizer):
    flags = ("--quantizer", quantizer)
    assert main(small_args(data_root, tmp_path / "a", *flags)) == 0
    state = weights(tmp_path / "a" / "run")
    torch.save({"net": state}, tmp_path / "upstream.pth")
    key = "vqvae.quantizer.embedding.weight" if quantizer == "orig" else "vqvae.quantizer.codebook"
    assert main(small_args(data_root, tmp_path / "b", *flags, "--resume-pth", str(tmp_path / "upstream.pth"),
                           "--total-iter", "1",
                           "--warm-up-iter", "1")) == 0
    moved = (weights(tmp_path / "b" / "run")[key] - state[key]).abs().max()
    assert 0 < moved < 0.1 * state[key].abs().max()


def test_what_a_checkpoint_records_is_used(data_root, tmp_path, capsys):
    network = ("--vq-act", "silu", "--dilation-growth-rate", "2", "--vq-norm", "LN", "--width", "64")
    short = ("--total-iter", "1", "--warm-up-iter", "1")
    assert main(small_args(data_root, tmp_path / "a", *network, *short)) == 0
    start = str(tmp_path / "a" / "run" / "net_last.pth")
    plain = ["--data-root", str(data_root), "--out-dir", str(tmp_path / "b"), "--batch-size", "4",
             "--window-size", "32",
             "--device", "cpu", "--nb-vis", "0", *short, "--resume-pth", start]
    assert main(get_args_parser(plain)) == 0
    net = HumanVQVAE.from_checkpoint(tmp_path / "b" / "VQVAE" / "net_last.pth")
    assert isinstance(net.vqvae.encoder.model[2][1].model[0].activation1, torch.nn.SiLU)
    recorded = load_checkpoint(tmp_path / "b" / "VQVAE" / "net_last.pth")["args"]
    assert (recorded["vq_act"], recorded["dilation_growth_rate"], recorded["nb_code"]) == ("silu", 2, 16)
    for flag, value in (("--vq-act", "relu"), ("--width", "32"), ("--quantizer", "ema"),
                        ("--dilation-growth-rate", "3")):
        refused(get_args_parser([*plain, "--exp-name", "c", flag, value]), capsys, value)


def test_averaged_weights_are_evaluated_saved_and_loaded(data_root, tmp_path):
    assert main(small_args(data_root, tmp_path, "--ema-weights", "0.9", "--lr", "5e-3")) == 0
    saved = load_checkpoint(tmp_path / "run" / "net_last.pth")
    loaded = HumanVQVAE.from_checkpoint(tmp_path / "run")
    for name, value in loaded.named_parameters():
        assert torch.equal(value, saved["ema"][name]) and not torch.equal(value, saved["net"][name]), name
    clips = load_split(data_root, "val", loaded.spec, loaded.mean, loaded.std)
    logged = curves(tmp_path / "run")["./Test/mpjpe"][-1][1]
    assert evaluate_clips(loaded, clips)["mpjpe"] == pytest.approx(logged, rel=1e-5)


def test_a_bias_is_in_the_checkpoints_statistics(data_root, tmp_path):
    short = ("--total-iter", "1", "--warm-up-iter", "1")
    assert main(small_args(data_root, tmp_path, "--feat-bias", "5", *short)) == 0
    net = HumanVQVAE.from_checkpoint(tmp_path / "run")
    ratio = np.load(data_root / "Std.npy") / net.std
    np.testing.assert_allclose(ratio, [5] * 4 + [1] * 255 + [5] * 4, rtol=1e-6)


def test_residual_codes_are_followed_layer_by_layer(data_root, tmp_path):
    flags = ("--quantizer", "residual", "--num-quantizers", "3", "--total-iter", "6")
    assert main(small_args(data_root, tmp_path, *flags)) == 0
    found = curves(tmp_path / "run")
    for q in (1, 2, 3):
        for name in (f"MPJPE_of_{q}_layers", f"Perplexity_layer_{q}", f"Codes_used_layer_{q}"):
            assert [step for step, _ in found[f"./Test/{name}"]] == [6]
    assert found["./Test/MPJPE_of_3_layers"] == found["./Test/mpjpe"]


# faults

def test_a_changed_source_clip_is_reported(tmp_path):
    root = make_dataset(tmp_path / "data")
    assert main(small_args(root, tmp_path, "--total-iter", "6")) == 0
    for path in (root / "new_joint_vecs").iterdir():
        os.utime(path)  # touched, not changed
    assert main(small_args(root, tmp_path, "--total-iter", "7", "--resume", "auto")) == 0
    assert "have changed" not in (tmp_path / "run" / "run.log").read_text()
    path = root / "new_joint_vecs" / "000001.npy"
    np.save(path, np.load(path) * 1.01)
    assert main(small_args(root, tmp_path, "--total-iter", "8", "--resume", "auto")) == 0
    assert "have changed" in (tmp_path / "run" / "run.log").read_text()


def poison(monkeypatch, step):
    """Make the windows of one step NaN, as a bad read would."""
    import train_vq
    real = train_vq.WindowFeed.batch

    def poisoned(self, k, *args):
        return real(self, k, *args) * (float("nan") if k == step - 1 else 1)

    monkeypatch.setattr(train_vq.WindowFeed, "batch", poisoned)


def poison_loss(monkeypatch, step):
    """Make the loss of one step infinite while its latents are sound."""
    real, count = Objective.forward, [0]

    def poisoned(*args):
        count[0] += 1
        values, rows, idx = real(*args)
        return (torch.cat([values[:-1], values[-1:] + float("inf")]) if count[0] == step
                else values), rows, idx

    monkeypatch.setattr(Objective, "forward", poisoned)


@pytest.mark.parametrize(("quantizer", "poison"), [("ema_reset", poison), ("orig", poison_loss)])
def test_bad_numbers_stop_the_run_and_leave_the_last_saved_state(data_root, tmp_path, monkeypatch, quantizer,
                                                                 poison):
    flags = ("--quantizer", quantizer)
    assert main(small_args(data_root, tmp_path / "a", *flags, "--total-iter", "2")) == 0
    poison(monkeypatch, 7)
    assert main(small_args(data_root, tmp_path / "b", *flags)) == 1
    log = (tmp_path / "b" / "run" / "run.log").read_text()
    assert "Step 7 has a non-finite" in log and "0000" in log.split("clips:")[1]
    state = load_checkpoint(tmp_path / "b" / "run" / "state_last.pth")
    assert state["iter"] == 5
    assert same(state["net"], weights(tmp_path / "a" / "run", "state_last.pth"))


def test_a_failing_tensorboard_does_not_end_training(data_root, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no such plugin")

    monkeypatch.setattr("training.run_folder.SummaryWriter.add_scalar", fail)
    assert main(small_args(data_root, tmp_path)) == 0
    assert "no such plugin; training goes on" in (tmp_path / "run" / "run.log").read_text()


@contextmanager
def process(*argv, **options):
    """Python in another process, which does not outlive the block."""
    with subprocess.Popen([sys.executable, *map(str, argv)], cwd=ROOT, **options) as process:
        try:
            yield process
        finally:
            process.kill()


HOLDER = """
import sys
from utils.files import exclusive_lock
with exclusive_lock(sys.argv[1], ""):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_one_processes_and_a_signal_or_kill_frees_it(data_root, tmp_path, capsys):
    flags = ("--resume", "auto", "--print-iter", "20", "--save-iter", "1000000")
    script = ("train_vq.py", *SMALL_NET, *flags, "--data-root", data_root, "--out-dir", tmp_path,
              "--exp-name", "run", "--batch-size", "4", "--window-size", "32", "--warm-up-iter", "4",
              "--total-iter", "1000000", "--nb-vis", "0")
    log, end = tmp_path / "run" / "run.log", time.monotonic() + 120
    with process(*script, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        while not (log.exists() and "Train iter" in log.read_text()):
            assert time.monotonic() < end and first.poll() is None, "waited too long"
            time.sleep(0.05)
        refused(small_args(data_root, tmp_path, *flags), capsys, "in use by another process")
        first.send_signal(signal.SIGTERM)
        assert first.wait(120) == 128 + signal.SIGTERM
    step = load_checkpoint(tmp_path / "run" / "state_last.pth")["iter"]
    assert f"after step {step}" in log.read_text()
    again = small_args(data_root, tmp_path, *flags, "--total-iter", str(step + 2))
    with process("-c", HOLDER, tmp_path / "run", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        refused(again, capsys, "in use by another process")
    assert main(again) == 0  # the lock died with its owner


def test_an_unwritable_folder_is_told_before_the_data_is_read(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    refused(small_args(tmp_path / "no data", tmp_path / "file"), capsys, "cannot be written")


def test_a_missing_data_folder_is_told(tmp_path, capsys):
    refused(small_args(tmp_path / "nowhere", tmp_path), capsys, "no such folder")
    assert "no such folder" in (tmp_path / "run" / "run.log").read_text()
    root = make_dataset(tmp_path / "data")  # a refused start is no run: the mended command works as it is
    assert main(small_args(root, tmp_path)) == 0


def test_with_the_extractors_validation_logs_upstreams_tags_and_keeps_the_best_of_each(tmp_path):
    root = make_dataset(tmp_path / "data", lengths=(64, 72, *[40 + 3 * i for i in range(33)]), val=33)
    (root / "texts").mkdir()
    for path in (root / "new_joint_vecs").iterdir():
        line = "a person walks#a/DET person/NOUN walk/VERB#0.0#0.0\n"
        (root / "texts" / f"{path.stem}.txt").write_text(line)
    folder, glove = make_extractors(tmp_path / "official")
    flags = ("--evaluator-dir", str(folder), "--glove-dir", str(glove))
    assert main(small_args(root, tmp_path / "with", *flags)) == 0
    run = tmp_path / "with" / "run"
    for tag in ("FID", "Diversity", "top1", "top2", "top3", "matching_score", "mpjpe"):
        assert [step for step, _ in curves(run)[f"./Test/{tag}"]] == [6, 12], tag
    for name in ("fid", "div", "top1", "matching", "mpjpe"):
        assert HumanVQVAE.from_checkpoint(run / f"net_best_{name}.pth").nb_code == 16
    assert main(small_args(root, tmp_path / "without", "--eval-iter", "1000", *flags)) == 0
    assert same(weights(run), weights(tmp_path / "without" / "run"))


def test_the_kind_of_statistics_is_told_and_the_wrong_one_warned_of(tmp_path):
    root = make_dataset(tmp_path / "data")
    flags = ("--total-iter", "1", "--warm-up-iter", "1")
    assert main(small_args(root, tmp_path / "a", *flags)) == 0
    log = (tmp_path / "a" / "run" / "run.log").read_text()
    assert "data set variant" in log and "WARNING" not in log
    std = np.load(root / "Std.npy")
    std[:4] /= 25
    std[-4:] /= 25
    np.save(root / "Std.npy", std)
    assert main(small_args(root, tmp_path / "b", *flags)) == 0
    log = (tmp_path / "b" / "run" / "run.log").read_text()
    assert "evaluator variant" in log and "WARNING" in log and "--meta-dir" in log
