"""Things that stand in rooms and streets, each built at the origin: z up, its front towards -y, metres."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from kp_training.data.rooms.materials import Palette
from kp_training.data.rooms.rendering import Material, Surface, ball, rectangle, tube

SOLID = ("wood", "stone", "fabric", "photo", "tiles", "plaster")


@dataclass(frozen=True)
class Thing:
    """surfaces: of it.  size: width and depth that it takes on the ground, and its height."""

    surfaces: tuple[Surface, ...]
    size: tuple[float, float, float]

    def at(self, place, turn: float) -> list[Surface]:
        """Its surfaces, turned by `turn` radians about z and moved to `place`."""
        cos, sin = np.cos(turn), np.sin(turn)
        rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        return [replace(surface, origin=rotation @ surface.origin + place, axes=surface.axes @ rotation.T)
                for surface in self.surfaces]


def box(low, size, materials: Material | Iterable[Material], bottom: bool = False) -> list[Surface]:
    """Sides of a box seen from outside: front, right, back, left, top (and bottom), of one material or one each."""
    (x, y, z), (w, d, h) = (tuple(map(float, vector)) for vector in (low, size))
    each = [materials] * 6 if isinstance(materials, Material) else list(materials)
    sides = [
        ((x, y, z + h), (w, 0, 0), (0, 0, -h)), ((x + w, y, z + h), (0, d, 0), (0, 0, -h)),
        ((x + w, y + d, z + h), (-w, 0, 0), (0, 0, -h)), ((x, y + d, z + h), (0, -d, 0), (0, 0, -h)),
        ((x, y + d, z + h), (w, 0, 0), (0, -d, 0)), ((x, y, z), (w, 0, 0), (0, d, 0)),
    ]
    return [rectangle(*side, material) for side, material in zip(sides if bottom else sides[:5], each)]


def covered_box(palette: Palette, low, size, kinds=SOLID) -> list[Surface]:
    """A box with a texture of its own stretched over each side."""
    w, d, h = size
    spans = [(w, h), (d, h), (w, h), (d, h), (w, d)]
    return box(low, size, [palette.cover(kinds, *span) for span in spans])


def crate(palette: Palette) -> Thing:
    """A box, sometimes with smaller ones on it."""
    rng, surfaces, base = palette.rng, [], 0.0
    size = rng.uniform([0.4, 0.4, 0.3], [1.0, 0.8, 0.9])
    width, depth = size[:2]
    for _ in range(rng.integers(1, 4)):
        surfaces += covered_box(palette, (-size[0] / 2, -size[1] / 2, base), size)
        base += size[2]
        size = size * rng.uniform(0.5, 0.9, 3)
    return Thing(tuple(surfaces), (width, depth, base))


def shelf(palette: Palette) -> Thing:
    """Boards with books and small boxes."""
    rng = palette.rng
    width, depth, height = rng.uniform([0.9, 0.28, 1.2], [1.8, 0.4, 2.2])
    plank, level = palette.spread(("wood", "plaster"), 0.8), float(rng.uniform(0.32, 0.45))
    surfaces = [rectangle((-width / 2, depth / 2 - 0.01, height), (width, 0, 0), (0, 0, -height), plank)]
    for side in (-width / 2, width / 2 - 0.03):
        surfaces += box((side, -depth / 2, 0), (0.03, depth, height), plank)
    for board in np.arange(0, height, level):
        surfaces += box((-width / 2, -depth / 2, board), (width, depth, 0.025), plank, bottom=True)
        if board + level < height:
            surfaces += _books(palette, width, depth, board + 0.025, level - 0.06)
    return Thing(tuple(surfaces), (width, depth, height))


def _books(palette: Palette, width: float, depth: float, base: float, room: float) -> list[Surface]:
    rng, surfaces, x = palette.rng, [], -width / 2 + 0.04
    while x < width / 2 - 0.1:
        thick = float(rng.choice([rng.uniform(0.03, 0.07), rng.uniform(0.1, 0.25)]))
        thick = min(thick, width / 2 - 0.04 - x)
        tall, deep = rng.uniform(0.4, 1) * room, rng.uniform(0.5, 0.95) * depth
        if rng.uniform() < 0.85:
            material = palette.cover(SOLID, thick * 2, room, gloss=0.15)
            surfaces += box((x, -deep / 2, base), (thick, deep, tall), material)
        x += thick + float(rng.choice([0.004, 0.004, 0.08]))
    return surfaces


def table(palette: Palette) -> Thing:
    """A top on four thin legs, with things on it."""
    rng = palette.rng
    width, depth, height = rng.uniform([0.8, 0.6, 0.45], [1.8, 0.9, 0.8])
    surfaces = box((-width / 2, -depth / 2, height - 0.04), (width, depth, 0.04), palette.spread(("wood",), 0.9), True)
    leg = palette.spread(("wood", "stone"), 0.4)
    for x in (-1, 1):
        for y in (-1, 1):
            foot = (x * (width / 2 - 0.06), y * (depth / 2 - 0.06), 0)
            surfaces.append(tube(foot, (0, 0, height - 0.04), 0.025, leg))
    return Thing((*surfaces, *_clutter(palette, width, depth, height)), (width, depth, height + 0.3))


def _clutter(palette: Palette, width: float, depth: float, height: float) -> list[Surface]:
    """Boxes, balls and cans side by side on a top."""
    rng, surfaces = palette.rng, []
    for x in np.arange(-width / 2 + 0.15, width / 2 - 0.1, 0.28):
        y, kind = rng.uniform(-0.3, 0.3) * depth, rng.integers(4)
        if kind == 0:
            radius = rng.uniform(0.06, 0.12)
            surfaces.append(ball((x, y, height + radius), radius, palette.spread(SOLID, 0.4, gloss=0.4)))
        elif kind == 1:
            radius, tall = rng.uniform([0.03, 0.08], [0.08, 0.3])
            surfaces += _can((x, y, height), radius, tall, palette.spread(SOLID, 0.3, gloss=0.3))
        else:
            size = rng.uniform([0.08, 0.05, 0.05], [0.24, 0.22, 0.3])
            surfaces += covered_box(palette, (x - size[0] / 2, y - size[1] / 2, height), size)
    return surfaces


def _can(base, radius: float, tall: float, material: Material) -> list[Surface]:
    """A cylinder with a top."""
    x, y, z = base
    lid = rectangle((x - radius, y + radius, z + tall), (2 * radius, 0, 0), (0, -2 * radius, 0), material, kind="disc")
    return [tube(base, (0, 0, tall), radius, material), lid]


def chair(palette: Palette) -> Thing:
    """Seat, back and legs."""
    rng = palette.rng
    seat, cover = float(rng.uniform(0.4, 0.5)), palette.spread(("fabric", "wood", "photo"), 0.5)
    leg = palette.spread(("wood", "stone"), 0.3)
    surfaces = box((-0.22, -0.22, seat - 0.05), (0.44, 0.44, 0.05), cover, bottom=True)
    surfaces += box((-0.22, 0.17, seat + 0.1), (0.44, 0.04, 0.4), cover, bottom=True)
    for x in (-0.19, 0.19):
        for y, tall in ((-0.19, seat - 0.05), (0.19, seat + 0.3)):
            surfaces.append(tube((x, y, 0), (0, 0, tall), 0.018, leg))
    return Thing(tuple(surfaces), (0.5, 0.5, seat + 0.5))


def sofa(palette: Palette) -> Thing:
    """A seat between arms, with cushions."""
    rng = palette.rng
    width, cover = float(rng.uniform(1.4, 2.2)), palette.spread(("fabric", "stone"), 0.7)
    surfaces = box((-width / 2, -0.4, 0), (width, 0.8, 0.42), cover)
    surfaces += box((-width / 2, 0.22, 0.42), (width, 0.18, 0.45), cover)
    for x in (-width / 2, width / 2 - 0.16):
        surfaces += box((x, -0.4, 0.42), (0.16, 0.62, 0.2), cover)
    for x in np.arange(-width / 2 + 0.4, width / 2 - 0.3, 0.5):
        side = float(rng.uniform(0.3, 0.42))
        surfaces += covered_box(palette, (x - side / 2, 0.08, 0.42), (side, 0.13, side), ("photo", "fabric"))
    return Thing(tuple(surfaces), (width, 0.8, 0.9))


def plant(palette: Palette) -> Thing:
    """A pot with a stem and thin leaves that all point another way."""
    rng = palette.rng
    height, radius = float(rng.uniform(0.7, 1.7)), float(rng.uniform(0.12, 0.2))
    surfaces = [*_can((0, 0, 0), radius, 0.3, palette.spread(SOLID, 0.5)),
                tube((0, 0, 0.3), (0, 0, height - 0.3), 0.012, palette.spread(("wood",), 0.3))]
    for _ in range(rng.integers(14, 30)):
        surfaces.append(_leaf(palette, (0, 0, rng.uniform(0.4, 1) * height), rng.uniform(0.2, 0.45)))
    return Thing(tuple(surfaces), (0.7, 0.7, height + 0.2))


def _leaf(palette: Palette, root, length: float) -> Surface:
    rng = palette.rng
    turn, rise = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 1.0)
    out = length * np.array([np.cos(turn) * np.cos(rise), np.sin(turn) * np.cos(rise), np.sin(rise)])
    across = np.cross(out, rng.normal(size=3))
    across *= length * rng.uniform(0.15, 0.4) / np.linalg.norm(across)
    material = palette.spread(("leaves",), 0.5, gloss=0.2)
    return rectangle(np.asarray(root) - across / 2, out, across, material, True, "disc")


def floor_lamp(palette: Palette) -> Thing:
    """A thin pole with a shade that glows."""
    height = float(palette.rng.uniform(1.2, 1.8))
    shade = palette.spread(("fabric", "plaster"), 0.5, glow=0.6)
    pole = palette.spread(("stone", "wood"), 0.2, gloss=0.5)
    return Thing((*_can((0, 0, 0), 0.14, 0.03, pole), tube((0, 0, 0), (0, 0, height), 0.014, pole),
                  tube((0, 0, height), (0, 0, 0.3), 0.18, shade)), (0.4, 0.4, height + 0.3))


def globe(palette: Palette) -> Thing:
    """A ball on the ground."""
    radius = float(palette.rng.uniform(0.15, 0.4))
    return Thing((ball((0, 0, radius), radius, palette.spread(SOLID, 1.2, gloss=0.5)),), (2 * radius,) * 3)


def tree(palette: Palette) -> Thing:
    """A trunk, branches, and a crown of balls and single leaves."""
    rng = palette.rng
    height, bark = float(rng.uniform(3, 6)), palette.spread(("wood", "stone"), 0.8)
    surfaces = [tube((0, 0, 0), (0, 0, height), rng.uniform(0.1, 0.22), bark)]
    for _ in range(rng.integers(4, 8)):
        turn, base = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 0.95) * height
        tip = np.array([np.cos(turn), np.sin(turn), rng.uniform(0.3, 1.0)]) * rng.uniform(0.7, 1.5)
        surfaces.append(tube((0, 0, base), tip, 0.035, bark))
        surfaces.append(ball(tip + [0, 0, base], rng.uniform(0.35, 0.8), palette.spread(("leaves",), 1.5)))
        surfaces += [_leaf(palette, tip * rng.uniform(0.4, 1.3) + [0, 0, base], 0.5) for _ in range(5)]
    return Thing(tuple(surfaces), (1.2, 1.2, height + 1.5))


def lamp_post(palette: Palette) -> Thing:
    """A pole with an arm, a lamp, and a sign."""
    rng, pole = palette.rng, palette.spread(("stone", "plaster"), 0.5, gloss=0.3)
    height, side = float(rng.uniform(3, 6)), float(rng.uniform(0.4, 0.8))
    picture = palette.cover(("photo",), side, side)
    sign = rectangle((-side / 2, -0.08, height * 0.6), (side, 0, 0), (0, 0, -side), picture, True)
    return Thing((tube((0, 0, 0), (0, 0, height), 0.06, pole), tube((0, 0, height), (0, -0.8, 0.1), 0.04, pole),
                  ball((0, -0.8, height), 0.15, palette.spread(("plaster",), 0.5, glow=0.7)), sign), (0.6, 0.6, height))


def fence(palette: Palette) -> Thing:
    """Thin bars between two rails."""
    rng, bars = palette.rng, palette.spread(("wood", "stone"), 0.5)
    width, height, step = float(rng.uniform(2, 5)), float(rng.uniform(0.8, 1.3)), float(rng.uniform(0.2, 0.5))
    surfaces = [tube((x, 0, 0), (0, 0, height), 0.02, bars) for x in np.arange(-width / 2, width / 2 + 0.01, step)]
    surfaces += [tube((-width / 2, 0, z), (width, 0, 0), 0.025, bars) for z in (0.15, height - 0.1)]
    return Thing(tuple(surfaces), (width, 0.2, height))


def car(palette: Palette) -> Thing:
    """A body, a cabin with windows, and wheels."""
    body, glass = palette.spread(("plaster", "stone"), 3, gloss=0.7), palette.spread(("photo", "sky"), 2, gloss=0.8)
    surfaces = box((-2.1, -0.85, 0.3), (4.2, 1.7, 0.6), body)
    surfaces += box((-1.2, -0.75, 0.9), (2.3, 1.5, 0.55), [glass] * 4 + [body])
    wheel = palette.spread(("stone",), 1)
    for x in (-1.35, 1.35):
        surfaces += [rectangle((x - 0.33, -0.87, 0.66), (0.66, 0, 0), (0, 0, -0.66), wheel, True, "disc"),
                     rectangle((x + 0.33, 0.87, 0.66), (-0.66, 0, 0), (0, 0, -0.66), wheel, True, "disc")]
    return Thing(tuple(surfaces), (4.2, 1.8, 1.5))


def bench(palette: Palette) -> Thing:
    """Planks on two blocks."""
    plank, block = palette.spread(("wood",), 0.8), palette.spread(("stone", "tiles"), 0.8)
    surfaces = [side for x in (-0.7, 0.5) for side in box((x, -0.2, 0), (0.2, 0.4, 0.42), block)]
    for y in (-0.22, -0.06, 0.1):
        surfaces += box((-0.9, y, 0.42), (1.8, 0.12, 0.04), plank, bottom=True)
    return Thing(tuple(surfaces), (1.8, 0.5, 0.5))


def house(palette: Palette) -> Thing:
    """A block with windows on all sides, sills and balconies that stand out, and a plinth."""
    rng = palette.rng
    width, depth, height = rng.uniform([6, 5, 6], [14, 9, 16])
    metres = float(rng.uniform(7, 12))
    low = (-width / 2, -depth / 2, 0)
    surfaces = box(low, (width, depth, height), palette.spread(("facade",), metres))
    surfaces += box((low[0] - 0.1, low[1] - 0.1, 0), (width + 0.2, depth + 0.2, rng.uniform(0.4, 1.2)),
                    palette.spread(("tiles", "stone"), 2))
    for _ in range(rng.integers(3, 8)):
        size = rng.uniform([0.8, 0.2, 0.1], [2.5, 0.9, 1.0])
        place = (rng.uniform(-0.45, 0.3) * width, -depth / 2 - size[1], rng.uniform(0.15, 0.8) * height)
        surfaces += box(place, size, palette.spread(SOLID, 1.5), bottom=True)
    door = rectangle((rng.uniform(-0.3, 0.2) * width, -depth / 2 - 0.12, 2.2), (1.2, 0, 0), (0, 0, -2.2),
                     palette.cover(("photo", "wood"), 1.2, 2.2))
    return Thing((*surfaces, door), (width + 0.2, depth + 2.0, height))


INDOORS: tuple[Callable[[Palette], Thing], ...] = (crate, shelf, shelf, table, chair, sofa, plant, floor_lamp, globe)
OUTDOORS: tuple[Callable[[Palette], Thing], ...] = (tree, tree, lamp_post, fence, car, bench, crate, globe, plant)
