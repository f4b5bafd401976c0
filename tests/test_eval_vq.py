"""The evaluation script as it is used: from a trained run to a table and a file."""
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from eval_vq import main
from models.loading import load_checkpoint
from options.option_vq import eval_args
from tests.helpers import make_dataset
from tests.test_evaluator_wrapper import make_extractors

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run, whose folder may be written."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def evaluate(*argv):
    """`eval_vq.py` in this process, without extractors unless they are named."""
    return main(eval_args(["--device", "cpu", "--glove-dir", "nowhere", *map(str, argv)]))


def refused(capsys, *argv):
    """The one line that a refused call prints."""
    with pytest.raises(SystemExit) as stop:
        evaluate(*argv)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "\n" not in error
    return error


def test_a_checkpoint_alone_says_everything(run, capsys):
    assert evaluate("--resume-pth", run / "net_last.pth", "--split", "test") == 0
    printed, saved = capsys.readouterr().out, json.loads((run / "eval_test.json").read_text())
    assert (saved["quantizer"], saved["iteration"], saved["split"], saved["clips"]) == ("ema_reset", load_checkpoint(run / "net_last.pth")["iter"],
                                                                                      "test", 2)
    assert len(saved["missing"]) == 4 and all(line.split(": ")[0] in printed for line in saved["missing"])
    for heading in ("recons", "MPJPE root-aligned mm", "MPJPE global mm", "PA-MPJPE mm", "kinetic Fréchet (no extractor)", "bits/s"):
        assert heading in printed
    mpjpe = re.search(r"MPJPE root-aligned mm +([\d.]+)", printed).group(1)
    assert float(mpjpe) == pytest.approx(saved["metrics"]["mpjpe"], abs=0.006)
    assert "fid" not in saved["metrics"]
    assert saved["warm_up"] == 3 and f"iteration {saved['iteration']} (3 of warm-up)" in printed


def test_skipped_clips_and_other_statistics_are_reported(run, data_root, tmp_path, capsys):
    other = Path(shutil.copytree(data_root, tmp_path / "data"))
    np.save(other / "Std.npy", np.load(other / "Std.npy") * np.where(np.arange(263) < 4, 0.04, 1))
    (other / "test.txt").write_text("000004\n000005\n")
    before = evaluate_json(run, "--data-root", data_root)
    evaluate(run / "net_last.pth", "--data-root", other)
    printed, saved = capsys.readouterr().out, json.loads((run / "eval_test.json").read_text())
    assert "skipped 1 (shorter than 40 frames): 000004" in printed and saved["skipped"] == {"shorter than 40 frames": ["000004"]}
    assert "differ from the checkpoint's" in printed and "the checkpoint's are used" in printed
    assert "differ" not in " ".join(before["remarks"])


def evaluate_json(run, *argv):
    evaluate(run / "net_last.pth", *argv)
    return json.loads((run / "eval_test.json").read_text())


def test_several_checkpoints_share_a_table_with_the_best_marked(run, tmp_path, capsys):
    worse = Path(shutil.copytree(run, tmp_path / "worse"))
    checkpoint = load_checkpoint(run / "net_last.pth")
    checkpoint["net"]["vqvae.decoder.model.0.weight"] += 1.0
    torch.save(checkpoint, worse / "net_last.pth")
    (worse / "hashes.json").unlink()
    evaluate(worse / "net_last.pth", run / "net_last.pth", "--markdown")
    printed = capsys.readouterr().out
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line.startswith("|")]
    assert [row[0] for row in table[2:]] == ["worse", "run", "real motion"] and set("".join(table[1])) <= set("-:")
    column = table[0].index("MPJPE root-aligned mm")
    jerk = json.loads((run / "eval_test.json").read_text())["metrics"]["jerk_real"]
    assert table[4][column] == "" and float(table[4][table[0].index("jerk mm/frame³")]) == pytest.approx(jerk, abs=0.006)
    assert re.fullmatch(r"[\d.]+", table[2][column]) and re.fullmatch(r"\*\*[\d.]+\*\*", table[3][column])
    assert len({len(row) for row in table}) == 1
    assert (worse / "eval_test.json").exists() and (run / "eval_test.json").exists()
    evaluate(worse / "net_last.pth", run / "net_last.pth")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("MPJPE root-aligned"))
    assert re.search(r"[\d.]+ +[\d.]+ \*$", line.rstrip())


def test_two_checkpoints_of_one_folder_keep_both_results(run, tmp_path):
    evaluate(run / "net_last.pth", run / "net_best_mpjpe.pth", "--split", "val")
    saved = json.loads((run / "eval_val.json").read_text())
    assert [Path(row["checkpoint"]).name for row in saved] == ["net_last.pth", "net_best_mpjpe.pth"]
    evaluate(run / "net_last.pth", "--out-json", tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text())["split"] == "test" and not (run / "eval_test.json").exists()


def test_numbers_do_not_depend_on_the_batch_size(run):
    whole, parts = evaluate_json(run)["metrics"], evaluate_json(run, "--batch-size", "1")["metrics"]
    assert parts == pytest.approx(whole, rel=1e-4)


def test_breakdown_by_joint_and_verb(run, data_root, tmp_path, capsys):
    root = Path(shutil.copytree(data_root, tmp_path / "data"))
    (root / "texts").mkdir()
    (root / "texts" / "000006.txt").write_text("a person walks#a/DET person/NOUN walk/VERB#0.0#0.0\n")
    (root / "texts" / "000007.txt").write_text("a person walks, turns#walk/VERB turn/VERB#0.0#0.0\n")
    saved = evaluate_json(run, "--data-root", root, "--breakdown")
    printed = capsys.readouterr().out
    assert len(saved["joints"]) == 22 and "left_wrist" in printed and "caption verb" in printed
    assert {verb: row["clips"] for verb, row in saved["verbs"].items()} == {"walk": 2, "turn": 1}
    assert saved["verbs"]["walk"]["mpjpe"] == pytest.approx(saved["metrics"]["mpjpe"])
    assert np.mean([row["mpjpe"] for row in saved["joints"].values()]) == pytest.approx(saved["metrics"]["mpjpe"])


@pytest.fixture(scope="module")
def captioned_root(tmp_path_factory):
    """33 captioned clips in the test split: one batch of 32."""
    root = make_dataset(tmp_path_factory.mktemp("captioned") / "t2m", lengths=(64, 72, *[40 + 3 * i for i in range(33)]), val=33)
    (root / "texts").mkdir()
    for i in range(35):
        (root / "texts" / f"{i:06d}.txt").write_text("a person walks#a/DET person/NOUN walk/VERB#0.0#0.0\n" * (i != 5) + "broken\n" * (i == 7))
    return root


def test_extractors_are_found_and_their_numbers_carry_intervals(run, captioned_root, tmp_path, capsys):
    folder, glove = make_extractors(tmp_path / "official")
    evaluate(run / "net_last.pth", "--data-root", captioned_root, "--evaluator-dir", folder, "--glove-dir", glove, "--repeat", "3")
    printed, saved = capsys.readouterr().out, json.loads((run / "eval_test.json").read_text())
    assert re.search(r"FID +[\d.]+ ± [\d.]+", printed) and re.search(r"top 1 +[\d.]+ ± [\d.]+ +[\d.]+ ± [\d.]+", printed)
    assert "3 × 32 captioned clips in batches of 32" in printed
    assert set(saved["metrics"]["intervals"]) >= {"fid", "diversity", "top1", "top3_real", "matching_score"}
    assert "000007.txt, line 2" in printed and np.isfinite(saved["metrics"]["fid"])
    again = evaluate_json(run, "--data-root", captioned_root, "--evaluator-dir", folder, "--glove-dir", glove, "--repeat", "3")
    assert again == saved
    alone = evaluate_json(run, "--data-root", captioned_root, "--evaluator-dir", folder, "--glove-dir", glove)
    assert alone["metrics"]["repetitions"] == 1 and "±" not in capsys.readouterr().out.rpartition("metric  ")[2]


def test_too_few_captions_leave_the_rest_standing(run, data_root, tmp_path, capsys):
    folder, glove = make_extractors(tmp_path / "official")
    saved = evaluate_json(run, "--data-root", data_root, "--evaluator-dir", folder, "--glove-dir", glove)
    assert "fid" not in saved["metrics"] and saved["metrics"]["mpjpe"] > 0
    assert "at least one batch of 32" in capsys.readouterr().out


def test_mistakes_are_one_line(run, data_root, tmp_path, capsys):
    assert "no such file" in refused(capsys, tmp_path / "gone.pth")
    assert "nosplit.txt: no such file" in refused(capsys, run / "net_last.pth", "--split", "nosplit")
    assert "--dataname kit has 251" in refused(capsys, run / "net_last.pth", "--dataname", "kit")
    assert "does not exist" in refused(capsys, run / "net_last.pth", "--data-root", tmp_path / "gone")
    assert "x.json: cannot be written (no such folder)" in refused(capsys, run / "net_last.pth", "--out-json", tmp_path / "gone" / "x.json")
    bad = Path(shutil.copytree(data_root, tmp_path / "bad"))
    clip = np.load(bad / "new_joint_vecs" / "000006.npy")
    clip[3] = np.nan
    np.save(bad / "new_joint_vecs" / "000006.npy", clip)
    assert "000006.npy: frame 3 is NaN" in refused(capsys, run / "net_last.pth", "--data-root", bad)
    evaluate(run / "net_last.pth", "--data-root", bad, "--skip-bad-clips")
    assert "cannot be used" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        eval_args([])
    assert stop.value.code == 2 and "no checkpoint given" in capsys.readouterr().err


def test_the_command_itself(run):
    command = [sys.executable, "eval_vq.py", "--resume-pth", str(run / "net_last.pth"), "--split", "val", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "MPJPE root-aligned mm" in done.stdout and not done.stderr and (run / "eval_val.json").exists()
