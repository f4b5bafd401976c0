"""Running totals between two log lines, kept on the device to avoid synchronising every step."""
import torch
import torch.nn as nn

MEANS = ("L1", "Vel", "Commit", "PPL", "Grad_norm")  # TensorBoard tags of what is averaged


class Meter(nn.Module):
    """Means since the last log line, the codes used, and the first step that was not finite."""

    def __init__(self, quantizer, device):
        super().__init__()
        dtype = torch.float32 if device.type == "mps" else torch.float64
        counts = (quantizer.num_layers, quantizer.nb_code)[-quantizer.clip_axes:]  # (K,), residual (Q, K)
        used = torch.zeros(counts, dtype=torch.bool, device=device)
        self.register_buffer("sums", torch.zeros(len(MEANS) + 1, dtype=dtype, device=device))  # and of steps
        self.register_buffer("used", used)
        self.bad_step = torch.zeros((), dtype=torch.int64, device=device)  # the first one

    def add(self, step, result):
        """Add what `train_step` returned for a step. Refused steps do not count."""
        row = [*result.losses[:3], result.perplexity, result.norm, torch.ones_like(result.norm)]
        self.sums += torch.where(result.refused, 0, torch.stack(row).to(self.sums.dtype))
        self.used |= result.counts > 0
        self.bad_step += torch.where(result.bad & (self.bad_step == 0), step, 0)

    def read(self):
        """Return {tag: mean} since the last call and start anew; NaN if every step was refused."""
        sums, use = self.sums.tolist(), self.used.float().mean().item()
        self.sums.zero_()
        self.used.zero_()
        count = sums[-1] or float("nan")
        return {**{tag: value / count for tag, value in zip(MEANS, sums)}, "Codebook_use": use}
