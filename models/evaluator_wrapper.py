"""The frozen text and motion encoders behind FID and R-precision (T2M, CVPR 2022, networks/modules.py).

State-dict names and shapes are those of the published `finest.tar`. N clips, T frames, L tokens.
"""
import pickle
from pathlib import Path

import torch
import torch.nn as nn
from torch.nn.utils.rnn import pack_padded_sequence

from models.loading import read_statistics
from utils.errors import UserError
from utils.files import describe_file, load_array
from utils.motion_spec import MAX_MOTION_LENGTH, UNIT_LENGTH
from utils.word_vectorizer import GLOVE_FILES, WordVectorizer

CONTACTS = 4  # the last features, which the encoders do not see
FINEST = "text_mot_match/model/finest.tar"
META_DIRS = ("Comp_v6_KLD005/meta", "VQVAEV3_CB1024_CMT_H1024_NRES3/meta")


class MovementConvEncoder(nn.Module):
    """Features without contacts (N, T, D - 4) → movements (N, T/4, output_size)."""

    def __init__(self, input_size, hidden_size, output_size):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv1d(input_size, hidden_size, 4, 2, 1), nn.Dropout(0.2), nn.LeakyReLU(0.2),
            nn.Conv1d(hidden_size, output_size, 4, 2, 1), nn.Dropout(0.2), nn.LeakyReLU(0.2))
        self.out_net = nn.Linear(output_size, output_size)

    def forward(self, x):
        return self.out_net(self.main(x.transpose(1, 2)).transpose(1, 2))


class MotionEncoderBiGRUCo(nn.Module):
    """Movements (N, T/4, input_size) and their lengths in units of four frames → (N, output_size)."""

    def __init__(self, input_size, hidden_size, output_size):
        super().__init__()
        self.input_emb = nn.Linear(input_size, hidden_size)
        self.gru = nn.GRU(hidden_size, hidden_size, batch_first=True, bidirectional=True)
        self.output_net = nn.Sequential(nn.Linear(2 * hidden_size, hidden_size), nn.LayerNorm(hidden_size),
                                        nn.LeakyReLU(0.2), nn.Linear(hidden_size, output_size))
        self.hidden = nn.Parameter(torch.randn(2, 1, hidden_size))

    def forward(self, x, lengths):
        x = self.input_emb(x)
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.gru(packed, self.hidden.repeat(1, len(x), 1))         # (2, N, hidden)
        return self.output_net(torch.cat([last[0], last[1]], -1))


class TextEncoderBiGRUCo(MotionEncoderBiGRUCo):
    """Word vectors (N, L, word_size), one-hot tags (N, L, pos_size), caption lengths → (N, output_size)."""

    def __init__(self, word_size, pos_size, hidden_size, output_size):
        super().__init__(word_size, hidden_size, output_size)
        self.pos_emb = nn.Linear(pos_size, word_size)

    def forward(self, words, tags, lengths):
        return super().forward(words + self.pos_emb(tags), lengths)


class Extractors(nn.Module):
    """The three networks of `finest.tar`, frozen.

    `load_extractors` sets `vectorizer`, and `mean` and `std`, (D,) arrays or None.
    """

    def __init__(self, dim_pose=263, movement_hidden=512, movement=512, motion_hidden=1024, text_hidden=512,
                 embedding=512, word=300, pos=15):
        super().__init__()
        self.movement_encoder = MovementConvEncoder(dim_pose - CONTACTS, movement_hidden, movement)
        self.motion_encoder = MotionEncoderBiGRUCo(movement, motion_hidden, embedding)
        self.text_encoder = TextEncoderBiGRUCo(word, pos, text_hidden, embedding)
        self.embedding = embedding
        self.vectorizer = self.mean = self.std = None
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def embed_motion(self, motion, lengths):
        """Embed motion (N, T, D), normalised, zero past each clip's length (N,) in frames: (N, embedding).

        The result is that of clips padded to 196 frames: the convolutions see a few frames past a clip's end.
        """
        enough = min(MAX_MOTION_LENGTH, int(lengths.max()) + UNIT_LENGTH)
        motion = nn.functional.pad(motion, (0, 0, 0, enough - motion.shape[1]))  # or cut
        movements = self.movement_encoder(motion[..., :-CONTACTS])
        return self.motion_encoder(movements, lengths // UNIT_LENGTH)

    @torch.no_grad()
    def embed_text(self, words, tags, lengths):
        """Embed words (N, L, 300), one-hot tags (N, L, 15), lengths (N,) with both marks: (N, embedding)."""
        return self.text_encoder(words, tags, lengths)


def load_networks(path, width=263):
    """Read `finest.tar` into Extractors; sizes are read off its tensors. width: features of a frame.

    Raises UserError for a file that is missing, damaged, more than plain tensors, or of another data set.
    """
    expected = "expected the tensors of T2M's three encoders"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        parts = {name: saved[name] for name in ("movement_encoder", "motion_encoder", "text_encoder")}
        movement, motion, text = parts.values()
        sizes = dict(
            dim_pose=movement["main.0.weight"].shape[1] + CONTACTS,
            movement_hidden=movement["main.0.weight"].shape[0], movement=movement["out_net.weight"].shape[0],
            motion_hidden=motion["input_emb.weight"].shape[0], text_hidden=text["input_emb.weight"].shape[0],
            embedding=text["output_net.3.weight"].shape[0], word=text["pos_emb.weight"].shape[0],
            pos=text["pos_emb.weight"].shape[1])
        with torch.device("meta"):  # no random numbers are drawn for weights that the file brings
            extractors = Extractors(**sizes)
        for name, state in parts.items():
            getattr(extractors, name).load_state_dict(state, strict=True, assign=True)
    except KeyError as error:
        raise UserError(f"{path}: has no {error}; {expected}") from None
    except Exception as error:  # a damaged or foreign file raises nearly anything
        pickled = isinstance(error, pickle.UnpicklingError)
        text = " ".join(str(error).split()).rpartition("state_dict for ")[2]
        reason = describe_file(path) if pickled else text[:90]
        raise UserError(f"{path}: refused ({reason}); {expected}") from None
    if sizes["dim_pose"] != width:
        raise UserError(f"{path}: takes frames of {sizes['dim_pose']} features, expected {width}; see "
                        "--evaluator-dir")
    return extractors.float()  # as upstream's, whatever the file stores


def find_missing(spec, evaluator_dir=None, glove_dir=None):
    """Return the folders of the extractors and of GloVe, and a message for each file that is not there.

    Defaults are upstream's places: checkpoints/t2m (kit: checkpoints/kit) and glove.
    """
    folder = Path(evaluator_dir or ("checkpoints/kit" if spec.name == "kit" else "checkpoints/t2m"))
    glove = Path(glove_dir or "glove")
    wanted = {folder / FINEST: "extractor", **{glove / name: "glove" for name in GLOVE_FILES}}
    return folder, glove, [f"{path}: missing; T2M-GPT's dataset/prepare/download_{script}.sh fetches it"
                           for path, script in wanted.items() if not path.is_file()]


def load_extractors(spec, folder, glove):
    """Load networks, vocabulary and statistics from the folders that `find_missing` names.

    `mean` and `std` are the extractors' own where the folder has them, else None: they then see the features'
    own normalisation. Raises UserError for what is missing, damaged or not plain data.
    """
    extractors = load_networks(folder / FINEST, spec.width)
    extractors.vectorizer = WordVectorizer(glove, extractors.text_encoder.pos_emb.out_features)
    metas = [folder / meta for meta in META_DIRS]
    meta = next((meta for meta in metas if (meta / "mean.npy").is_file()), folder)
    found = {name: load_array(meta / f"{name}.npy") for name in ("mean", "std")
             if (meta / f"{name}.npy").is_file()}
    extractors.mean, extractors.std = read_statistics(found, spec.width, meta)
    return extractors
