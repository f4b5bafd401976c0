"""Captions as they are read, and the published sampling as it is drawn."""
from types import SimpleNamespace

import numpy as np
import pytest

from dataset.dataset_TM_eval import draw, load_captioned, read_captions
from utils.motion_spec import KIT, T2M
from utils.word_vectorizer import MAX_TOKENS


class Words:
    """A vocabulary that numbers tokens as they come: no vectors are needed to draw."""

    def __init__(self):
        self.seen = []

    def encode(self, tokens):
        self.seen.append(tokens)
        return np.full(MAX_TOKENS + 2, len(self.seen)), np.zeros(MAX_TOKENS + 2, np.int64), len(tokens) + 2


def clips_of(lengths):
    return SimpleNamespace(names=[f"c{i}" for i in range(len(lengths))], offsets=np.cumsum([0, *lengths]),
                           split="test")


def write(folder, **texts):
    for name, lines in texts.items():
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")


def test_whole_clips_and_tagged_pieces_become_entries(tmp_path):
    write(tmp_path, c0=["a person walks#a/DET person/NOUN walk/VERB#0.0#0.0",
                        "someone walks#someone/PRON walk/VERB#0.0#nan",
                        "then turns#then/ADV turn/VERB#1.0#4.0", "too short#too/ADV short/ADJ#1.0#2.0", "",
                        "past the end#past/ADP#3.0#99.0"],
          c1=["only a piece#only/ADV#0.0#3.0"], c2=["short clip#short/ADJ#0.0#0.0"],
          c3=["long clip#long/ADJ#0.0#3.0"])
    words = Words()
    captioned = load_captioned(clips_of([100, 90, 39, 200]), tmp_path, T2M, words)
    rows = sorted(zip(*(getattr(captioned, name).tolist() for name in ("clip", "start", "length", "count"))))
    assert rows == [(0, 0, 100, 2), (0, 20, 60, 1), (0, 60, 40, 1), (1, 100, 60, 1)]
    assert captioned.tokens.tolist() == [5, 4, 4, 3, 3] and captioned.rows.shape == (5, 22)
    assert words.seen[0] == ["a/DET", "person/NOUN", "walk/VERB"]
    first = dict(zip(zip(captioned.clip, captioned.start), captioned.first))
    assert first[(0, 20)] == 2 and first[(1, 100)] == 4


def test_kit_times_run_at_twelve_and_a_half_frames(tmp_path):
    write(tmp_path, c0=["piece#piece/NOUN#2.0#4.0"])
    captioned = load_captioned(clips_of([60]), tmp_path, KIT, Words())
    assert (captioned.start[0], captioned.length[0]) == (25, 25)


def test_unusable_captions_are_named_by_file_and_line(tmp_path):
    write(tmp_path, c0=["fine#fine/ADJ#0.0#0.0", "no fields", "a#b/NOUN#zero#0.0", "a#b/NOUN#0.0#inf",
                        "a#b/NOUN#3.0#1.0"])
    (tmp_path / "c1.txt").write_bytes(b"\xff\xfe\x00")
    captioned = load_captioned(clips_of([60, 60, 60]), tmp_path, T2M, Words())
    assert captioned.clip.tolist() == [0]
    places = [problem.split(":")[0].removeprefix(f"{tmp_path}/") for problem in captioned.problems]
    assert places == [*(f"c0.txt, line {number}" for number in (2, 3, 4, 5)), "c1.txt", "c2.txt"]
    assert load_captioned(clips_of([10]), tmp_path, T2M, Words()).clip.shape == (0,)


@pytest.fixture(scope="module")
def many():
    rng = np.random.default_rng(0)
    n = 330
    length, count = rng.integers(40, 200, n), rng.integers(1, 5, n)
    return SimpleNamespace(clip=np.arange(n), start=np.cumsum(length) - length, length=length,
                           first=np.cumsum(count) - count, count=count)


def test_a_draw_follows_the_protocol(many):
    shorter = captions = 0
    for seed in range(30):
        entry, caption, start, length = draw(many, np.random.default_rng(seed))
        assert len(entry) == 320 == len(set(entry))
        whole = many.length[entry]
        cut = whole // 4 * 4 - length
        assert set(cut) == {0, 4}
        assert (start >= many.start[entry]).all() and (start + length <= many.start[entry] + whole).all()
        assert (caption >= many.first[entry]).all()
        assert (caption < many.first[entry] + many.count[entry]).all()
        shorter += (cut == 4).mean() / 30
        captions += ((caption - many.first[entry]) / many.count[entry]).mean() / 30
    assert shorter == pytest.approx(1 / 3, abs=0.03)
    assert captions == pytest.approx(((many.count - 1) / 2 / many.count).mean(), abs=0.03)


def test_every_first_frame_can_be_drawn(many):
    one = SimpleNamespace(**{name: np.repeat(value[:1], 3200) for name, value in vars(many).items()})
    one.length = np.full(3200, 43)
    _, _, start, length = draw(one, np.random.default_rng(1))
    assert set(start[length == 40] - one.start[0]) == {0, 1, 2, 3}
    assert set(start[length == 36] - one.start[0]) == set(range(8))


def test_draws_repeat_with_their_seed_and_touch_no_other_stream(many):
    state = np.random.get_state()[1].copy()
    a, b, c = (draw(many, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all((x == y).all() for x, y in zip(a, b)) and (a[0] != c[0]).any()
    assert (np.random.get_state()[1] == state).all()


def test_a_partial_batch_is_dropped():
    few = SimpleNamespace(**{name: np.arange(1, 32) * 40
                             for name in ("clip", "start", "length", "first", "count")})
    assert len(draw(few, np.random.default_rng(0))[0]) == 0


def test_a_byte_order_mark_and_crlf_do_not_matter(tmp_path):
    (tmp_path / "x.txt").write_bytes("\ufeffa walk#walk/VERB#0.0#0.0\r\n".encode())
    assert read_captions(tmp_path / "x.txt") == ([("a walk", ["walk/VERB"], 0.0, 0.0)], [])
