"""Curves and pictures of a run's validations in TensorBoard, and GIF files. No random number is drawn."""
from pathlib import Path

import numpy as np
import torch

from evaluation.evaluate import select_clips
from models.batches import evaluating
from utils.motion_spec import UNIT_LENGTH
from visualize.draw import add_gif, gif_bytes, save_gif
from visualize.skeleton import frame_error

FINAL = ("mpjpe", "mpjpe_global", "recons", "perplexity", "fid", "top1")  # shown beside the flags


def pick_clips(clips, spec, count, unit=UNIT_LENGTH):
    """Return {name: features (T, D)} of `count` clips that evaluation takes, spread over the split."""
    index, starts, lengths, _ = select_clips(clips, spec, unit)
    chosen = [part[len(part) // 2] for part in np.array_split(np.arange(len(index)), min(count, len(index)))]
    return {clips.names[i]: clips.frames[start:start + length]
            for i, start, length in zip(index[chosen], starts[chosen], lengths[chosen])}


class Dashboard:
    """The curves and pictures of one run. val: None, or a split's `clips`. count: clips to draw, 0: none."""

    def __init__(self, writer, net, val, count):
        self.writer, self.net, self.result, self.clips = writer, net, {}, {}
        if val and count:
            self.clips = pick_clips(val.clips, net.spec, count, max(UNIT_LENGTH, 2 ** net.down_t))

    def add_scalars(self, group, values, iteration):
        """Add a point to each curve ./GROUP/NAME of values {name: number}."""
        for name, value in values.items():
            self.writer.add_scalar(f"./{group}/{name}", value, iteration)

    def draw_validation(self, result, iteration):
        """Log what `evaluate_clips` returned of joints and codes, and draw the picked clips."""
        first, self.result = not self.result, result
        self.add_scalars("Joints", {name: error for name, (error, _) in result["joints"].items()}, iteration)
        self.writer.add_histogram("Validation/codebook_use", np.array(result["counts"]), iteration)
        for i, (name, joints, original) in enumerate(self._reconstruct()):
            if first:
                gif = gif_bytes(original, self.net.spec, title=name)
                add_gif(self.writer, f"./Vis/org_eval{i}", gif, iteration)
            error = frame_error(joints, original)[0].mean() * self.net.spec.unit
            gif = gif_bytes(joints, self.net.spec, reference=original, alone=True,
                            title=f"iteration {iteration}: {error:.0f} mm")
            add_gif(self.writer, f"./Vis/pred_eval{i}", gif, iteration)

    def finish(self, args, path):
        """Write the flags beside the final metrics, and each clip as PATH/vis_NAME.gif."""
        flags = {name: x if isinstance(x, (int, float)) else str(x) for name, x in vars(args).items()}
        metrics = {f"Final/{name}": self.result[name] for name in FINAL if name in self.result}
        self.writer.add_hparams(flags, metrics, run_name=".", global_step=args.total_iter)
        for name, joints, original in self._reconstruct():
            file = Path(path, f"vis_{name.replace('/', '_')}.gif")
            save_gif(file, joints, self.net.spec, reference=original, title=name)

    def _reconstruct(self):
        """Return [(name, reconstructed joints, original joints (T, J, 3))] of the picked clips."""
        if not self.clips:
            return []
        clips = [torch.tensor(clip) for clip in self.clips.values()]
        with evaluating(self.net):
            codes = [self.net.encode(clip[None])[0] for clip in clips]
        joints = [each.numpy() for each in self.net.decode_joints(codes)]
        return list(zip(self.clips, joints, [self.net.to_joints(clip).numpy() for clip in clips]))
