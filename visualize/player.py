"""Motion to turn around in a notebook or a browser: one piece of HTML that fetches nothing."""
import base64
import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.motion_spec import UNIT_LENGTH
from visualize import skeleton

PAGE = Path(__file__).with_suffix(".html")
GRID = "align-items: start; display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr))"
SIDES = {"left": 1, "right": 2}  # any other joint: 0


@dataclass(frozen=True)
class Player:
    """HTML that plays as the last line of a notebook's cell, or from a file that `html` was written to."""

    html: str = field(repr=False)

    def _repr_html_(self):
        return self.html


def beside(*players):
    """Return several players in a row as one Player; they share camera, clock and play speed."""
    row = "".join(each.html for each in players)
    return Player(f'<div class="beside" style="gap: 6px; {GRID}">{row}</div>')


def player(joints, spec, *, reference=None, codes=None, title="", unit=UNIT_LENGTH):
    """Return a Player: drag to orbit, click and wheel to zoom, time line, play speed, space, arrows.

    joints (T, J, 3), metres or millimetres. reference (T, J, 3): the original, drawn in grey beneath, and the
    root-aligned MPJPE of each frame in mm. codes (⌈T/unit⌉,): integers, each below its `unit` frames.
    Raises UserError for joints or codes that cannot be shown.
    """
    joints = skeleton.check_joints(joints, spec)
    shown = {"motion": joints * skeleton.unit_in_metres(joints, spec)}
    sides = [SIDES.get(name.split("_")[0], 0) for name in spec.joint_names]
    contacts = skeleton.foot_contacts(joints, spec) @ np.array([1, 2, 4, 8])
    data = dict(frames=len(joints), joints=spec.joints, fps=spec.fps, title=str(title or ""), per=unit,
                feet=spec.feet, head=spec.joint_names.index("head"),
                bones=[(child, parent, sides[child]) for child, parent in skeleton.bones(spec)],
                contacts="".join(f"{feet:x}" for feet in contacts))
    if reference is not None:
        reference = skeleton.check_joints(reference, spec, "reference joints", len(joints))
        shown["original"] = reference * skeleton.unit_in_metres(reference, spec)
        data["error"] = skeleton.frame_error(*shown.values())[0].round(1).tolist()
    if codes is not None:
        codes, count = np.asarray(codes), -(-len(joints) // unit)
        if codes.shape != (count,) or codes.dtype.kind not in "iu":
            wanted = f"{len(joints)} frames want ({count},) integers"
            raise UserError(f"{codes.dtype} codes of shape {codes.shape}; {wanted}")
        data["codes"] = codes.tolist()
    *_, first = shown.values()
    data["height"] = height = skeleton.body_height(first, spec)
    data["floor"] = skeleton.floor_height(first, height)
    data["scale"] = scale = max(float(np.abs(each).max()) for each in shown.values()) / 32767 or 1.0
    for name, each in shown.items():
        data[name] = base64.b64encode(np.round(each / scale).astype("<i2").tobytes()).decode()
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # no title may close the script
    page = PAGE.read_text(encoding="utf-8").replace("@ID@", f"motion-{uuid.uuid4().hex[:12]}")
    return Player(page.replace("@DATA@", text))
