"""Finite scalar quantization of latents (FSQ, arXiv 2309.15505). N, C, T', K and R as in quantize_cnn.py."""
import math

import torch
import torch.nn as nn

from models.quantize_cnn import BaseQuantizer, FiniteScalar


class QuantizeFSQ(BaseQuantizer):
    """Finite scalars between two projections: the codebook is a fixed grid, so nothing in it can die.

    Without the normalisation the latents outgrow the grid and few codes stay in use.
    """

    def __init__(self, nb_code, code_dim, levels):
        if nb_code != math.prod(levels):
            raise ValueError(f"nb_code {nb_code} is not the product of the levels {levels}")
        super().__init__(nb_code, code_dim)
        self.scalar = FiniteScalar(levels)
        self.norm = nn.LayerNorm(code_dim)
        self.project_in = nn.Linear(code_dim, len(levels))
        self.project_out = nn.Linear(len(levels), code_dim)

    @property
    def codes(self):
        """Return the code of every index, (K, C)."""
        return self.dequantize(torch.arange(self.nb_code, device=self.norm.weight.device))

    def scalars(self, rows):
        """Return the codes in [-1, 1] (R, d) of rows (R, C)."""
        return self.scalar(self.project_in(self.norm(rows.to(self.norm.weight.dtype))))

    def quantize(self, x):
        return self.scalar.indices(self.scalars(x))

    def dequantize(self, code_idx):
        return self.project_out(self.scalar.codes(code_idx).to(self.norm.weight.dtype))

    def look_up(self, x):
        with torch.autocast(x.device.type, enabled=False):
            rows = self.to_rows(x)
            codes = self.scalars(rows)
            out = self.project_out(codes.to(self.norm.weight.dtype))
            idx = self.scalar.indices(codes.detach())
        return self.from_rows(out, len(x)), out.new_zeros(()), rows.detach(), idx
