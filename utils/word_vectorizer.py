"""Captions for the extractors: GloVe vectors and part-of-speech tags (T2M utils/word_vectorizer.py)."""
import pickle
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import load_array

POS_TAGS = ("VERB", "NOUN", "DET", "ADP", "NUM", "AUX", "PRON", "ADJ", "ADV",
            "Loc_VIP", "Body_VIP", "Obj_VIP", "Act_VIP", "Desc_VIP", "OTHER")
VIP_WORDS = {  # words that take this tag instead of their own
    "Loc_VIP": "left right clockwise counterclockwise anticlockwise forward back backward up down "
               "straight curve",
    "Body_VIP": "arm chin foot feet face hand mouth leg waist eye knee shoulder thigh",
    "Obj_VIP": "stair dumbbell chair window floor car ball handrail baseball basketball",
    "Act_VIP": "walk run swing pick bring kick put squat throw hop dance jump turn stumble stop sit lift "
               "lower raise wash stand kneel stroll rub bend balance flap jog shuffle lean rotate spin "
               "spread climb",
    "Desc_VIP": "slowly carefully fast careful slow quickly happy angry sad happily angrily sadly",
}
VIP_TAG = {word: tag for tag, words in VIP_WORDS.items() for word in words.split()}
MAX_TOKENS = 20  # of a caption; two more mark its start and end
GLOVE_FILES = ("our_vab_data.npy", "our_vab_words.pkl", "our_vab_idx.pkl")

# what pickle calls to build an array, under the names of NumPy 1 and 2; every other global is refused
_ARRAY_GLOBALS = {(f"{package}.{module}", name) for package in ("numpy.core", "numpy._core")
                  for module, name in (("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))}
_ARRAY_GLOBALS |= {("numpy", "ndarray"), ("numpy", "dtype")}


class _DataUnpickler(pickle.Unpickler):
    """Admits str, int, list, dict, tuple and NumPy arrays: nothing in a file can be called."""

    def find_class(self, module, name):
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes an array's bytes
            return lambda text, encoding: text.encode("latin-1")
        if (module, name) not in _ARRAY_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def load_data_pickle(path):
    """Read a pickle of plain data; raises UserError for any other content, before anything in it can run."""
    try:
        with open(path, "rb") as file:
            return _DataUnpickler(file).load()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = " ".join(str(error).split())[:80]
        raise UserError(f"{path}: refused ({reason}); expected a pickle of words and numbers only") from None


class WordVectorizer:
    """A vocabulary: `vectors` (V, 300) float32 and `index` {word: row}.

    `vectorizer["walk/VERB"]` gives the (300,) vector and the (15,) one-hot tag.
    folder holds PREFIX_data.npy, PREFIX_words.pkl (list of words) and PREFIX_idx.pkl (word → row).
    Raises UserError for what is missing or does not fit together.
    """

    def __init__(self, folder="glove", prefix="our_vab"):
        names = (f"{prefix}_{name}" for name in ("data.npy", "words.pkl", "idx.pkl"))
        data, words, index = (Path(folder, name) for name in names)
        self.vectors, listed, rows = load_array(data), load_data_pickle(words), load_data_pickle(index)
        if self.vectors.ndim != 2 or self.vectors.dtype.kind != "f":
            shape = self.vectors.shape
            raise UserError(f"{data}: {self.vectors.dtype} of shape {shape}; expected floats (words, 300)")
        if not isinstance(listed, list) or not isinstance(rows, dict):
            raise UserError(f"{words}, {index.name}: {type(listed).__name__} and {type(rows).__name__}; "
                            "expected list and dict")
        for word in (*listed, "unk"):
            row = rows.get(word) if isinstance(word, str) else None
            if not isinstance(row, int) or not 0 <= row < len(self.vectors):
                raise UserError(f"{index}: no row of {data.name} for {str(word)[:40]!r}; expected one a word")
        self.vectors = self.vectors.astype(np.float32)
        self.index = {word: rows[word] for word in (*listed, "unk")}

    def __len__(self):
        return len(self.index)

    def lookup(self, token):
        """Return the row of `vectors` and the index of the tag of a token `word/POS`.

        A word outside the vocabulary is `unk/OTHER`; a VIP word has its list's tag.
        """
        word, _, tag = token.rpartition("/")
        if word not in self.index:
            return self.index["unk"], POS_TAGS.index("OTHER")
        tag = VIP_TAG.get(word, tag)
        return self.index[word], POS_TAGS.index(tag if tag in POS_TAGS else "OTHER")

    def __getitem__(self, token):
        row, tag = self.lookup(token)
        return self.vectors[row], np.eye(len(POS_TAGS), dtype=np.float32)[tag]

    def encode(self, tokens):
        """Return rows (22,), tags (22,) and the length of a caption: sos, at most 20 tokens, eos, padding."""
        kept = tokens[:MAX_TOKENS]
        padded = ["sos/OTHER", *kept, "eos/OTHER", *["unk/OTHER"] * (MAX_TOKENS - len(kept))]
        rows, tags = np.array([self.lookup(token) for token in padded], np.int64).T
        return rows, tags, len(kept) + 2
