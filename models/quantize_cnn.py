"""Four quantizers on one base (T2M-GPT models/quantize_cnn.py; EMA and reset after Jukebox, arXiv 2005.00341).

Training reads: latents → rows → nearest code → loss → straight-through (`look_up`), then `update` moves the codebook, so that the output
always uses the codebook from before the batch. `forward` does both; a trainer that wants to look at the loss and the gradient first, or
that takes a batch in parts, calls the two itself. N windows, C channels, T' latent frames, K codes, R = N·T' rows.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from utils.device import all_reduce, rank_and_world


class BaseQuantizer(nn.Module):
    """Nearest-code look-up, straight-through and the statistics of a training batch; a variant adds its loss and how its codes move.

    In a run of several ranks each sees its equal slice of the batch, in the order of the ranks; statistics and fill are the whole batch's.
    """

    fills_from_data = True  # whether the first training batch becomes the codebook
    eps = 1e-7              # in the perplexity's logarithm

    def __init__(self, nb_code, code_dim):
        super().__init__()
        self.nb_code, self.code_dim = nb_code, code_dim
        self.filled = not self.fills_from_data
        self.register_load_state_dict_post_hook(lambda module, _: module._after_load())

    @property
    def codes(self):
        """The codebook (K, C)."""
        return self.codebook

    def quantize(self, x):
        """Rows (R, C) → index of the nearest code by squared Euclidean distance, (R,) int64."""
        codes = self.codes
        # ‖x‖² is the same for every code, so it is left out: argmin ‖c‖²/2 - x·c
        return torch.addmm(codes.square().sum(1) / 2, x, codes.t(), alpha=-1).argmin(1)

    def dequantize(self, code_idx):
        """Code indices of any shape → their codes, shape + (C,)."""
        return F.embedding(code_idx, self.codes)

    def to_rows(self, x):
        """Latents (N, C, T') → rows (N·T', C), float32 (or float64) whatever autocast made of them."""
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        return x.transpose(1, 2).reshape(-1, x.shape[1])

    def look_up(self, x):
        """x (N, C, T') → quantized (N, C, T'), commitment loss (), rows (R, C) and code indices (R,); changes nothing."""
        with torch.autocast(x.device.type, enabled=False):
            rows = self.to_rows(x)
            idx = self.quantize(rows.detach())
            z = self.dequantize(idx)
            loss = self.loss(rows, z)
            out = rows + (z - rows).detach()                          # straight-through: the gradient passes unchanged
            out = out.view(x.shape[0], x.shape[2], x.shape[1]).transpose(1, 2)
        return out, loss, rows.detach(), idx

    def forward(self, x):
        """x (N, C, T') → quantized (N, C, T'), commitment loss and perplexity (scalars). In training the codebook fills and moves."""
        if self.training and not self.filled:
            self.fill(self.to_rows(x.detach()))
        out, loss, rows, idx = self.look_up(x)
        counts = self.update(rows, idx) if self.training else self.count(idx)
        return out, loss, self.perplexity(counts.to(rows.dtype))

    def loss(self, x, z):
        """Commitment loss: the codebook itself gets no gradient."""
        return F.mse_loss(x, z.detach())

    def count(self, idx):
        """How often each code stands in idx (R,): (K,) int64."""
        return torch.zeros(self.nb_code, dtype=torch.int64, device=idx.device).index_add_(0, idx, torch.ones_like(idx))

    def perplexity(self, counts):
        """exp(-Σ p log(p + eps)) of code counts (K,)."""
        p = counts / counts.sum()
        return torch.exp(-(p * torch.log(p + self.eps)).sum())

    @torch.no_grad()
    def update(self, rows, idx, refuse=None):
        """Move the codebook by this rank's rows (R, C) of a batch and their codes (R,); returns the whole batch's code counts (K,).

        refuse: a bool tensor (); where it is True the codebook stays as it is, decided on the device. Statistics that are not finite
        never move it.
        """
        statistics = all_reduce(torch.cat([self.count(idx)[:, None].to(rows.dtype), *self._statistics(rows, idx)], 1))
        ok = torch.isfinite(statistics.sum())  # one NaN or Inf reaches the sum; several times faster than a look at each
        self._move(statistics, len(rows) * rank_and_world()[1], ok if refuse is None else ok & ~refuse)
        return statistics[:, 0]

    def _statistics(self, rows, idx):
        """What `_move` needs of a batch besides the counts: tensors of (K, ·) that add up over ranks."""
        return ()

    def _move(self, statistics, rows, ok):
        """Move the codes, where `ok`, by the statistics (K, 1 + ·) of a batch of `rows` rows. A codebook learnt by gradient does not."""

    def fill(self, rows):
        """Fill the codebook from a batch's rows; only codebooks that are not learnt by gradient do."""

    def training_state(self):
        """What must survive a checkpoint besides the state-dict: primitives and tensors."""
        return {}

    def load_training_state(self, state):
        """Take over `training_state()` of the same kind of quantizer, after its state-dict was loaded."""

    def _after_load(self):
        pass


class CodebookQuantizer(BaseQuantizer):
    """A codebook that is data, not a parameter: filled from the first training batch, then moved by statistics."""

    def __init__(self, nb_code, code_dim):
        super().__init__(nb_code, code_dim)
        self.register_buffer("codebook", torch.zeros(nb_code, code_dim))

    def reset_codebook(self):
        """Forget the fill: the next training batch fills the codebook again."""
        self.filled = False
        self.codebook.zero_()

    def _after_load(self):
        # a loaded codebook counts as filled, unless it is one that was saved before its first batch
        self.filled = bool(self.codebook.any())

    def _first_rows(self, rows):
        """(K, C): this rank's share of the batch's first K rows, at their places; zeros elsewhere."""
        start, placed = rank_and_world()[0] * len(rows), torch.zeros_like(self.codebook)
        if start < self.nb_code:
            part = rows[:self.nb_code - start]
            placed[start:start + len(part)] = part
        return placed

    def _tile(self, first, rows):
        """Fill up (K, C) of first rows where the batch has only `rows` < K of them: repeated, with a little noise."""
        if rows >= self.nb_code:
            return first
        tiled = first[:rows].repeat(-(-self.nb_code // rows), 1)[:self.nb_code]
        return tiled + torch.randn_like(tiled) * (0.01 / self.code_dim ** 0.5)

    @torch.no_grad()
    def fill(self, rows):
        """rows (R, C): this rank's rows of the first batch, all of them. The first K of the whole batch become the codebook."""
        first = self._tile(all_reduce(self._first_rows(rows)), len(rows) * rank_and_world()[1])
        if torch.isfinite(first).all():  # else the next batch fills it
            self.codebook.copy_(first)
            self.filled = True

    def training_state(self):
        return {"filled": self.filled}

    def load_training_state(self, state):
        self.filled = bool(state["filled"])


class QuantizeReset(CodebookQuantizer):
    """Codes unused in a batch become rows of it; used codes never move (upstream's straight-through and loss both detach them)."""

    def _statistics(self, rows, idx):
        return (self._first_rows(rows),)

    def _move(self, statistics, rows, ok):
        counts, first = statistics[:, :1], statistics[:, 1:]
        self.codebook.copy_(torch.where((counts >= 1) | ~ok, self.codebook, self._tile(first, rows)))


class QuantizeEMA(CodebookQuantizer):
    """Codes follow the exponential moving average of the rows they stand for."""

    replaces = False  # whether a code with an average count below one becomes a row of the batch

    def __init__(self, nb_code, code_dim, mu=0.99):
        super().__init__(nb_code, code_dim)
        self.mu = mu
        # not in the state-dict, whose keys are upstream's: `training_state` carries them
        self.register_buffer("code_sum", torch.zeros(nb_code, code_dim), persistent=False)
        self.register_buffer("code_count", torch.ones(nb_code), persistent=False)
        self.counted = True  # False: a codebook came without its statistics (an upstream file)

    def reset_codebook(self):
        super().reset_codebook()
        self.counted = True

    def _after_load(self):
        super()._after_load()
        self.counted = not self.filled

    def fill(self, rows):
        super().fill(rows)
        self.code_sum.copy_(self.codebook)
        self.code_count.fill_(1)

    def _statistics(self, rows, idx):
        if rows.is_cuda:  # a product adds in a fixed order there; index_add_ does not
            chosen = torch.zeros(self.nb_code, len(rows), dtype=rows.dtype, device=rows.device).scatter_(0, idx[None], 1.0)  # (K, R)
            sums = chosen @ rows
        else:
            sums = torch.zeros_like(self.codebook).index_add_(0, idx, rows)
        return (sums, self._first_rows(rows)) if self.replaces else (sums,)

    def _expect_usage(self, rows):
        """Statistics of a codebook that came without: the expected rows per code, enough for no code to fall below one at once."""
        self.code_count.fill_(max(rows / self.nb_code, 1.0001 / self.mu))
        self.code_sum.copy_(self.codebook * self.code_count[:, None])
        self.counted = True

    def _move(self, statistics, rows, ok):
        counts, sums = statistics[:, 0], statistics[:, 1:1 + self.code_dim]
        if not self.counted:
            self._expect_usage(rows)
        code_count = self.mu * self.code_count + (1 - self.mu) * counts
        code_sum = self.mu * self.code_sum + (1 - self.mu) * sums
        codebook = code_sum / code_count[:, None]
        if self.replaces:
            replacement = self._tile(statistics[:, 1 + self.code_dim:], rows)
            codebook = torch.where(code_count[:, None] >= 1, codebook, replacement)
        else:  # the average of a code long unused fades to 0/0: it stays where it is
            codebook = torch.where(code_count[:, None] > 1e-20, codebook, self.codebook)
        for buffer, value in ((self.code_count, code_count), (self.code_sum, code_sum), (self.codebook, codebook)):
            buffer.copy_(torch.where(ok, value, buffer))

    def training_state(self):
        return {**super().training_state(), "counted": self.counted, "code_sum": self.code_sum, "code_count": self.code_count}

    def load_training_state(self, state):
        super().load_training_state(state)
        self.counted = bool(state["counted"])
        self.code_sum.copy_(state["code_sum"])
        self.code_count.copy_(state["code_count"])


class QuantizeEMAReset(QuantizeEMA):
    """EMA, and a code used less than once a batch on average is replaced by a row of the batch. T2M-GPT's published choice."""

    replaces = True


class Quantizer(BaseQuantizer):
    """The VQ-VAE of arXiv 1711.00937: an embedding learnt by gradient, commitment weighted by beta."""

    fills_from_data = False
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


# --quantizer → constructor from (nb_code, code_dim, args)
QUANTIZERS = {
    "ema_reset": lambda nb_code, code_dim, args: QuantizeEMAReset(nb_code, code_dim, args.mu),
    "orig": lambda nb_code, code_dim, args: Quantizer(nb_code, code_dim, args.beta),
    "ema": lambda nb_code, code_dim, args: QuantizeEMA(nb_code, code_dim, args.mu),
    "reset": lambda nb_code, code_dim, args: QuantizeReset(nb_code, code_dim),
}
