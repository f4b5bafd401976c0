"""Motion to turn around in a notebook or a browser: one piece of HTML with its data, which fetches nothing (page: player.html)."""
import base64
import html
import json
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.motion_spec import UNIT_LENGTH
from visualize.skeleton import bones, check_joints, foot_contacts, frame_error, skeleton_height, unit_in_metres

PAGE = Path(__file__).with_suffix(".html")


@dataclass(frozen=True)
class Player:
    """HTML that a notebook shows: as the last line of a cell it plays."""

    html: str

    def _repr_html_(self):
        return self.html

    def __repr__(self):
        return f"Player({len(self.html) / 1000:.0f} kB of HTML)"


def player(joints, spec, **options):
    """`player_html` as a value that a notebook shows."""
    return Player(player_html(joints, spec, **options))


def beside(*players):
    """Several players in a row, which wraps where it is narrow, as one: they share camera, clock and play speed."""
    grid = "display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 6px; align-items: start"
    return Player(f'<div class="beside" style="{grid}">{"".join(each.html for each in players)}</div>')


def player_html(joints, spec, *, reference=None, codes=None, title=None, fps=None, unit=UNIT_LENGTH, autoplay=True):
    """A player as a string of HTML: drag to orbit, wheel to zoom once clicked, a time line to scrub, play speed, keys (space, arrows).

    joints (T, J, 3), metres or millimetres; reference (T, J, 3): the original, drawn in grey under it, either can be hidden, and the error
    of each frame runs above the time line (root-aligned MPJPE in mm). codes (⌈T/unit⌉,) integers stand beneath it, each under its `unit`
    frames. Positions are rounded to 1/32767 of the largest coordinate (0.3 mm at 10 m). Several players live on one page, each with an id
    of its own. A notebook shows what `player` returns. Raises UserError for joints or codes that cannot be shown.
    """
    joints = check_joints(joints, spec)
    metres = joints * unit_in_metres(joints, spec)
    data = dict(frames=len(joints), joints=spec.joints, fps=fps or spec.fps, title=str(title or ""), autoplay=bool(autoplay),
                bones=[(child, parent, _side(spec.joint_names[child])) for child, parent in bones(spec)],
                feet=spec.feet, head=spec.joint_names.index("head"), per=unit)
    shown = [metres]
    if reference is not None:
        reference = check_joints(reference, spec, "reference joints")
        if len(reference) != len(joints):
            raise UserError(f"the reference has {len(reference)} frames and the joints {len(joints)}: cut them to the same length")
        shown.append(reference * unit_in_metres(reference, spec))
        data["error"] = frame_error(*shown)[0].round(1).tolist()
    if codes is not None:
        codes = np.asarray(codes)
        if codes.ndim != 1 or len(codes) != -(-len(joints) // unit) or not np.issubdtype(codes.dtype, np.integer):
            raise UserError(f"{codes.dtype} codes of shape {codes.shape} do not belong to {len(joints)} frames: one whole number for every "
                            f"{unit} frames, {-(-len(joints) // unit)} in a row, is expected")
        data["codes"] = codes.tolist()
    lowest, height = shown[-1][..., 1].min(), skeleton_height(shown[-1], spec)
    scale = max(np.abs(each).max() for each in shown) / 32767 or 1.0
    data.update(height=height, floor=0.0 if abs(lowest) < 0.25 * height else float(lowest), scale=float(scale))
    data.update(zip(("motion", "original"), (_packed(each, scale) for each in shown)))
    nibbles = foot_contacts(joints, spec) @ np.array([1, 2, 4, 8])
    data["contacts"] = "".join(f"{nibble:x}" for nibble in nibbles)
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")   # no title may close the script
    return PAGE.read_text(encoding="utf-8").replace("@ID@", f"motion-{uuid.uuid4().hex[:12]}").replace("@DATA@", text)


def save_player(path, joints, spec, **player):
    """Write the player as a web page of its own; the rest goes to `player_html`. Returns the path."""
    path = Path(path)
    title = html.escape(str(player.get("title") or "motion"))
    page = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>\n<body>\n'
    path.write_text(f"{page}{player_html(joints, spec, **player)}</body></html>\n", encoding="utf-8")
    return path


def _side(name):
    return 1 if name.startswith("left") else 2 if name.startswith("right") else 0


def _packed(joints, scale):
    return base64.b64encode(np.round(joints / scale).astype("<i2").tobytes()).decode("ascii")
