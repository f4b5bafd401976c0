"""Each finding of the check, on a sound folder with one thing broken."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dataset.check import check_folder, main
from dataset.prepare.convert import write_dataset
from dataset.prepare.demo import make_clips
from tests.test_motion_process import random_clip
from utils.motion_process import extract_features
from utils.motion_spec import get_spec

ROOT = Path(__file__).parent.parent
T2M = get_spec("t2m")


@pytest.fixture
def folder(tmp_path):
    """Twelve sound clips with captions, prepared as any are."""
    clips = [(f"c{i:02d}", random_clip(i, frames=80), ["a person moves"]) for i in range(12)]
    write_dataset(tmp_path / "set", clips, "t2m")
    return tmp_path / "set"


def change(folder, name, edit):
    path = folder / "new_joint_vecs" / f"{name}.npy"
    data = np.load(path)
    np.save(path, edit(data))


def trained(folder):
    """The first training clip's id."""
    return (folder / "train.txt").read_text().split()[0]


def put(index, value):
    def edit(data):
        data[index] = value
        return data
    return edit


def test_a_sound_folder_is_clean(folder, capsys):
    assert main([str(folder)]) == 0
    said = capsys.readouterr().out
    assert "12 usable clips" in said and "the folder's own, of its training split" in said and "clean" in said
    assert not [finding for finding in check_folder(folder)["findings"] if finding["level"] != "note"]


HEIGHTS = np.isin(np.arange(263), [3, *range(5, 67, 3)]).astype(np.float32)     # a metre up for every joint


def turned(axes, signs):
    """An edit that turns or mirrors every joint about the clip's own root."""
    def edit(data):
        root = np.array([0, 1, 0], np.float32) * data[:, 3, None, None]
        local = data[:, 4:67].reshape(-1, 21, 3) - root
        data[:, 4:67] = (local[..., axes] * signs + root).reshape(-1, 63)
        return data
    return edit


FINDINGS = {
    "upside down": (turned([0, 1, 2], (1, -1, -1)), 1, "person who is up", "upside down"),
    "z up": (turned([0, 2, 1], (1, 1, -1)), 1, "person who is up", "lying"),
    "joint order": (lambda data: np.concatenate([data[:, :4], data[:, 4:67][:, ::-1], data[:, 67:]], 1), 1,
                    "person who is up", ""),
    "nan": (put((slice(3, 6), 50), np.nan), 2, "cannot be used", "frame 3 is NaN or Inf (3 such frames)"),
    "inf": (put((7, 0), np.inf), 2, "cannot be used", "frame 7 is NaN or Inf"),
    "width": (lambda data: data[:, :251], 2, "cannot be used", "(79, 251)"),
    "empty": (lambda data: data[:0], 2, "cannot be used", "has shape (0, 263)"),
    "dtype": (lambda data: data.astype(np.int32), 2, "cannot be used", "holds int32"),
    "root jump": (put((9, 2), 2.0), 1, "have a root faster", "(40.0 m/s at frame 9)"),
    "joint jump": (put((9, 193 + 60), 3.0), 1, "have a joint faster", "(60.0 m/s at frame 9)"),
    "frozen": (lambda data: data[[*range(40), *[40] * 39]], 1, "stand perfectly still", "s)"),
    "floor": (lambda data: data + HEIGHTS, 1, "person who is up", "floating"),
    "drift": (put((11, slice(64, 67)), 1.0), 1, "bones whose length", " by "),
}


@pytest.mark.parametrize("edit, code, text, detail", FINDINGS.values(), ids=FINDINGS)
def test_a_bad_clip_is_found_and_named(folder, edit, code, text, detail, capsys):
    name = trained(folder)
    change(folder, name, edit)
    assert main([str(folder), "--json"]) == code
    findings = json.loads(capsys.readouterr().out)["findings"]
    found = [finding for finding in findings if text in finding["text"]]
    assert len(found) == 1 and len(found[0]["ids"]) == 1
    assert found[0]["ids"][0].startswith(name) and detail in found[0]["ids"][0]


@pytest.mark.parametrize(("signs", "words"), [
    ((1, -1, -1), "upside down"), ((-1, 1, 1), "mirrored"), (1, None)])
def test_a_folder_of_wrong_postures_is_told_by_clip(folder, signs, words, capsys):
    for i, (_, joints, _) in enumerate(make_clips(count=12)):
        np.save(folder / f"new_joint_vecs/c{i:02d}.npy", extract_features(joints * signs, "t2m"))
    main([str(folder), "--json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    if words is None:
        assert not [finding for finding in findings if "a person who is up" in finding["text"]]
        return
    told = next(finding["ids"] for finding in findings if "a person who is up" in finding["text"])
    assert len(told) >= 11 and all(words in clip for clip in told)


@pytest.mark.slow
def test_help_is_instant():
    code = "import sys; sys.argv[1:] = ['--help']; import runpy\n" \
           "try: runpy.run_module('dataset.check', run_name='__main__')\n" \
           "finally: print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout.endswith("False\n")


def test_damaged_files_are_told_in_the_readers_words(folder, capsys):
    name = trained(folder)
    (folder / "new_joint_vecs" / f"{name}.npy").write_bytes(b"torn")
    assert main([str(folder)]) == 2
    said = capsys.readouterr().out
    assert f"--skip-bad-clips: {name}.npy: is a file of another kind" in said and "not usable" in said


def test_clips_in_subfolders_count_as_any_other(folder, capsys):
    for name in (folder / "train.txt").read_text().split():
        for part, suffix in (("new_joint_vecs", ".npy"), ("texts", ".txt")):
            (folder / part / "walk").mkdir(exist_ok=True)
            (folder / part / f"{name}{suffix}").rename(folder / part / "walk" / f"{name}{suffix}")
    for split in ("train", "all"):
        ids = (folder / f"{split}.txt").read_text().split()
        there = [f"walk/{name}" if (folder / f"texts/walk/{name}.txt").is_file() else name for name in ids]
        (folder / f"{split}.txt").write_text("\n".join(there))
    assert main([str(folder)]) == 0
    assert "12 usable clips" in capsys.readouterr().out
    change(folder, there[0], put((9, 2), 2.0))
    assert main([str(folder)]) == 1 and f"{there[0]} (40.0 m/s" in capsys.readouterr().out


def test_links_to_nothing_matter_where_a_split_names_them(folder, capsys):
    (folder / "new_joint_vecs" / ".#c01.npy").symlink_to("user@host.1:2")
    assert main([str(folder)]) == 0
    name = trained(folder)
    (folder / "new_joint_vecs" / f"{name}.npy").unlink()
    (folder / "new_joint_vecs" / f"{name}.npy").symlink_to("nowhere")
    assert main([str(folder)]) == 2
    assert f"no .npy): {name}" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["c01.npy", "c01, c02"])
def test_ids_of_another_form_get_a_hint(folder, text, capsys):
    (folder / "val.txt").write_text(f"{text}\n")
    assert main([str(folder)]) == 2
    assert f"1 clips of val.txt have no file (one id a line, no .npy): {text}" in capsys.readouterr().out


def test_splits_against_files(folder, capsys):
    train, val = (folder / "train.txt").read_text().split(), (folder / "val.txt").read_text().split()
    (folder / "train.txt").write_text("\n".join([*train[1:], val[0], "nowhere"]))
    assert main([str(folder)]) == 2
    said = capsys.readouterr().out
    assert "have no file (one id a line, no .npy): nowhere" in said
    assert f"more than one of train, val and test: {val[0]}" in said
    assert f"are in none of train, val and test: {train[0]}" in said
    (folder / "train.txt").unlink()
    assert main([str(folder)]) == 2 and "train.txt: no such file" in capsys.readouterr().out


def test_mirrored_copies_in_another_split(folder, capsys):
    train, val = (folder / "train.txt").read_text().split(), (folder / "val.txt").read_text().split()
    np.save(folder / f"new_joint_vecs/M{train[0]}.npy", np.load(folder / f"new_joint_vecs/{train[0]}.npy"))
    (folder / "val.txt").write_text("\n".join([*val, f"M{train[0]}"]))
    (folder / "texts" / f"M{train[0]}.txt").write_text("a person moves#a/DET person/NOUN move/VERB#0.0#0.0\n")
    assert main([str(folder)]) == 1
    said = capsys.readouterr().out
    assert f"1 clips are in another split than their mirrored copy: {train[0]}" in said


def test_split_counts_are_held_against_the_published_ones(folder, capsys):
    for split, count in dict(train=23384, val=1459, test=4384).items():
        (folder / f"{split}.txt").write_text("\n".join(f"{i:06d}{split}" for i in range(count)))
    assert main([str(folder)]) == 2     # they have no files
    said = capsys.readouterr().out
    assert "val.txt names 1459 clips; the published split has 1460" in said
    assert "train.txt names" not in said


def test_an_unreadable_split_file_and_no_texts(folder, capsys):
    (folder / "val.txt").write_bytes(b"\xff\xfe\x00")
    shutil.rmtree(folder / "texts")
    assert main([str(folder)]) == 1
    said = capsys.readouterr().out
    assert "val.txt: is UTF-16 text" in said and "note: 12 clips have no captions" in said


def test_missing_and_empty_texts(folder, capsys):
    first, second = (folder / "all.txt").read_text().split()[:2]
    (folder / "texts" / f"{first}.txt").unlink()
    (folder / "texts" / f"{second}.txt").write_text("")
    assert main([str(folder)]) == 1
    assert f"2 clips have no captions: {', '.join(sorted((first, second)))}" in capsys.readouterr().out


def test_short_and_long_clips(tmp_path):
    clips = [(name, random_clip(i, frames=frames), ())
             for i, (name, frames) in enumerate(dict(long=240, short=30, fine=90).items())]
    write_dataset(tmp_path / "set", clips, "t2m", fractions=(1, 0, 0))
    findings = {finding["text"]: finding["ids"] for finding in check_folder(tmp_path / "set")["findings"]}
    assert next(ids for text, ids in findings.items() if "shorter than a window of 64" in text) == ["short"]
    assert next(ids for text, ids in findings.items() if "not evaluated" in text) == ["long", "short"]


def test_other_statistics_are_told_with_how_far_off_they_are(folder):
    std = np.load(folder / "Std.npy")
    biased = std.copy()
    biased[:4] /= 25
    biased[-4:] /= 25
    np.save(folder / "Std.npy", biased)
    assert "evaluator variant, the folder's own" in check_folder(folder)["statistics"]
    std[3] *= 3
    np.save(folder / "Std.npy", std)
    report = check_folder(folder)
    assert "data set variant, not the training split's" in report["statistics"]
    assert "std 1 to 3 times its own" in report["statistics"]
    levels = [finding["level"] for finding in report["findings"] if "mean and std" in finding["text"]]
    assert levels == ["warning"]


def test_nothing_to_look_at_is_one_line(tmp_path, capsys):
    (tmp_path / "new_joint_vecs").mkdir()
    for path, text in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "holds no .npy file")):
        with pytest.raises(SystemExit) as end:
            main([str(path)])
        said = capsys.readouterr().err
        assert end.value.code == 2 and text in said and said.count("\n") == 1
