"""Pictures of a run's validations in TensorBoard, and GIF files at its end. No random number is drawn."""
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from evaluation.evaluate import select_clips
from models.batches import reconstruct_clips
from utils.motion_spec import UNIT_LENGTH
from visualize.draw import add_gif, gif_bytes, save_gif
from visualize.figures import bar_figure, code_strip, usage_figure
from visualize.skeleton import frame_error, unit_in_metres

CARD = 350  # pixels: the width of a picture's card in TensorBoard, which scales without smoothing
FINAL = ("mpjpe", "mpjpe_global", "recons", "perplexity", "fid", "top1")  # shown beside the flags


def pick_clips(clips, spec, count, unit=UNIT_LENGTH):
    """Return `count` of the clips that evaluation takes, spread over the split: always the same ones."""
    index, starts, lengths, _ = select_clips(clips, spec, unit)
    count = min(count, len(index))
    chosen = (2 * np.arange(count) + 1) * len(index) // (2 * max(count, 1))
    frames = [clips.frames[start:start + length] for start, length in zip(starts[chosen], lengths[chosen])]
    return SimpleNamespace(names=[clips.names[i] for i in index[chosen]], frames=np.concatenate(frames),
                           offsets=np.cumsum([0, *lengths[chosen]]))


class Dashboard:
    """The pictures of one run.

    net: HumanVQVAE with mean and std. val: None, or a split's `clips`. count: clips to draw, 0: none.
    usage: [(iteration, counts (Q·K,) int32)] of every validation so far; the saved state carries it.
    """

    def __init__(self, writer, net, val, count, usage=()):
        self.writer, self.net, self.usage, self.result, self.clips = writer, net, list(usage), {}, None
        if val and count:
            self.clips = pick_clips(val.clips, net.spec, count, max(UNIT_LENGTH, 2 ** net.down_t))
            self.originals = self._joints(np.split(self.clips.frames, self.clips.offsets[1:-1]))

    def draw_validation(self, result, iteration):
        """Draw what `evaluate_clips` returned, and the picked clips."""
        first, self.result = not self.result, result
        self.usage.append((iteration, torch.tensor(result["counts"], dtype=torch.int32).flatten()))
        if not self.clips:
            return
        steps, counts = zip(*self.usage)
        self._image("codebook_use", usage_figure(torch.stack(counts).numpy(), steps, width=CARD), iteration)
        errors = {joint: aligned for joint, (aligned, _) in result["joints"].items()}
        title = f"root-aligned error, {result['mpjpe']:.1f} mm after {iteration}"
        self._image("joint_errors", bar_figure([*errors], [*errors.values()], title, width=CARD), iteration)
        features, codes = reconstruct_clips(self.net, self.clips)
        coarse = [row if row.ndim == 1 else row[:, 0] for row in codes]
        strip = code_strip(coarse, self.net.nb_code, labels=self.clips.names, wrap=11)
        self._image("codes", strip, iteration)
        for i, (joints, original) in enumerate(zip(self._joints(features), self.originals)):
            self._draw_clip(i, joints, original, iteration, first)

    def finish(self, args, path, log):
        """Write the flags beside the final metrics, and each clip as PATH/vis_NAME.gif."""
        flags = {name: value if isinstance(value, (int, float)) else str(value)
                 for name, value in vars(args).items()}
        metrics = {f"Final/{name}": self.result[name] for name in FINAL if name in self.result}
        self.writer.add_hparams(flags, metrics, run_name=".", global_step=args.total_iter)
        if not self.clips:
            return
        features, _ = reconstruct_clips(self.net, self.clips)
        for name, joints, original in zip(self.clips.names, self._joints(features), self.originals):
            file = Path(path, f"vis_{name.replace('/', '_')}.gif")
            save_gif(file, joints, self.net.spec, reference=original, title=name)
        log.info(f"{len(self.clips.names)} validation clips beside their reconstructions: {path}/vis_*.gif")

    def _image(self, name, picture, iteration):
        self.writer.add_image(f"Validation/{name}", picture, iteration, dataformats="HWC")

    def _draw_clip(self, i, joints, original, iteration, first):
        spec = self.net.spec
        if first:
            gif = gif_bytes(original, spec, title=self.clips.names[i])
            add_gif(self.writer, f"./Vis/org_eval{i}", gif, iteration)
        error = frame_error(joints, original)[0].mean() * unit_in_metres(original, spec)
        title = f"iteration {iteration}: {error:.0f} mm"
        gif = gif_bytes(joints, spec, reference=original, alone=True, title=title)
        add_gif(self.writer, f"./Vis/pred_eval{i}", gif, iteration)

    def _joints(self, features):
        """Return the joints (T, J, 3) of normalised features (T, D) of each clip."""
        device = next(self.net.parameters()).device
        return [self.net.to_joints(torch.from_numpy(x).to(device)).cpu().numpy() for x in features]
