"""What rooms and streets are covered with: textures from noise, and photographs where there are some."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from kp_training.data.procedural import ProceduralImages, clouds
from kp_training.data.rooms.rendering import Material
from kp_training.data.rooms.textures import Textures

SIDE = 512  # texels of a made texture

MADE_SHARE = 0.25  # of the pictures: made ones, shapes and letters, among photographs
PICTURES = ProceduralImages(200)

Photographs = Sequence[np.ndarray]


def _toned(noise: np.ndarray, dark, bright) -> np.ndarray:
    """H×W×3 uint8: `noise` of deviation 1 as colours between `dark` at -2 and `bright` at 2."""
    share = np.clip(noise / 4 + 0.5, 0, 1)[..., None]
    return (np.asarray(dark, np.float32) * (1 - share) + np.asarray(bright, np.float32) * share).astype(np.uint8)


def _two_tones(rng: np.random.Generator, contrast: float) -> tuple[np.ndarray, np.ndarray]:
    """A darker and a brighter BGR colour that go together."""
    base = rng.uniform(60, 200) + rng.normal(0, 22, 3)
    return np.clip(base - contrast / 2, 5, 250), np.clip(base + contrast / 2 + rng.normal(0, 8, 3), 5, 250)


def _grain(rng: np.random.Generator, image: np.ndarray, strength: float) -> np.ndarray:
    """`image` with fine noise, so that it is not blank from near either."""
    noise = clouds(rng, *image.shape[:2], 16, 2) * np.float32(strength)
    return np.clip(image + noise[..., None], 0, 255).astype(np.uint8)


def plaster(rng: np.random.Generator) -> np.ndarray:
    """A wall that is nearly blank: stains, a few cracks and knocks."""
    image = _toned(clouds(rng, SIDE, SIDE, 256, 2), *_two_tones(rng, rng.uniform(25, 80)))
    for _ in range(rng.integers(5, 25)):
        points = np.cumsum(np.vstack([rng.uniform(0, SIDE, 2), rng.normal(0, 14, (rng.integers(1, 8), 2))]), 0)
        cv2.polylines(image, [points.astype(np.int32)], False, _any_color(rng), int(rng.integers(1, 4)), cv2.LINE_AA)
    return _grain(rng, image, rng.uniform(3, 8))


def stone(rng: np.random.Generator) -> np.ndarray:
    """Rock, asphalt, carpet: noise of all sizes with strong contrast."""
    coarsest = int(2 ** rng.integers(3, 7))
    image = _toned(clouds(rng, SIDE, SIDE, coarsest, 1), *_two_tones(rng, rng.uniform(80, 190)))
    return _grain(rng, image, rng.uniform(8, 24))


def wood(rng: np.random.Generator) -> np.ndarray:
    """Boards with a grain along x."""
    flow = cv2.resize(clouds(rng, SIDE, SIDE // 8, 64, 1), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    rings = np.sin(flow * rng.uniform(4, 9) + np.linspace(0, rng.uniform(20, 80), SIDE)[:, None])
    dark = np.array([25, 50, 85]) * rng.uniform(0.5, 1.3)
    image = _toned(1.4 * rings + flow, dark, dark * rng.uniform(1.8, 2.6)).copy()
    step = int(rng.integers(48, 140))
    for row in range(0, SIDE, step):
        image[row : row + 3] //= 3
        image[row : row + step, int(rng.integers(0, SIDE - 4)) :][:, :3] //= 3
    return _grain(rng, image, 5)


def tiles(rng: np.random.Generator) -> np.ndarray:
    """Bricks, tiles or paving: cells of colours that differ a little (or much), with joints, rows shifted or not."""
    rows, columns = rng.integers(4, 13, 2)
    height, width, shift = SIDE / rows, SIDE / columns, rng.choice([0, 0.5, 0.33])
    dark, bright = _two_tones(rng, rng.uniform(20, 140))
    y, x = np.indices((SIDE, SIDE), np.float32)
    row = (y / height).astype(int)
    place = x / width + shift * row
    shares = rng.uniform(0, 1, (rows + 1, 2 * columns + rows + 2))[row, place.astype(int)] * 4 - 2
    image = _toned(shares + 0.5 * clouds(rng, SIDE, SIDE, 64, 2), dark, bright).copy()
    joint = rng.uniform(2, 6)
    image[((y % height) < joint) | ((place % 1) * width < joint)] = _any_color(rng)
    return _grain(rng, image, rng.uniform(3, 12))


def fabric(rng: np.random.Generator) -> np.ndarray:
    """Wallpaper, curtain or carpet: a small motif again and again."""
    count = int(rng.choice([4, 8, 16]))
    motif = np.full((128, 128, 3), _any_color(rng), np.uint8)
    for _ in range(rng.integers(3, 9)):
        center, axes = rng.integers(10, 118, 2).tolist(), rng.integers(4, 40, 2).tolist()
        cv2.ellipse(motif, center, axes, rng.uniform(0, 180), 0, 360, _any_color(rng), -1, cv2.LINE_AA)
        cv2.line(motif, *rng.integers(0, 128, (2, 2)).tolist(), _any_color(rng), 4)
    side = SIDE // count
    pattern = np.tile(cv2.resize(motif, (side, side), interpolation=cv2.INTER_AREA), (count, count, 1))
    return _grain(rng, cv2.addWeighted(pattern, 0.7, stone(rng), 0.3, 0), 6)


def leaves(rng: np.random.Generator) -> np.ndarray:
    """Foliage."""
    image = _toned(clouds(rng, SIDE, SIDE, 64, 4), (5, 25, 10), (25, 90, 45)).copy()
    shade = rng.uniform(0.5, 1.2, 3)
    for _ in range(700):
        center, length = rng.integers(0, SIDE, 2).tolist(), rng.uniform(6, 22)
        color = tuple(float(c) for c in rng.uniform(0.4, 1.4) * np.array([40, 140, 75]) * shade)
        axes = (int(length), int(length * rng.uniform(0.2, 0.5)))
        cv2.ellipse(image, center, axes, rng.uniform(0, 180), 0, 360, color, -1, cv2.LINE_AA)
    return _grain(rng, image, 6)


def facade(rng: np.random.Generator) -> np.ndarray:
    """A house's front: rows of windows in a wall of bricks or plaster, no two windows quite alike."""
    image = cv2.resize((tiles if rng.uniform() < 0.5 else plaster)(rng), (2 * SIDE, 2 * SIDE))
    if rng.uniform() < 0.7:
        image = np.tile(cv2.resize(image, (SIDE // 2, SIDE // 2), interpolation=cv2.INTER_AREA), (4, 4, 1))
    rows, columns = rng.integers(3, 7), rng.integers(3, 8)
    cell = np.array([2 * SIDE / columns, 2 * SIDE / rows])
    size, frame, pane = cell * rng.uniform([0.35, 0.45], [0.65, 0.75]), _any_color(rng), rng.integers(1, 4, 2)
    for row in range(rows):
        for column in range(columns):
            low = (cell * (column, row) + (cell - size) * 0.5).astype(int)
            high = (low + size).astype(int)
            cv2.rectangle(image, (low - 6).tolist(), (high + 6).tolist(), frame, -1)
            noise = clouds(rng, high[1] - low[1], high[0] - low[0], 32, 4)
            image[low[1] : high[1], low[0] : high[0]] = _toned(noise, (30, 22, 15), _any_color(rng))
            for axis, count in enumerate(pane):
                for line in np.linspace(low[axis], high[axis], count + 1).astype(int):
                    ends = (low.copy(), high.copy())
                    ends[0][axis] = ends[1][axis] = line
                    cv2.line(image, ends[0].tolist(), ends[1].tolist(), frame, 4)
            cv2.rectangle(image, (low[0] - 9, high[1] + 6), (high[0] + 9, high[1] + 13), _any_color(rng), -1)
    return _grain(rng, image, 5)


def sky(rng: np.random.Generator) -> np.ndarray:
    """Clouds."""
    dark = np.array([200, 150, 105]) * rng.uniform(0.6, 1.0)
    return _toned(clouds(rng, SIDE, SIDE, 256, 4) + rng.uniform(-1, 1), dark, (250, 246, 242))


def _any_color(rng: np.random.Generator) -> tuple[float, ...]:
    return tuple(float(value) for value in np.clip(rng.uniform(15, 240) + rng.normal(0, 40, 3), 5, 250))


MADE: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "plaster": plaster, "stone": stone, "wood": wood, "tiles": tiles, "fabric": fabric, "leaves": leaves,
    "facade": facade, "sky": sky,
}


class Palette:
    """The materials of one scene; each kind of texture is made when it is first asked for.

    photographs: H×W×3 BGR uint8 by index; ``photo`` is one of them.  variety: textures of a kind.
    """

    def __init__(self, rng: np.random.Generator, photographs: Photographs, variety: int = 3) -> None:
        self.rng, self.photographs, self.variety = rng, photographs, variety
        self.images: list[np.ndarray] = []
        self.kinds: dict[str, list[int]] = {}

    def textures(self) -> Textures:
        """Of the materials given out so far."""
        return Textures(self.images)

    def spread(self, kinds: Sequence[str], metres: float, **more) -> Material:
        """A material of one of `kinds` whose texture is `metres` wide and goes on mirrored."""
        number = self._number(str(self.rng.choice(kinds)))
        scale = self.images[number].shape[1] / metres
        start = self.rng.uniform(0, SIDE, 2)
        return Material(number, (scale, scale), (float(start[0]), float(start[1])), self._tint(), **more)

    def cover(self, kinds: Sequence[str], width: float, height: float, **more) -> Material:
        """A material of one of `kinds` whose texture just covers a rectangle of this many metres."""
        number = self._number(str(self.rng.choice(kinds)))
        rows, columns = self.images[number].shape[:2]
        return Material(number, (columns / width, rows / height), tint=self._tint(), **more)

    def _tint(self) -> tuple[float, float, float]:
        red, green, blue = self.rng.uniform(0.75, 1.15) * self.rng.uniform(0.85, 1.15, 3)
        return float(blue), float(green), float(red)

    def _number(self, kind: str) -> int:
        numbers = self.kinds.setdefault(kind, [])
        limit = 4 * self.variety if kind == "photo" else self.variety
        if len(numbers) < limit and (not numbers or self.rng.uniform() < 0.6):
            numbers.append(len(self.images))
            self.images.append(self._photo() if kind == "photo" else MADE[kind](self.rng))
        return numbers[int(self.rng.integers(len(numbers)))]

    def _photo(self) -> np.ndarray:
        """A part of a photograph, of at most SIDE × SIDE and at sides that halve exactly."""
        made = not len(self.photographs) or self.rng.uniform() < MADE_SHARE
        source = PICTURES if made else self.photographs
        photo = source[int(self.rng.integers(len(source)))]
        share = self.rng.uniform(0.5, 1, 2)
        size = np.maximum(np.array(photo.shape[:2]) * share, 32).astype(int)
        low = self.rng.integers(0, np.maximum(np.array(photo.shape[:2]) - size, 0) + 1)
        part = photo[low[0] : low[0] + size[0], low[1] : low[1] + size[1]]
        shrink = min(1.0, SIDE / max(part.shape[:2]))
        sides = [max(64, round(side * shrink / 64) * 64) for side in part.shape[1::-1]]
        return cv2.resize(part, sides, interpolation=cv2.INTER_AREA)
