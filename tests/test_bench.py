"""The bench on a small net: every part reports, saved files compare, and mistakes are one line. No time is judged."""
import json

import pytest

from bench import flatten, main
from options.option_vq import bench_args

SMALL = ("--device", "cpu", "--width", "32", "--code-dim", "32", "--output-emb-width", "32", "--nb-code", "16", "--depth", "1", "--rounds", "1",
         "--batch-sizes", "2", "--clips", "32")


def test_every_part_reports_and_two_files_compare(tmp_path, capsys):
    path = tmp_path / "a.json"
    assert main(bench_args([*SMALL, "--json", str(path)])) == 0
    shown, numbers = capsys.readouterr().out, flatten(json.loads(path.read_text()))
    assert shown.index("ratios and shares") < shown.index("times and rates")
    for name in ("step, batch 2 off, share_of_matrix_rate", "step, batch 2 bf16, faster_than_fp32", "parts, quantizer_over_distance_product",
                 "parts, outside_convolutions_share", "data, feed_over_copy", "data, start_cached_over_cold", "evaluation, evaluation_over_forward",
                 "peak memory, GiB"):
        assert numbers[name] > 0 and name in shown, name
    assert numbers["step, batch 2 off, faster_than_fp32"] == 1
    shares = [numbers[f"parts, {part}_share"] for part in ("encoder", "quantizer", "decoder", "loss", "optimizer")]
    assert sum(shares) == pytest.approx(1)  # of one round
    other = json.loads(path.read_text())
    other["step"]["batch 2 off"]["ms"] *= 2
    (tmp_path / "b.json").write_text(json.dumps(other))
    assert main(bench_args(["--compare", str(path), str(tmp_path / "b.json")])) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("step, batch 2 off, ms"))
    assert row.split()[-1] == "2.000"


@pytest.mark.parametrize(("flags", "words"), [("--lr 1", "unrecognized"), ("--batch-size 8", "unrecognized"), ("--stride-t 4", "--stride-t 2"),
                                              ("--window-size 62", "multiple of 4"), ("--device cpu --tf32", "only on CUDA")])
def test_what_it_does_not_read_or_cannot_work_is_refused(flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        bench_args(flags.split())
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_a_file_that_is_no_bench_is_refused(tmp_path, capsys):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(SystemExit) as stop:
        main(bench_args(["--compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")]))
    assert stop.value.code == 2 and "not a saved bench" in capsys.readouterr().err
