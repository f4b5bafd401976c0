"""The extractors' numbers against a plain loop of the published protocol."""
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm

from dataset.dataset_TM_eval import draw, load_captioned
from evaluation import text
from evaluation.text import _embed_motion, _embed_text, evaluate_text
from models.evaluator_wrapper import FINEST, META_DIRS, load_extractors
from tests.test_evaluate import MEAN, STD, in_ranks, make_clips, make_net
from tests.test_evaluator_wrapper import WORDS, make_extractors
from utils.errors import UserError
from utils.motion_spec import T2M

VOCABULARY, TAGS = [*WORDS, "zebra", "runs"], ("NOUN", "VERB", "ADV", "CCONJ")  # some of them not listed


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """70 captioned clips, a network, extractors."""
    root = tmp_path_factory.mktemp("texts")
    clips = make_clips(np.random.default_rng(0).choice([43, 55, 66, 80], 70))
    lines = {}
    for i, name in enumerate(clips.names):
        spoken = [" ".join(f"{VOCABULARY[(i + 2 * k) % 12]}/{TAGS[(i + k) % 4]}"
                           for k in range(1 + (7 * i + j) % 24))
                  for j in range(1 + i % 3)]
        lines[name] = [f"x#{tokens}#0.0#0.0" for tokens in spoken]
        (root / f"{name}.txt").write_text("\n".join(lines[name]))
    folder, glove = make_extractors(root)
    extractors = load_extractors(T2M, folder, glove)
    return SimpleNamespace(net=make_net().eval(), clips=clips, extractors=extractors, folder=folder,
                           glove=glove, lines=lines,
                           captioned=load_captioned(clips, root, T2M, extractors.vectorizer))


def draws(setting, n=1):
    return [draw(setting.captioned, np.random.default_rng(seed)) for seed in range(n)]


def evaluate(setting, n=1, **kwargs):
    return evaluate_text(setting.net, setting.clips, setting.captioned, draws(setting, n), setting.extractors,
                         **kwargs)


# the protocol spelled out on the files' own arrays: one clip and one caption at a time

def gru(state, x, hidden, suffix):
    """One direction of a GRU over (L, C): r, z, n gates in this order; returns the last state."""
    w_i, w_h, b_i, b_h = (state[f"gru.{name}_l0{suffix}"]
                          for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    for row in (reversed(x) if suffix else x):
        (i_r, i_z, i_n), (h_r, h_z, h_n) = (w_i @ row + b_i).chunk(3), (w_h @ hidden + b_h).chunk(3)
        r, z = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
        hidden = (1 - z) * torch.tanh(i_n + r * h_n) + z * hidden
    return hidden


def encode(state, x):
    """Linear, both directions, head: (L, C) of exactly the clip's or caption's length → (E,)."""
    x = x @ state["input_emb.weight"].t() + state["input_emb.bias"]
    h = torch.cat([gru(state, list(x), state["hidden"][i, 0], suffix)
                   for i, suffix in enumerate(("", "_reverse"))])
    h = state["output_net.0.weight"] @ h + state["output_net.0.bias"]
    h = (h - h.mean()) / torch.sqrt(h.var(unbiased=False) + 1e-5)
    h = h * state["output_net.1.weight"] + state["output_net.1.bias"]
    return state["output_net.3.weight"] @ F.leaky_relu(h, 0.2) + state["output_net.3.bias"]


def embed_clip(saved, motion):
    """(T, D) → its embedding, padded with zeros to 196 frames; T // 4 movements enter the GRU."""
    padded = torch.zeros(196, motion.shape[1])
    padded[:len(motion)] = motion
    net, h = saved["movement_encoder"], padded[:, :-4].t()[None]
    for layer in ("main.0", "main.3"):
        h = F.leaky_relu(F.conv1d(h, net[f"{layer}.weight"], net[f"{layer}.bias"], stride=2, padding=1), 0.2)
    movements = h[0].t() @ net["out_net.weight"].t() + net["out_net.bias"]
    assert len(movements) == 49
    return encode(saved["motion_encoder"], movements[:len(motion) // 4])


def embed_caption(saved, glove, tokens):
    vectors = np.load(glove / "our_vab_data.npy")
    rows = pickle.loads((glove / "our_vab_idx.pkl").read_bytes())
    tokens = ["sos/OTHER", *tokens[:20], "eos/OTHER"]
    order = "VERB NOUN DET ADP NUM AUX PRON ADJ ADV Loc_VIP Body_VIP Obj_VIP Act_VIP Desc_VIP OTHER".split()
    special = {"walk": "Act_VIP", "slowly": "Desc_VIP", "arm": "Body_VIP",
               "back": "Loc_VIP"}  # of this test's vocabulary
    words, tags = [], torch.zeros(len(tokens), 15)
    for tag_row, token in zip(tags, tokens):
        word, tag = token.split("/")
        word, tag = (word, special.get(word, tag)) if word in rows else ("unk", "OTHER")
        words.append(torch.from_numpy(vectors[rows[word]]).float())
        tag_row[order.index(tag if tag in order else "OTHER")] = 1
    net = saved["text_encoder"]
    return encode(net, torch.stack(words) + tags @ net["pos_emb.weight"].t() + net["pos_emb.bias"])


def frechet(a, b):
    """As published tables compute it: numpy's covariances and scipy's matrix root."""
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    root = sqrtm(cov_a @ cov_b).real
    return ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root)


@pytest.mark.parametrize("own_statistics", [True, False])
def test_numbers_equal_the_protocol_spelled_out(setting, own_statistics, monkeypatch):
    saved = torch.load(setting.folder / FINEST)
    mean, std = (np.load(setting.folder / META_DIRS[0] / name) for name in ("mean.npy", "std.npy"))
    reference = SimpleNamespace(real=[], pred=[], text=[])
    if own_statistics:  # what the features are normalised with
        monkeypatch.setattr(setting.net, "mean", mean)
        monkeypatch.setattr(setting.net, "std", std)
    result = evaluate(setting)
    with torch.no_grad():
        for entry, caption, start, length in zip(*draws(setting)[0]):
            x = torch.from_numpy(setting.clips.frames[start:start + length])
            for y, rows in ((x, reference.real), (setting.net(x[None])[0][0], reference.pred)):
                if not own_statistics:
                    y = torch.from_numpy((y.double().numpy() * STD + MEAN - mean) / std).float()
                rows.append(embed_clip(saved, y))
            name = setting.clips.names[setting.captioned.clip[entry]]
            line = setting.lines[name][caption - setting.captioned.first[entry]]
            reference.text.append(embed_caption(saved, setting.glove, line.split("#")[1].split()))
    real, pred, spoken = (torch.stack(rows).numpy()
                          for rows in (reference.real, reference.pred, reference.text))

    assert result["text_clips"] == len(real) == 64 and result["diversity_pairs"] == 64
    assert result["fid"] == pytest.approx(frechet(real, pred), rel=1e-3) and result["fid"] > 1e-3
    rng = np.random.default_rng([0, 0])
    for motion, suffix in ((real, "_real"), (pred, "")):
        low, high, distance = np.zeros(3), np.zeros(3), 0
        for b in (slice(0, 32), slice(32, 64)):
            matrix = np.array([[np.sqrt(((t - m) ** 2).sum()) for m in motion[b]] for t in spoken[b]])
            for row, true in zip(matrix, matrix.diagonal()):  # a tie may fall either way
                low += (row < true + 1e-5).sum() <= np.arange(1, 4)
                high += (row < true - 1e-5).sum() < np.arange(1, 4)
            distance += matrix.trace()
        for k in range(3):
            assert low[k] <= round(64 * result[f"top{k + 1}{suffix}"]) <= high[k] <= low[k] + 6
        assert result[f"matching_score{suffix}"] == pytest.approx(distance / 64, rel=1e-4)
        first, second = (rng.choice(64, 64, replace=False) for _ in range(2))
        assert result[f"diversity{suffix}"] == pytest.approx(np.linalg.norm(motion[first] - motion[second],
                                                                            axis=1).mean(), rel=1e-4)


def test_embeddings_equal_the_protocol_spelled_out(setting):
    saved, extractors = torch.load(setting.folder / FINEST), setting.extractors
    lengths = np.array([40, 196, 64, 120, 64, 192, 44])
    clips = make_clips(lengths)
    plain = SimpleNamespace(mean=None, std=None, embed_motion=extractors.embed_motion,
                            embedding=extractors.embedding, parameters=extractors.parameters)
    real, pred = _embed_motion(setting.net, clips, np.arange(7), clips.offsets[:-1], lengths, plain, 8192)
    with torch.no_grad():
        for i, (start, length) in enumerate(zip(clips.offsets, lengths)):
            x = torch.from_numpy(clips.frames[start:start + length])
            np.testing.assert_allclose(real[i], embed_clip(saved, x), atol=1e-5)
            np.testing.assert_allclose(pred[i], embed_clip(saved, setting.net(x[None])[0][0]), atol=1e-5)
        captions = np.arange(len(setting.captioned.tokens))
        embedded = _embed_text(setting.captioned, captions, extractors)
        every = [line.split("#")[1].split() for clip in setting.clips.names for line in setting.lines[clip]]
        for row, tokens in zip(embedded, every):
            np.testing.assert_allclose(row, embed_caption(saved, setting.glove, tokens), atol=1e-5)


def test_repetitions_give_means_and_intervals(setting):
    rest = setting.net, setting.clips, setting.captioned
    single = [evaluate_text(*rest, [d], setting.extractors) for d in draws(setting, 3)]
    result = evaluate(setting, 3)
    fids = [row["fid"] for row in single]
    assert result["fid"] == pytest.approx(np.mean(fids), rel=1e-5) and len(set(fids)) == 3
    assert result["intervals"]["fid"] == pytest.approx(1.96 * np.std(fids) / 3 ** 0.5, rel=1e-3)
    assert result["repetitions"] == 3 and evaluate(setting)["intervals"]["top1"] == 0


def test_numbers_do_not_depend_on_the_batches_and_no_stream_moves(setting):
    stream, whole = torch.get_rng_state(), evaluate(setting)
    parts = evaluate(setting, batch_frames=200)
    for name in ("fid", "matching_score", "diversity"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-4)
    assert torch.equal(torch.get_rng_state(), stream)


def test_ranks_add_up_to_the_whole(setting, monkeypatch):
    whole = evaluate(setting)
    shares, results = in_ranks(monkeypatch, text, lambda: evaluate(setting))
    assert results == [whole] * 3
    filled = torch.stack([motion[0].abs().sum(-1) > 0 for motion, _ in shares])
    assert (filled.sum(0) == 1).all() and filled.any(1).all()  # each embedding comes from one rank


def test_extractors_without_statistics_see_the_features_as_they_are(setting):
    own = SimpleNamespace(mean=setting.extractors.mean, std=setting.extractors.std)
    before = evaluate(setting)["fid"]
    try:
        setting.extractors.mean = setting.extractors.std = None
        plain = evaluate(setting)["fid"]
        setting.extractors.mean, setting.extractors.std = MEAN, STD
        assert evaluate(setting)["fid"] == pytest.approx(plain, rel=1e-6)
        assert plain != pytest.approx(before, rel=1e-2)
    finally:
        setting.extractors.mean, setting.extractors.std = own.mean, own.std


def test_too_few_captions_are_refused(setting):
    few = SimpleNamespace(**{**vars(setting.captioned), "clip": setting.captioned.clip[:31]})
    with pytest.raises(UserError, match="31 captioned clips; FID and R-precision need a batch of 32"):
        evaluate_text(setting.net, setting.clips, few, [draw(few, np.random.default_rng(0))],
                      setting.extractors)
