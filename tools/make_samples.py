"""Draw the sample images of the demo and the tests: lettering, gratings, foliage, a street front.

    python tools/make_samples.py [FOLDER]

They are computed, not photographed, so that the repository can ship them under any licence. Between them they hold what
super-resolution finds hard: thin strokes, frequencies up to and beyond what the low resolution can carry, occluding
irregular edges, regular structure, noise-like texture and slow gradients. The folder is laid out as a benchmark set.
Every run gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from toolbox import SAMPLES

from odm_deploy.imaging.resize import downscale
from odm_deploy.imaging.writing import write_image

HEIGHT_PX, WIDTH_PX, SCALE = 288, 384, 4
SUPERSAMPLING = 3
"""Points drawn per pixel along each axis; their mean is the pixel, as on a camera's sensor."""

Field = NDArray[np.float64]
Colour = tuple[float, float, float]


class Canvas:
    """A supersampled picture in linear steps of 0..255, addressed in final pixels."""

    def __init__(self, background: Colour) -> None:
        rows, columns = HEIGHT_PX * SUPERSAMPLING, WIDTH_PX * SUPERSAMPLING
        self.pixels = np.broadcast_to(np.array(background, np.float64), (rows, columns, 3)).copy()
        self.y, self.x = np.meshgrid(
            (np.arange(rows) + 0.5) / SUPERSAMPLING, (np.arange(columns) + 0.5) / SUPERSAMPLING, indexing="ij"
        )

    def fill(self, inside: NDArray[np.bool_], colour: Field | Colour) -> None:
        """Paint the points where `inside` holds; `colour` may vary from point to point."""
        self.pixels[inside] = np.broadcast_to(np.asarray(colour, np.float64), self.pixels.shape)[inside]

    def box(self, x: float, y: float, reach: float) -> tuple[slice, slice]:
        """Rows and columns of the points within `reach` pixels of a centre."""
        top, left = (max(int((centre - reach) * SUPERSAMPLING), 0) for centre in (y, x))
        bottom, right = (max(int((centre + reach) * SUPERSAMPLING) + 2, 0) for centre in (y, x))
        return slice(top, bottom), slice(left, right)

    def stroke(self, start: tuple[float, float], end: tuple[float, float], width: float, colour: Colour) -> None:
        """A straight line with round ends from (x, y) to (x, y)."""
        (ax, ay), (bx, by) = start, end
        dx, dy = bx - ax, by - ay
        length = float(np.hypot(dx, dy))
        where = self.box((ax + bx) / 2, (ay + by) / 2, length / 2 + width)
        x, y = self.x[where] - ax, self.y[where] - ay
        along = np.clip((x * dx + y * dy) / max(length**2, 1e-9), 0, 1)
        self.pixels[where][np.hypot(x - along * dx, y - along * dy) < width / 2] = colour

    def finished(self) -> NDArray[np.uint8]:
        """Mean of every pixel's points, uint8 [HEIGHT_PX, WIDTH_PX, 3]."""
        points = self.pixels.reshape(HEIGHT_PX, SUPERSAMPLING, WIDTH_PX, SUPERSAMPLING, 3)
        return np.clip(np.rint(points.mean(axis=(1, 3))), 0, 255).astype(np.uint8)


def fractal_noise(canvas: Canvas, coarsest_px: float, octaves: int, seed: int) -> Field:
    """Value noise in about -1..1 whose amplitude halves with every halving of its period, like natural texture."""
    rng = np.random.default_rng(seed)
    total = np.zeros_like(canvas.x)
    for octave in range(octaves):
        period = coarsest_px / 2**octave
        lattice = rng.random((int(HEIGHT_PX / period) + 3, int(WIDTH_PX / period) + 3)) * 2 - 1
        row, column = np.floor(canvas.y / period).astype(int), np.floor(canvas.x / period).astype(int)
        v, u = canvas.y / period - row, canvas.x / period - column
        v, u = v * v * (3 - 2 * v), u * u * (3 - 2 * u)
        above = lattice[row, column] * (1 - u) + lattice[row, column + 1] * u
        below = lattice[row + 1, column] * (1 - u) + lattice[row + 1, column + 1] * u
        total += (above * (1 - v) + below * v) / 2**octave
    return total


# Strokes on a lattice 4 wide and 6 high, each point as its x and y digit.
GLYPHS = {
    "A": "06 20 46|14 34", "B": "00 06 36 45 44 33 03|00 30 41 42 33", "C": "41 30 10 01 05 16 36 45",
    "D": "00 06 26 44 42 20 00", "E": "40 00 06 46|03 33", "F": "40 00 06|03 33", "G": "41 30 10 01 05 16 36 45 43 23",
    "H": "00 06|40 46|03 43", "I": "20 26", "K": "00 06|40 03 46", "L": "00 06 46", "M": "06 00 23 40 46",
    "N": "06 00 46 40", "O": "10 30 41 45 36 16 05 01 10", "P": "06 00 30 41 42 33 03",
    "Q": "10 30 41 45 36 16 05 01 10|34 46", "R": "06 00 30 41 42 33 03|23 46",
    "S": "41 30 10 01 02 13 33 44 45 36 16 05", "T": "00 40|20 26", "U": "00 05 16 36 45 40", "V": "00 26 40",
    "W": "00 16 23 36 40", "X": "00 46|06 40", "Y": "00 23 40|23 26", "Z": "00 40 06 46",
    "0": "10 30 41 45 36 16 05 01 10|32 14",
    "1": "11 20 26", "2": "01 10 30 41 42 06 46", "3": "01 10 30 41 42 33 44 45 36 16 05", "4": "36 30 04 44",
    "8": "13 02 01 10 30 41 42 33 13 04 05 16 36 45 44 33", "-": "13 33", ".": "25 26",
}  # fmt: skip


def write_line(
    canvas: Canvas, text: str, origin: tuple[float, float], size_px: float, colour: Colour, tilt: float
) -> None:
    """Set one line of capitals `size_px` high from `origin`, climbing by `tilt` pixels per pixel."""
    unit = size_px / 6
    for position, letter in enumerate(text):
        for polyline in GLYPHS.get(letter, "").split("|"):
            points = []
            for point in polyline.split():
                x = (position * 5.6 + int(point[0])) * unit
                points.append((origin[0] + x, origin[1] + int(point[1]) * unit - tilt * x))
            for start, end in pairwise(points):
                canvas.stroke(start, end, max(unit * 0.9, 0.8), colour)


def draw_lettering() -> Canvas:
    """A printed page from headline to fine print, part of it reversed and part of it slanted."""
    canvas = Canvas((244, 240, 229))
    canvas.pixels += 3 * fractal_noise(canvas, 160, 3, seed=11)[..., None]
    write_line(canvas, "SUPER", (18, 16), 40, (24, 26, 33), 0)
    write_line(canvas, "RESOLUTION", (18, 66), 25, (172, 30, 38), 0)
    fine_print = (
        "QUANTIZED TO FOUR BITS",
        "EVERY LAYER HAS ITS OWN RANGE",
        "ZERO LIES ON THE GRID",
        "0 1 2 3 4 8 - 8 4 3 2 1 0",
    )
    for row, size in enumerate((11, 9.5, 8, 7, 6, 5)):
        write_line(canvas, fine_print[row % 4], (18, 106 + row * 16), size, (40, 42, 52), 0)
    canvas.fill((canvas.x > 236) & (canvas.y > 152), (28, 52, 92))
    for row, word in enumerate(("WHAT IS SHARP", "STAYS SHARP", "FROM EDGE", "TO EDGE")):
        write_line(canvas, word, (246, 186 + row * 27), 10.5 - row, (238, 232, 205), 0.14)
    for step in range(9):
        canvas.stroke((24, 212 + step * 6.5), (210, 206 + step * 8), 0.5 + 0.25 * step, (60, 60, 66))
    return canvas


def draw_gratings() -> Canvas:
    """A test chart: a zone plate, a star, bars of falling width and slow gradients."""
    canvas = Canvas((128, 128, 128))
    x, y = canvas.x, canvas.y
    radius_squared = (x - 100) ** 2 + (y - 100) ** 2
    # The period is 400 / r pixels: endless at the centre, eight (the finest that a quarter of the size can carry) at
    # r = 50, about four at the rim.
    wave = 128 + 110 * np.cos(np.pi * radius_squared / 400)
    canvas.fill(radius_squared < 96**2, wave[..., None] * np.array([1.0, 0.96, 0.9]))
    angle, distance = np.arctan2(y - 92, x - 290), np.hypot(x - 290, y - 92)
    spokes = np.where(np.sin(36 * angle) > 0, 235.0, 20.0)
    canvas.fill(distance < 84, spokes[..., None] * np.array([0.85, 0.95, 1.0]))
    left = 10.0
    for width in (8, 6, 4, 3, 2, 1.5, 1):
        for bar in range(4):
            canvas.fill((abs(x - left - (2 * bar + 0.5) * width) < width / 2) & (abs(y - 222) < 18), (12, 12, 12))
        left += 8 * width + 6
    for row, colour in enumerate(((255, 64, 32), (40, 200, 80), (48, 96, 255))):
        ramp = np.clip((x - 8) / 368, 0, 1)[..., None] * np.array(colour, np.float64)
        canvas.fill((y > 249 + 13 * row) & (y < 262 + 13 * row), ramp)
    checks = (np.floor(x / 5) + np.floor(y / 5)) % 2 * 180 + 40
    canvas.fill((x > 260) & (x < 376) & (y > 190) & (y < 240), checks[..., None] * np.array([1.0, 0.7, 0.4]))
    return canvas


def draw_foliage() -> Canvas:
    """Leaves over leaves, the near ones larger: edges of every direction and size, as in nature."""
    canvas = Canvas((22, 34, 18))
    canvas.pixels += (18 * fractal_noise(canvas, 96, 4, seed=21))[..., None]
    rng = np.random.default_rng(22)
    count = 420
    for index in range(count):
        depth = index / count
        length = 10 + 34 * depth * rng.random() + 10 * depth
        cx, cy = rng.random() * (WIDTH_PX + 40) - 20, rng.random() * (HEIGHT_PX + 40) - 20
        turn = rng.random() * 2 * np.pi
        where = canvas.box(cx, cy, length)
        dx, dy = canvas.x[where] - cx, canvas.y[where] - cy
        along = (dx * np.cos(turn) + dy * np.sin(turn)) / length
        across = (dy * np.cos(turn) - dx * np.sin(turn)) / length
        half_width = 0.36 * np.clip(1 - along**2, 0, None) * (1 - 0.35 * along)
        inside = (np.abs(across) < half_width) & (np.abs(along) < 1)
        light = 0.35 + 0.65 * depth * (0.75 + 0.5 * rng.random())
        autumn = rng.random() ** 4
        colour = np.array([70 + 130 * autumn, 140 + 20 * autumn, 48 + 10 * rng.random()]) * light
        side_veins = np.cos(16 * (along - 1.2 * np.abs(across)))
        shade = 1 + 0.22 * np.sign(across) + 0.08 * side_veins * (length > 20) + 0.3 * along
        shade = np.where(np.abs(across) * length < 0.5, 1.45, shade)
        canvas.pixels[where][inside] = (shade[..., None] * colour)[inside]
    return canvas


def draw_street() -> Canvas:
    """House fronts before a clouded sky: parallel edges that converge, bricks, windows, wires."""
    canvas = Canvas((0, 0, 0))
    x, y = canvas.x, canvas.y
    sky = np.clip(y / 170, 0, 1)[..., None] * np.array([110.0, 72, 22]) + np.array([92.0, 140, 208])
    clouds = np.clip(fractal_noise(canvas, 110, 6, seed=31) + 0.1, 0, 1)[..., None]
    canvas.pixels[...] = sky * (1 - 0.8 * clouds) + 238 * 0.8 * clouds
    plaster = fractal_noise(canvas, 24, 5, seed=32)
    # (left, right, eaves, paint, bricks); a front's rows shrink towards the vanishing point at the right.
    fronts = (
        (-20, 132, 42, (178, 96, 74), True),
        (132, 236, 74, (206, 190, 150), False),
        (236, 330, 96, (120, 132, 140), True),
    )
    for left, right, eaves, paint, bricks in fronts:
        away = 1 - (x - left) / 560
        level = (y - 210) / away
        front = (x >= left) & (x < right) & (level > (eaves - 210))
        colour = np.array(paint, np.float64) * (1 + 0.06 * plaster)[..., None]
        if bricks:
            course = np.floor(level / 5)
            joint = (level % 5 < 0.9) | ((x + 4.5 * (course % 2)) % 9 < 0.9)
            tone = 1 + 0.12 * np.sin(course * 12.9 + np.floor((x + 4.5 * (course % 2)) / 9) * 78.2)
            colour = np.where(joint[..., None], colour * 0.5 + 92, colour * tone[..., None])
        canvas.fill(front, colour)
        u, v = (x - left) % 30 - 9, (level + 2) % 44 - 12
        pane = (abs(u - 6) < 7.5) & (abs(v - 10) < 12) & (level < 0)
        canvas.fill(front & pane, (232, 228, 218))
        glass = pane & (abs(abs(u - 6) - 3.6) < 2.9) & (abs(abs(v - 10) - 5.6) < 4.8)
        canvas.fill(front & glass, sky * 0.42 + 12 * plaster[..., None])
        canvas.fill(front & (abs(level - (eaves - 207)) < 3), (70, 58, 52))
    canvas.fill(y > 262 - x * 0.03, (np.array([86.0, 86, 90]) + 16 * fractal_noise(canvas, 12, 4, seed=33)[..., None]))
    for offset in (0, 7, 15):
        sag = 30 + offset + ((x - 240) / 52) ** 2
        canvas.fill(abs(y - sag) < 0.45, (26, 26, 30))
    canvas.stroke((352, 20), (352, 262), 4, (64, 48, 40))
    canvas.stroke((330, 34), (376, 34), 2.4, (64, 48, 40))
    return canvas


PICTURES: dict[str, Callable[[], Canvas]] = {
    "foliage": draw_foliage,
    "gratings": draw_gratings,
    "lettering": draw_lettering,
    "street": draw_street,
}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=SAMPLES)
def main(folder: Path) -> None:
    """Write the sample images to FOLDER (default: tests/data/samples)."""
    for name, draw in PICTURES.items():
        low, high = downscale(draw().finished(), SCALE)
        write_image(folder / "HR" / f"{name}.png", high)
        write_image(folder / "LR_bicubic" / f"X{SCALE}" / f"{name}x{SCALE}.png", low)
        click.echo(f"{name}: {high.shape[1]}x{high.shape[0]} and {low.shape[1]}x{low.shape[0]}")


if __name__ == "__main__":
    main()
