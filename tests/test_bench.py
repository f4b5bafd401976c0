"""The bench on a tiny net: every part reports, and mistakes are one line. No time is judged."""
import time

import pytest
import torch

import bench
from utils.device import is_slow_in_bf16

TINY = ("--device", "cpu", "--width", "32", "--code-dim", "32", "--output-emb-width", "32", "--nb-code", "16",
        "--depth", "1", "--window-size", "16", "--rounds", "1", "--batch-size", "2", "--clips", "4")


@pytest.mark.slow
def test_every_part_reports(capsys, monkeypatch):
    monkeypatch.setitem(bench.PRODUCT, "cpu", 64)  # a product in emulated bf16 takes a minute else
    assert bench.main(bench.parse_args([*TINY, "--amp", "bf16"])) == 0
    lines = [line.rsplit(None, 3) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [name for name, *_ in lines] == [
        "step with amp off: share of the matrix product's rate",
        "step with amp bf16: share of the matrix product's rate",
        "step with amp bf16: times as fast as with off",
        *(f"{name} step over an ema_reset step" for name in ("orig", "ema", "reset", "residual", "fsq")),
        "4 clips: evaluation over the bare forward pass"]
    assert all(float(ratio.replace(",", "")) >= 0 for _, ratio, *_ in lines)


def test_a_slow_precision_is_left_out_unless_named(monkeypatch):
    made = []
    monkeypatch.setattr(bench, "make_step", lambda args, device, amp: made.append(amp) or (lambda: None))
    monkeypatch.setattr(bench, "in_turn", lambda *args: (1, 1))
    both = ["off", "bf16"]
    for slow, flags, expected in ((True, [], ["off"]), (False, [], both), (True, ["--amp", "bf16"], both)):
        monkeypatch.setattr(bench, "is_slow_in_bf16", lambda device, slow=slow: slow)
        made.clear()
        list(bench.measure_steps(bench.parse_args([*TINY, *flags]), torch.device("cpu")))
        assert made == expected


@pytest.mark.parametrize("cost, slow", [(0.03, True), (0.0, False)])
def test_a_precision_is_slow_where_its_convolutions_take_longer(cost, slow, monkeypatch):
    def conv1d(x, weight):
        time.sleep(0.01 + cost * (x.dtype == torch.bfloat16))
        return x[0, 0, 0]

    monkeypatch.setattr(torch, "conv1d", conv1d)
    assert is_slow_in_bf16(torch.device("cpu")) == slow


@pytest.mark.parametrize(("flags", "words"), [
    ("--learning 1", "unrecognized"), ("--stride-t 4", "must be 2"), ("--window-size 62", "multiple of 4"),
    ("--only parts", "parts")])
def test_what_cannot_work_is_refused_in_one_line(flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.parse_args(flags.split())
    message = capsys.readouterr().err
    assert stop.value.code == 2 and words in message and message.count("\n") == 1
