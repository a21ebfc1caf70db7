"""The built-in sample set: five Indonesian dishes drawn with Pillow and NumPy, none of them a photo.

A dish is drawn in *dish units*: the rim of its plate is the unit circle, x to the right and y down. A
`_Brush` turns those into pixels, under a viewpoint and a light of its own for each picture. Everything is
drawn at twice the asked size and then reduced, which smooths all edges at once.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageDraw, ImageFilter

from runtime.errors import SajiError
from runtime.files import replacing_folder, write_text

DRAWN = "drawn by saji, not a photo"
STYLE = 1  # goes up when the drawings change, so that pictures of an older saji are not taken for these

Colour = tuple[int, int, int]  # red, green, blue, each 0-255
Floats = npt.NDArray[np.float64]
Layers = Sequence[tuple[float, float, float, int]]

# A piece is painted in layers, lowest first: (scale, shift towards the light in radii, tone, opacity 0-255).
# Tone -1 is black, 0 the colour of the piece, 1 white.
FLAT: Layers = ((1, 0, 0, 255),)
GLASS: Layers = ((1, 0, 0, 90), (0.7, 0.15, 0.5, 60))
GRAIN: Layers = ((1.1, -0.4, -0.7, 90), (1, 0, 0, 255), (0.5, 0.2, 0.3, 255))
RINGS: Layers = ((1, -0.25, -0.7, 90), (1, 0, 0, 255), (0.62, 0.05, 0.6, 255))
SLAB: Layers = ((1.05, -0.2, -1, 70), (1, -0.06, -0.3, 255), (0.96, 0.04, 0, 255))
CHUNK: Layers = ((1.1, -0.2, -1, 90), (1, 0, -0.4, 255), (0.86, 0.1, 0, 255), (0.5, 0.26, 0.13, 255))
SHELL: Layers = ((1, 0, -0.34, 255), (0.92, 0.06, -0.16, 255), (0.76, 0.15, 0, 255), (0.54, 0.26, 0.1, 255))
ROUND: Layers = ((1.08, -0.22, -1, 80), *SHELL, (0.32, 0.37, 0.22, 255), (0.12, 0.5, 0.85, 255))

WHITE, CREAM, GOLD, YOLK = (250, 248, 240), (244, 234, 206), (222, 168, 84), (246, 170, 38)
GREEN, LIGHT_GREEN, DARK_GREEN, RED = (98, 152, 58), (196, 220, 150), (44, 92, 40), (200, 46, 34)
WOOD: tuple[Colour, ...] = ((150, 104, 66), (196, 160, 118), (92, 62, 44), (206, 200, 190), (84, 92, 96))
CLOTH: tuple[Colour, ...] = ((64, 100, 120), (170, 60, 52), (196, 160, 90), (120, 140, 90), (112, 92, 130))
CLAY: tuple[Colour, ...] = (WHITE, WHITE, (226, 216, 196), (120, 160, 176), (170, 196, 160), (84, 84, 92))
GLAZE: tuple[Colour, ...] = ((40, 84, 150), RED, DARK_GREEN, (120, 80, 50))
# What comes in round slices: skin, flesh, seeds
CUCUMBER = (DARK_GREEN, (194, 218, 144), (154, 186, 108))
TOMATO = ((176, 34, 24), (222, 78, 54), (244, 190, 110))
LIME = ((110, 160, 50), (206, 222, 120), (238, 242, 190))


def _circle(corners: int, start: float = 0) -> Floats:
    angle = start + np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _dim(colour: Colour, by: float) -> Colour:
    red, green, blue = (min(255, int(by * part)) for part in colour)
    return red, green, blue


class _Brush:
    """Paints one picture: holds its canvas, its random numbers, its viewpoint and where the light stands."""

    def __init__(self, canvas: Image.Image, rng: np.random.Generator) -> None:
        self.canvas, self.rng, self.side = canvas, rng, canvas.width
        # Opaque fills are most of the work, and Pillow is many times faster when it need not blend them.
        self.solid, self.glass = ImageDraw.Draw(canvas), ImageDraw.Draw(canvas, "RGBA")
        self.zoom = self.side * (rng.uniform(0.48, 0.62) if self.chance(0.2) else rng.uniform(0.38, 0.46))
        self.centre = self.side * rng.uniform(0.44, 0.56, 2)
        self.tilt = rng.uniform(0.8, 1)  # 1 looks straight down
        (cos, sin), self.light = self.spot(1), _circle(360)[self.some(210, 330)]
        self.axes = self.zoom * np.array([[cos, self.tilt * sin], [-sin, self.tilt * cos]])

    def chance(self, p: float) -> bool:
        """True with probability `p`."""
        return bool(self.rng.random() < p)

    def some(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return int(self.rng.integers(low, high + 1))

    def angle(self) -> float:
        """A direction, in radians."""
        return self.rng.uniform(0, 2 * np.pi)

    def pick(self, *colours: Colour) -> Colour:
        """One of the colours, a little off, as no two kitchens cook alike."""
        near = np.array(colours[self.some(1, len(colours)) - 1]) + self.rng.integers(-9, 10, 3)
        red, green, blue = near.clip(0, 255).tolist()
        return red, green, blue

    def spots(self, most: int, chance: float, reach: float) -> Floats:
        """At most `most` places (n, 2), each by `chance`, all `reach` off the middle and far from another."""
        return reach * _circle(3, self.angle())[: self.rng.binomial(most, chance)]

    def spot(self, reach: float) -> Floats:
        """A place (2,) exactly `reach` off the middle."""
        return np.array(self.spots(1, 1, reach)[0])

    def spread(self, count: int, reach: float, at: npt.ArrayLike = (0, 0)) -> Floats:
        """`count` places (count, 2) that fill a disc evenly, as sunflower seeds do, in random order."""
        step, n = self.rng.permutation(count)[:, None] + 0.5, max(1, count)
        angle = 2.39996 * step + self.angle()  # the golden angle
        places = np.sqrt(step / n) * np.hstack([np.cos(angle), np.sin(angle)])
        return np.asarray(at + reach * (places + self.rng.normal(0, 0.25 / n**0.5, (count, 2))))

    def disc(self, radius: float, colour: Colour, down: float = 0) -> None:
        """A circle about the middle of the dish, `down` dish units lower on the picture itself."""
        outline = self.centre + self.zoom * (radius * _circle(96) * (1, self.tilt) + (0, down))
        self.solid.polygon(outline.ravel().tolist(), colour)

    def pieces(
        self, at: npt.ArrayLike, radius: float, colour: Colour, layers: Layers = SLAB, *, vary: float = 0.07,
        corners: int = 20, angle: float | None = None, long: float = 1, wobble: float = 0,
        pointed: bool = False,
    ) -> None:  # fmt: skip
        """Paint one piece at each place of `at` (n, 2); without an `angle` each lies as it fell."""
        places, t = np.atleast_2d(at), np.arange(corners) * (2 * np.pi / corners)
        count, cos, sin = len(places), np.cos(t), np.sin(t)
        shades, size = self.rng.uniform(1 - vary, 1 + vary, (2, count, 1))
        two, three, seven, turn = self.rng.uniform(0, 2 * np.pi, (4, count, 1))
        if wobble:
            waves = np.sin(2 * t + two) / 1.4 + np.sin(3 * t + three) / 1.7 + np.sin(7 * t + seven) / 2.6
            size = size * (1 + wobble * waves)
        outline = radius * size * (long * cos + 1j * sin * (np.abs(sin) if pointed else 1))
        outline = outline * np.exp(1j * (turn if angle is None else angle))
        pixels = outline.view(float).reshape(count, 1, corners, 2) @ self.axes
        scale, shift, tone, opacity = np.array(layers, float).T[:, :, None]
        middles = (places @ self.axes + self.centre)[:, None] + shift * radius * self.zoom * self.light
        polygons = (scale[..., None] * pixels + middles[:, :, None]).reshape(count, len(layers), 2 * corners)
        fills = shades[..., None] * np.array(colour) * (1 - np.abs(tone)) + 255 * np.maximum(0, tone)
        fills = np.append(fills.clip(0, 255), np.broadcast_to(opacity, (count, len(layers), 1)), axis=2)
        draws = [(self.solid if layer[3] == 255 else self.glass).polygon for layer in layers]
        for piece in zip(polygons.tolist(), fills.astype(int).tolist(), strict=True):
            for draw, polygon, fill in zip(draws, *piece, strict=True):
                draw(polygon, tuple(fill))

    def strands(
        self, at: npt.ArrayLike, length: float, width: float, colour: Colour, *, bend: float = 0,
        angle: float | None = None, vary: float = 0.08,
    ) -> None:  # fmt: skip
        """Paint a strand through each place of `at` (n, 2), one side in shadow; an `angle` bundles them."""
        places, t = np.atleast_2d(at), np.linspace(0, 1, 3 + int(6 * bend))
        each = (len(places), 1)
        first, wave = self.rng.uniform(0, 2 * np.pi, (2, *(each if angle is None else (1, 1))))
        swing = bend * self.rng.uniform(0.6, 1.3, first.shape) * np.sin(5 * t + wave)
        heading = (first if angle is None else angle) + self.rng.normal(0, 0.12, each) + swing
        path = np.cumsum(np.exp(1j * heading), axis=1) * length / len(t)
        path = (path - path.mean(axis=1, keepdims=True)).view(float).reshape(*each[:1], len(t), 2)
        pixels, wide = (path + places[:, None]) @ self.axes + self.centre, max(1, round(width * self.zoom))
        lines = np.stack([pixels - 0.3 * wide * self.light, pixels]).reshape(2, len(places), 2 * len(t))
        shades = np.array(colour) * self.rng.uniform(1 - vary, 1 + vary, each)
        fills = np.stack([shades * (0.7, 0.6, 0.5), shades]).clip(0, 255).astype(int)
        for edge, line, dark, shade in zip(*lines.tolist(), *fills.tolist(), strict=True):
            self.solid.line(edge, tuple(dark), wide)
            self.solid.line(line, tuple(shade), wide)


def _table(b: _Brush) -> None:
    """Wooden boards or a checked cloth."""
    boards, along = b.chance(0.55), b.spot(1)
    base = b.pick(*(WOOD if boards else CLOTH))
    b.canvas.paste(base, (0, 0, b.side, b.side))
    pitch = b.side * (b.rng.uniform(0.16, 0.3) if boards else 0.1)
    for direction in (along,) if boards else (along, along[::-1] * (-1, 1)):
        for row in np.arange(-0.75 * b.side, 0.75 * b.side, pitch):
            ends = b.side / 2 + np.outer((b.side, -b.side), direction) + row * direction[::-1] * (-1, 1)
            if boards:
                b.solid.line(ends.ravel().tolist(), _dim(base, 0.5), int(pitch) + 2)
                b.solid.line(ends.ravel().tolist(), _dim(base, b.rng.uniform(0.85, 1.15)), int(pitch) - 2)
            else:
                b.glass.line(ends.ravel().tolist(), (255, 250, 235, 70), int(pitch / 2))


def _plate(b: _Brush, broth: Colour | None = None) -> None:
    """A plate, or a deep bowl of broth, with its shadow on the table and a painted rim as in a warung."""
    shadow = Image.new("L", (64, 64))
    outline = b.centre + b.zoom * (_circle(48) * (1.03, 1.03 * b.tilt) - 0.09 * b.light + (0, 0.05))
    ImageDraw.Draw(shadow).polygon((outline * 64 / b.side).ravel().tolist(), 130)
    shadow = shadow.filter(ImageFilter.BoxBlur(2)).resize(b.canvas.size, Image.Resampling.BILINEAR)
    b.canvas.paste((24, 12, 6), (0, 0), shadow)
    clay, glaze = b.pick(*CLAY), b.pick(*GLAZE)
    wall, foot = (2 - 2 * b.tilt, 0.7) if broth else (0.03, 1)
    for step in np.linspace(1, 0, 6 if broth else 2):  # a bowl's wall shows as far as one looks from the side
        b.disc(1 - (1 - foot) * step**2, _dim(clay, 1 - 0.35 * step), down=wall * step)
    if b.chance(0.5):
        b.disc(0.97, glaze)
        b.disc(0.945, clay)
    elif b.chance(0.7):
        b.pieces(0.955 * _circle(28), 0.022, glaze, FLAT, corners=8)
    for radius, tone in ((0.91, 0.68), (0.89, 0.82)) if broth else ((0.78, 0.84), (0.75, 0.95)):
        b.disc(radius, _dim(clay, tone), down=0.012)
    if broth:
        for radius, tone in ((0.83, 0.72), (0.81, 0.88), (0.72, 0.95), (0.6, 1)):
            b.disc(radius, _dim(broth, tone))
        b.pieces(b.spread(34, 0.74), 0.032, (255, 232, 130), GLASS, vary=0.6, corners=12)  # drops of fat


def _noodles(b: _Brush, bundles: int, width: float, colour: Colour) -> None:
    for _ in range(bundles):
        b.strands(b.spread(8, 0.3, b.spot(0.28)), 0.72, width, colour, bend=1.3, angle=b.angle())


def _sprinkle(b: _Brush, scallions: int, shallots: int, reach: float, at: npt.ArrayLike = (0, 0)) -> None:
    b.pieces(b.spread(scallions, reach, at), 0.04, b.pick(GREEN), RINGS, vary=0.3, corners=10, long=1.2)
    b.strands(b.spread(shallots, reach, at), 0.12, 0.026, b.pick((142, 82, 34)), bend=0.9, vary=0.25)


def _leaves(b: _Brush, at: npt.ArrayLike, radius: float, colour: Colour) -> None:
    for place in np.atleast_2d(at):
        angle = b.angle()
        b.pieces(place, radius, colour, long=1.9, angle=angle, pointed=True, wobble=0.02, corners=24)
        b.strands(place, radius * 3, 0.012, LIGHT_GREEN, angle=angle)


def _slices(b: _Brush, at: npt.ArrayLike, skin: Colour, flesh: Colour, seeds: Colour) -> None:
    for place in np.atleast_2d(at):
        b.pieces(place, 0.15, skin)
        b.pieces(place, 0.13, flesh, ((1, 0, 0, 255), (0.62, 0, 0.3, 255)))
        b.pieces(place + 0.075 * _circle(7), 0.018, seeds, FLAT, long=1.5, corners=6)


def _half_eggs(b: _Brush, at: npt.ArrayLike) -> None:
    b.pieces(at, 0.2, WHITE, long=1.16, vary=0.02)
    b.pieces(at, 0.12, b.pick(YOLK, (250, 196, 80)), SHELL, wobble=0.02)


def _crackers(b: _Brush, at: npt.ArrayLike) -> None:
    crisp = b.pick((250, 226, 180), (252, 242, 224), (246, 196, 160))
    for place in np.atleast_2d(at):
        b.pieces(place + 0.17 * _circle(9), 0.085, _dim(crisp, 0.94), vary=0.2)
        b.pieces(place, 0.2, crisp, FLAT)
        b.strands(b.spread(9, 0.15, place), 0.2, 0.02, _dim(crisp, 1.05), bend=1.6)


def _mound(b: _Brush, at: npt.ArrayLike, radius: float, colour: Colour, count: int) -> None:
    """A heap of rice, its grains lighter towards the top."""
    b.pieces(at, radius * 1.05, _dim(colour, 0.62), wobble=0.03, corners=36)
    for share, reach, tone in ((0.45, 1, 0.86), (0.35, 0.8, 1), (0.2, 0.5, 1.1)):
        grains = b.spread(int(count * share), radius * reach, at)
        b.pieces(grains, 0.034, _dim(colour, tone), GRAIN, long=1.8, corners=6, vary=0.16)


def _bakso(b: _Brush) -> None:
    _plate(b, b.pick((206, 170, 112), (190, 150, 96), (220, 184, 96)))
    _noodles(b, b.some(2, 4), 0.042, b.pick((238, 204, 110), CREAM))
    if b.chance(0.6):
        _leaves(b, b.spread(3, 0.25, b.spot(0.45)), 0.2, b.pick(GREEN))
    _half_eggs(b, b.spots(1, 0.25, 0.45))
    _sprinkle(b, b.some(10, 26), b.some(0, 14), 0.62)
    balls, meat = b.spread(b.some(3, 7), 0.46), b.pick((160, 122, 90), (176, 138, 104), (138, 104, 80))
    b.pieces(balls, b.rng.uniform(0.18, 0.23), meat, ROUND, wobble=0.01, corners=36)
    b.pieces(b.spread(9 * b.some(0, 1), 0.1, b.spot(0.45)), 0.07, b.pick(RED), CHUNK, wobble=0.08)  # sambal
    _sprinkle(b, b.some(2, 8), b.some(0, 6), 0.5)


def _soto_ayam(b: _Brush) -> None:
    _plate(b, b.pick((226, 176, 44), (236, 190, 70), (216, 176, 90)))
    _noodles(b, b.some(1, 3), 0.03, b.pick(CREAM, (240, 212, 130)))
    b.pieces(b.spots(3, 0.15, 0.45), 0.19, b.pick((196, 146, 84)), ROUND, wobble=0.01)  # potato cakes
    heap, chicken = b.spread(b.some(34, 54), 0.38, b.spot(0.14)), b.pick((244, 222, 178), (232, 202, 150))
    b.strands(heap, 0.34, 0.055, chicken, bend=0.3, vary=0.12)
    _sprinkle(b, b.some(8, 24), b.some(8, 20), 0.55)
    _half_eggs(b, b.spots(2, 0.5, 0.46))
    _slices(b, b.spots(1, 0.5, 0.55), *LIME)
    _slices(b, b.spots(1, 0.4, 0.5), *TOMATO)
    _leaves(b, b.spread(b.some(4, 12), 0.45), 0.06, b.pick(GREEN))


def _nasi_goreng(b: _Brush) -> None:
    _plate(b)
    _leaves(b, b.spots(1, 0.4, 0.5), 0.3, b.pick((130, 180, 80)))
    rice = b.pick((204, 134, 62), (184, 110, 50), (222, 158, 84))
    _mound(b, b.spot(0.1), b.rng.uniform(0.52, 0.63), rice, 250)
    b.pieces(b.spread(b.some(6, 16), 0.5), 0.034, b.pick((230, 120, 30)), corners=4)  # carrot
    b.pieces(b.spread(b.some(4, 14), 0.5), 0.034, b.pick(GREEN), CHUNK, corners=10)  # peas
    b.pieces(b.spread(b.some(0, 5), 0.4), 0.07, (240, 150, 110), CHUNK, long=1.6, wobble=0.04)  # prawns
    _sprinkle(b, b.some(0, 8), b.some(0, 14), 0.5)
    egg, side = b.spots(1, 0.8, 0.18), b.spot(0.6)
    b.pieces(egg, 0.37, (206, 150, 80), wobble=0.05, corners=40)
    b.pieces(egg, 0.34, WHITE, ((1, 0, -0.06, 255), (0.85, 0.06, 0, 255)), wobble=0.05, corners=40)
    b.pieces(egg + b.rng.normal(0, 0.03, 2), 0.14, b.pick(YOLK), ROUND)
    _slices(b, side + np.outer(np.linspace(-0.35, 0.35, b.some(3, 5)), side[::-1] * (-1, 1)), *CUCUMBER)
    _slices(b, b.spots(1, 0.4, 0.55), *TOMATO)
    _crackers(b, b.spots(1, 0.4, 0.62))


def _gado_gado(b: _Brush) -> None:
    _plate(b)
    beds = b.rng.permutation(0.45 * _circle(7))
    b.pieces(beds[:2], 0.32, b.pick(LIGHT_GREEN), wobble=0.06, corners=36)
    b.strands(b.spread(18, 0.26, beds[0]), 0.22, 0.03, (226, 240, 190), bend=0.5)  # cabbage
    _leaves(b, b.spread(5, 0.2, beds[1]), 0.13, b.pick(DARK_GREEN, GREEN))
    b.strands(b.spread(14, 0.2, beds[2]), 0.3, 0.055, b.pick((90, 140, 50)), angle=b.angle())  # beans
    b.strands(b.spread(26, 0.24, beds[3]), 0.24, 0.038, CREAM, bend=0.8)  # sprouts
    b.pieces(b.spread(5, 0.2, beds[4]), 0.15, b.pick(GOLD), corners=4)  # tofu
    b.pieces(b.spread(4, 0.18, beds[5]), 0.15, b.pick((240, 214, 130), CREAM), wobble=0.03)  # potatoes
    _slices(b, b.spread(3, 0.2, beds[6]), *CUCUMBER)
    if b.chance(0.25):
        _mound(b, b.spot(0.4), 0.32, b.pick(CREAM, (214, 170, 110)), 90)
    sauce, pool = b.pick((176, 112, 50), (194, 134, 70), (150, 90, 44)), b.spot(0.12)
    b.pieces(pool, b.rng.uniform(0.32, 0.5), sauce, ROUND[:4], wobble=0.08, corners=48)
    b.pieces(b.spread(40, 0.38, pool), 0.02, (232, 190, 120), GRAIN, corners=6, vary=0.4)  # peanuts
    _sprinkle(b, 0, b.some(4, 20), 0.3, pool)
    _half_eggs(b, b.spots(3, 0.6, 0.42))
    _crackers(b, b.spots(2, 0.4, 0.62))
    _slices(b, b.spots(1, 0.4, 0.5), *TOMATO)


def _rendang(b: _Brush) -> None:
    _plate(b)
    if b.chance(0.5):  # on a banana leaf
        angle = b.angle()
        b.pieces((0, 0), 0.64, b.pick((70, 130, 50)), long=1.5, angle=angle, corners=40)
        b.strands(b.spread(12, 0.4), 0.6, 0.008, (110, 170, 80), angle=angle + 1.2)
        b.strands((0, 0), 1.7, 0.03, (150, 190, 100), angle=angle)
    pool, meat = b.spot(0.08), b.pick((96, 54, 30), (78, 44, 26), (116, 66, 36))
    if b.chance(0.3):
        _mound(b, -6 * pool, 0.35, b.pick(WHITE), 110)
    oily = ((1.05, 0, 0, 140), (1, 0, -0.3, 255), (0.9, 0.02, -0.5, 255))
    b.pieces(pool, 0.62, (176, 84, 20), oily, wobble=0.05, corners=48)
    b.pieces(b.spread(60, 0.56, pool), 0.035, _dim(meat, 0.9), GRAIN, wobble=0.1, corners=8, vary=0.4)
    for place in b.spread(b.some(6, 10), 0.42, pool):
        b.pieces(place, 0.2, meat, CHUNK, wobble=0.1, corners=7, long=1.25, vary=0.16)
        b.strands(b.spread(7, 0.12, place), 0.17, 0.012, _dim(meat, 1.3), bend=0.2, angle=b.angle(), vary=0.3)
    b.pieces(b.spread(50, 0.54, pool), 0.018, (128, 76, 38), GRAIN, wobble=0.1, corners=6, vary=0.5)
    b.pieces(b.spread(10, 0.5, pool), 0.03, (236, 130, 40), GLASS, vary=0.5)
    _leaves(b, b.spots(2, 0.5, 0.3), 0.1, b.pick(DARK_GREEN))
    b.pieces(b.spots(3, 0.3, 0.35), 0.045, RED, ROUND, long=3, pointed=True)  # chilli


_DRAWINGS: dict[str, Callable[[_Brush], None]] = {
    "bakso": _bakso,
    "gado_gado": _gado_gado,
    "nasi_goreng": _nasi_goreng,
    "rendang": _rendang,
    "soto_ayam": _soto_ayam,
}
DISHES: tuple[str, ...] = tuple(_DRAWINGS)


def _photograph(b: _Brush) -> Image.Image:
    """What a telephone makes of it: uneven light, a wrong white balance, a little blur and noise."""
    picture, size, noise = b.canvas.reduce(2), b.side // 2, b.some(1, 9)
    if b.chance(0.5):
        picture = picture.filter(ImageFilter.BoxBlur(b.rng.uniform(0.2, 0.9) * size / 256))
    warmth, across = b.rng.normal(0, 0.07), b.rng.uniform(0.03, 0.2) * np.linspace(-1, 1, size)[:, None]
    balance = b.rng.uniform(0.88, 1.2) * np.array([1 + warmth, 1 + b.rng.normal(0, 0.03), 1 - warmth])
    rows = np.asarray(picture, np.float32).reshape(size, 3 * size)  # NumPy is slow on a last axis of three
    rows = rows * (1 + b.light[1] * across).astype(np.float32)
    rows *= ((1 + b.light[0] * across) * balance).ravel().astype(np.float32)
    rows += b.rng.integers(-noise, noise, rows.shape, np.int8, endpoint=True)
    return Image.fromarray(rows.clip(0, 255).astype(np.uint8).reshape(size, size, 3))


def draw_dish(dish: str, seed: int, size: int = 256) -> Image.Image:
    """Draw one picture of a dish, one of `DISHES`: an RGB image of `size` by `size` pixels.

    The same dish, seed (any integer) and size give the same pixels on every run. Raises ValueError for a dish
    that has no drawing.
    """
    if dish not in _DRAWINGS:
        raise ValueError(f"there is no drawing of {dish!r}; the dishes are {', '.join(DISHES)}")
    rng = np.random.default_rng(list(f"{dish} {seed}".encode()))  # not hash(), which differs from run to run
    brush = _Brush(Image.new("RGB", (2 * size, 2 * size)), rng)
    _table(brush)
    _DRAWINGS[dish](brush)
    return _photograph(brush)


def write_sample(folder: Path, per_class: int = 100, size: int = 256, seed: int = 0) -> Path:
    """Write `per_class` JPEG files of each dish as `folder/<dish>/<dish>_000.jpg` and so on; return `folder`.

    Picture i of a dish is `draw_dish(dish, 100_000 * seed + i, size)`, `size` in pixels. `sample.json` beside
    the dishes records the settings. The folder takes its name only once it is complete, and one that already
    holds this very sample is not drawn again. Raises SajiError, and changes nothing, when it holds anything
    else; ValueError when `per_class` or `size` is below 1.
    """
    if per_class < 1 or size < 1:
        raise ValueError(f"a sample needs at least 1 picture a dish and 1 pixel, not {per_class} and {size}")
    note = "Every picture here was drawn by saji; none is a photo of food."
    settings = {"style": STYLE, "per_class": per_class, "size": size, "seed": seed, "dishes": DISHES}
    record = json.dumps({"drawn": True, "note": note, **settings}, indent=2) + "\n"
    seeds = range(100_000 * seed, 100_000 * seed + per_class)
    names = {f"{dish}/{dish}_{i:03d}.jpg": (dish, one) for dish in DISHES for i, one in enumerate(seeds)}
    if folder.exists():
        kept = folder / "sample.json"
        if kept.is_file() and kept.read_text() == record and all((folder / name).is_file() for name in names):
            return folder
        raise SajiError(f"{folder} holds something other than this sample; move it away with: mv {folder} {folder}.old")
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = DRAWN
    with replacing_folder(folder, "sample.json") as draft:
        for name, (dish, one) in names.items():
            (draft / dish).mkdir(exist_ok=True)
            draw_dish(dish, one, size).save(draft / name, quality=90, comment=DRAWN, exif=exif)
        write_text(draft / "sample.json", record)
    return folder
