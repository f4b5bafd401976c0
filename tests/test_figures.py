import numpy as np
import pytest

from tests.test_draw import near
from utils.errors import UserError
from visualize import figures
from visualize.draw import LEFT, RIGHT, SPINE


def test_bars_are_as_long_as_their_values():
    picture = figures.bar_figure(["left_hip", "right_hip", "pelvis"], [40, 20, 10], "error")
    lengths = [near(picture[34:], colour, 2).any(0).sum() for colour in (LEFT, RIGHT, SPINE)]
    assert picture.dtype == np.uint8 and lengths[0] == pytest.approx(2 * lengths[1], abs=3)
    assert lengths[2] == pytest.approx(lengths[1] / 2, abs=3)
    assert figures.bar_figure(["a"], [0]).shape[2] == 3  # all zero: no division by it


def test_codebook_use_shows_dead_codes_and_growth():
    usage = np.zeros((2, 64))
    usage[0, :16] = 5  # a quarter of the codes, then all of them
    usage[1] = 5
    heat = figures.usage_figure(usage, steps=[1000, 2000])[34:-26, 12:-122]
    dead = near(heat, figures.UNUSED, 1)
    half = heat.shape[1] // 2
    assert dead[:, :half - 2].mean() == pytest.approx(0.75, abs=0.02) and not dead[:, half + 2:].any()
    assert len(np.unique(heat[:, half + 2:].reshape(-1, 3), axis=0)) == 1  # equal use, one colour
    assert figures.usage_figure(np.zeros((1, 8))).shape == (260, 560, 3)


def test_a_code_keeps_its_colour_and_a_long_row_goes_on_beneath():
    one = figures.code_strip([[7, 300, 7]], 512, ["a"])
    assert (one[30, 10] == one[30, 70]).all() and (one[30, 10] != one[30, 40]).any()
    assert tuple(one[30, 10]) == figures.code_colour(7)
    colours = {figures.code_colour(code) for code in range(512)}
    assert len(colours) > 400
    rows = figures.code_strip([np.arange(40), np.arange(3)], 512, labels=("a", "b"), wrap=32)
    assert rows.shape[:2] == (8 + 2 * (20 + 8) + 3 * 24, 32 * 30 + 16)
    for bad in (512, -1):
        with pytest.raises(UserError, match="outside the codebook of 512"):
            figures.code_strip([[0, bad]], 512, ["a"])
