"""Captions as text lines, and those of mirrored clips."""
import pytest

from dataset.prepare.captions import mirror_line, text_line


@pytest.mark.parametrize("caption, line", [
    ("a person walks  slowly", "a person walks slowly#a/OTHER person/OTHER walks/OTHER slowly/OTHER#0.0#0.0"),
    ("A man #2 sits down.", "A man 2 sits down.#a/OTHER man/OTHER 2/OTHER sits/OTHER down/OTHER#0.0#0.0"),
    ("already#al/ADV#1.0#2.0", "already#al/ADV#1.0#2.0")])
def test_a_caption_becomes_a_text_line(caption, line):
    assert text_line(caption) == line


def test_mirrored_captions_change_sides_and_back():
    line = text_line("Left hand up, turns counter-clockwise to the right, leftover")
    mirrored = mirror_line(line)
    assert (
        mirrored.startswith("Right hand up, turns clockwise to the left, leftover#right/OTHER")
        and "counter" not in mirrored
    )
    assert mirror_line(mirrored) == line.replace("counter-clockwise", "counterclockwise")
