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
SETTINGS = ("quantizer", "nb_code", "code_dim", "width", "depth", "down_t", "dilation_growth_rate",
            "vq_act", "vq_norm", "mu", "batch_size", "window_size", "total_iter", "warm_up_iter", "lr", "gamma",
            "commit", "loss_vel", "vel_slice", "recons_loss", "seed", "amp")


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

    net: HumanVQVAE with mean and std. val: None, or a validation split with `clips`. count: clips to draw, 0
    for none. usage: [(iteration, counts (K,) int32)] of every validation so far; the saved state carries it.
    """

    def __init__(self, writer, net, val, count, usage=()):
        self.writer, self.net, self.usage = writer, net, list(usage)
        self.originals = self.result = None
        unit = max(UNIT_LENGTH, 2 ** net.down_t)
        self.clips = pick_clips(val.clips, net.spec, count, unit) if val and count else None

    def draw_validation(self, result, iteration):
        """Draw what `evaluate_clips` returned, and the picked clips."""
        self.result = result
        self.usage.append((iteration, torch.tensor(result["counts"], dtype=torch.int32)))
        if self.clips:
            steps, counts = zip(*self.usage)
            errors = {joint: aligned for joint, (aligned, _) in result["joints"].items()}
            title = f"root-aligned error, {result['mpjpe']:.1f} mm after {iteration}"
            usage = usage_figure(torch.stack(counts).numpy(), steps, width=CARD)
            self._image("codebook_use", usage, iteration)
            bars = bar_figure(list(errors), list(errors.values()), title, width=CARD)
            self._image("joint_errors", bars, iteration)
            self._draw_clips(iteration)

    def finish(self, args, path, log):
        """Write the settings beside the final metrics, and each clip as PATH/vis_NAME.gif."""
        settings = {name: value if isinstance(value, (int, float)) else str(value)
                    for name, value in vars(args).items() if name in SETTINGS}
        result = self.result or {}
        metrics = {f"Final/{name}": result[name] for name in FINAL if name in result}
        self.writer.add_hparams(settings, metrics, run_name=".", global_step=args.total_iter)
        if not self.clips:
            return
        features, _ = reconstruct_clips(self.net, self.clips)
        for name, joints, original in zip(self.clips.names, self._joints(features), self._original_joints()):
            file = Path(path, f"vis_{name.replace('/', '_')}.gif")
            save_gif(file, joints, self.net.spec, reference=original, title=name)
        log.info(f"{len(self.clips.names)} validation clips beside their reconstructions: {path}/vis_*.gif")

    def _image(self, name, picture, iteration):
        self.writer.add_image(f"Validation/{name}", picture, iteration, dataformats="HWC")

    def _draw_clips(self, iteration):
        spec, names = self.net.spec, self.clips.names
        if self.originals is None:
            originals = self._original_joints()
            for i, (name, joints) in enumerate(zip(names, originals)):
                add_gif(self.writer, f"./Vis/org_eval{i}", gif_bytes(joints, spec, title=name), iteration)
            self.originals = originals
        features, codes = reconstruct_clips(self.net, self.clips)
        for i, (joints, original) in enumerate(zip(self._joints(features), self.originals)):
            error = frame_error(joints, original)[0].mean() * unit_in_metres(original, spec)
            gif = gif_bytes(joints, spec, reference=original, alone=True,
                            title=f"iteration {iteration}: {error:.0f} mm")
            add_gif(self.writer, f"./Vis/pred_eval{i}", gif, iteration)
        self._image("codes", code_strip(codes, self.net.nb_code, labels=names, wrap=11), iteration)

    def _original_joints(self):
        return self._joints(np.split(self.clips.frames, self.clips.offsets[1:-1]))

    def _joints(self, features):
        """Return the joints (T, J, 3) of normalised features (T, D) of each clip."""
        device = next(self.net.parameters()).device
        return [self.net.to_joints(torch.from_numpy(x).to(device)).cpu().numpy() for x in features]
