"""Small figures as (H, W, 3) uint8 arrays: error bars, codebook use over time, strips of codes."""
import colorsys

import numpy as np
from PIL import Image, ImageDraw

from utils.errors import UserError
from visualize.draw import FAINT, GRID, INK, OVER, PAPER, SIDES, SPINE, fitting_font, font

# even steps of lightness; an unused code has a colour of its own
RAMP = np.array([(44, 30, 84), (58, 76, 138), (42, 120, 142), (46, 160, 128), (120, 196, 84), (250, 226, 62)])
UNUSED = (236, 238, 242)


def ramp_colour(share):
    """Return RAMP's colour at each share (…) in 0 … 1, (…, 3)."""
    return np.stack([np.interp(share, np.linspace(0, 1, len(RAMP)), channel) for channel in RAMP.T], -1)


def bar_figure(labels, values, title="", *, width=560):
    """Draw horizontal bars of n values ≥ 0 in mm beside their labels. left_X and right_X share a row."""
    rows, largest = {}, max(*values, 1e-12)
    for label, value in zip(labels, values):
        side, _, name = label.rpartition("_")
        rows.setdefault(name, {})[side] = value
    row, top, left, right = 15 * OVER, 34 * OVER, 84 * OVER, 118 * OVER
    image = Image.new("RGB", (width * OVER, top + row * len(rows) + 8 * OVER), PAPER)
    draw, face, reach = ImageDraw.Draw(image), font(12 * OVER), image.width - left - right
    title_face = fitting_font(title, 15 * OVER, image.width - 104 * OVER)
    draw.text((10 * OVER, 8 * OVER), title, fill=INK, font=title_face)
    for at, side in ((50, "left"), (10, "right")):
        draw.text(((width - at) * OVER, 10 * OVER), side, fill=SIDES[side], font=face, anchor="ra")
    draw.line((left, top, left, top + row * len(rows)), fill=GRID, width=OVER)
    for y, (name, bars) in zip(range(top, image.height, row), rows.items()):
        tall, middle = (row - 3 * OVER) / len(bars), y + row / 2
        for k, (side, value) in enumerate(sorted(bars.items())):
            up = y + 1.5 * OVER + tall * k
            draw.rectangle((left, up, left + reach * value / largest, up + tall - 1), SIDES.get(side, SPINE))
        numbers = ", ".join(f"{value:.1f}" for _, value in sorted(bars.items()))
        at = left + reach * max(bars.values()) / largest + 6 * OVER, middle
        draw.text((left - 8 * OVER, middle), name, fill=INK, font=face, anchor="rm")
        draw.text(at, f"{numbers} mm", fill=FAINT, font=face, anchor="lm")
    return np.asarray(image.reduce(OVER))


def usage_figure(usage, steps=None, title="codebook use", *, width=560):
    """Draw how often each code is used: a column per evaluation, a row per code, the most used on top.

    usage (S, K): counts. steps: S iteration numbers. Colour spans two decades either side of 1/K.
    """
    share = usage / np.maximum(usage.sum(1, keepdims=True), 1)
    ordered = share[:, np.argsort(share[-1], kind="stable")[::-1]].T  # (K, S)
    colour = ramp_colour((np.log10(np.maximum(ordered * len(ordered), 1e-12)) + 2) / 4)
    colour[ordered == 0] = UNUSED
    left, top, height, edge, small = 12, 34, 260, width - 122, font(13)
    heat = Image.fromarray(colour.astype(np.uint8)).resize((edge - left, height - 60), Image.Resampling.BOX)
    image = Image.new("RGB", (width, height), PAPER)
    image.paste(heat, (left, top))
    draw, p = ImageDraw.Draw(image), share[-1][share[-1] > 0]
    draw.text((left, 8), title, fill=INK, font=fitting_font(title, 15, width - 24))
    draw.text((edge + 10, top), f"{len(p)} of {len(ordered)} used", fill=INK, font=small)
    perplexity = np.exp(-(p * np.log(p)).sum())
    draw.text((edge + 10, top + 16), f"perplexity {perplexity:.0f}", fill=INK, font=small)
    fills = [*ramp_colour(np.linspace(1, 0, 5)).astype(int).tolist(), UNUSED]
    names = ("100 times", "10 times", "equal use", "1/10", "1/100 or less", "not used")
    for y, fill, name in zip(range(top + 44, height, 17), fills, names):
        draw.rectangle((edge + 10, y + 2, edge + 21, y + 13), tuple(fill))
        draw.text((edge + 28, y), name, fill=FAINT, font=font(12))
    if steps is not None:
        draw.text((left, height - 20), f"iteration {steps[0]}", fill=FAINT, font=font(12))
        draw.text((edge, height - 20), f"{steps[-1]}", fill=FAINT, font=font(12), anchor="ra")
    return np.asarray(image)


def code_colour(code):
    """Return the (r, g, b) of a code, always the same; neighbours in the codebook differ much in hue."""
    lightness = (0.62, 0.72, 0.8)[code % 3]
    return tuple(round(255 * c) for c in colorsys.hls_to_rgb(code * 0.61803398875 % 1, lightness, 0.55))


def code_strip(rows, nb_code, labels, wrap=32):
    """Draw rows of codes, integers in 0 … nb_code - 1, as numbered cells beneath their labels.

    A row goes on in the next line after `wrap` cells.
    """
    if wrong := [code for row in rows for code in row if not 0 <= code < nb_code]:
        raise UserError(f"code {wrong[0]} is outside the codebook of {nb_code} codes (0 … {nb_code - 1})")
    cell, tall, caption, y = 30, 24, 20, 8
    heights = [caption + -(-len(row) // wrap) * tall + 8 for row in rows]
    image = Image.new("RGB", (min(wrap, max(map(len, rows))) * cell + 16, sum(heights) + 8), PAPER)
    draw = ImageDraw.Draw(image)
    for row, label, height in zip(rows, labels, heights):
        draw.text((8, y), label, fill=INK, font=font(13))
        for at, code in enumerate(row):
            x, up = 8 + at % wrap * cell, y + caption + at // wrap * tall
            face = fitting_font(str(code), 12, cell - 4)
            draw.rectangle((x, up, x + cell - 2, up + tall - 2), code_colour(code))
            draw.text((x + cell / 2 - 1, up + tall / 2 - 1), str(code), fill=INK, font=face, anchor="mm")
        y += height
    return np.asarray(image)
