"""The extractors: published names and shapes, one clip at a time as reference, nothing that runs."""
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.evaluator_wrapper import (
    FINEST,
    META_DIRS,
    Extractors,
    find_missing,
    load_extractors,
    load_networks,
)
from utils.errors import UserError
from utils.motion_spec import DEMO, KIT, T2M
from utils.word_vectorizer import WordVectorizer, load_data_pickle

WORDS = ["a", "person", "walk", "walks", "slowly", "arm", "sos", "eos", "unk", "back"]


class Canary:
    """Unpickling one creates a file: it shows that something in a pickle ran."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def save_networks(path, extractors):
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = {name: part.state_dict() for name, part in extractors.named_children()}
    torch.save({"epoch": 1, "iter": 10, **parts}, path)


def make_extractors(root, spec=T2M, seed=0):
    """Random extractors, vocabulary and statistics in upstream's files; (evaluator folder, GloVe folder)."""
    torch.manual_seed(seed)
    folder, glove = root / "checkpoints" / "t2m", root / "glove"
    save_networks(folder / FINEST, Extractors(spec.width, 16))
    (folder / META_DIRS[0]).mkdir(parents=True)
    np.save(folder / META_DIRS[0] / "mean.npy", np.linspace(-0.1, 0.1, spec.width))
    np.save(folder / META_DIRS[0] / "std.npy", np.linspace(0.5, 1.5, spec.width))
    glove.mkdir()
    np.save(glove / "our_vab_data.npy", np.random.default_rng(seed).normal(size=(len(WORDS), 300)))
    (glove / "our_vab_words.pkl").write_bytes(pickle.dumps(WORDS))
    (glove / "our_vab_idx.pkl").write_bytes(pickle.dumps({word: i for i, word in enumerate(WORDS)}))
    return folder, glove


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_extractors(tmp_path_factory.mktemp("extractors"))


def test_names_and_shapes_are_the_published_ones():
    shapes = {name: {key: tuple(value.shape) for key, value in part.state_dict().items()}
              for name, part in Extractors().named_children()}
    assert list(shapes) == ["movement_encoder", "motion_encoder", "text_encoder"]
    assert shapes["movement_encoder"] == {
        "main.0.weight": (512, 259, 4), "main.0.bias": (512,), "main.3.weight": (512, 512, 4),
        "main.3.bias": (512,), "out_net.weight": (512, 512), "out_net.bias": (512,)}

    def gru(hidden):
        sizes = {"weight_ih": (3 * hidden, hidden), "weight_hh": (3 * hidden, hidden),
                 "bias_ih": (3 * hidden,), "bias_hh": (3 * hidden,)}
        return {f"gru.{name}_l0{suffix}": size for name, size in sizes.items() for suffix in ("", "_reverse")}

    def head(hidden):
        return {"output_net.0.weight": (hidden, 2 * hidden), "output_net.0.bias": (hidden,),
                "output_net.1.weight": (hidden,), "output_net.1.bias": (hidden,),
                "output_net.3.weight": (512, hidden), "output_net.3.bias": (512,)}

    assert shapes["motion_encoder"] == {"hidden": (2, 1, 1024), "input_emb.weight": (1024, 512),
                                        "input_emb.bias": (1024,), **gru(1024), **head(1024)}
    assert shapes["text_encoder"] == {"hidden": (2, 1, 512), "pos_emb.weight": (300, 15),
                                      "pos_emb.bias": (300,), "input_emb.weight": (512, 300),
                                      "input_emb.bias": (512,), **gru(512), **head(512)}


def alone(encoder, x):
    """The recurrent encoder on one unpadded row (L, C)."""
    _, last = encoder.gru(encoder.input_emb(x)[None], encoder.hidden)
    return encoder.output_net(last.reshape(1, -1))[0]


def test_motion_embeddings_equal_each_clip_alone_padded_to_196_frames(made):
    extractors = load_networks(made[0] / FINEST)
    lengths = torch.tensor([40, 196, 64, 120, 64, 192])
    motion = torch.randn(6, 196, 263)
    for row, length in zip(motion, lengths):
        row[length:] = 0
    for part, count in ((slice(None), 196), (slice(2, 3), 64),
                        (slice(3, 5), 120)):  # whatever the padding of the batch
        embedded = extractors.embed_motion(motion[part, :count], lengths[part])
        for row, length, result in zip(motion[part], lengths[part], embedded):
            net = extractors.movement_encoder
            h = F.leaky_relu(F.conv1d(row[:, :259].t()[None], net.main[0].weight, net.main[0].bias, 2, 1),
                             0.2)
            h = F.leaky_relu(F.conv1d(h, net.main[3].weight, net.main[3].bias, 2, 1), 0.2)
            movements = net.out_net(h[0].t())
            assert len(movements) == 49
            torch.testing.assert_close(result, alone(extractors.motion_encoder, movements[:length // 4]),
                                       atol=1e-5, rtol=1e-5)


def test_text_embeddings_equal_each_caption_alone_and_keep_the_order(made):
    extractors = load_networks(made[0] / FINEST)
    words, tags, lengths = torch.randn(4, 22, 300), torch.randn(4, 22, 15), torch.tensor([7, 22, 3, 10])
    text = extractors.text_encoder(words, tags, lengths)
    for i, length in enumerate(lengths):
        x = (words + tags @ extractors.text_encoder.pos_emb.weight.t()
             + extractors.text_encoder.pos_emb.bias)[i, :length]
        torch.testing.assert_close(text[i], alone(extractors.text_encoder, x), atol=1e-5, rtol=1e-5)


def test_contacts_are_not_seen(made):
    extractors, motion = load_networks(made[0] / FINEST), torch.randn(1, 64, 263)
    before = extractors.embed_motion(motion, torch.tensor([64]))
    motion[..., -4:] = 9
    assert torch.equal(extractors.embed_motion(motion, torch.tensor([64])), before)


def test_loading_brings_networks_vocabulary_and_statistics(made):
    stream = torch.get_rng_state()
    extractors = load_extractors(T2M, *made)
    assert torch.equal(torch.get_rng_state(), stream)
    assert not extractors.training and not any(p.requires_grad for p in extractors.parameters())
    assert list(extractors.vectorizer.index) == WORDS
    assert extractors.mean.shape == (263,) and extractors.std[-1] == 1.5
    with pytest.raises(UserError, match=r"size mismatch for main\.0\.weight.*encoders of 251 features"):
        load_extractors(KIT, *made)


def test_a_file_in_half_precision_embeds_in_single(made, tmp_path):
    saved = torch.load(made[0] / FINEST)
    torch.save({name: {key: value.half() for key, value in saved[name].items()} for name in list(saved)[2:]},
               tmp_path / "finest.tar")
    motion, lengths = torch.randn(1, 64, 263), torch.tensor([64])
    embedded, expected = (load_networks(path).embed_motion(motion, lengths)
                          for path in (tmp_path / "finest.tar", made[0] / FINEST))
    assert embedded.dtype == torch.float32
    torch.testing.assert_close(embedded, expected, atol=1e-2, rtol=0)


def test_missing_pieces_are_listed_one_by_one(made, tmp_path):
    folder, glove, missing = find_missing(T2M, *made)
    assert (folder, glove, missing) == (*made, [])
    *_, missing = find_missing(T2M, tmp_path, tmp_path)
    assert [line.split(": ")[0] for line in missing] == [
        str(tmp_path / name) for name in ("text_mot_match/model/finest.tar", "our_vab_data.npy",
                                          "our_vab_words.pkl", "our_vab_idx.pkl")]
    assert "download_extractor.sh" in missing[0] and "download_glove.sh" in missing[3]
    assert [str(find_missing(spec)[0]) for spec in (T2M, KIT, DEMO)] == ["checkpoints/t2m", "checkpoints/kit",
                                                                         "checkpoints/t2m"]


def test_a_malicious_extractor_file_never_runs(tmp_path):
    canary = tmp_path / "canary"
    torch.save({"movement_encoder": Canary(canary), "motion_encoder": {}, "text_encoder": {}},
               tmp_path / "finest.tar")
    with pytest.raises(UserError, match=r"finest\.tar: refused"):
        load_networks(tmp_path / "finest.tar")
    assert not canary.exists()
    torch.load(tmp_path / "finest.tar", weights_only=False)
    assert canary.exists()  # the canary does sing where it is let


@pytest.mark.parametrize("change, message", [
    (lambda saved: saved.pop("text_encoder"), "refused .'text_encoder'"),
    (lambda saved: saved["motion_encoder"].pop("hidden"), "hidden"),
    (lambda saved: saved["motion_encoder"].update(extra=torch.zeros(1)), "extra"),
    (lambda saved: saved.update(movement_encoder=7), "refused"),
])
def test_another_file_is_refused_in_one_line(made, tmp_path, change, message):
    saved = torch.load(made[0] / FINEST)
    change(saved)
    torch.save(saved, tmp_path / "finest.tar")
    with pytest.raises(UserError, match=message) as error:
        load_networks(tmp_path / "finest.tar")
    assert "\n" not in str(error.value) and "finest.tar" in str(error.value)


def test_damaged_files_are_refused(made, tmp_path):
    folder, glove = (Path(shutil.copytree(source, tmp_path / source.name)) for source in made)
    (folder / FINEST).write_bytes((folder / FINEST).read_bytes()[:5000])
    with pytest.raises(UserError, match=r"finest\.tar"):
        load_extractors(T2M, folder, glove)
    shutil.copy(made[0] / FINEST, folder / FINEST)
    np.save(folder / META_DIRS[0] / "std.npy", np.zeros(263))
    with pytest.raises(UserError, match="every std over 0"):
        load_extractors(T2M, folder, glove)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1", b"<html>",
                                     b"PK\x03\x04cut", b"\x80\x02"])
@pytest.mark.parametrize("name", [FINEST, "our_vab_data.npy", "our_vab_words.pkl", "our_vab_idx.pkl"])
def test_foreign_files_get_one_line_of_our_own(made, tmp_path, monkeypatch, name, content):
    folder, glove = (Path(shutil.copytree(source, tmp_path / source.name)) for source in made)
    ((folder if name == FINEST else glove) / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        load_extractors(T2M, Path(folder.name), Path(glove.name))
    text = str(error.value)
    assert Path(name).name in text and "\n" not in text and len(text) <= 200
    assert "weights_only" not in text and "\x1b" not in text


# vocabulary

def test_a_malicious_glove_pickle_never_runs(made, tmp_path):
    glove = Path(shutil.copytree(made[1], tmp_path / "glove"))
    for name in ("our_vab_words.pkl", "our_vab_idx.pkl"):
        good, canary = (glove / name).read_bytes(), tmp_path / f"canary-{name}"
        for content in (Canary(canary), ["a", Canary(canary)], {"a": Canary(canary)}):
            (glove / name).write_bytes(pickle.dumps(content))
            with pytest.raises(UserError, match=f"{name}: refused .it asks for pathlib"):
                WordVectorizer(glove)
            assert not canary.exists()
        (glove / name).write_bytes(good)


def test_an_object_array_of_vectors_never_runs(made, tmp_path):
    glove, canary = Path(shutil.copytree(made[1], tmp_path / "glove")), tmp_path / "canary"
    np.save(glove / "our_vab_data.npy", np.array([Canary(canary)], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"our_vab_data\.npy: .*Python objects"):
        WordVectorizer(glove)
    assert not canary.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_are_admitted(tmp_path, protocol):
    content = {"a": 1, "b": ["c", ("d", 2)]}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
    assert load_data_pickle(tmp_path / "x.pkl") == content


def test_words_get_their_vector_and_tag(made):
    vectorizer = WordVectorizer(made[1])
    tags = ["VERB", "NOUN", "DET", "ADP", "NUM", "AUX", "PRON", "ADJ", "ADV", "Loc_VIP", "Body_VIP",
            "Obj_VIP", "Act_VIP", "Desc_VIP", "OTHER"]
    for token, word, tag in (("a/DET", "a", "DET"), ("walks/VERB", "walks", "VERB"),
                             ("walk/VERB", "walk", "Act_VIP"),
                             ("walk/NOUN", "walk", "Act_VIP"), ("slowly/ADV", "slowly", "Desc_VIP"),
                             ("back/ADV", "back", "Loc_VIP"), ("a/CCONJ", "a", "OTHER"),
                             ("chair/NOUN", "unk", "OTHER"), ("zebra/NOUN", "unk", "OTHER")):
        assert vectorizer.lookup(token) == (WORDS.index(word), tags.index(tag)), token


def test_captions_are_framed_cut_and_padded(made):
    vectorizer = WordVectorizer(made[1])
    rows, tags, length = vectorizer.encode(["a/DET", "person/NOUN"])
    assert [WORDS[row] for row in rows] == ["sos", "a", "person", "eos"] + ["unk"] * 18
    assert length == 4 and set(tags[[0, 3, 4, 21]]) == {14}
    rows, _, length = vectorizer.encode(["walk/VERB"] * 30)
    assert length == 22 and len(rows) == 22
    assert [WORDS[row] for row in rows[[0, 1, 20, 21]]] == ["sos", "walk", "walk", "eos"]


@pytest.mark.parametrize("name, content, message", [
    ("our_vab_words.pkl", pickle.dumps(7), "expected a row"),
    ("our_vab_idx.pkl", pickle.dumps({"a": 0}), "expected a row"),
    ("our_vab_idx.pkl", pickle.dumps({word: 99 for word in WORDS}), "expected a row"),
    ("our_vab_words.pkl", b"not a pickle", "refused"),
])
def test_a_vocabulary_that_does_not_fit_together_is_refused(made, tmp_path, name, content, message):
    glove = Path(shutil.copytree(made[1], tmp_path / "glove"))
    (glove / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        WordVectorizer(glove)
