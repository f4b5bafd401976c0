"""Write the checkpoints of a run."""
import os

import torch

from utils.errors import UserError
from utils.files import atomic_write


def save_checkpoint(path, checkpoint, keep_previous=None):
    """Write a checkpoint atomically; with `keep_previous`, the replaced file moves to that name first."""
    try:
        with atomic_write(path, flush=True) as file:
            torch.save(checkpoint, file)
            if keep_previous and os.path.exists(path):
                os.replace(path, os.path.join(os.path.dirname(path), keep_previous))
    except RuntimeError as error:  # so torch reports a full disk
        raise UserError(f"{path}: cannot be saved ({' '.join(str(error).split())[:80]})") from None
