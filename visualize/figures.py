"""Small figures of a dashboard as (H, W, 3) uint8 arrays, with NumPy and Pillow alone: error bars, codebook use over time, code strips."""
import colorsys

import numpy as np
from PIL import Image, ImageDraw

from utils.errors import UserError
from visualize.draw import FAINT, GRID, INK, LEFT, OVER, PAPER, RIGHT, SPINE, fitting_font, font

# dark to bright in even steps of lightness; zero has a colour of its own, so that a dead code is seen at once
_RAMP = np.array([(44, 30, 84), (58, 76, 138), (42, 120, 142), (46, 160, 128), (120, 196, 84), (250, 226, 62)], np.float64)
_DEAD = (236, 238, 242)


def bar_figure(labels, values, title="", unit="mm", *, width=560):
    """Horizontal bars with their values. left_NAME and right_NAME share a row, each in its limb's colour.

    labels: n strings; values: n finite numbers ≥ 0. Raises UserError when they do not fit together.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (len(labels),) or len(labels) == 0 or not np.isfinite(values).all() or (values < 0).any():
        raise UserError(f"a bar figure wants a finite value ≥ 0 for each of its {len(labels)} labels; got shape {values.shape}")
    rows, digits = {}, 1 if values.max() < 1000 else 0
    for label, value in zip(labels, values):
        side, _, name = label.partition("_")
        name, colour = (name, LEFT if side == "left" else RIGHT) if side in ("left", "right") else (label, SPINE)
        rows.setdefault(name.replace("_", " "), []).append((colour, value))
    paired = max(map(len, rows.values())) > 1
    row, top, left, right = 15, 34, 84, 118 if paired else 84
    image = Image.new("RGB", (width * OVER, (top + row * len(rows) + 8) * OVER), PAPER)
    draw, face = ImageDraw.Draw(image), font(12 * OVER)
    legend = [("right", RIGHT), ("left", LEFT)] if paired else []
    draw.text((10 * OVER, 8 * OVER), title, fill=INK, font=fitting_font(title, 15 * OVER, (width - 20 - 42 * len(legend)) * OVER))
    for n, (name, colour) in enumerate(legend):
        draw.text(((width - 10 - 40 * n) * OVER, 10 * OVER), name, fill=colour, font=face, anchor="ra")
    draw.line((left * OVER, top * OVER, left * OVER, (top + row * len(rows)) * OVER), fill=GRID, width=OVER)
    for n, (name, bars) in enumerate(rows.items()):
        y, tall, bars = top + row * n, (row - 3) / len(bars), sorted(bars, key=lambda bar: bar[0] == RIGHT)
        for k, (colour, value) in enumerate(bars):
            end = left + (width - left - right) * value / max(values.max(), 1e-12)
            up = y + 1.5 + tall * k
            draw.rectangle((left * OVER, up * OVER, end * OVER, (up + tall) * OVER - 1), fill=colour)
        end = left + (width - left - right) * max(value for _, value in bars) / max(values.max(), 1e-12)
        numbers = ", ".join(f"{value:.{digits}f}" for _, value in bars)
        middle = (y + row / 2) * OVER
        draw.text(((left - 8) * OVER, middle), name, fill=INK, font=fitting_font(name, 12 * OVER, (left - 14) * OVER), anchor="rm")
        draw.text(((end + 6) * OVER, middle), f"{numbers} {unit}", fill=FAINT, font=face, anchor="lm")
    return np.asarray(image.reduce(OVER))


def usage_figure(usage, steps=None, title="codebook use", *, width=560, height=260):
    """How often each code is used, over training: time to the right, the codes of the last row's order upwards, use in logarithmic colour.

    usage (S, K): counts or shares of each code at S evaluations; steps: their S iteration numbers. A code that is not used is pale grey;
    colour spans two decades either side of equal use, 1/K. Raises UserError for another shape or for negative or non-finite numbers.
    """
    usage = np.asarray(usage, dtype=np.float64)
    if usage.ndim != 2 or usage.size == 0 or not np.isfinite(usage).all() or (usage < 0).any():
        raise UserError(f"codebook use wants finite counts ≥ 0 of shape (evaluations, codes); got shape {usage.shape}")
    codes = usage.shape[1]
    share = usage / np.maximum(usage.sum(1, keepdims=True), 1e-12)
    ordered = share[:, np.argsort(share[-1], kind="stable")].T[::-1]               # (K, S), the most used code on top
    shade = np.clip((np.log10(np.maximum(ordered * codes, 1e-12)) + 2) / 4, 0, 1) * (len(_RAMP) - 1)
    low = np.minimum(shade.astype(int), len(_RAMP) - 2)
    colour = _RAMP[low] + (_RAMP[low + 1] - _RAMP[low]) * (shade - low)[..., None]
    colour[ordered == 0] = _DEAD
    left, top, bottom, right = 12, 34, 26, 122
    heat = Image.fromarray(colour.astype(np.uint8)).resize((width - left - right, height - top - bottom), Image.Resampling.BOX)
    image = Image.new("RGB", (width, height), PAPER)
    image.paste(heat, (left, top))
    draw, face, edge = ImageDraw.Draw(image), font(12), width - right
    draw.text((left, 8), title, fill=INK, font=fitting_font(title, 15, width - 24))
    p = share[-1][share[-1] > 0]
    notes = (f"{len(p)} of {codes} used", f"perplexity {np.exp(-(p * np.log(p)).sum()) if len(p) else 0:.0f}")
    for n, text in enumerate(notes):
        draw.text((edge + 10, top + 16 * n), text, fill=INK, font=font(13))
    scale = ("100 times", "10 times", "equal use", "1/10", "1/100 or less", "not used")
    for n, text in enumerate(scale):
        fill = _DEAD if n == 5 else [np.interp(1 - n / 4, np.linspace(0, 1, len(_RAMP)), channel) for channel in _RAMP.T]
        y = top + 44 + 17 * n
        draw.rectangle((edge + 10, y + 2, edge + 21, y + 13), fill=tuple(int(v) for v in fill))
        draw.text((edge + 28, y), text, fill=FAINT, font=face)
    if steps is not None:
        draw.text((left, height - 20), f"iteration {steps[0]}", fill=FAINT, font=face)
        draw.text((edge, height - 20), f"{steps[-1]}", fill=FAINT, font=face, anchor="ra")
    return np.asarray(image)


def code_colour(code, nb_code):
    """(r, g, b) of a code index: neighbours in the codebook are far apart in hue, the same code is always the same colour."""
    if not 0 <= code < nb_code:
        raise UserError(f"code {code} is outside the codebook of {nb_code} codes (0 … {nb_code - 1})")
    lightness = (0.62, 0.72, 0.8)[code % 3]
    return tuple(round(255 * c) for c in colorsys.hls_to_rgb(code * 0.61803398875 % 1, lightness, 0.55))


def code_strip(codes, nb_code, *, labels=None, cell=30, wrap=32):
    """Code indices as coloured cells with their numbers, in reading order: (H, W, 3) uint8.

    codes: one row (n,) of integers, or several rows of any lengths (original above reconstruction, say), each under its label if given.
    A row longer than `wrap` cells goes on beneath. Raises UserError for a code outside 0 … nb_code - 1.
    """
    rows = [codes] if np.ndim(codes[0]) == 0 else list(codes)
    rows = [np.asarray(row, dtype=np.int64).reshape(-1) for row in rows]
    tall, caption = round(cell * 0.8), 20 if labels else 0
    lines = [-(-len(row) // wrap) for row in rows]
    image = Image.new("RGB", (min(wrap, max(map(len, rows))) * cell + 16, sum(n * tall + caption + 8 for n in lines) + 8), PAPER)
    draw, y = ImageDraw.Draw(image), 8
    for n, row in enumerate(rows):
        if labels:
            draw.text((8, y), str(labels[n]), fill=INK, font=font(13))
        y += caption
        for at, code in enumerate(row.tolist()):
            x, up = 8 + at % wrap * cell, y + at // wrap * tall
            draw.rectangle((x, up, x + cell - 2, up + tall - 2), fill=code_colour(code, nb_code))
            draw.text((x + cell / 2 - 1, up + tall / 2 - 1), str(code), fill=INK, font=fitting_font(str(code), 12, cell - 4), anchor="mm")
        y += lines[n] * tall + 8
    return np.asarray(image)
