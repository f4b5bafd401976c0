"""The notebook runs from top to bottom on a small checkpoint, and is committed as it was written."""
import re
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
PATH = ROOT / "notebooks" / "explore_checkpoint.ipynb"


def shown(cell, kind="text/html"):
    """What a cell displayed of one kind, and what it printed under text/plain."""
    return [output["data"][kind] if "data" in output else output["text"] for output in cell.outputs
            if kind in output.get("data", ()) or (kind == "text/plain" and "text" in output)]


def execute(notebook, folder):
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture
def notebook(monkeypatch, trained, data_root):
    monkeypatch.setenv("MOTION_CHECKPOINT", str(trained / "net_last.pth"))
    monkeypatch.setenv("MOTION_DATA", str(data_root))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return nbformat.read(PATH, 4)


def test_it_is_committed_without_outputs():
    notebook = nbformat.read(PATH, 4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells and all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(len(cell.source.splitlines()) <= 12 for cell in cells)


@pytest.mark.slow
def test_it_runs_and_shows_motion(notebook):
    cells = execute(notebook, PATH.parent)
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    output = {cell.source.splitlines()[0]: cell for cell in cells}

    described, = shown(output["net = HumanVQVAE.from_checkpoint(checkpoint)"], "text/plain")
    assert "16 codes of 4 frames" in described
    printed, = shown(output["joints = net.reconstruct(features)"], "text/plain")
    frames, low, high = re.search(r"joints \((\d+), 22, 3\), from (\S+) m to (\S+) m", printed).groups()
    assert int(frames) == 64 and float(low) < float(high)  # false for NaN

    pages = [page for cell in cells for page in shown(cell) if "<canvas" in page]
    players = [len(re.findall(r'class="view"', page)) for page in pages]
    assert players == [1, 1, 4, 4, 5, 5, 1, 1]  # clip, layers, neighbours, edits, blends twice, splice, walk
    assert '"error"' in pages[0] and '"codes"' in pages[0]
    assert max(len(page) / count for page, count in zip(pages, players)) < 150_000
    assert not any(re.search(r"https?:|src=|@import|url\(|fetch\(", page) for page in pages)
    assert len([image for cell in cells for image in shown(cell, "image/png")]) == 2


@pytest.mark.slow
def test_it_starts_from_the_repository_root_too(notebook, monkeypatch):
    monkeypatch.chdir(ROOT)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    names, grad = {}, torch.is_grad_enabled()
    monkeypatch.setattr("sys.path", [*sys.path])
    try:
        for source in cells[:next(i for i, source in enumerate(cells) if "from_checkpoint" in source) + 1]:
            exec(source, names)
    finally:
        torch.set_grad_enabled(grad)
    assert names["net"].nb_joints == 22
