"""Running totals between two log lines, kept on the device to avoid synchronising every step."""
import torch

MEANS = ("L1", "Vel", "Commit", "PPL", "Grad_norm")  # TensorBoard tags of what is averaged


class Meter:
    """Means since the last log line, the codes used, and the first step that was not finite."""

    def __init__(self, quantizer, device):
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(len(MEANS) + 1, dtype=self.dtype, device=device)  # MEANS, number of steps
        self.used = torch.zeros(quantizer.num_layers, quantizer.nb_code, dtype=torch.bool, device=device)
        self.bad = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, step, result):
        """Add what `train_step` returned for a step. Refused steps do not count."""
        row = [*result.losses[:3], result.perplexity, result.norm, torch.ones_like(result.norm)]
        self.sums += torch.where(result.refused, 0, torch.stack(row).to(self.dtype))
        self.used |= result.counts > 0
        self.bad += torch.where(result.bad & (self.bad == 0), step, 0)

    def bad_step(self):
        """Return the first step with a non-finite loss, latent or gradient, or 0. Waits for the device."""
        return int(self.bad)

    def read(self):
        """Return {tag: mean} since the last call and start anew; NaN if every step was refused."""
        sums, use = self.sums.tolist(), self.used.float().mean().item()
        self.sums.zero_()
        self.used.zero_()
        count = sums[-1] or float("nan")
        return {**{tag: value / count for tag, value in zip(MEANS, sums)}, "Codebook_use": use}

    def state_dict(self):
        """Return the totals as tensors."""
        return {"sums": self.sums, "used": self.used}

    def load_state_dict(self, state):
        """Take over the totals of `state_dict`."""
        self.sums.copy_(state["sums"])
        self.used.copy_(state["used"])
