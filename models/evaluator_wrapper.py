"""The frozen text and motion encoders behind FID and R-precision (T2M, CVPR 2022, networks/modules.py)."""
import pickle
from pathlib import Path

import torch
import torch.nn as nn
from torch.nn.utils.rnn import pack_padded_sequence

from models.loading import read_statistics
from utils.errors import UserError
from utils.files import describe_file, load_array
from utils.motion_spec import MAX_MOTION_LENGTH, UNIT_LENGTH
from utils.word_vectorizer import GLOVE_FILES, POS_TAGS, WordVectorizer

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
        return self.output_net(torch.cat([*last], -1))


class TextEncoderBiGRUCo(MotionEncoderBiGRUCo):
    """Word vectors (N, L, word_size), one-hot tags (N, L, pos_size), caption lengths → (N, output_size)."""

    def __init__(self, word_size, pos_size, hidden_size, output_size):
        super().__init__(word_size, hidden_size, output_size)
        self.pos_emb = nn.Linear(pos_size, word_size)

    def forward(self, words, tags, lengths):
        return super().forward(words + self.pos_emb(tags), lengths)


class Extractors(nn.Module):
    """The three networks of `finest.tar`, frozen. `load_extractors` adds `vectorizer`, `mean` and `std`."""

    def __init__(self, width=263, embedding=512):
        super().__init__()
        self.movement_encoder = MovementConvEncoder(width - CONTACTS, embedding, embedding)
        self.motion_encoder = MotionEncoderBiGRUCo(embedding, 2 * embedding, embedding)
        self.text_encoder = TextEncoderBiGRUCo(300, len(POS_TAGS), embedding, embedding)
        self.embedding = embedding
        self.vectorizer = self.mean = self.std = None
        self.requires_grad_(False).eval()

    def embed_motion(self, motion, lengths):
        """Embed motion (N, T, D), normalised, zero past each clip's length (N,) in frames: (N, embedding)."""
        # as if padded to 196 frames: the convolutions see a few frames past a clip's end
        enough = min(MAX_MOTION_LENGTH, int(lengths.max()) + UNIT_LENGTH)
        motion = nn.functional.pad(motion, (0, 0, 0, enough - motion.shape[1]))  # or cut
        movements = self.movement_encoder(motion[..., :-CONTACTS])
        return self.motion_encoder(movements, lengths // UNIT_LENGTH)


def load_networks(path, width=263):
    """Read `finest.tar` into Extractors. Raises UserError for any other file, and for another width."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        with torch.device("meta"):  # no random numbers are drawn for weights that the file brings
            extractors = Extractors(width, len(saved["movement_encoder"]["out_net.bias"]))
        for name, part in extractors.named_children():
            part.load_state_dict(saved[name], assign=True)
    except Exception as error:  # a damaged or foreign file raises nearly anything
        text = " ".join(str(error).split()).rpartition("state_dict for ")[2][:80]
        reason = describe_file(path) if isinstance(error, pickle.UnpicklingError) else text
        raise UserError(f"{path}: refused ({reason}); expected T2M's encoders of {width} features") from None
    return extractors.float()  # as upstream's, whatever the file stores


def find_missing(spec, evaluator_dir=None, glove_dir=None):
    """Return the folders of extractors and GloVe, upstream's by default, and a line for each missing file."""
    folder = Path(evaluator_dir or f"checkpoints/{'kit' if spec.name == 'kit' else 't2m'}")
    glove = Path(glove_dir or "glove")
    wanted = {folder / FINEST: "extractor", **{glove / name: "glove" for name in GLOVE_FILES}}
    return folder, glove, [f"{path}: missing; T2M-GPT's dataset/prepare/download_{script}.sh fetches it"
                           for path, script in wanted.items() if not path.is_file()]


def load_extractors(spec, folder, glove):
    """Load networks, vocabulary and statistics, None where there are none, from `find_missing`'s folders."""
    extractors = load_networks(folder / FINEST, spec.width)
    extractors.vectorizer = WordVectorizer(glove)
    for meta in [folder / meta for meta in META_DIRS if (folder / meta / "mean.npy").is_file()][:1]:
        saved = {name: load_array(meta / f"{name}.npy") for name in ("mean", "std")}
        extractors.mean, extractors.std = read_statistics(saved, spec.width, meta)
    return extractors
