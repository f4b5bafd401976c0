"""Training windows: which ones make up batch k is a pure function of (seed, k), and a batch is one vectorised gather."""
import itertools
import mmap
import os

import numpy as np
import torch

from utils.errors import UserError

LARGE = 0.5  # of the machine's memory: a mapped file beyond it cannot be counted on to stay there


class WindowFeed:
    """Windows of `window` frames from the clips of a split (T2M-GPT dataset/dataset_VQ.py).

    The windows form one endless stream: epoch after epoch, every long enough clip once, in a random order, each with a uniformly random
    crop. Batch k is the stream from k·batch_size on, so nothing has to be saved to continue, a batch may be larger than an epoch, and
    a rank takes its slice of the same batch.

    clips: as `load_split` returns. Raises UserError when no clip is as long as a window.
    """

    def __init__(self, clips, window, batch_size, seed=123):
        lengths = np.diff(clips.offsets)
        self.long_enough = np.flatnonzero(lengths >= window)
        if not len(self.long_enough):
            raise UserError(f"{clips.split}: all {len(lengths)} clips are shorter than a window of {window} frames (the longest has "
                            f"{lengths.max()}); use a smaller --window-size")
        self.too_short = len(lengths) - len(self.long_enough)
        self.clips, self.window, self.batch_size, self.seed = clips, window, batch_size, seed
        self._starts = clips.offsets[self.long_enough]
        self._crops = lengths[self.long_enough] - window + 1
        frames = np.ascontiguousarray(clips.frames)
        width = frames.shape[1]
        # (F - window + 1, window·D): a window is one run of memory, so a batch is one copy per window
        self._windows = np.lib.stride_tricks.as_strided(frames, (len(frames) - window + 1, window * width),
                                                        (frames.strides[0], frames.itemsize), writeable=False)
        self._shape = (window, width)
        self._epoch = (-1, None, None)
        mapped = isinstance(clips.frames.base, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED")
        self._from_disk = mapped and clips.frames.nbytes > LARGE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def __len__(self):
        """Clips in an epoch."""
        return len(self.long_enough)

    def _draw(self, epoch):
        """Order of the clips and first frame of each crop in an epoch, (n,) each."""
        if self._epoch[0] != epoch:
            rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            order = rng.permutation(len(self))
            starts = self._starts[order] + np.floor(rng.random(len(self)) * self._crops[order]).astype(np.int64)
            self._epoch = (epoch, order, starts)
        return self._epoch[1:]

    def select(self, k, rank=0, world_size=1):
        """Clips (index into `clips.names`) and first frames (row of `clips.frames`) of rank's slice of batch k: (B,) int64 each."""
        first = k * self.batch_size
        position = np.arange(first + rank * self.batch_size // world_size, first + (rank + 1) * self.batch_size // world_size)
        epochs, within = np.divmod(position, len(self))
        clips, starts = np.empty_like(position), np.empty_like(position)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order, frames = self._draw(int(epoch))
            clips[here], starts[here] = self.long_enough[order[within[here]]], frames[within[here]]
        return clips, starts

    def batch(self, k, rank=0, world_size=1):
        """Batch k (its slice for `rank`) as a new (B, window, D) float32 tensor."""
        starts = self.select(k, rank, world_size)[1]
        if self._from_disk:
            self._ask_for(starts)
        return torch.from_numpy(self._windows[starts].reshape(len(starts), *self._shape))

    def _ask_for(self, starts):
        """Have the system fetch the windows from disk all at once; left to itself it fetches one after the other, and much around each."""
        frames = self.clips.frames
        row, before = frames.strides[0], frames.offset % mmap.ALLOCATIONGRANULARITY
        for first in (before + starts * row).tolist():
            page = first // mmap.PAGESIZE * mmap.PAGESIZE
            frames.base.madvise(mmap.MADV_WILLNEED, page, first + self.window * row - page)

    def on_device(self, first, device, where="auto", rank=0, world_size=1, parts=1):
        """Endless: this rank's slice of batch `first`, `first` + 1, … as `parts` equal tensors (B / parts, window, D) on the device.

        where, on CUDA: `device` keeps all frames there and gathers windows there; `host` copies each batch from pinned memory while the
        one before is in use; `auto` is `device` where the frames take at most half of the free memory. Other devices are fed batch by batch.
        """
        slices = ((k, rank * parts + part, world_size * parts) for k in itertools.count(first) for part in range(parts))
        if where == "auto" and device.type == "cuda":
            where = "device" if self.clips.frames.nbytes <= torch.cuda.mem_get_info(device)[0] / 2 else "host"
        if where == "device":
            tensors = self._gathered(slices, device)
        elif device.type == "cuda":
            tensors = self._copied_ahead(slices, device)
        else:
            tensors = (self.batch(*which).to(device) for which in slices)
        while True:
            yield [next(tensors) for _ in range(parts)]

    def _gathered(self, slices, device):
        """Windows of `slices` out of frames that live on the device."""
        frames, within = torch.tensor(self.clips.frames, device=device), torch.arange(self.window, device=device)
        for which in slices:
            starts = torch.from_numpy(self.select(*which)[1])
            if device.type == "cuda":
                starts = starts.pin_memory().to(device, non_blocking=True)
            yield frames[starts[:, None] + within]

    def _copied_ahead(self, slices, device):
        """Windows of `slices` from pinned memory: while one is in use, the next is on its way on a stream of its own."""
        stream, ahead = torch.cuda.Stream(device), None
        for which in slices:
            with torch.cuda.stream(stream):
                coming = self.batch(*which).pin_memory().to(device, non_blocking=True)
            if ahead is not None:
                torch.cuda.current_stream(device).wait_event(ahead[1])
                ahead[0].record_stream(torch.cuda.current_stream(device))
                yield ahead[0]
            ahead = coming, stream.record_event()

    def batches_on(self, device, first, rank=0, world=1, parts=1):
        return self.on_device(first, device, "auto", rank, world, parts)
