"""Every command and snippet of the README works as written, in a copy of the project and on little data.

Bash runs the commands. Their `python` asks one process, which has imported torch already, to fork for each of
them: importing takes longer than the work.
"""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import make_dataset
from utils.motion_spec import T2M

ROOT = Path(__file__).parent.parent
TINY = "--device cpu --width 32 --code-dim 32 --output-emb-width 32 --nb-code 16 --depth 1".split()
SMALL = {  # later flags win over those of the README
    "train_vq.py": [*TINY, *"--total-iter 2 --warm-up-iter 1 --batch-size 4 --window-size 32 --eval-iter 2 "
                    "--nb-vis 1".split()],
    "dataset.prepare": ["--workers", "1"],
    "bench.py": [*TINY, *"--batch-size 2 --rounds 1 --clips 4 --only evaluation".split()],
}
SERVER = '''
import os, runpy, sys, traceback
import scipy.ndimage, scipy.signal, torch, torch._dynamo, torch.utils.tensorboard, tqdm

torch.set_num_threads(1)

def run(words):
    sys.argv = words[1:] if words[0] == "-m" else words
    if words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")

while True:
    with open("shims/ask") as ask:
        words = ask.read().splitlines()
    if not words:
        break
    if (child := os.fork()) == 0:
        code = 0
        try:
            run(words)
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 1)
    with open("shims/answer", "w") as answer:
        answer.write(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
'''
SHIM = '''#!/usr/bin/env bash
more=()
for word; do
    case $word in {cases}
    esac
done
[[ "$*" != *train_vq.py* || "$*" == *--resume* ]] || more+=(--overwrite)  # two of them are one run
{command}
'''
ASK = '''printf '%s\\n' "$@" "${more[@]}" > {shims}/ask
exit "$(< {shims}/answer)"'''


def blocks(language):
    """Return the README's fenced blocks of a language, but for those that install."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [block for block in re.findall(rf"```{language}\n(.*?)```", text, re.S) if "-m venv" not in block]


def write_shims(folder):
    """Write `python` and `torchrun` commands that add SMALL's flags."""
    folder.mkdir()
    cases = "\n".join(f"        {script}) more=({' '.join(flags)});;" for script, flags in SMALL.items())
    ask = ASK.replace("{shims}", str(folder))
    ranks = f'exec {sys.executable} -m torch.distributed.run "$@" "${{more[@]}}"'
    for name, command in (("python", ask), ("python3", ask), ("torchrun", ranks)):
        (folder / name).write_text(SHIM.replace("{cases}", cases).replace("{command}", command))
        (folder / name).chmod(0o755)
    os.mkfifo(folder / "ask")
    os.mkfifo(folder / "answer")


@pytest.fixture
def copy(tmp_path):
    """A copy of the project with the data that the README's commands speak of, and a `python` that forks."""
    from dataset.prepare.demo import ensure_demo, make_clips
    from export.bvh import write_bvh
    root, data = tmp_path / "project", ROOT / "dataset"
    shutil.copytree(ROOT, root, ignore=lambda folder, names: [
        name for name in names if name.startswith(".") or name in ("__pycache__", "output", "checkpoints")
        or (Path(folder) == data and name != "prepare" and Path(folder, name).is_dir())])
    make_dataset(root / "dataset" / "HumanML3D")
    ensure_demo(root / "dataset" / "demo", count=24)
    (root / "mocap").mkdir()
    for name, joints, _ in make_clips(count=12):
        write_bvh(root / "mocap" / f"{name}.bvh", joints, T2M)
    write_shims(root / "shims")
    return root


@pytest.fixture
def run(copy):
    """Run a line of bash in the copy; fail with what it printed."""
    path = f"{copy / 'shims'}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy)}
    log = copy / "log.txt"
    with open(log, "w") as output:
        pipes = dict(cwd=copy, env=env, stdout=output, stderr=output)
        server = subprocess.Popen([sys.executable, "-c", SERVER], **pipes)

        def run(block):
            start = log.stat().st_size
            code = subprocess.run(["bash", "-euo", "pipefail", "-c", block], timeout=600, **pipes).returncode
            said = log.read_text()[start:]
            assert code == 0 and "Traceback" not in said, f"{block}\n{said[-3000:]}"

        try:
            yield run
        finally:
            server.terminate()
            server.wait()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs bash and fork")
def test_every_command_and_snippet_works_as_written(copy, run):
    commands, snippets = blocks("bash"), blocks("python")
    assert len(commands) >= 8 and any("torchrun" in block for block in commands) and snippets
    for block in commands:
        run(block)
    for block in snippets:
        (copy / "snippet.py").write_text(block, encoding="utf-8")
        run("python snippet.py")
    for path in ("output/VQVAE/net_last.pth", "dataset/mine/Mean.npy", "tokens/manifest.json", "clip.html",
                 "model/decoder.onnx", "net.pth", "eval_test.json"):
        assert any(copy.rglob(path)), path


def test_links_and_pictures_are_there():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
