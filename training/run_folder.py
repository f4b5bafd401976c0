"""One run, one folder: its lock, its log, its TensorBoard events and its checkpoints."""
import logging
import re
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from models.loading import load_checkpoint
from training.dashboard import Dashboard
from training.step import warm_up_steps
from utils.errors import UserError
from utils.files import atomic_write, exclusive_lock, remove_stale, write_json

STATE, PREVIOUS = "state_last.pth", "state_prev.pth"
RUN_FILES = re.compile(r"(net|state)_\w+\.pth|(args|eval_\w+)\.json|run\.log|events\.out\..*|vis_.*")
TEST_TAGS = {"fid": "FID", "diversity": "Diversity"}  # upstream's spelling of two metrics


@contextmanager
def open_run(args, rank):
    """Lock OUT_DIR/EXP_NAME and yield its RunFolder. Raises UserError where another run uses or holds it."""
    if rank:
        yield NoRunFolder()
        return
    path = Path(args.out_dir, args.exp_name)
    with exclusive_lock(path, "choose another --out-dir or --exp-name"):
        clear_folder(path, args)
        run = RunFolder(path, args)
        try:
            yield run
        except UserError as error:
            for line in (error, *error.details):
                run.log.error(line)
            raise
        finally:
            run.close()


def clear_folder(path, args):
    """Remove temporary files and, with --overwrite, the run in the folder. Refuse to mix two runs."""
    remove_stale(path)
    old = [file for file in path.iterdir() if RUN_FILES.fullmatch(file.name)]
    begun = [file for file in old if file.name != "run.log"]  # a start that was refused leaves only its log
    given = given_state(args)
    if args.overwrite:
        for file in old:
            file.unlink()
    elif begun and not args.resume and not (given and given.resolve().parent == path.resolve()):
        raise UserError(f"{path}: holds a run; choose --resume auto, --overwrite, or another --exp-name")


def given_state(args):
    """Return the path of a saved state, which resumes exactly, where --resume-pth names one, else None."""
    path = Path(args.resume_pth or "")
    return path if path.name.startswith("state_") else None


class NoRunFolder:
    """The run folder of every rank but 0: it writes nothing."""

    log = logging.Logger("silent", logging.CRITICAL + 1)

    def __getattr__(self, name):
        return lambda *args: None


class RunFolder:
    """The folder of one run. What fails in drawing or in writing events costs a warning, never the run."""

    def __init__(self, path, args):
        self.path, self.args, self.writer = path, args, None
        self.log, terminal = logging.Logger("train_vq"), logging.StreamHandler(sys.stdout)
        terminal.addFilter(lambda record: not isinstance(record.msg, UserError))  # the script prints it
        for handler in (terminal, logging.FileHandler(path / "run.log", encoding="utf-8")):
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            self.log.addHandler(handler)

    def find_state(self):
        """Return the state that --resume-pth names, the newest readable one with --resume, or None."""
        if given := given_state(self.args):
            return load_checkpoint(given)
        paths = sorted(self.path.glob("state_[lp]*.pth")) if self.args.resume else []
        for path in paths[:-1]:
            try:
                return load_checkpoint(path)
            except UserError as error:
                self.log.warning(f"cannot read a state: {error}")
        return load_checkpoint(paths[-1]) if paths else None

    def start(self, net, parts, val, step):
        """Write args.json and open TensorBoard; events after `step`, of before a resume, are hidden."""
        self.net, self.parts, self.time, self.step = net, parts, time.monotonic(), step
        self.warm_up = warm_up_steps(self.args)
        write_json(self.path / "args.json", vars(self.args))
        self.writer = SummaryWriter(self.path, purge_step=max(step - self.warm_up, 0) + 1)
        self.board = Dashboard(self.writer, net, val, self.args.nb_vis)

    def report(self, step, rate, means):
        """Log the means since the last report. Curves begin after the warm-up, as upstream."""
        now = time.monotonic()
        speed = self.args.batch_size * (step - self.step) / (now - self.time)
        self.time, self.step = now, step
        values = {**means, "LR": rate, "Windows_per_s": speed}
        text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        if step <= self.warm_up:
            self.log.info(f"Warmup iter {step}: {text}")
        else:
            self.log.info(f"Train iter {step - self.warm_up}: {text}")
            self._try(self.board.add_scalars, "Train", values, step - self.warm_up)

    def report_validation(self, step, result):
        """Log the metrics of a validation and draw its pictures."""
        iteration = step - self.warm_up
        text = f", FID {result['fid']:.4f}, top 1 {result['top1']:.3f}" if "fid" in result else ""
        self.log.info(f"val after {iteration}: recons {result['recons']:.5f}, MPJPE {result['mpjpe']:.2f} mm "
                      f"root-aligned, {result['mpjpe_global']:.1f} mm global, codes used "
                      f"{result['codes_used']}, perplexity {result['perplexity']:.1f}{text}")
        numbers = {TEST_TAGS.get(name, name): value for name, value in result.items()
                   if isinstance(value, (int, float)) and name not in ("clips", "frames")}
        self._try(self.board.add_scalars, "Test", numbers, iteration)
        self._try(self.board.draw_validation, result, iteration)

    def save_best(self, scores, best, step):
        """Save net_best_NAME.pth for every score, {name: smaller is better}, below the one in `best`."""
        for name, score in scores.items():
            if score < best.get(name, float("inf")):
                best[name] = score
                self.save_network(f"net_best_{name}.pth", step, best)

    def save_network(self, name, step, best, parts=("ema",), **more):
        """Save weights, arguments, step, statistics, best metrics, the state of `parts`, and `more`."""
        content = dict(more, net=self.net.state_dict(), args=vars(self.args), iter=step, best=best,
                       mean=torch.as_tensor(self.net.mean), std=torch.as_tensor(self.net.std),
                       quantizer=self.net.vqvae.quantizer.training_state())
        content.update((part, self.parts[part].state_dict()) for part in parts)
        with atomic_write(self.path / name, flush=True) as file:
            torch.save(content, file)

    def save_state(self, step, best, content):
        """Save all that an exact resume needs as state_last.pth; the one before becomes state_prev.pth."""
        if (self.path / STATE).exists():
            (self.path / STATE).replace(self.path / PREVIOUS)
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        self.save_network(STATE, step, best, self.parts, rng=torch.get_rng_state(), rng_cuda=cuda,
                          content=content)

    def finish(self):
        """Write the flags beside the final metrics, and every drawn clip as vis_NAME.gif."""
        self._try(self.board.finish, self.args, self.path)
        self.log.info(f"Done: {self.step} steps; weights in {self.path}/net_last.pth.")

    def close(self):
        """Close events and log."""
        if self.writer:
            self.writer.close()
        for handler in self.log.handlers:
            handler.close()

    def _try(self, draw, *args):
        try:
            draw(*args)
        except Exception as error:  # whatever a writer or a picture raises: training goes on
            what = f"{draw.__name__}: {type(error).__name__}: {error}"
            self.log.warning(f"{what[:160]}; training goes on")
