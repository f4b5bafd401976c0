"""Quantizers on one base (T2M-GPT models/quantize_cnn.py; EMA and reset: Jukebox, arXiv 2005.00341).

`look_up` quantizes with the codebook from before the batch, then `update` moves it. `forward` does both; a
trainer that looks at the gradient first calls the two itself.
N windows, C channels, T' latent frames, K codes, R = N·T' rows.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from utils.device import all_reduce, rank_and_world
from utils.errors import UserError


class BaseQuantizer(nn.Module):
    """Look up the nearest code, pass the gradient straight through, and collect a batch's statistics.

    Under several ranks each holds its equal slice of the batch, in the order of the ranks; the statistics and
    the first codebook are the whole batch's.
    """

    filled = True   # a codebook learnt by gradient is there from the start
    eps = 1e-7      # in the perplexity's logarithm
    saved = ()      # names of what a checkpoint must hold besides the state-dict
    num_layers = 1  # codes of one latent frame
    clip_axes = 1   # axes of the codes of one clip: (T',)

    def __init__(self, nb_code, code_dim):
        super().__init__()
        self.nb_code, self.code_dim = nb_code, code_dim

    @property
    def codes(self):
        """Return the codebook (K, C)."""
        return self.codebook

    def distances(self, x):
        """Return half the squared Euclidean distances (R, K) of rows (R, C) to the codes, less ‖x‖² / 2."""
        codes = self.codes.to(x.dtype)
        return torch.addmm(codes.square().sum(1) / 2, x, codes.t(), alpha=-1)

    def quantize(self, x):
        """Return the index of the nearest code, (R,) int64, of rows (R, C)."""
        return self.distances(x).argmin(1)

    def dequantize(self, code_idx):
        """Return the codes of indices of any shape: shape + (C,)."""
        return F.embedding(code_idx, self.codes)

    def to_rows(self, x):
        """Return latents (N, C, T') as rows (N·T', C), in float32 where they are half precision."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x.transpose(1, 2).reshape(-1, x.shape[1])

    def from_rows(self, rows, batch):
        """Return rows (N·T', C) as latents (N, C, T'). batch: N."""
        return rows.view(batch, -1, rows.shape[1]).transpose(1, 2)

    def look_up(self, x):
        """Return the quantized x (N, C, T'), commitment loss (), rows (R, C) and codes (R,)."""
        with torch.autocast(x.device.type, enabled=False):
            rows = self.to_rows(x)
            idx = self.quantize(rows.detach())
            z = self.dequantize(idx)
            loss = self.loss(rows, z)
            out = rows + (z - rows).detach()                          # straight-through estimator
        return self.from_rows(out, len(x)), loss, rows.detach(), idx

    def draw_layers(self):
        """Choose the layers that the next training batch uses: a single layer has no choice."""

    def forward(self, x):
        """Return the quantized x (N, C, T'), commitment loss () and perplexity (). Training moves codes."""
        if self.training:
            self.draw_layers()
            if not self.filled:
                self.init_codebook(self.to_rows(x.detach()))
        out, loss, rows, idx = self.look_up(x)
        counts = self.update(rows, idx) if self.training else self.count(idx)
        return out, loss, self.perplexity(counts.to(rows.dtype))

    def loss(self, x, z):
        """Return the commitment loss; the codebook itself gets no gradient."""
        return F.mse_loss(x, z.detach())

    def count(self, idx):
        """Return how often each code occurs in idx (R,): (K,) int64."""
        return idx.new_zeros(self.nb_code).index_add_(0, idx, torch.ones_like(idx))

    def perplexity(self, counts):
        """Return exp(-Σ p log(p + eps)) of code counts (K,)."""
        p = counts / counts.sum()
        return torch.exp(-(p * torch.log(p + self.eps)).sum())

    def require_filled(self):
        """Raise UserError where no batch, checkpoint or hand has filled the codebook."""
        if not self.filled and not bool(self.codes.any()):
            raise UserError("the codebook was never filled, so every code would be 0: train or load the net")

    @torch.no_grad()
    def update(self, rows, idx, refuse=None):
        """Move the codebook by this rank's rows (R, C) of a batch and their codes (R,).

        Where the bool tensor `refuse` () is True, or a statistic is not finite, the codebook stays as it is.
        Returns the whole batch's code counts (K,).
        """
        counts = self.count(idx)[:, None].to(rows.dtype)
        statistics = all_reduce(torch.cat([counts, *self.estimate_statistics(rows, idx)], 1))
        ok = torch.isfinite(statistics.sum())  # any NaN or Inf reaches the sum
        ok = ok if refuse is None else ok & ~refuse
        self.update_codebook(statistics, len(rows) * rank_and_world()[1], ok)
        return statistics[:, 0]

    def estimate_statistics(self, rows, idx):
        """Return what `update_codebook` needs besides the counts: tensors (K, ·) that add up over ranks."""
        return ()

    def update_codebook(self, statistics, rows, ok):
        """Move the codes, where `ok`, by the statistics (K, 1 + ·) of a batch of `rows` rows."""

    def training_state(self):
        """Return what a checkpoint must hold besides the state-dict: primitives and tensors."""
        return {name: getattr(self, name) for name in self.saved}

    def load_training_state(self, state):
        """Restore the `training_state()` of a quantizer of the same kind, after its state-dict."""
        for name in self.saved:
            if torch.is_tensor(state[name]):
                getattr(self, name).copy_(state[name])
            else:
                setattr(self, name, state[name])


def _after_load(quantizer, _):
    """Count a loaded codebook as filled, unless it was saved before its first batch."""
    quantizer.filled = bool(quantizer.codebook.any())
    quantizer.counted = False


class CodebookQuantizer(BaseQuantizer):
    """A codebook that is data, not a parameter: filled from the first batch, then moved by statistics."""

    saved = ("filled",)

    def __init__(self, nb_code, code_dim):
        super().__init__(nb_code, code_dim)
        self.filled = False
        self.counted = True  # False: the codebook was loaded without its statistics (an upstream file)
        self.register_buffer("codebook", torch.zeros(nb_code, code_dim))
        self.register_load_state_dict_post_hook(_after_load)  # a lambda could not be pickled

    @torch.no_grad()
    def init_codebook(self, rows):
        """Fill the codebook with the first K rows of the whole batch; rows (R, C) are this rank's part."""
        first = self.tile(all_reduce(self.first_rows(rows)), len(rows) * rank_and_world()[1])
        if torch.isfinite(first).all():  # else the next batch fills it
            self.codebook.copy_(first)
            self.filled = self.counted = True

    def reset_codebook(self):
        """Empty the codebook: the next training batch fills it again."""
        self.filled = False
        self.codebook.zero_()

    def first_rows(self, rows):
        """Return (K, C): this rank's share of the batch's first K rows at their places, zeros elsewhere."""
        start = rank_and_world()[0] * len(rows)
        placed = rows.new_zeros(self.nb_code, self.code_dim)
        if start < self.nb_code:
            part = rows[:self.nb_code - start]
            placed[start:start + len(part)] = part
        return placed

    def tile(self, first, rows):
        """Repeat the first rows (K, C), with a little noise, where the batch has only `rows` < K."""
        if rows >= self.nb_code:
            return first
        tiled = first[:rows].repeat(-(-self.nb_code // rows), 1)[:self.nb_code]
        return tiled + torch.randn_like(tiled) * (0.01 / self.code_dim ** 0.5)


class QuantizeReset(CodebookQuantizer):
    """Replace codes unused in a batch by rows of it. Used codes never move: upstream detaches them."""

    def estimate_statistics(self, rows, idx):
        return (self.first_rows(rows),)

    def update_codebook(self, statistics, rows, ok):
        counts, first = statistics[:, :1], statistics[:, 1:]
        self.codebook.copy_(torch.where((counts >= 1) | ~ok, self.codebook, self.tile(first, rows)))


class QuantizeEMA(CodebookQuantizer):
    """Move each code to the exponential moving average of its rows."""

    saved = ("filled", "counted", "code_sum", "code_count")
    resets_dead_codes = False  # whether a code with an average count below one becomes a row of the batch

    def __init__(self, nb_code, code_dim, mu=0.99):
        super().__init__(nb_code, code_dim)
        self.mu = mu
        # not in the state-dict, whose keys are upstream's
        self.register_buffer("code_sum", torch.zeros(nb_code, code_dim), persistent=False)
        self.register_buffer("code_count", torch.ones(nb_code), persistent=False)

    def init_codebook(self, rows):
        super().init_codebook(rows)
        self.code_sum.copy_(self.codebook)
        self.code_count.fill_(1)

    def init_statistics(self, rows):
        """Set the statistics of a codebook loaded without, as of uniform use: no code is reset at once."""
        self.code_count.fill_(max(rows / self.nb_code, 1.0001 / self.mu))
        self.code_sum.copy_(self.codebook * self.code_count[:, None])
        self.counted = True

    def estimate_statistics(self, rows, idx):
        if rows.is_cuda:  # a product adds in a fixed order there; index_add_ does not
            one_hot = rows.new_zeros(self.nb_code, len(rows)).scatter_(0, idx[None], 1.0)  # (K, R)
            sums = one_hot @ rows
        else:
            sums = rows.new_zeros(self.nb_code, self.code_dim).index_add_(0, idx, rows)
        return (sums, self.first_rows(rows)) if self.resets_dead_codes else (sums,)

    def update_codebook(self, statistics, rows, ok):
        counts, sums = statistics[:, 0], statistics[:, 1:1 + self.code_dim]
        if not self.counted:
            self.init_statistics(rows)
        code_count = self.mu * self.code_count + (1 - self.mu) * counts
        code_sum = self.mu * self.code_sum + (1 - self.mu) * sums
        codebook = code_sum / code_count[:, None]
        if self.resets_dead_codes:
            replacement = self.tile(statistics[:, 1 + self.code_dim:], rows)
            codebook = torch.where(code_count[:, None] >= 1, codebook, replacement)
        else:  # the average of a code long unused fades to 0/0: it stays where it is
            codebook = torch.where(code_count[:, None] > 1e-20, codebook, self.codebook)
        self.code_count.copy_(torch.where(ok, code_count, self.code_count))
        self.code_sum.copy_(torch.where(ok, code_sum, self.code_sum))
        self.codebook.copy_(torch.where(ok, codebook, self.codebook))


class QuantizeEMAReset(QuantizeEMA):
    """EMA with dead codes replaced by rows of the batch: T2M-GPT's published choice."""

    resets_dead_codes = True


class Quantizer(BaseQuantizer):
    """Learn an embedding by gradient, with the commitment weighted by beta (VQ-VAE, arXiv 1711.00937)."""

    eps = 1e-10

    def __init__(self, nb_code, code_dim, beta=1.0):
        super().__init__(nb_code, code_dim)
        self.beta = beta
        self.embedding = nn.Embedding(nb_code, code_dim)
        self.embedding.weight.data.uniform_(-1 / nb_code, 1 / nb_code)

    @property
    def codes(self):
        return self.embedding.weight

    def loss(self, x, z):
        return F.mse_loss(z, x.detach()) + self.beta * F.mse_loss(z.detach(), x)


class FiniteScalar(nn.Module):
    """Round each of d numbers to one of its levels (FSQ, arXiv 2309.15505). levels: d whole numbers."""

    def __init__(self, levels):
        super().__init__()
        if min(levels) < 2:
            raise ValueError(f"fsq_levels {levels}: each must be 2 or more")
        levels = torch.tensor(levels)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("places", levels.cumprod(0) // levels, persistent=False)  # of digits in an index

    def forward(self, z):
        """Return codes (…, d) in [-1, 1], float32 at least, of z (…, d). The gradient skips the rounding."""
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        levels = self.levels.to(z.dtype)
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = (1 - levels % 2) / 2                     # an even number of levels has none at 0
        bounded = torch.tanh(z + torch.atanh(offset / half)) * half - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / (self.levels // 2)

    def indices(self, codes):
        """Return the index (…,) int64 of each code (…, d)."""
        half = self.levels // 2
        digits = (codes * half).round().long() + half
        digits = torch.minimum(digits.clamp(min=0), self.levels - 1)  # NaN becomes a digit too
        return (digits * self.places).sum(-1)

    def codes(self, indices):
        """Return the code (…, d) float32 of each index (…,)."""
        half = self.levels // 2
        return (indices[..., None] // self.places % self.levels - half) / half
