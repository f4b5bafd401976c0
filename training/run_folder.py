"""One run, one folder: its lock, its log, its TensorBoard events."""
import fcntl
import logging
import os
import re
import sys

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from models.loading import load_checkpoint
from utils.errors import UserError
from utils.files import remove_stale, write_atomically, write_json

RUN_FILES = re.compile(r"(net|state)_\w+\.pth|args\.json|run\.log|hashes\.json|events\.out\.tfevents\..*|eval_\w+\.json|vis_.*")
# flags that may differ between a run and its resumption: they do not change what is computed
FREE_FLAGS = {"data_root", "meta_dir", "no_cache", "out_dir", "exp_name", "eval_iter", "save_iter", "resume", "resume_pth", "overwrite",
              "force", "on_nan", "nan_limit", "total_iter", "evaluator_dir", "glove_dir", "nb_vis", "data_device"}
HISTORY = "events.out.tfevents.0.history"  # sorts before every later file of events


def open_run(out_dir, exp_name, resume=False, overwrite=False):
    """Make or enter OUT_DIR/EXP_NAME and lock it. Returns (path, lock); the lock lives as long as the object and its process.

    Raises UserError when the folder cannot be written, another process holds it, or it holds a run and neither `resume` nor `overwrite`.
    """
    path = os.path.join(out_dir, exp_name)
    try:
        os.makedirs(path, exist_ok=True)
        lock = open(os.path.join(path, ".lock"), "a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another folder with --out-dir") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise UserError(f"{path}: in use by another process ({owner}); wait for it or choose another --exp-name") from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()}\n")
    lock.flush()
    remove_stale(path)
    old = [name for name in os.listdir(path) if RUN_FILES.fullmatch(name)]
    begun = [name for name in old if name != "run.log"]  # a start that was refused leaves its log alone
    if old and overwrite:
        for name in old:
            os.remove(os.path.join(path, name))
    elif begun and not resume:
        lock.close()
        raise UserError(f"{path}: holds a run ({', '.join(sorted(begun)[:3])}, …); go on with --resume auto, start anew with --overwrite, "
                        "or choose another --exp-name")
    return path, lock


def find_state(args, path, log):
    """The state to resume from, or None. With --resume auto the newest that is whole, by its recorded iteration; damaged ones are named."""
    if args.resume_pth:
        checkpoint = load_checkpoint(args.resume_pth)
        return checkpoint if "optimizer" in checkpoint else None
    found = []
    for name in ("state_last.pth", "state_prev.pth") if args.resume else ():
        try:
            if os.path.exists(os.path.join(path, name)):
                found.append(load_checkpoint(os.path.join(path, name)))
        except UserError as error:
            log.warning(f"DAMAGED STATE: {error}; looking for the one before")
    if args.resume and not found and os.path.exists(os.path.join(path, "state_last.pth")):
        raise UserError(f"{path}: no state can be read; start from net_last.pth with --resume-pth, or anew with --overwrite")
    return max(found, key=lambda state: state["iter"], default=None)


def check_flags(args, state, log):
    """Refuse to resume under flags that would compute something else; --force reports them and goes on."""
    before, now = state["args"], vars(args)
    changed = [f"--{name.replace('_', '-')} {before[name]} → {now[name]}" for name in before
               if name in now and name not in FREE_FLAGS and before[name] != now[name]]
    if changed and not args.force:
        raise UserError(f"flags differ from the run's: {', '.join(changed)}; resume with the same ones, or with --force")
    if changed:
        log.warning(f"resuming with changed flags: {', '.join(changed)}")


class _TqdmHandler(logging.StreamHandler):
    """Log lines above the progress bar; errors that end the script are left to its last line."""

    def emit(self, record):
        if getattr(record, "file_only", False):
            return
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def open_log(path):
    """Logger that writes to the terminal and to PATH/run.log; with path None it is silent."""
    log = logging.getLogger("train_vq")
    log.setLevel(logging.INFO if path else logging.CRITICAL + 1)
    log.propagate = False
    close_log(log)
    for handler in (_TqdmHandler(), logging.FileHandler(os.path.join(path, "run.log"), encoding="utf-8")) if path else ():
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
    return log


def close_log(log):
    """Close the log's files."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()


def write_args(path, args):
    """args.json: the arguments of the run."""
    write_json(os.path.join(path, "args.json"), vars(args))


class Events:
    """TensorBoard's scalars and pictures. Whatever fails in drawing or writing them costs a warning, never the run."""

    def __init__(self, path, log, keeps=None):
        """keeps: on a resumed run, says of (tag, step) whether the event came before the state; later ones are dropped from the files.

        path None: nothing is drawn or written, for the ranks that do not report.
        """
        self.log, self.writer, self.silent = log, None, path is None
        self._guard(self._open, path, keeps)

    def _open(self, path, keeps):
        if keeps:
            _cut_history(path, keeps)
        self.writer = SummaryWriter(path)

    def scalars(self, step, values):
        """Write {tag: value} at a step."""
        self._guard(lambda: [self.writer.add_scalar(tag, value, step) for tag, value in values.items()])

    def draw(self, function, *args):
        """Call function(writer, *args), which draws and writes pictures."""
        self._guard(lambda: function(self.writer, *args), what="drawing")

    def flush(self):
        """Bring everything to the disk."""
        self._guard(lambda: self.writer.flush())

    def close(self):
        """Close the event file."""
        self._guard(lambda: self.writer.close())

    def _guard(self, function, *args, what="TensorBoard"):
        if self.silent:
            return
        try:
            function(*args)
        except Exception as error:  # whatever a writer raises: the promise is that training goes on
            self.log.warning(f"{what}: {type(error).__name__}: {str(error).strip()[:200]}; training goes on")


def _cut_history(path, keeps):
    """Merge a run's event files into one that holds each kept event once, and sorts first whatever the clock says.

    The flags and final metrics go: they are written at the end, and of several TensorBoard shows the first.
    """
    old = sorted(name for name in os.listdir(path) if name.startswith("events.out.tfevents."))

    def write(file):
        writer = RecordWriter(file)
        for name in old:
            for record in RawEventFileLoader(os.path.join(path, name)).Load():
                event = Event.FromString(record)
                if all(keeps(value.tag, event.step) and not value.tag.startswith("_hparams_/") for value in event.summary.value):
                    writer.write(record)
        writer.flush()

    write_atomically(os.path.join(path, HISTORY), write)
    for name in old:
        if name != HISTORY:
            os.remove(os.path.join(path, name))
