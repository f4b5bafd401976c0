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
from visualize.skeleton import frame_error

CARD = 350  # pixels: the width of a picture's card in TensorBoard, which scales without smoothing
FINAL = ("mpjpe", "mpjpe_global", "recons", "perplexity", "fid", "top1")  # shown beside the flags


def pick_clips(clips, spec, count, unit=UNIT_LENGTH):
    """Return `count` of the clips that evaluation takes, spread over the split: always the same ones."""
    index, starts, lengths, _ = select_clips(clips, spec, unit)
    chosen = [part[len(part) // 2] for part in np.array_split(np.arange(len(index)), min(count, len(index)))]
    frames = [clips.frames[start:start + length] for start, length in zip(starts[chosen], lengths[chosen])]
    return SimpleNamespace(names=[clips.names[i] for i in index[chosen]], frames=np.concatenate(frames),
                           offsets=np.cumsum([0, *lengths[chosen]]))


class Dashboard:
    """The pictures of one run. val: None, or a split's `clips`. count: clips to draw, 0: none.

    usage: [(iteration, counts (Q·K,) int32)] of every validation so far; the saved state carries it.
    """

    def __init__(self, writer, net, val, count, usage=()):
        self.writer, self.net, self.usage, self.result, self.clips = writer, net, list(usage), {}, None
        if val and count:
            self.clips = pick_clips(val.clips, net.spec, count, max(UNIT_LENGTH, 2 ** net.down_t))

    def add_scalars(self, group, values, iteration):
        """Add a point to each curve ./GROUP/NAME of values {name: number}."""
        for name, value in values.items():
            self.writer.add_scalar(f"./{group}/{name}", value, iteration)

    def draw_validation(self, result, iteration):
        """Draw what `evaluate_clips` returned, and the picked clips."""
        first, self.result = not self.result, result
        self.usage.append((iteration, torch.tensor(result["counts"], dtype=torch.int32).flatten()))
        if not self.clips:
            return
        clips = self._reconstruct()
        steps, counts = zip(*self.usage)
        errors = [aligned for aligned, _ in result["joints"].values()]
        title = f"root-aligned error, {result['mpjpe']:.1f} mm after {iteration}"
        coarse = [codes.reshape(len(codes), -1)[:, 0] for *_, codes in clips]
        pictures = {"codebook_use": usage_figure(torch.stack(counts).numpy(), steps, width=CARD),
                    "joint_errors": bar_figure([*result["joints"]], errors, title, width=CARD),
                    "codes": code_strip(coarse, self.net.nb_code, labels=self.clips.names, wrap=11)}
        for name, picture in pictures.items():
            self.writer.add_image(f"Validation/{name}", picture, iteration, dataformats="HWC")
        for i, (name, joints, original, _) in enumerate(clips):
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
        for name, joints, original, _ in self._reconstruct() if self.clips else ():
            file = Path(path, f"vis_{name.replace('/', '_')}.gif")
            save_gif(file, joints, self.net.spec, reference=original, title=name)

    def _reconstruct(self):
        """Return [(name, reconstructed joints, original joints (T, J, 3), codes)] of the picked clips."""
        features, codes = reconstruct_clips(self.net, self.clips)
        originals = np.split(self.clips.frames, self.clips.offsets[1:-1])
        device = next(self.net.parameters()).device
        joints = [[self.net.to_joints(torch.from_numpy(x).to(device)).cpu().numpy() for x in clips]
                  for clips in (features, originals)]
        return list(zip(self.clips.names, *joints, codes))
