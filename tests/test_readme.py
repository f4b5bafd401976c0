"""Every command and snippet of the README, as written there, in a fresh copy of the project; scripts are told to do little of it."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dataset.prepare.demo import make_clips
from export.bvh import write_bvh
from tests.helpers import make_dataset
from utils.motion_spec import T2M

ROOT = Path(__file__).parent.parent
# flags that make each script's work small; later flags win over those of the README
SMALL = {
    "train_vq.py": "--total-iter 3 --warm-up-iter 2 --batch-size 4 --window-size 32 --width 32 --code-dim 32 --output-emb-width 32 --nb-code 16 "
                   "--depth 1 --eval-iter 2 --nb-vis 1",
    "bench.py": "--batch-sizes 2 --width 32 --code-dim 32 --output-emb-width 32 --nb-code 16 --rounds 1 --clips 32",
}
SHIM = """#!{python}
import os, sys
argv, small = sys.argv[1:], {small}
script = next((word for word in argv if word in small), None)
more = small[script].split() if script else []
if script == "train_vq.py" and "--resume" not in argv:
    more.append("--overwrite")  # two of the README's commands are one run
os.execv({python!r}, [{python!r}, *{module}, *argv, *more])
"""


def blocks(language):
    """The README's fenced blocks of a language, but for those that install."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [block for block in re.findall(rf"```{language}\n(.*?)```", text, re.S) if "-m venv" not in block]


@pytest.fixture
def copy(tmp_path):
    """A copy of the project with the data that the README's commands speak of."""
    root = tmp_path / "project"
    shutil.copytree(ROOT, root, ignore=lambda folder, names: [
        name for name in names if name.startswith(".") or name in ("__pycache__", "output", "checkpoints", "glove")
        or (Path(folder) == ROOT / "dataset" and name != "prepare" and Path(folder, name).is_dir())])
    make_dataset(root / "dataset" / "HumanML3D")
    (root / "DIR").symlink_to(root / "dataset" / "HumanML3D")
    (root / "mocap").mkdir()
    for name, joints, _ in make_clips(count=12):
        write_bvh(root / "mocap" / f"{name}.bvh", joints, T2M)
    return root


@pytest.mark.slow
def test_every_command_and_snippet_works_as_written(copy):
    shims = copy / "shims"
    shims.mkdir()
    for name, module in (("python", []), ("python3", []), ("torchrun", ["-m", "torch.distributed.run"])):
        (shims / name).write_text(SHIM.format(python=sys.executable, small=SMALL, module=module))
        (shims / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{shims}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    commands = blocks("bash")
    assert len(commands) >= 8 and any("torchrun" in block for block in commands)
    for block in commands:
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=copy, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
        assert "Traceback" not in done.stderr, block
    snippets = blocks("python")
    assert snippets
    for block in snippets:
        done = subprocess.run([sys.executable, "-c", block], cwd=copy, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stderr[-1500:]}"
    for path in ("output/VQVAE/net_last.pth", "dataset/mine/Mean.npy", "tokens/manifest.json", "model/decoder.onnx", "net.pth", "eval_test.json"):
        assert any(copy.rglob(path)), path


def test_links_and_pictures_are_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / target).exists(), target
    for page in (ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
