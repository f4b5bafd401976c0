"""Training windows: which ones make up batch k is a pure function of (seed, k)."""
import functools
import itertools

import numpy as np
import torch

from utils.errors import UserError


class WindowFeed:
    """Windows of `window` frames from the clips of a split (T2M-GPT dataset/dataset_VQ.py).

    The windows form one endless stream: epoch after epoch, every long enough clip once, in a random order,
    each with a uniformly random crop. Batch k is the stream from k·batch_size on, shared out among the ranks.

    clips: as `load_split` returns. edge: crops are drawn from so many frames beyond a clip's ends and moved
    inside; without, they hardly ever hold its first or last frame.
    Raises UserError when no clip is as long as a window.
    """

    def __init__(self, clips, window, batch_size, seed=123, edge=0):
        lengths = np.diff(clips.offsets)
        self.long_enough = np.flatnonzero(lengths >= window)
        if not len(self.long_enough):
            raise UserError(f"{clips.split}: all {len(lengths)} clips are shorter than a window of {window} "
                            f"frames (the longest has {lengths.max()}); use a smaller --window-size")
        self.clips, self.window, self.batch_size, self.seed, self.edge = clips, window, batch_size, seed, edge
        self._crops = lengths[self.long_enough] - window + 1
        shape = (window, clips.frames.shape[1])
        self._windows = np.lib.stride_tricks.sliding_window_view(clips.frames, shape)[:, 0]
        self._epoch = functools.lru_cache(2)(self._draw_epoch)

    def __len__(self):
        """Clips in an epoch."""
        return len(self.long_enough)

    def _draw_epoch(self, epoch):
        """Return clips and first frames of an epoch's windows in their order, (n,) each."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        order = rng.permutation(len(self))
        places = self._crops[order]
        crops = np.floor(rng.random(len(self)) * (places + 2 * self.edge)).astype(np.int64) - self.edge
        clips = self.long_enough[order]
        return clips, self.clips.offsets[clips] + crops.clip(0, places - 1)

    def select(self, k, rank=0, world_size=1):
        """Return clips (index into `clips.names`) and first frames (row of `clips.frames`) of batch k.

        Both are (B,) int64, and this rank's share where there are several.
        """
        first, last = (k * self.batch_size + r * self.batch_size // world_size for r in (rank, rank + 1))
        epochs = range(first // len(self), (last - 1) // len(self) + 1)
        clips, starts = (np.concatenate(parts) for parts in zip(*map(self._epoch, epochs)))
        share = slice(first - epochs[0] * len(self), last - epochs[0] * len(self))
        return clips[share], starts[share]

    def batch(self, k, rank=0, world_size=1):
        """Return a rank's share of batch k as a new (B, window, D) float32 tensor."""
        return torch.from_numpy(self._windows[self.select(k, rank, world_size)[1]])

    def batches_on(self, device, first=0, rank=0, world_size=1, parts=1):
        """Yield a rank's share of batch `first` and of all that follow: lists of `parts` micro-batches.

        Those are (B / parts, window, D) on the device. All frames lie there where `_fits` says so.
        """
        frames = torch.tensor(self.clips.frames, device=device) if _fits(self.clips.frames, device) else None
        within = torch.arange(self.window, device=device)
        for k in itertools.count(first):
            batch = []
            for part in range(rank * parts, (rank + 1) * parts):
                if frames is None:
                    batch.append(_send(self.batch(k, part, world_size * parts), device))
                else:
                    starts = torch.from_numpy(self.select(k, part, world_size * parts)[1])
                    batch.append(frames[_send(starts, device)[:, None] + within])
            yield batch


def _fits(frames, device):
    """Return whether all frames take at most half of a CUDA device's free memory."""
    return device.type == "cuda" and frames.nbytes <= torch.cuda.mem_get_info(device)[0] / 2


def _send(tensor, device):
    """Copy to the device; to CUDA from pinned memory, without waiting for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
