import base64
import json
import re

import numpy as np
import pytest

from tests.test_draw import dance
from utils.errors import UserError
from utils.motion_spec import KIT, T2M
from visualize.player import beside, player


def player_html(*args, **options):
    return player(*args, **options).html


def data_of(page):
    return json.loads(re.search(r"const D = (.*);\n", page)[1])


def unpack(text, scale, spec):
    return np.frombuffer(base64.b64decode(text), "<i2").reshape(-1, spec.joints, 3) * scale


@pytest.mark.parametrize("spec, unit", [(T2M, 1.0), (KIT, 1000.0)])
def test_the_page_holds_both_motions_in_metres(spec, unit):
    joints, reference = dance(spec, 196, seed=1), dance(spec, 196, seed=2)
    page = player_html(joints * unit, spec, reference=reference * unit, codes=np.arange(49), title="walk")
    data = data_of(page)
    assert len(page) < 150_000 and "@DATA@" not in page and "@ID@" not in page
    for name, expected in (("motion", joints), ("original", reference)):
        assert np.abs(unpack(data[name], data["scale"], spec) - expected).max() <= data["scale"] * 0.51 < 1e-4
    aligned = (joints - joints[:, :1]) - (reference - reference[:, :1])
    assert np.allclose(data["error"], 1000 * np.linalg.norm(aligned, axis=-1).mean(1), atol=0.051)
    assert data["codes"] == list(range(49)) and data["fps"] == spec.fps and len(data["contacts"]) == 196


def test_nothing_is_fetched_and_nothing_leaks():
    page = player_html(dance(T2M, 20), T2M)
    assert not re.search(r"https?:|src=|@import|url\(|fetch\(", page)
    assert '"original"' not in page and '"codes"' not in page
    script = re.search(r"<script>\n(.*)</script>", page, re.DOTALL)[1]
    assert script.startswith("(() => {") and script.rstrip().endswith("})();")
    ids = [re.search(r'id="([^"]+)"', player_html(dance(T2M, 4), T2M))[1] for _ in range(3)]
    assert len(set(ids)) == 3


def test_a_title_cannot_break_out():
    title = "</script><b>&"
    page = player_html(dance(T2M, 5), T2M, title=title)
    assert page.count("</script>") == 1 and "<b>" not in page and data_of(page)["title"] == title
    assert page.startswith('<meta charset="utf-8">')  # a file of it is read as what was written


def test_one_frame_plays():
    assert data_of(player_html(dance(T2M, 1), T2M, codes=[3]))["codes"] == [3]


def test_codes_may_stand_for_other_numbers_of_frames():
    data = data_of(player_html(dance(T2M, 20), T2M, codes=[7, 8, 9], unit=8))
    assert data["codes"] == [7, 8, 9] and data["per"] == 8
    with pytest.raises(UserError, match=r"20 frames want \(3,\) integers"):
        player_html(dance(T2M, 20), T2M, codes=np.arange(5), unit=8)


def test_a_notebook_shows_players_and_rows_of_them():
    some = [player(dance(T2M, frames), T2M, title=f"clip {frames}") for frames in (8, 12)]
    row = beside(*some)._repr_html_()
    assert all(each._repr_html_() in row for each in some) and row.count('class="beside"') == 1
    assert len(row) < sum(len(each.html) for each in some) + 300 and len(repr(some[0])) < 40


def test_what_cannot_be_played_is_said():
    joints = dance(T2M, 20)
    with pytest.raises(UserError, match=r"20 frames want \(5,\) integers"):
        player_html(joints, T2M, codes=np.arange(4))
    with pytest.raises(UserError, match="float64 codes"):
        player_html(joints, T2M, codes=np.zeros(5))
    with pytest.raises(UserError, match=r"reference joints .* \(19, 22, 3\); t2m wants \(20, 22, 3\)"):
        player_html(joints, T2M, reference=joints[:19])
    with pytest.raises(UserError, match="shape"):
        player_html(joints[0], T2M)
