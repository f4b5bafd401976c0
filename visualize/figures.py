"""Small figures as (H, W, 3) uint8 arrays: error bars, codebook use over time, strips of codes."""
import colorsys

import numpy as np
from PIL import Image, ImageDraw

from utils.errors import UserError
from visualize.draw import FAINT, GRID, INK, LEFT, OVER, PAPER, RIGHT, SIDES, SPINE, fitting_font, font

# even steps of lightness; an unused code has a colour of its own
RAMP = np.array([(44, 30, 84), (58, 76, 138), (42, 120, 142), (46, 160, 128), (120, 196, 84), (250, 226, 62)])
UNUSED = (236, 238, 242)


def ramp_colour(share):
    """Return RAMP's colour at each share (…) in 0 … 1, (…, 3)."""
    return np.stack([np.interp(share, np.linspace(0, 1, len(RAMP)), channel) for channel in RAMP.T], -1)


def bar_figure(labels, values, title="", unit="mm", *, width=560):
    """Draw horizontal bars of n values ≥ 0, each beside its label. left_X and right_X share a row."""
    rows, largest = {}, max(*values, 1e-12)
    for label, value in zip(labels, values):
        side, _, name = label.partition("_")
        name = name if side in SIDES else label
        rows.setdefault(name.replace("_", " "), []).append((SIDES.get(side, SPINE), value))
    legend = [("right", RIGHT), ("left", LEFT)] if max(map(len, rows.values())) > 1 else []
    row, top, left, right = 15 * OVER, 34 * OVER, 84 * OVER, (118 if legend else 84) * OVER
    image = Image.new("RGB", (width * OVER, top + row * len(rows) + 8 * OVER), PAPER)
    draw, face, reach = ImageDraw.Draw(image), font(12 * OVER), image.width - left - right
    title_face = fitting_font(title, 15 * OVER, image.width - (20 + 42 * len(legend)) * OVER)
    draw.text((10 * OVER, 8 * OVER), title, fill=INK, font=title_face)
    for n, (name, colour) in enumerate(legend):
        draw.text(((width - 10 - 40 * n) * OVER, 10 * OVER), name, fill=colour, font=face, anchor="ra")
    draw.line((left, top, left, top + row * len(rows)), fill=GRID, width=OVER)
    for y, (name, bars) in zip(range(top, image.height, row), rows.items()):
        tall = (row - 3 * OVER) / len(bars)
        bars = sorted(bars, key=lambda bar: bar[0] == RIGHT)
        ends = [left + reach * value / largest for _, value in bars]
        for k, (end, (colour, _)) in enumerate(zip(ends, bars)):
            up = y + 1.5 * OVER + tall * k
            draw.rectangle((left, up, end, up + tall - 1), fill=colour)
        name_face, middle = fitting_font(name, 12 * OVER, left - 14 * OVER), y + row / 2
        numbers = ", ".join(f"{value:.1f}" for _, value in bars)
        draw.text((left - 8 * OVER, middle), name, fill=INK, font=name_face, anchor="rm")
        draw.text((max(ends) + 6 * OVER, middle), f"{numbers} {unit}", fill=FAINT, font=face, anchor="lm")
    return np.asarray(image.reduce(OVER))


def usage_figure(usage, steps=None, title="codebook use", *, width=560, height=260):
    """Draw how often each code is used: a column per evaluation, a row per code, the most used on top.

    usage (S, K): counts or shares. steps: S iteration numbers. Colour spans two decades either side of 1/K.
    """
    usage, codes = np.asarray(usage, dtype=np.float64), np.shape(usage)[1]
    share = usage / np.maximum(usage.sum(1, keepdims=True), 1e-12)
    ordered = share[:, np.argsort(share[-1], kind="stable")].T[::-1]  # (K, S)
    colour = ramp_colour((np.log10(np.maximum(ordered * codes, 1e-12)) + 2) / 4)
    colour[ordered == 0] = UNUSED
    left, top, bottom, edge = 12, 34, 26, width - 122
    size = (edge - left, height - top - bottom)
    image = Image.new("RGB", (width, height), PAPER)
    image.paste(Image.fromarray(colour.astype(np.uint8)).resize(size, Image.Resampling.BOX), (left, top))
    draw, face, p = ImageDraw.Draw(image), font(12), share[-1][share[-1] > 0]
    draw.text((left, 8), title, fill=INK, font=fitting_font(title, 15, width - 24))
    draw.text((edge + 10, top), f"{len(p)} of {codes} used", fill=INK, font=font(13))
    perplexity = np.exp(-(p * np.log(p)).sum()) if len(p) else 0
    draw.text((edge + 10, top + 16), f"perplexity {perplexity:.0f}", fill=INK, font=font(13))
    fills = [*ramp_colour(np.linspace(1, 0, 5)).astype(int), UNUSED]
    names = ("100 times", "10 times", "equal use", "1/10", "1/100 or less", "not used")
    for y, fill, name in zip(range(top + 44, height, 17), fills, names):
        draw.rectangle((edge + 10, y + 2, edge + 21, y + 13), fill=tuple(map(int, fill)))
        draw.text((edge + 28, y), name, fill=FAINT, font=face)
    if steps is not None:
        draw.text((left, height - 20), f"iteration {steps[0]}", fill=FAINT, font=face)
        draw.text((edge, height - 20), f"{steps[-1]}", fill=FAINT, font=face, anchor="ra")
    return np.asarray(image)


def code_colour(code):
    """Return the (r, g, b) of a code, always the same; neighbours in the codebook differ much in hue."""
    lightness = (0.62, 0.72, 0.8)[code % 3]
    return tuple(round(255 * c) for c in colorsys.hls_to_rgb(code * 0.61803398875 % 1, lightness, 0.55))


def code_strip(codes, nb_code, *, labels=None, cell=30, wrap=32):
    """Draw codes as numbered cells of their colour, in lines of at most `wrap` cells.

    codes: a row (n,) of integers in 0 … nb_code - 1, or rows of any lengths, each under its label.
    """
    rows = [codes] if np.ndim(codes[0]) == 0 else list(codes)
    rows = [np.asarray(row, dtype=np.int64).reshape(-1).tolist() for row in rows]
    if wrong := [code for row in rows for code in row if not 0 <= code < nb_code]:
        raise UserError(f"code {wrong[0]} is outside the codebook of {nb_code} codes (0 … {nb_code - 1})")
    tall, caption = round(cell * 0.8), 20 if labels else 0
    heights = [caption + -(-len(row) // wrap) * tall + 8 for row in rows]
    image = Image.new("RGB", (min(wrap, max(map(len, rows))) * cell + 16, sum(heights) + 8), PAPER)
    draw, y = ImageDraw.Draw(image), 8
    for n, row in enumerate(rows):
        draw.text((8, y), str(labels[n]) if labels else "", fill=INK, font=font(13))
        for at, code in enumerate(row):
            x, up = 8 + at % wrap * cell, y + caption + at // wrap * tall
            face = fitting_font(str(code), 12, cell - 4)
            draw.rectangle((x, up, x + cell - 2, up + tall - 2), fill=code_colour(code))
            draw.text((x + cell / 2 - 1, up + tall / 2 - 1), str(code), fill=INK, font=face, anchor="mm")
        y += heights[n]
    return np.asarray(image)
