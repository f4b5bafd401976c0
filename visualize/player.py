"""Motion to turn around in a notebook or a browser: one piece of HTML that fetches nothing."""
import base64
import json
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.motion_spec import UNIT_LENGTH
from visualize.skeleton import body_height, bones, check_joints, foot_contacts, frame_error, unit_in_metres

PAGE = Path(__file__).with_suffix(".html")
GRID = "align-items: start; display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr))"
SIDES = {"left": 1, "right": 2}  # any other joint: 0


@dataclass(frozen=True)
class Player:
    """HTML that plays as the last line of a notebook's cell, or from a file that `html` was written to."""

    html: str

    def _repr_html_(self):
        return self.html

    def __repr__(self):
        return f"Player({len(self.html) / 1000:.0f} kB of HTML)"


def player(joints, spec, **options):
    """Return `player_html` as a Player."""
    return Player(player_html(joints, spec, **options))


def beside(*players):
    """Return several players in a row as one Player; they share camera, clock and play speed."""
    row = "".join(each.html for each in players)
    return Player(f'<div class="beside" style="gap: 6px; {GRID}">{row}</div>')


def player_html(joints, spec, *, reference=None, codes=None, title="", fps=None, unit=UNIT_LENGTH,
                autoplay=True):
    """Return a player as HTML: drag to orbit, click and wheel to zoom, time line, play speed, space, arrows.

    joints (T, J, 3), metres or millimetres. reference (T, J, 3): the original, drawn in grey beneath, and the
    root-aligned MPJPE of each frame in mm. codes (⌈T/unit⌉,): integers, each below its `unit` frames.
    Positions are rounded to 1/32767 of the largest coordinate (0.3 mm at 10 m).
    Raises UserError for joints or codes that cannot be shown.
    """
    joints = check_joints(joints, spec)
    shown = [joints * unit_in_metres(joints, spec)]
    sides = [SIDES.get(name.split("_")[0], 0) for name in spec.joint_names]
    data = dict(frames=len(joints), joints=spec.joints, fps=fps or spec.fps, title=str(title or ""), per=unit,
                autoplay=bool(autoplay), bones=[(c, p, sides[c]) for c, p in bones(spec)],
                feet=spec.feet, head=spec.joint_names.index("head"))
    if reference is not None:
        reference = check_joints(reference, spec, "reference joints", len(joints))
        shown.append(reference * unit_in_metres(reference, spec))
        data["error"] = frame_error(*shown)[0].round(1).tolist()
    if codes is not None:
        codes, count = np.asarray(codes), -(-len(joints) // unit)
        if codes.shape != (count,) or codes.dtype.kind not in "iu":
            wanted = f"{len(joints)} frames want ({count},) integers"
            raise UserError(f"{codes.dtype} codes of shape {codes.shape}; {wanted}")
        data["codes"] = codes.tolist()
    lowest, height = shown[-1][..., 1].min(), body_height(shown[-1], spec)
    scale = max(np.abs(each).max() for each in shown) / 32767 or 1.0
    floor = 0.0 if abs(lowest) < 0.25 * height else float(lowest)
    data.update(height=height, floor=floor, scale=float(scale))
    data.update(zip(("motion", "original"), (packed(each, scale) for each in shown)))
    stands = foot_contacts(joints, spec) @ np.array([1, 2, 4, 8])
    data["contacts"] = "".join(f"{feet:x}" for feet in stands)
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # no title may close the script
    page = PAGE.read_text(encoding="utf-8").replace("@ID@", f"motion-{uuid.uuid4().hex[:12]}")
    return page.replace("@DATA@", text)


def packed(joints, scale):
    """Return joints as base64 of int16 multiples of scale."""
    return base64.b64encode(np.round(joints / scale).astype("<i2").tobytes()).decode("ascii")
