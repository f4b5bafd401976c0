"""Captions for the extractors: GloVe vectors and part-of-speech tags (T2M utils/word_vectorizer.py)."""
import pickle
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import load_array

POS_TAGS = ("VERB", "NOUN", "DET", "ADP", "NUM", "AUX", "PRON", "ADJ", "ADV",
            "Loc_VIP", "Body_VIP", "Obj_VIP", "Act_VIP", "Desc_VIP", "OTHER")
VIP_WORDS = {  # words that take this tag instead of their own
    "Loc_VIP": "left right clockwise counterclockwise anticlockwise forward back backward up down straight "
               "curve",
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


class _DataUnpickler(pickle.Unpickler):
    """Admits str, int, list, dict and tuple: nothing in a file can be called."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def load_data_pickle(path):
    """Read a pickle of plain data. Raises UserError for any other, before anything in it can run."""
    try:
        with open(path, "rb") as file:
            return _DataUnpickler(file).load()
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = " ".join(str(error).split())[:80]
        raise UserError(f"{path}: refused ({reason}); expected a pickle of words and numbers only") from None


class WordVectorizer:
    """A vocabulary from the folder of GLOVE_FILES: `vectors` (V, 300) float32 and `index` {word: row}."""

    def __init__(self, folder="glove"):
        data, words, index = (Path(folder, name) for name in GLOVE_FILES)
        listed, rows = load_data_pickle(words), load_data_pickle(index)
        self.vectors = load_array(data).astype(np.float32)
        try:
            every = range(len(self.vectors))
            self.index = {word: every.index(rows[word]) for word in (*listed, "unk")}
        except (TypeError, KeyError, ValueError):
            raise UserError(f"{index}: expected a row of {data.name} for each of {words.name}") from None

    def lookup(self, token):
        """Return a token's row of `vectors` and its tag's index; an unknown word is `unk/OTHER`."""
        word, _, tag = token.rpartition("/")
        if word not in self.index:
            word, tag = "unk", "OTHER"
        tag = VIP_TAG.get(word, tag)
        return self.index[word], POS_TAGS.index(tag if tag in POS_TAGS else "OTHER")

    def encode(self, tokens):
        """Return rows (22,), tags (22,) and the length of a caption: sos, at most 20 tokens, eos, padding."""
        kept = tokens[:MAX_TOKENS]
        padded = ["sos/OTHER", *kept, "eos/OTHER", *["unk/OTHER"] * (MAX_TOKENS - len(kept))]
        rows, tags = np.array([self.lookup(token) for token in padded], np.int64).T
        return rows, tags, len(kept) + 2
