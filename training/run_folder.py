"""One run, one folder: its lock, its log, its TensorBoard events and its checkpoints."""
import logging
import os
import re
import sys
import time
from contextlib import contextmanager

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.checkpoint import (
    find_state,
    is_state,
    network_content,
    save_checkpoint,
    save_state,
    whole_state,
)
from training.dashboard import Dashboard
from training.step import warm_up_steps
from utils.errors import UserError
from utils.files import exclusive_lock, remove_stale, write_json

RUN_FILES = re.compile(r"(net|state)_\w+\.pth|(args|hashes|eval_\w+)\.json|run\.log|events\.out\..*|vis_.*")
TEST_TAGS = {"fid": "FID", "diversity": "Diversity"}  # upstream's spelling of two metrics


@contextmanager
def open_run(args, silent=False):
    """Make or enter OUT_DIR/EXP_NAME, lock it and open its log. Yields a RunFolder.

    silent: write nothing, for every rank but 0. Raises UserError where the folder cannot be written, is in
    use, or holds a run that neither --resume nor --overwrite speaks of.
    """
    path = os.path.join(args.out_dir, args.exp_name)
    if silent:
        yield RunFolder(path, args, open_log(None), silent)
        return
    with exclusive_lock(path, "choose another --out-dir or --exp-name"):
        clear_folder(path, args)
        run = RunFolder(path, args, open_log(path))
        try:
            yield run
        except UserError as error:
            for line in (error, *error.details):
                run.log.error(line, extra={"file_only": line is error})
            raise
        finally:
            run.close()


def clear_folder(path, args):
    """Remove temporary files and, with --overwrite, the run in the folder. Refuse to mix two runs."""
    remove_stale(path)
    old = [name for name in os.listdir(path) if RUN_FILES.fullmatch(name)]
    begun = sorted(name for name in old if name != "run.log")  # a start that was refused leaves only its log
    own_state = is_state(args.resume_pth) and os.path.samefile(os.path.dirname(args.resume_pth) or ".", path)
    if args.overwrite:
        for name in old:
            os.remove(os.path.join(path, name))
    elif begun and not (args.resume or own_state):
        raise UserError(f"{path}: holds a run ({begun[0]}, …); go on with --resume auto, start anew with "
                        "--overwrite, or choose another --exp-name")


class TqdmHandler(logging.StreamHandler):
    """Write log lines above the progress bar."""

    def emit(self, record):
        if not getattr(record, "file_only", False):
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()


def open_log(path):
    """Return a logger that writes to the terminal and to PATH/run.log; with path None it is silent."""
    log = logging.Logger("train_vq")
    file = logging.FileHandler(os.path.join(path, "run.log"), encoding="utf-8") if path else None
    for handler in (TqdmHandler(), file) if path else (logging.NullHandler(),):
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
    return log


class RunFolder:
    """The folder of one run. What fails in drawing or in writing events costs a warning, never the run."""

    def __init__(self, path, args, log, silent=False):
        self.path, self.args, self.log, self.silent = path, args, log, silent
        self.warm_up = warm_up_steps(args)
        self.writer = self.board = None

    def find_state(self):
        """Return the state to resume from, or None."""
        return None if self.silent else find_state(self.args, self.path, self.log)

    def start(self, net, average, val, step, usage=()):
        """Write args.json and open TensorBoard; events after `step`, of before a resume, are hidden."""
        self.net, self.average = net, average
        self.time, self.step = time.monotonic(), step
        if not self.silent:
            write_json(os.path.join(self.path, "args.json"), vars(self.args))
            with self._harmless("TensorBoard"):
                self.writer = SummaryWriter(self.path, purge_step=max(step - self.warm_up, 0) + 1)
                self.board = Dashboard(self.writer, net, val, self.args.nb_vis, usage)

    def report(self, step, rate, means):
        """Log the means since the last report. Curves begin after the warm-up, as upstream."""
        now, warm = time.monotonic(), step <= self.warm_up
        speed = self.args.batch_size * (step - self.step) / (now - self.time)
        self.time, self.step = now, step
        name, iteration = ("Warmup", step) if warm else ("Train", step - self.warm_up)
        self.log.info(f"{name} iter {iteration}: lr {rate:.6f} recons {means['L1']:.5f} "
                      f"vel {means['Vel']:.5f} commit {means['Commit']:.5f} ppl {means['PPL']:.2f} "
                      f"codes used {means['Codebook_use']:.0%} grad {means['Grad_norm']:.3f} "
                      f"| {speed:.0f} windows/s")
        if not warm:
            self._scalars("./Train/", {**means, "LR": rate, "Windows_per_s": speed}, iteration)

    def report_validation(self, step, result):
        """Log the metrics of a validation and draw its pictures."""
        iteration = step - self.warm_up
        text = f", FID {result['fid']:.4f}, top 1 {result['top1']:.3f}" if "fid" in result else ""
        self.log.info(f"val after {iteration}: recons {result['recons']:.5f}, MPJPE {result['mpjpe']:.2f} mm "
                      f"root-aligned, {result['mpjpe_global']:.1f} mm global, "
                      f"codes used {result['codes_used']:.0f}, perplexity {result['perplexity']:.1f}{text}")
        numbers = {TEST_TAGS.get(name, name): value for name, value in result.items()
                   if isinstance(value, (int, float)) and name not in ("clips", "frames")}
        self._scalars("./Test/", numbers, iteration)
        if self.board:
            with self._harmless("drawing"):
                self.board.draw_validation(result, iteration)

    def save_best(self, scores, best, step):
        """Save net_best_NAME.pth for every score, {name: smaller is better}, below the one in `best`."""
        for name, score in scores.items():
            if score < best.get(name, float("inf")):
                best[name] = score
                self.save_network(f"net_best_{name}.pth", step, best)

    def save_network(self, name, step, best):
        """Save the network under a name."""
        if not self.silent:
            save_checkpoint(os.path.join(self.path, name), self._network(step, best))

    def save_state(self, step, best, optimizer, scaler, meter, content):
        """Save everything that a resume needs."""
        if not self.silent:
            usage = self.board.usage if self.board else []
            save_state(self.path, whole_state(self._network(step, best), optimizer, scaler, meter,
                                              usage=usage, content=content))

    def _network(self, step, best):
        return network_content(self.net, self.average, self.args, step, best)

    def finish(self):
        """Write the flags beside the final metrics, and every drawn clip as vis_NAME.gif."""
        if self.board:
            with self._harmless("drawing"):
                self.board.finish(self.args, self.path, self.log)

    def close(self):
        """Close events and log."""
        if self.writer:
            with self._harmless("TensorBoard"):
                self.writer.close()
        for handler in self.log.handlers:
            handler.close()

    def _scalars(self, prefix, values, iteration):
        if self.writer:
            with self._harmless("TensorBoard"):
                for tag, value in values.items():
                    self.writer.add_scalar(prefix + tag, value, iteration)

    @contextmanager
    def _harmless(self, what):
        try:
            yield
        except Exception as error:  # whatever a writer or a picture raises: training goes on
            self.log.warning(f"{what}: {type(error).__name__}: {str(error).strip()[:160]}; training goes on")
