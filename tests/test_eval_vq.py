"""The evaluation script as it is used: from a checkpoint to a table and a file."""
import errno
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from eval_vq import main, parse_args
from models import evaluator_wrapper
from models.vqvae import HumanVQVAE
from tests.helpers import make_dataset, save_small_net
from tests.test_evaluator_wrapper import make_extractors


@pytest.fixture
def run(tmp_path, data_root):
    """A folder with a checkpoint."""
    return save_small_net(tmp_path / "run" / "net_last.pth", data_root).parent


def evaluate(*argv):
    """`eval_vq.py` in this process, without extractors unless they are named."""
    return main(parse_args(["--device", "cpu", "--glove-dir", "nowhere", *map(str, argv)]))


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
    assert (saved["quantizer"], saved["iteration"], saved["split"], saved["clips"]) == ("ema_reset", 15,
                                                                                        "test", 2)
    assert len(saved["missing"]) == 4 and all(line.split(": ")[0] in printed for line in saved["missing"])
    for heading in ("recons", "MPJPE root-aligned mm", "MPJPE global mm", "PA-MPJPE mm",
                    "bits/s"):
        assert heading in printed
    mpjpe = re.search(r"MPJPE root-aligned mm +([\d.]+)", printed).group(1)
    assert float(mpjpe) == pytest.approx(saved["metrics"]["mpjpe"], abs=0.006)
    assert "fid" not in saved["metrics"]
    assert saved["warm_up"] == 3 and f"iteration {saved['iteration']}, after 3 of warm-up" in printed


def test_skipped_clips_are_reported(run, data_root, tmp_path, capsys):
    other = Path(shutil.copytree(data_root, tmp_path / "data"))
    (other / "test.txt").write_text("000004\n000005\n")
    evaluate(run / "net_last.pth", "--data-root", other)
    printed, saved = capsys.readouterr().out, json.loads((run / "eval_test.json").read_text())
    assert "skipped 1 (shorter than 40 frames): 000004" in printed
    assert saved["skipped"] == {"shorter than 40 frames": ["000004"]}


def evaluate_json(run, *argv):
    evaluate(run / "net_last.pth", *argv)
    return json.loads((run / "eval_test.json").read_text())


def test_several_checkpoints_share_a_table_with_the_best_marked(run, tmp_path, capsys):
    worse = Path(shutil.copytree(run, tmp_path / "worse"))
    checkpoint = torch.load(run / "net_last.pth", weights_only=True)
    checkpoint["net"]["vqvae.decoder.model.0.weight"] += 1.0
    torch.save(checkpoint, worse / "net_last.pth")
    evaluate(worse / "net_last.pth", run / "net_last.pth", "--markdown")
    printed = capsys.readouterr().out
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()
             if line[:1] == "|"]
    assert table[0] == ["metric", "worse/net_last.pth", "run/net_last.pth", "real motion"]
    rows = {row[0]: row[1:] for row in table}
    jerk = json.loads((run / "eval_test.json").read_text())["metrics"]["jerk_real"]
    assert float(rows["jerk mm/frame³"][2]) == pytest.approx(jerk, abs=0.006)
    worst, best, real = rows["MPJPE root-aligned mm"]
    assert re.fullmatch(r"[\d.]+", worst) and re.fullmatch(r"\*\*[\d.]+\*\*", best) and real == ""
    assert len({len(row) for row in table}) == 1 and set("".join(table[1])) <= set("-:")
    assert (worse / "eval_test.json").exists() and (run / "eval_test.json").exists()
    evaluate(worse / "net_last.pth", "--resume-pth", run / "net_last.pth")  # the terminal's table
    line = next(line for line in capsys.readouterr().out.splitlines()
                if line.startswith("MPJPE root-aligned"))
    assert re.search(r"[\d.]+ +[\d.]+ \*$", line.rstrip())


def test_two_checkpoints_of_one_folder_keep_both_results(run):
    shutil.copy(run / "net_last.pth", run / "net_best_mpjpe.pth")
    evaluate(run / "net_last.pth", run / "net_best_mpjpe.pth", "--split", "val")
    saved = json.loads((run / "eval_val.json").read_text())
    assert [Path(row["checkpoint"]).name for row in saved] == ["net_last.pth", "net_best_mpjpe.pth"]


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_where_the_json_cannot_be_written_the_table_is_printed(run, capsys, monkeypatch, error):
    def fail(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("utils.files.os.replace", fail)
    assert evaluate(run / "net_last.pth") == 0
    printed = capsys.readouterr().out
    assert "MPJPE root-aligned mm" in printed and list(run.iterdir()) == [run / "net_last.pth"]
    line = next(line for line in printed.splitlines() if line.startswith("no JSON written: "))
    assert "eval_test.json: cannot be written" in line and os.strerror(error) in line


@pytest.fixture(scope="module")
def residual(tmp_path_factory, data_root):
    """A folder with a checkpoint of three residual layers."""
    path = tmp_path_factory.mktemp("residual") / "rvq" / "net_last.pth"
    return save_small_net(path, data_root, quantizer="residual", num_quantizers=3).parent


def rows_of(printed, first="metric"):
    """The cells of the last printed Markdown table whose heading row starts so: {first cell: the others}."""
    tables = [block.splitlines() for block in printed.split("\n\n") if block.startswith(f"| {first}")]
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in tables[-1]]
    return {name: cells for name, *cells in rows}


def test_by_layer_decodes_from_the_first_layers_alone(residual, data_root, capsys):
    saved = evaluate_json(residual, "--by-layer", "--markdown")
    printed = capsys.readouterr().out.rpartition("\n\n")[0]  # the first of the two tables
    rows, parts = rows_of(printed), saved["by_layer"]
    assert list(parts) == ["1", "2", "3"] and parts["3"] == saved["metrics"]
    assert rows["metric"] == ["1 layer", "2 layers", "3 layers", "real motion"]
    for heading, name, digits in (("MPJPE root-aligned mm", "mpjpe", 2), ("recons loss", "recons", 4),
                                  ("bits/s", "bits_per_second", 1)):
        assert rows[heading][:3] == [f"{part[name]:.{digits}f}" for part in parts.values()]
    assert [part["bits_per_second"] for part in parts.values()] == [20.0, 40.0, 60.0]  # 5 codes of 4 bits
    net = HumanVQVAE.from_checkpoint(residual)
    error = frames = 0
    for name in (data_root / "test.txt").read_text().split():
        clip = np.load(data_root / "new_joint_vecs" / f"{name}.npy")
        clip = (clip[:len(clip) // 4 * 4] - net.mean) / net.std
        batch = torch.from_numpy(clip.astype(np.float32))[None]
        with torch.no_grad():
            out = net.forward_decoder(net.encode(batch)[..., :2])
        loss = torch.nn.functional.smooth_l1_loss(out, batch)
        error, frames = error + float(loss) * len(clip), frames + len(clip)
    assert parts["2"]["recons"] == pytest.approx(error / frames, rel=1e-4)
    assert "by_layer" not in evaluate_json(residual)


def test_by_layer_refuses_a_single_layer(run, capsys):
    error = refused(capsys, run / "net_last.pth", "--by-layer")
    assert "ema_reset has a single layer; --by-layer needs residual codes" in error


def test_different_quantizers_stand_in_one_table(run, residual, data_root, tmp_path, capsys):
    fsq = save_small_net(tmp_path / "fsq" / "net_last.pth", data_root, quantizer="fsq", fsq_levels=[4, 4],
                         nb_code=16).parent
    assert evaluate(run, residual, fsq, "--markdown") == 0
    printed = capsys.readouterr().out
    saved = [json.loads((folder / "eval_test.json").read_text()) for folder in (run, residual, fsq)]
    assert [(each["quantizer"], each["layers"]) for each in saved] == [("ema_reset", 1), ("residual", 3),
                                                                       ("fsq", 1)]
    rows = rows_of(printed)
    assert rows["metric"][:3] == ["/".join(folder.parts[-2:]) for folder in (run, residual, fsq)]
    assert rows["tokens/s"][:3] == ["5.0", "15.0", "5.0"] and rows["bits/s"][:3] == ["20.0", "60.0", "20.0"]
    for heading, name, digits in (("MPJPE root-aligned mm", "mpjpe", 2), ("codes used", "codes_used", 0)):
        assert rows[heading][:3] == [f"{each['metrics'][name]:.{digits}f}" for each in saved]
    assert "residual, 3 × 16 codes" in printed and "fsq, 1 × 16 codes" in printed


def test_breakdown_by_joint(run):
    assert "joints" not in evaluate_json(run)
    saved = evaluate_json(run, "--breakdown")
    assert len(saved["joints"]) == 22 and "left_wrist" in saved["joints"]
    means = np.mean([*saved["joints"].values()], axis=0)  # root-aligned, global
    assert means == pytest.approx([saved["metrics"]["mpjpe"], saved["metrics"]["mpjpe_global"]])


@pytest.fixture(scope="module")
def captioned_root(tmp_path_factory):
    """33 captioned clips in the test split: one batch of 32."""
    root = make_dataset(tmp_path_factory.mktemp("captioned") / "t2m",
                        lengths=(64, 72, 66, *[40 + 8 * (i // 8) for i in range(33)]), val=33)
    (root / "texts").mkdir()
    line = "a person walks#a/DET person/NOUN walk/VERB#0.0#0.0\n"
    for i in range(36):
        (root / "texts" / f"{i:06d}.txt").write_text(line * (i != 5) + "broken\n" * (i == 7))
    return root


def test_extractors_are_found_and_their_numbers_carry_intervals(run, captioned_root, tmp_path, capsys):
    folder, glove = make_extractors(tmp_path / "official")
    flags = ("--data-root", captioned_root, "--evaluator-dir", folder, "--glove-dir", glove)
    saved = evaluate_json(run, *flags, "--repeat", "3")
    printed = capsys.readouterr().out
    assert re.search(r"FID +[\d.]+ ± [\d.]+",
                     printed) and re.search(r"top 1 +[\d.]+ ± [\d.]+ +[\d.]+ ± [\d.]+", printed)
    assert "3 × 32 captioned clips in batches of 32" in printed
    assert set(saved["metrics"]["intervals"]) >= {"fid", "diversity", "top1", "top3_real", "matching_score"}
    assert "000007.txt, line 2" in printed and np.isfinite(saved["metrics"]["fid"])
    assert evaluate_json(run, *flags, "--repeat", "3") == saved
    alone = evaluate_json(run, *flags)
    assert alone["metrics"]["repetitions"] == 1
    assert "±" not in capsys.readouterr().out.rpartition("metric  ")[2]


def test_several_checkpoints_load_the_extractors_once(run, data_root, tmp_path, monkeypatch):
    folder, glove = make_extractors(tmp_path / "official")
    shutil.copy(run / "net_last.pth", run / "net_best_mpjpe.pth")
    loaded, load = [], evaluator_wrapper.load_networks
    monkeypatch.setattr(evaluator_wrapper, "load_networks", lambda *args: loaded.append(args) or load(*args))
    evaluate(run / "net_last.pth", run / "net_best_mpjpe.pth", "--data-root", data_root,
             "--evaluator-dir", folder, "--glove-dir", glove)
    assert len(loaded) == 1


def test_too_few_captions_leave_the_rest_standing(run, data_root, tmp_path, capsys):
    folder, glove = make_extractors(tmp_path / "official")
    saved = evaluate_json(run, "--data-root", data_root, "--evaluator-dir", folder, "--glove-dir", glove)
    assert "fid" not in saved["metrics"] and saved["metrics"]["mpjpe"] > 0
    assert "need a batch of 32" in capsys.readouterr().out


def test_mistakes_are_one_line(run, data_root, tmp_path, capsys):
    assert "no such file" in refused(capsys, tmp_path / "gone.pth")
    assert "nosplit.txt: no such file" in refused(capsys, run / "net_last.pth", "--split", "nosplit")
    assert "251" in refused(capsys, run / "net_last.pth", "--dataname", "kit")
    assert str(tmp_path / "gone") in refused(capsys, run / "net_last.pth", "--data-root", tmp_path / "gone")
    bad = Path(shutil.copytree(data_root, tmp_path / "bad"))
    clip = np.load(bad / "new_joint_vecs" / "000006.npy")
    clip[3] = np.nan
    np.save(bad / "new_joint_vecs" / "000006.npy", clip)
    assert "000006.npy: frame 3 is NaN" in refused(capsys, run / "net_last.pth", "--data-root", bad)
    evaluate(run / "net_last.pth", "--data-root", bad, "--skip-bad-clips")
    assert "cannot be used" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        parse_args([])
    assert stop.value.code == 2 and "no checkpoint given" in capsys.readouterr().err
