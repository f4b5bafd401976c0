"""The slow part of the fault table: kill -9 at random moments, half of them in mid-write, and a full disk.

    python -m tests.faults [--kills 20] [--seed 0] [FLAG OF train_vq.py …]

Trains a small net without interruption, then once more while a killer is at work, and compares every logged
value and the final weights bit by bit. Prints one line per fault and exits with code 1 when any differs.
"""
import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from models.loading import load_checkpoint
from tests.helpers import make_dataset
from tests.test_train_vq import ROOT, curves, same, weights
from utils.errors import UserError

FLAGS = ("--device", "cpu", "--width", "96", "--code-dim", "96", "--output-emb-width", "96", "--nb-code",
         "32",
         "--batch-size", "8", "--nb-vis", "0", "--window-size", "32",
         "--warm-up-iter", "40", "--total-iter", "900", "--lr-scheduler", "300", "--print-iter", "25",
         "--eval-iter", "100", "--save-iter", "10", "--exp-name", "run")
MORE = []  # flags of the command line


def start(root, out, *flags):
    command = [sys.executable, "train_vq.py", *FLAGS, "--data-root", str(root), "--out-dir", str(out),
               *MORE, *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


def unloadable(run):
    """Checkpoints under their final names that cannot be read."""
    bad = []
    for path in run.glob("*.pth"):
        try:
            load_checkpoint(path)
        except UserError as error:
            bad.append(str(error))
    return bad


def kill_in_training(process, run, in_write, rng):
    """Kill the process while it trains, in mid-write when asked. Returns whether it was a write."""
    begun = time.time()
    log = run / "run.log"
    size = log.stat().st_size if log.exists() else 0
    while process.poll() is None and (not log.exists() or "steps" not in log.read_text()[size:]):
        time.sleep(0.01)
    end = time.time() + rng.uniform(0.2, 1.5)
    while process.poll() is None and time.time() < end:
        time.sleep(0.005)
    writing = False
    while in_write and process.poll() is None and not writing and time.time() < begun + 60:
        writing = any(name.endswith(".tmp") for name in os.listdir(run))
    process.kill()
    process.communicate()
    return writing


def kills(root, work, count, rng):
    whole, parts = work / "whole", work / "parts"
    assert start(root, whole).wait() == 0
    run, writes, done, bad = parts / "run", 0, 0, []
    while done < count:
        process = start(root, parts, "--resume", "auto")
        writing = kill_in_training(process, run, done % 2 == 1, rng)
        if process.returncode == 0:
            break
        done, writes = done + 1, writes + writing
        bad += unloadable(run)
    final = start(root, parts, "--resume", "auto")
    error = final.communicate()[1]
    identical = final.returncode == 0 and same(weights(whole / "run"), weights(run))
    identical = identical and curves(whole / "run") == curves(run)
    print(f"kill -9: {done} kills, {writes} of them in mid-write, {len(bad)} unloadable files, "
          f"weights and curves "
          f"{'bit-identical' if identical else 'DIFFER ' + error[-300:]}")
    return identical and not bad and done == count


def full_disk(root, work):
    """A file system of a few MiB: the save fails, the old state stays and still loads."""
    disk = work / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(disk)],
                      capture_output=True).returncode:
        print("full disk: skipped, mounting a small tmpfs needs root")
        return True
    try:
        (disk / "ballast").write_bytes(b"\0")
        process = start(root, disk, "--total-iter", "1000000")
        log = disk / "run" / "run.log"
        previous = disk / "run" / "state_prev.pth"
        while process.poll() is None and not (previous.exists() and "steps" in log.read_text()):
            time.sleep(0.01)
        if process.poll() is None:
            (disk / "ballast").write_bytes(b"\0" * (1 << 20))
            with open(disk / "ballast", "ab") as file:
                try:
                    while True:
                        file.write(b"\0" * (1 << 16))
                        file.flush()
                except OSError:
                    pass
        error = process.communicate()[1].strip().splitlines()[-1]
        left = [name for name in os.listdir(disk / "run") if name.endswith(".tmp")]
        bad = unloadable(disk / "run")
        good = process.returncode == 2 and "cannot be" in error and not left and not bad
        print(f"full disk: exit code {process.returncode}, {len(left)} partial files, {len(bad)} unloadable",
              error, sep=" | ")
        return good
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args, more = parser.parse_known_args()
    MORE.extend(more)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        root = make_dataset(work / "data")
        results = [kills(root, work, args.kills, random.Random(args.seed)), full_disk(root, work)]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
