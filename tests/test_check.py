"""Each finding of the check, on a sound folder with one thing broken."""
import json
import shutil

import numpy as np
import pytest

from dataset.check import STATISTICS, check_folder, main
from dataset.prepare.convert import write_dataset
from tests.test_motion_process import random_clip
from utils.motion_spec import get_spec

T2M = get_spec("t2m")


@pytest.fixture
def folder(tmp_path):
    """Twelve sound clips with captions, prepared as any are."""
    clips = [(f"c{i:02d}", random_clip(i, frames=80), ["a person moves"]) for i in range(12)]
    write_dataset(tmp_path / "set", clips, "t2m", progress=False)
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
    assert "12 sound clips" in said and "the folder's own, of its training split" in said and "clean" in said
    assert not [finding for finding in check_folder(folder)["findings"] if finding["level"] != "note"]


HEIGHTS = np.isin(np.arange(263), [3, *range(5, 67, 3)]).astype(np.float32)     # a metre up for every joint

FINDINGS = {
    "nan": (put((slice(3, 6), 50), np.nan), 2, "hold NaN or Inf", "frames 3-5"),
    "inf": (put((7, 0), np.inf), 2, "hold NaN or Inf", "frames 7"),
    "width": (lambda data: data[:, :251], 2, "have the wrong shape", "(79, 251)"),
    "empty": (lambda data: data[:0], 2, "have the wrong shape", "(0, 263)"),
    "dtype": (lambda data: data.astype(np.float64), 1, "are not float32", "float64"),
    "root jump": (put((9, 2), 2.0), 1, "root faster", "at frame 9"),
    "joint jump": (put((9, 193 + 60), 3.0), 1, "joint faster", "at frame 9"),
    "frozen": (lambda data: data[[*range(40), *[40] * 39]], 1, "stand perfectly still", "s)"),
    "floor": (lambda data: data + HEIGHTS, 1, "on the floor", "m)"),
    "drift": (put((11, slice(64, 67)), 1.0), 1, "bones whose length", "at frame 11"),
}


@pytest.mark.parametrize("edit, code, text, detail", FINDINGS.values(), ids=FINDINGS)
def test_a_bad_clip_is_found_and_named(folder, edit, code, text, detail, capsys):
    name = trained(folder)
    change(folder, name, edit)
    assert main([str(folder), "--json"]) == code
    found = [finding for finding in json.loads(capsys.readouterr().out)["findings"] if text in finding["text"]]
    assert len(found) == 1 and len(found[0]["ids"]) == 1 and found[0]["ids"][0].startswith(f"{name} (") and detail in found[0]["ids"][0]


def test_damaged_files_and_published_bad_clips(folder, capsys):
    name = trained(folder)
    (folder / "new_joint_vecs" / f"{name}.npy").write_bytes(b"torn")
    np.save(folder / "new_joint_vecs/007975.npy", np.full((50, 263), np.nan, np.float32))
    with open(folder / "train.txt", "a") as file:
        file.write("007975\n")
    assert main([str(folder)]) == 2
    said = capsys.readouterr().out
    assert f"cannot be read: {name}" in said and "published bad clips" in said and "not usable" in said


def test_splits_against_files(folder, capsys):
    train, val = (folder / "train.txt").read_text().split(), (folder / "val.txt").read_text().split()
    (folder / "train.txt").write_text("\n".join([*train[1:], train[1], val[0], "nowhere"]))
    assert main([str(folder)]) == 2
    said = capsys.readouterr().out
    assert f"names 1 clips more than once: {train[1]}" in said
    assert "have no file in new_joint_vecs: nowhere" in said
    assert f"more than one of train, val and test: the evaluation sees training clips: {val[0]}" in said
    assert f"are in none of train, val and test: {train[0]}" in said
    (folder / "train.txt").unlink()
    assert main([str(folder)]) == 2 and "train.txt is missing" in capsys.readouterr().out


def test_mirrored_copies_in_another_split_and_an_all_file_that_differs(folder, capsys):
    train, val = (folder / "train.txt").read_text().split(), (folder / "val.txt").read_text().split()
    np.save(folder / f"new_joint_vecs/M{train[0]}.npy", np.load(folder / f"new_joint_vecs/{train[0]}.npy"))
    (folder / "val.txt").write_text("\n".join([*val, f"M{train[0]}"]))
    (folder / "texts" / f"M{train[0]}.txt").write_text("a person moves#a/DET person/NOUN move/VERB#0.0#0.0\n")
    assert main([str(folder)]) == 1
    said = capsys.readouterr().out
    assert f"1 clips are in another split than their mirrored copy: {train[0]}" in said
    assert f"all.txt differs from train, val and test together by 1 clips: M{train[0]}" in said


def test_split_counts_are_held_against_the_published_ones(folder, capsys):
    for split, count in dict(train=23384, val=1459, test=4384).items():
        (folder / f"{split}.txt").write_text("\n".join(f"{i:06d}{split}" for i in range(count)))
    assert main([str(folder)]) == 2     # they have no files
    said = capsys.readouterr().out
    assert "val.txt names 1459 clips; HumanML3D's published split has 1460" in said and "train.txt names" not in said


def test_an_unreadable_split_file_and_no_texts(folder, capsys):
    (folder / "val.txt").write_bytes(b"\xff\xfe\x00")
    shutil.rmtree(folder / "texts")
    assert main([str(folder)]) == 1
    said = capsys.readouterr().out
    assert "val.txt: not a text file" in said and "no folder texts" in said


def test_missing_and_empty_texts(folder, capsys):
    first, second = (folder / "all.txt").read_text().split()[:2]
    (folder / "texts" / f"{first}.txt").unlink()
    (folder / "texts" / f"{second}.txt").write_text("")
    assert main([str(folder)]) == 1
    assert f"1 clips have no text file and 1 an empty one: {first}, {second}" in capsys.readouterr().out


def test_short_and_long_clips(tmp_path):
    clips = [("long", random_clip(0, frames=240), ()), ("short", random_clip(1, frames=30), ()), ("fine", random_clip(2, frames=90), ())]
    write_dataset(tmp_path / "set", clips, "t2m", fractions=(1, 0, 0), progress=False)
    findings = {finding["text"]: finding["ids"] for finding in check_folder(tmp_path / "set")["findings"]}
    assert next(ids for text, ids in findings.items() if "shorter than a window of 64" in text) == ["short"]
    assert next(ids for text, ids in findings.items() if "evaluation leaves out 1 clips" in text) == ["long", "short"]


@pytest.mark.parametrize("name", STATISTICS)
def test_published_statistics_are_recognised_by_value(folder, name):
    mean, std = np.zeros(263), np.zeros(263)
    for part, group_std, group_mean in zip(T2M.slices.values(), *STATISTICS[name]):
        mean[part], std[part] = group_mean, group_std
    np.save(folder / "Mean.npy", mean)
    np.save(folder / "Std.npy", std)
    assert name in check_folder(folder)["statistics"]
    np.save(folder / "Std.npy", std * 1.1)
    assert name not in check_folder(folder)["statistics"]


def test_other_statistics_are_told_with_how_far_off_they_are(folder):
    std = np.load(folder / "Std.npy")
    biased = std.copy()
    biased[:4] /= 25
    biased[-4:] /= 25
    np.save(folder / "Std.npy", biased)
    assert "the evaluator's bias" in check_folder(folder)["statistics"]
    std[3] *= 3
    np.save(folder / "Std.npy", std)
    report = check_folder(folder)
    assert "neither" in report["statistics"] and "std 3 times the training split's in height" in report["statistics"]
    assert [finding["level"] for finding in report["findings"] if "mean and std" in finding["text"]] == ["warning"]


def test_nothing_to_look_at_is_one_line(tmp_path, capsys):
    (tmp_path / "new_joint_vecs").mkdir()
    for path, text in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "holds no .npy file")):
        with pytest.raises(SystemExit) as end:
            main([str(path)])
        said = capsys.readouterr().err
        assert end.value.code == 2 and text in said and said.count("\n") == 1
