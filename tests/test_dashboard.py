"""What a run leaves to look at: its event file read back, and its GIF files."""
import io
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from torch.utils.tensorboard import SummaryWriter

from evaluation.evaluate import evaluate_clips
from options.option_vq import get_args_parser
from tests.helpers import SMALL_NET, make_dataset, signal_at, small_args
from tests.test_evaluate import make_clips, make_net
from tests.test_train_vq import curves, same, weights
from train_vq import main
from training import dashboard
from utils.motion_spec import T2M

pytestmark = pytest.mark.slow


def read(run):
    events = EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0, "histograms": 0})
    events.Reload()
    return events


def images(run, tag):
    """{step: encoded bytes}"""
    return {image.step: image.encoded_image_string for image in read(run).Images(tag)}


def frames(data):
    """The GIF's frames, decoded: (T, H, W, 3)."""
    with Image.open(io.BytesIO(data)) as gif:
        pictures = []
        for n in range(gif.n_frames):
            gif.seek(n)
            pictures.append(np.asarray(gif.convert("RGB")))
        return np.stack(pictures)


def test_clips_play_under_upstreams_tags(trained):
    # the validation split holds clips of 66 and 75 frames, evaluated at 64 and 72
    for i, length in enumerate((64, 72)):
        original, = images(trained, f"./Vis/org_eval{i}").values()            # it never changes: once
        assert list(images(trained, f"./Vis/org_eval{i}")) == [6]
        predictions = images(trained, f"./Vis/pred_eval{i}")
        assert list(predictions) == [6, 12]
        for data in (original, *predictions.values()):
            shown = frames(data)
            assert shown.shape == (length, 256, 256, 3)
            assert (shown[0] != shown[length // 2]).any()
        assert predictions[6] != predictions[12] != original


def test_the_use_of_the_codes_is_a_histogram_of_every_validation(trained):
    histograms = read(trained).Histograms("Validation/codebook_use")
    assert [each.step for each in histograms] == [6, 12]
    for each in histograms:  # 16 codes, which code the 136 frames of the validation split
        assert (each.histogram_value.num, each.histogram_value.sum) == (16, 136 / 4)


def test_each_joint_has_a_curve_and_their_mean_is_the_error(trained):
    found = curves(trained)
    joints = [dict(found[f"./Joints/{name}"]) for name in T2M.joint_names]
    for step, error in found["./Test/mpjpe"]:
        assert np.mean([joint[step] for joint in joints]) == pytest.approx(error, rel=1e-5)


def session(run):
    """The flags and the metrics' tags of the HParams tab."""
    events = read(run)
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    content = events.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    experiment = metadata.parse_experiment_plugin_data(content)
    return {name: value.number_value or value.string_value for name, value in start.hparams.items()}, \
        [metric.name.tag for metric in experiment.metric_infos]


def test_the_settings_stand_beside_the_final_metrics_in_the_same_run(trained):
    settings, metrics = session(trained)
    assert settings["nb_code"] == 16 and settings["quantizer"] == "ema_reset"
    assert settings["vq_norm"] == "None"
    assert settings["total_iter"] == 12 and settings["lr_scheduler"] == "[200000]"
    assert {"Final/mpjpe", "Final/perplexity"} <= set(metrics) <= set(read(trained).Tags()["scalars"])
    assert dict(curves(trained)["Final/mpjpe"]) == {12: dict(curves(trained)["./Test/mpjpe"])[12]}
    assert not [entry.name for entry in os.scandir(trained) if entry.is_dir()]  # no run of its own


def test_at_the_end_each_clip_stands_beside_its_original(trained):
    for name, length in (("000006", 64), ("000007", 72)):
        shown = frames((trained / f"vis_{name}.gif").read_bytes())
        assert shown.shape == (length, 256, 512, 3)
        assert (shown[:, 64:256, :256] != shown[:, 64:256, 256:]).any()


def test_drawing_leaves_the_run_bit_for_bit_as_it_is(data_root, tmp_path, trained):
    assert main(small_args(data_root, tmp_path)) == 0
    run = tmp_path / "run"
    assert same(weights(run), weights(trained)) and curves(run) == curves(trained)
    assert read(run).Tags()["images"] == [] and not list(run.glob("vis_*"))
    assert session(run)[0]["nb_code"] == 16


def test_it_leaves_modes_codebook_and_random_streams_as_they_were(tmp_path):
    net, clips = make_net("BN"), make_clips((43, 61, 80))
    net.mean, net.std = np.zeros(263), np.full(263, 0.3)
    net.train()
    net.vqvae.encoder.eval()
    modes = [module.training for module in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    streams = torch.get_rng_state(), np.random.get_state()[1].copy()
    with SummaryWriter(str(tmp_path)) as writer:
        board = dashboard.Dashboard(writer, net, SimpleNamespace(clips=clips, extractors=None), 2)
        board.draw_validation(evaluate_clips(net, clips), 1)
        board.finish(get_args_parser([]), tmp_path)
    assert len(list(tmp_path.glob("vis_*.gif"))) == 2
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), streams[0]) and (np.random.get_state()[1] == streams[1]).all()


def test_the_drawn_clips_are_spread_over_the_split_and_always_the_same():
    clips = make_clips((30, *[40 + i for i in range(20)], 300))
    assert list(dashboard.pick_clips(clips, T2M, 2)) == ["c6", "c16"]
    assert list(dashboard.pick_clips(clips, T2M, 1)) == ["c11"]
    every = dashboard.pick_clips(clips, T2M, 99)
    assert list(every) == [f"c{i}" for i in range(1, 21)]
    for i, drawn in enumerate(every.values()):
        start = clips.offsets[i + 1]
        assert len(drawn) == (40 + i) // 4 * 4 and (drawn == clips.frames[start:start + len(drawn)]).all()


def test_a_resumed_run_goes_on_with_its_pictures(data_root, tmp_path, trained, monkeypatch):
    signal_at(monkeypatch, 11)  # iteration 8, after the first of two validations
    assert main(small_args(data_root, tmp_path, "--nb-vis", "1")) == 128 + signal.SIGUSR1
    run = tmp_path / "run"
    assert list(images(run, "./Vis/pred_eval0")) == [6] and not list(run.glob("vis_*"))
    monkeypatch.undo()
    more = ("--resume", "auto", "--total-iter", "18")
    assert main(small_args(data_root, tmp_path, "--nb-vis", "1", *more)) == 0
    assert list(images(run, "./Vis/pred_eval0")) == [6, 12, 18]
    assert [each.step for each in read(run).Histograms("Validation/codebook_use")] == [6, 12, 18]
    assert len(list(run.glob("vis_*.gif"))) == 1


def test_a_failing_picture_costs_one_line_each_time(data_root, tmp_path, trained, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no ink")

    monkeypatch.setattr(dashboard, "add_gif", fail)
    monkeypatch.setattr(dashboard, "save_gif", fail)
    assert main(small_args(data_root, tmp_path, "--nb-vis", "1")) == 0
    run = tmp_path / "run"
    assert same(weights(run), weights(trained))
    log = (run / "run.log").read_text()
    # at two validations and at the end
    assert log.count(": OSError: no ink; training goes on") == 3
    assert read(run).Tags()["images"] == [] and "./Joints/pelvis" in curves(run)


def test_a_run_without_validation_has_its_flags_and_no_picture(tmp_path):
    root = make_dataset(tmp_path / "data")
    (root / "val.txt").unlink()
    assert main(small_args(root, tmp_path, "--nb-vis", "1")) == 0
    run = tmp_path / "run"
    assert session(run)[1] == [] and read(run).Tags()["images"] == []
    assert not list(run.glob("vis_*"))


def test_kits_millimetres_are_drawn_with_their_error(tmp_path):
    root = make_dataset(tmp_path / "kit", "kit")
    assert main(small_args(root, tmp_path, "--dataname", "kit", "--nb-vis", "1", "--total-iter",
                           "6")) == 0
    assert "WARNING" not in (tmp_path / "run" / "run.log").read_text()
    assert list(images(tmp_path / "run", "./Vis/pred_eval0")) == [6]
    assert "./Vis/pred_eval1" not in read(tmp_path / "run").Tags()["images"]


def test_nb_vis_must_be_a_count(capsys):
    with pytest.raises(SystemExit):
        get_args_parser([*SMALL_NET, "--nb-vis", "-1"])
    assert "--nb-vis" in capsys.readouterr().err
