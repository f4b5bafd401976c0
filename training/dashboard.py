"""What a run's validations look like: clips in motion, codebook use, codes and errors in TensorBoard, and GIF files at the end.

Glue from a network, its validation clips and an evaluation's result to pictures. Nothing here draws random numbers or trains: the network is
left as it was. Every function hands its work to `Events.draw`, where a failure costs a line in the log.
"""
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils.tensorboard.summary import hparams

from evaluation.evaluate import select_clips
from models.batches_old import reconstruct_clips
from training.run_folder import FREE_FLAGS
from utils.motion_spec import UNIT_LENGTH
from visualize.draw import add_gif, gif_bytes, save_gif
from visualize.figures import bar_figure, code_strip, usage_figure
from visualize.skeleton import frame_error, unit_in_metres

CARD = 350  # pixels: the width of a picture's card in TensorBoard, which scales without smoothing
FINAL = ("mpjpe", "mpjpe_global", "recons", "codes_used", "perplexity")      # tags below ./Test/ that stand beside the flags
FINAL_TEXT = ("FID", "Diversity", "top1", "matching_score")                   # and these where the extractors are there
NO_HPARAMS = FREE_FLAGS - {"total_iter"} | {"device", "skip_bad_clips", "print_iter", "stride_t", "output_emb_width"}  # say nothing of a run
LAYOUT = {  # curves that belong together, {group: {chart: patterns of tags}}: the custom scalars
    "Reconstruction": {"loss, training and validation": ["./Train/L1", "./Test/recons"], "MPJPE root-aligned, mm": ["./Test/mpjpe$"],
                       "MPJPE global, mm": ["./Test/mpjpe_global"]},
    "Codebook": {"perplexity, training and validation": ["./Train/PPL", "./Test/perplexity"], "commitment loss": ["./Train/Commit"],
                 "share of codes used between two log lines": ["./Train/Codebook_use"]},
    "Optimisation": {"learning rate": ["./Train/LR"], "gradient norm": ["./Train/Grad_norm"], "windows per second": ["./Train/Windows_per_s"]},
}
LAYOUT_TEXT = {"Extractors": {"FID": ["./Test/FID$"], "R-precision, top 1 to 3": ["./Test/top[123]$"], "matching score": ["./Test/matching_score$"]}}


def pick_clips(clips, spec, count, unit=UNIT_LENGTH):
    """`count` of the clips that evaluation takes, each from the middle of its part of the split: always the same. As `load_split` gives them."""
    index, starts, lengths, _ = select_clips(clips, spec, unit)
    count = min(count, len(index))
    chosen = (2 * np.arange(count) + 1) * len(index) // (2 * max(count, 1))
    frames = [clips.frames[start:start + length] for start, length in zip(starts[chosen], lengths[chosen])]
    return SimpleNamespace(names=[clips.names[i] for i in index[chosen]], frames=np.concatenate(frames),
                           offsets=np.cumsum([0, *lengths[chosen]]))


class Dashboard:
    """The pictures of one run.

    net: HumanVQVAE with its mean and std; val: None, or a validation split's `clips` and, if text is evaluated too, `extractors`.
    count: how many of the clips to draw, 0 for no picture at all.
    usage: [(iteration, counts (K,) int32)] of every evaluation so far; it belongs in the state, so that a resumed run goes on with it.
    """

    def __init__(self, events, net, val, count, usage=()):
        self.events, self.net, self.usage, self.originals = events, net, list(usage), None
        self.clips = pick_clips(val.clips, net.spec, count, max(UNIT_LENGTH, 2 ** net.down_t)) if val and count else None
        text = bool(val and val.extractors)
        self.metrics = [f"./Test/{name}" for name in FINAL + (FINAL_TEXT if text else ())] if val else []
        layout = {group: {chart: ["Multiline", tags] for chart, tags in charts.items()}
                  for group, charts in {**LAYOUT, **(LAYOUT_TEXT if text else {})}.items()}
        events.draw(lambda writer: writer.add_custom_scalars(layout))

    def evaluation(self, result, iteration):
        """Show what `evaluate_clips` found."""
        self.usage.append((iteration, torch.tensor(result["counts"], dtype=torch.int32)))
        self.events.draw(self._draw_usage, iteration)
        if self.clips:
            self.events.draw(self._draw_errors, result, iteration)
            self.events.draw(self._draw_clips, iteration)

    def finish(self, args, path, log):
        """Write the flags beside the final metrics, and each drawn clip beside its original as PATH/vis_NAME.gif."""
        self.events.draw(self._write_flags, args)
        if self.clips:
            self.events.draw(self._save_clips, Path(path), log)

    def _draw_usage(self, writer, iteration):
        counts = np.sort(self.usage[-1][1].numpy())[::-1].astype(np.float64)   # the most used code first: its rank is the histogram's axis
        rank = np.arange(len(counts))
        writer.add_histogram_raw("Validation/code_uses_by_rank", 0, len(counts), counts.sum(), (rank * counts).sum(), (rank ** 2 * counts).sum(),
                                 (rank + 1).tolist(), counts.tolist(), iteration)
        if self.clips:
            steps, counts = zip(*self.usage)
            writer.add_image("Validation/codebook_use", usage_figure(torch.stack(counts).numpy(), steps, width=CARD), iteration, dataformats="HWC")

    def _draw_errors(self, writer, result, iteration):
        errors = {joint: aligned for joint, (aligned, _) in result["joints"].items()}
        title = f"root-aligned error, {result['mpjpe']:.1f} mm after {iteration}"
        writer.add_image("Validation/joint_errors", bar_figure(list(errors), list(errors.values()), title, width=CARD), iteration, dataformats="HWC")

    def _draw_clips(self, writer, iteration):
        spec, names = self.net.spec, self.clips.names
        if self.originals is None:
            originals = self._joints(np.split(self.clips.frames, self.clips.offsets[1:-1]))
            for i, (name, joints) in enumerate(zip(names, originals)):
                add_gif(writer, f"./Vis/org_eval{i}", gif_bytes(joints, spec, title=name), iteration)
            self.originals = originals   # once they are all there: if one fails, they are due again
        features, codes = reconstruct_clips(self.net, self.clips)
        for i, (joints, original) in enumerate(zip(self._joints(features), self.originals)):
            error = frame_error(joints, original)[0].mean() * unit_in_metres(original, spec)
            add_gif(writer, f"./Vis/pred_eval{i}", gif_bytes(joints, spec, reference=original, alone=True,
                                                             title=f"iteration {iteration}: {error:.0f} mm"), iteration)
        writer.add_image("Validation/codes", code_strip(codes, self.net.nb_code, labels=names, wrap=11), iteration, dataformats="HWC")

    def _joints(self, features):
        """Normalised features (T, D) of clips → their joints (T, J, 3)."""
        device = next(self.net.parameters()).device
        return [self.net.to_joints(torch.from_numpy(x).to(device)).cpu().numpy() for x in features]

    def _write_flags(self, writer, args):
        flags = {name: value if isinstance(value, (int, float)) else str(value) for name, value in vars(args).items() if name not in NO_HPARAMS}
        for summary in hparams(flags, dict.fromkeys([*self.metrics, "./Train/L1", "./Train/PPL"])):
            writer.file_writer.add_summary(summary)   # into the run's own file: `writer.add_hparams` would start another run for it

    def _save_clips(self, _, path, log):
        features, _ = reconstruct_clips(self.net, self.clips)
        originals = self._joints(np.split(self.clips.frames, self.clips.offsets[1:-1]))
        for name, joints, original in zip(self.clips.names, self._joints(features), originals):
            save_gif(path / f"vis_{name.replace('/', '_')}.gif", joints, self.net.spec, reference=original, title=name)
        log.info(f"{len(originals)} validation clips beside their reconstructions: {path}/vis_*.gif")
