"""Captioned clips for the extractors, and the published sampling of them (T2M-GPT dataset/dataset_TM_eval.py).

Captions are tokenised once into arrays; an epoch of the protocol is then a handful of vectorised draws.
"""
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from utils.motion_spec import MAX_EVAL_FRAMES, UNIT_LENGTH

BATCH = 32  # R-precision ranks within batches of this size


def read_captions(path):
    """Lines `caption#word/POS word/POS#from#to` of a text file.

    Returns (captions, problems): captions a list of (text, tokens, from, to) with times in seconds, 0 and 0 for the whole clip;
    problems one message per unusable line, with file and line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return [], [f"{path}: no such file; expected captions"]
    except UnicodeDecodeError as error:
        return [], [f"{path}: not a text file (byte {error.start}); expected captions"]
    captions, problems = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = line.strip().split("#")
        try:
            text, tokens, start, end = fields
            start, end = (0.0 if np.isnan(float(time)) else float(time) for time in (start, end))
        except ValueError:
            problems.append(f"{path}, line {number}: {len(fields)} fields between '#', expected caption#word/POS …#from#to with times in seconds")
            continue
        captions.append((text, tokens.split(), start, end))
    return captions, problems


def load_captioned(clips, folder, spec, vectorizer):
    """Captioned clips of a split: what may be drawn, with the captions as rows of the vocabulary.

    clips: as `load_split` returns; folder: of ID.txt files. A clip is taken at min_eval_frames ≤ T < 200; captions for the whole clip
    share one entry, a caption with times makes an entry of its own under the same bounds. Returns a namespace: `clip` (m,) index into
    clips.names, `start` (m,) first row in clips.frames, `length` (m,) frames, `first` and `count` (m,) its captions; of the captions `rows` and
    `tags` (C, 22) int64, `tokens` (C,) lengths with the two marks, `texts`; `problems` messages.
    """
    entries, texts, encoded, problems = [], [], [], []
    lengths = np.diff(clips.offsets)
    for clip in np.flatnonzero((lengths >= spec.min_eval_frames) & (lengths < MAX_EVAL_FRAMES)):
        captions, bad = read_captions(Path(folder, f"{clips.names[clip]}.txt"))
        problems += bad
        start, length = int(clips.offsets[clip]), int(lengths[clip])
        whole = [(text, tokens) for text, tokens, begin, end in captions if begin == end == 0]
        if whole:
            entries.append((clip, start, length, len(texts), len(whole)))
            texts += [text for text, _ in whole]
            encoded += [vectorizer.encode(tokens) for _, tokens in whole]
        for text, tokens, begin, end in captions:
            low, high, _ = slice(int(begin * spec.fps), int(end * spec.fps)).indices(length)
            if not begin == end == 0 and spec.min_eval_frames <= high - low < MAX_EVAL_FRAMES:
                entries.append((clip, start + low, high - low, len(texts), 1))
                texts.append(text)
                encoded.append(vectorizer.encode(tokens))
    clip, start, length, first, count = np.array(entries, np.int64).reshape(-1, 5).T
    rows, tags, tokens = (np.array([code[i] for code in encoded], np.int64) for i in range(3))
    return SimpleNamespace(clip=clip, start=start, length=length, first=first, count=count, rows=rows, tags=tags, tokens=tokens, texts=texts,
                           problems=problems)


def draw(captioned, rng, batch=BATCH):
    """One pass of the published protocol. rng: numpy Generator, and nothing else is random.

    Entries are shuffled and the last partial batch dropped; each gets one of its captions, a length cut to a multiple of four (with
    probability 1/3 to one unit less) and a random first frame. Returns (entry, caption, start, length), (m,) int64 each.
    """
    entry = rng.permutation(len(captioned.clip))[:len(captioned.clip) // batch * batch]
    caption = captioned.first[entry] + rng.integers(captioned.count[entry])
    whole = captioned.length[entry]
    length = (whole // UNIT_LENGTH - (rng.integers(3, size=len(entry)) == 2)) * UNIT_LENGTH
    start = captioned.start[entry] + rng.integers(whole - length + 1)
    return entry, caption, start, length


def verbs_of_clips(names, folder):
    """{verb: clip names} from the captions' VERB tokens; a clip counts once under each of its verbs. Clips without captions are left out."""
    groups = {}
    for name in names:
        words = {token.rpartition("/")[0] for _, tokens, _, _ in read_captions(Path(folder, f"{name}.txt"))[0] for token in tokens
                 if token.endswith("/VERB")}
        for word in sorted(words):
            groups.setdefault(word, []).append(name)
    return groups
