"""The extractors' numbers against a plain loop of the published protocol."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dataset.dataset_TM_eval import draw, load_captioned
from models.evaluator_wrapper import load_extractors
from tests.test_evaluation import MEAN, STD, make_clips, make_net
from tests.test_evaluator_wrapper import WORDS, make_extractors
from utils.errors import UserError
from utils.metrics import frechet_distance, gaussian
from utils.motion_spec import T2M
from utils.text_evaluation import evaluate_text


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """70 captioned clips, a network, extractors."""
    root = tmp_path_factory.mktemp("texts")
    clips = make_clips(np.random.default_rng(0).integers(40, 110, 70))
    for i, name in enumerate(clips.names):
        lines = [f"x#{' '.join(f'{WORDS[(i + k) % 6]}/NOUN' for k in range(1 + (i + j) % 4))}#0.0#0.0\n" for j in range(1 + i % 3)]
        (root / f"{name}.txt").write_text("".join(lines))
    extractors = load_extractors(T2M, *make_extractors(root))
    return SimpleNamespace(net=make_net().eval(), clips=clips, extractors=extractors,
                           captioned=load_captioned(clips, root, T2M, extractors.vectorizer))


def draws(setting, n=1):
    return [draw(setting.captioned, np.random.default_rng(seed)) for seed in range(n)]


def evaluate(setting, n=1, **kwargs):
    return evaluate_text(setting.net, setting.clips, setting.captioned, draws(setting, n), setting.extractors, MEAN, STD, **kwargs)


def test_numbers_equal_a_plain_loop(setting):
    result, extractors, captioned = evaluate(setting), setting.extractors, setting.captioned
    real, pred, text = [], [], []
    for _, caption, start, length in zip(*draws(setting)[0]):
        x = torch.from_numpy(setting.clips.frames[start:start + length])[None]
        with torch.no_grad():
            out = setting.net(x)[0]
        for y, rows in ((x, real), (out, pred)):
            padded = torch.zeros(1, 196, 263)
            padded[:, :length] = (y * torch.tensor(STD).float() + torch.tensor(MEAN) - torch.tensor(extractors.mean)) / torch.tensor(extractors.std)
            rows.append(extractors.embed_motion(padded, torch.tensor([length]))[0])
        pairs = [setting.extractors.vectorizer.vectors[row] for row in captioned.rows[caption]]
        tags = torch.nn.functional.one_hot(torch.tensor(captioned.tags[caption]), 15).float()
        text.append(extractors.embed_text(torch.tensor(np.array(pairs))[None], tags[None], torch.tensor([captioned.tokens[caption]]))[0])
    real, pred, text = (torch.stack(rows).double().numpy() for rows in (real, pred, text))
    assert result["text_clips"] == len(real) == 64 and result["diversity_pairs"] == 64
    assert result["fid"] == pytest.approx(frechet_distance(*gaussian(real), *gaussian(pred)), rel=1e-3)
    for motion, suffix in ((real, "_real"), (pred, "")):
        hits, distance = np.zeros(3), 0
        for b in (slice(0, 32), slice(32, 64)):
            matrix = np.linalg.norm(text[b][:, None] - motion[b][None], axis=-1)
            order = matrix.argsort(1)
            hits += [sum(i in order[i, :k] for i in range(32)) for k in (1, 2, 3)]
            distance += np.trace(matrix)
        np.testing.assert_allclose([result[f"top{k}{suffix}"] for k in (1, 2, 3)], hits / 64, atol=1 / 64 + 1e-9)
        assert result[f"matching_score{suffix}"] == pytest.approx(distance / 64, rel=1e-4)


def test_repetitions_give_means_and_intervals(setting):
    single = [evaluate_text(setting.net, setting.clips, setting.captioned, [d], setting.extractors, MEAN, STD) for d in draws(setting, 4)]
    result = evaluate(setting, 4)
    fids = [row["fid"] for row in single]
    assert result["fid"] == pytest.approx(np.mean(fids), rel=1e-5) and len(set(fids)) == 4
    assert result["intervals"]["fid"] == pytest.approx(1.96 * np.std(fids) / 2, rel=1e-3)
    assert result["repetitions"] == 4 and evaluate(setting)["intervals"]["top1"] == 0


def test_numbers_do_not_depend_on_the_batches_and_no_stream_moves(setting):
    stream, whole = torch.get_rng_state(), evaluate(setting)
    parts = evaluate(setting, batch_frames=200)
    for name in ("fid", "matching_score", "diversity", "top3"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-4)
    assert torch.equal(torch.get_rng_state(), stream)


def test_extractors_without_statistics_see_the_features_as_they_are(setting):
    own = SimpleNamespace(mean=setting.extractors.mean, std=setting.extractors.std)
    before = evaluate(setting)["fid"]
    try:
        setting.extractors.mean = setting.extractors.std = None
        plain = evaluate(setting)["fid"]
        setting.extractors.mean, setting.extractors.std = MEAN, STD
        assert evaluate(setting)["fid"] == pytest.approx(plain, rel=1e-6) and plain != pytest.approx(before, rel=1e-2)
    finally:
        setting.extractors.mean, setting.extractors.std = own.mean, own.std


def test_too_few_captions_are_refused(setting):
    few = SimpleNamespace(**{**vars(setting.captioned), "clip": setting.captioned.clip[:31]})
    with pytest.raises(UserError, match="31 captioned clips; FID and R-precision need at least one batch of 32"):
        evaluate_text(setting.net, setting.clips, few, [draw(few, np.random.default_rng(0))], setting.extractors, MEAN, STD)
