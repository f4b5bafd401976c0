"""Where to run."""
import torch

from utils.errors import UserError


def pick_device(name):
    """torch.device of --device (auto | cpu | cuda | mps); raises UserError for one that is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    if not there[name]:
        raise UserError(f"--device {name}: this machine's torch has none; use --device auto or cpu")
    return torch.device(name)
