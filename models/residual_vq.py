"""Residual quantization: each layer codes what the layers before it left of a latent.

Sources: SoundStream, arXiv 2107.03312; MoMask, arXiv 2312.00063, models/vq/residual_vq.py.
N windows, C channels, T' latent frames, K codes, Q layers, R = N·T' rows.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from models.quantize_cnn import BaseQuantizer, QuantizeEMAReset
from utils.device import all_reduce


class ResidualVQ(BaseQuantizer):
    """Q `QuantizeEMAReset` layers in a row. A code is (Q,) indices, the coarse layer first.

    args: a namespace of `mu`, `num_quantizers` (Q), `shared_codebook`, `quantize_dropout_prob`, the share of
    training batches that use only a random number of layers, and `sample_codebook_temp`, the temperature at
    which training draws a code instead of taking the nearest, 0: never.
    """

    clip_axes = 2  # (T', Q)

    def __init__(self, nb_code, code_dim, args):
        super().__init__(nb_code, code_dim)
        self.num_layers = args.num_quantizers
        self.dropout, self.temperature = args.quantize_dropout_prob, args.sample_codebook_temp
        self.shared, self.before = args.shared_codebook, ()
        own = 1 if self.shared else self.num_layers
        layers = [QuantizeEMAReset(nb_code, code_dim, args.mu) for _ in range(own)]
        self.layers = nn.ModuleList(layers * (self.num_layers // own))
        self.register_buffer("active", torch.ones(self.num_layers, dtype=torch.bool), persistent=False)

    @property
    def codes(self):
        """Return the coarse layer's codebook (K, C)."""
        return self.layers[0].codes

    @property
    def filled(self):
        """Whether every layer has its codes."""
        return all(layer.filled for layer in self.layers)

    def require_filled(self):
        for layer in self.layers:
            layer.require_filled()

    def reset_codebook(self):
        """Empty every codebook: the next training batch fills them again."""
        for layer in self.layers:
            layer.reset_codebook()

    def draw_layers(self):
        """Draw the layers that the next training batch uses: all, or 0 … s for a random s (dropout)."""
        last = self.num_layers - 1
        if self.dropout and float(torch.rand(())) < self.dropout:
            last = int(torch.randint(self.num_layers, ()))
        self.active = torch.arange(self.num_layers, device=self.active.device) <= last

    @torch.no_grad()
    def init_codebook(self, rows):
        """Fill each empty codebook with the first rows (R, C) that reach its layer."""
        for layer in self.layers:
            if not layer.filled:
                layer.init_codebook(rows)
            rows = rows - layer.dequantize(layer.quantize(rows))

    def quantize(self, x):
        """Return the codes (R, Q) int64 of rows (R, C)."""
        codes = []
        for layer in self.layers:
            codes.append(layer.quantize(x))
            x = x - layer.dequantize(codes[-1])
        return torch.stack(codes, 1)

    def dequantize(self, code_idx):
        """Return the sum of the codes (…, q) of the first q layers, as (…, C). -1 stands for no code."""
        total = 0
        for layer, idx in zip(self.layers, code_idx.unbind(-1)):
            total = total + F.embedding(idx.clamp(min=0), layer.codes) * (idx >= 0)[..., None]
        return total

    def look_up(self, x):
        """Quantize x (N, C, T') with the layers in use; the others give the code -1.

        In training a shared codebook moves after each layer, as MoMask's does; `update` takes that back where
        the step is refused. Nothing else changes.

        Returns the quantized latents (N, C, T'), the mean commitment loss of the layers () and, for `update`,
        rows (R, C) and code indices (R, Q).
        """
        with torch.autocast(x.device.type, enabled=False):
            rows = left = self.to_rows(x)
            active = self.active if self.training else torch.ones_like(self.active)
            out, losses, codes = 0, [], []
            moves = self.training and self.shared
            self.before = [value.clone() for value in self._shared_state()] if moves else ()
            for layer, used in zip(self.layers, active):
                idx = self._choose(layer, left.detach())
                z = layer.dequantize(idx)
                if moves:
                    layer.update(left.detach(), idx, ~used)
                losses.append(used * layer.loss(left, z))
                passed = used * (left + (z - left).detach())          # straight-through estimator
                out = out + passed
                left = left - passed.detach()
                codes.append(torch.where(used, idx, -1))
            loss = torch.stack(losses).sum() / active.sum()
        return self.from_rows(out, len(x)), loss, rows.detach(), torch.stack(codes, 1)

    def _choose(self, layer, rows):
        """Return the nearest code (R,) of rows (R, C) or, in training, one drawn with Gumbel noise."""
        if not (self.training and self.temperature):
            return layer.quantize(rows)
        logits = layer.distances(rows) * (-2 / self.temperature)
        return (logits - torch.empty_like(logits).exponential_().log()).argmax(1)

    def count(self, idx):
        """Return how often each layer's codes occur in idx (R, Q): (Q, K) int64."""
        places = idx.clamp(min=0) + self.nb_code * torch.arange(self.num_layers, device=idx.device)
        counts = idx.new_zeros(self.num_layers * self.nb_code)
        return counts.index_add_(0, places.flatten(), (idx >= 0).long().flatten()).view(self.num_layers, -1)

    def perplexity(self, counts):
        """Return the mean perplexity of the layers in use, of code counts (Q, K)."""
        layers = torch.stack([layer.perplexity(row) for layer, row in zip(self.layers, counts)])
        used = counts.sum(1) > 0
        return torch.where(used, layers, 0).sum() / used.sum()

    def _shared_state(self):
        layer = self.layers[0]
        return layer.codebook, layer.code_sum, layer.code_count

    @torch.no_grad()
    def update(self, rows, idx, refuse=None):
        """Move the codebooks of the layers in use, as the base does. Returns the code counts (Q, K)."""
        if self.shared:
            for value, before in zip(self._shared_state(), self.before if refuse is not None else ()):
                value.copy_(torch.where(refuse, before, value))
            return all_reduce(self.count(idx).to(rows.dtype))
        parts = []
        for layer, codes, used in zip(self.layers, idx.clamp(min=0).unbind(1), self.active):
            parts.append((layer, rows, codes, used))
            rows = rows - layer.dequantize(codes)
        counts = [used * layer.update(left, codes, ~used if refuse is None else refuse | ~used)
                  for layer, left, codes, used in parts]
        return torch.stack(counts)

    def training_state(self):
        return {f"layers.{i}.{name}": value for i, layer in enumerate(self.layers)
                for name, value in layer.training_state().items()}

    def load_training_state(self, state):
        for i, layer in enumerate(self.layers):
            layer.load_training_state({name: state[f"layers.{i}.{name}"] for name in layer.saved})
