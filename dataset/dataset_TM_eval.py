"""Captioned clips for the extractors, and the published sampling of them (T2M-GPT's dataset_TM_eval.py)."""
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from utils.errors import UserError
from utils.files import read_text
from utils.motion_spec import MAX_EVAL_FRAMES, UNIT_LENGTH

BATCH = 32  # R-precision ranks within batches of this size


def read_captions(path):
    """Read a text file's lines `caption#word/POS word/POS#from#to`: [(text, tokens, from, to)] and [message].

    Times are in seconds, 0 and 0 for the whole clip. Each unusable line gives a message.
    """
    captions, problems = [], []
    try:
        lines = read_text(path, "captions").splitlines()
    except UserError as error:
        return captions, [str(error)]
    for number, line in enumerate(map(str.strip, lines), 1):
        try:
            text, tokens, *times = line.split("#")
            start, end = (0.0 if np.isnan(time) else time for time in map(float, times))
            if not 0 <= start <= end < np.inf:
                raise ValueError
            captions.append((text, tokens.split(), start, end))
        except ValueError:
            if line:
                problems.append(f"{path}, line {number}: expected caption#word/POS …#from#to, in seconds")
    return captions, problems


def load_captioned(clips, folder, spec, vectorizer):
    """Collect the captioned clips of a split: what `draw` may draw.

    clips: of `load_split`. folder: of ID.txt files. Clips of min_eval_frames ≤ T < 200 are taken. Captions of
    the whole clip share an entry; a caption with times makes an entry of its own, under the same bounds.
    Returns a namespace: `clip` (m,) index into clips.names, `start` (m,) first row in clips.frames, `length`
    (m,) frames, `first` and `count` (m,) its captions; of the captions `rows` and `tags` (C, 22) int64, and
    `tokens` (C,) lengths with the two marks; `problems` messages.
    """
    entries, encoded, problems, lengths = [], [], [], np.diff(clips.offsets)
    for clip in np.flatnonzero((lengths >= spec.min_eval_frames) & (lengths < MAX_EVAL_FRAMES)):
        captions, bad = read_captions(Path(folder, f"{clips.names[clip]}.txt"))
        problems += bad
        groups = [([tokens for _, tokens, *times in captions if not any(times)], slice(None))]
        groups += [([tokens], slice(int(start * spec.fps), int(end * spec.fps)))
                   for _, tokens, start, end in captions if start or end]
        for group, part in groups:
            low, high, _ = part.indices(int(lengths[clip]))
            if group and spec.min_eval_frames <= high - low < MAX_EVAL_FRAMES:
                entries.append((clip, clips.offsets[clip] + low, high - low, len(encoded), len(group)))
                encoded += map(vectorizer.encode, group)
    clip, start, length, first, count = np.array(entries, np.int64).reshape(-1, 5).T
    rows, tags, tokens = (np.array([code[i] for code in encoded], np.int64) for i in range(3))
    return SimpleNamespace(clip=clip, start=start, length=length, first=first, count=count, rows=rows,
                           tags=tags, tokens=tokens, problems=problems)


def draw(captioned, rng, batch=BATCH):
    """Draw one pass of the published protocol: (entry, caption, start, length), (m,) int64 each.

    Each entry gets one of its captions, a length cut to a multiple of four (with probability 1/3 to one unit
    less), and a random first frame. The last partial batch is dropped.
    """
    entry = rng.permutation(len(captioned.clip))[:len(captioned.clip) // batch * batch]
    caption = captioned.first[entry] + rng.integers(captioned.count[entry])
    whole = captioned.length[entry]
    length = (whole // UNIT_LENGTH - (rng.integers(3, size=len(entry)) == 2)) * UNIT_LENGTH
    start = captioned.start[entry] + rng.integers(whole - length + 1)
    return entry, caption, start, length
