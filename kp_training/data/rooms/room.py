"""Procedural scenes: furnished rooms and streets, their light, and a camera that moves smoothly through them.

World frame: x and y along the ground, z up, metres.  A scene is a function of its seed and its photographs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kp_frontend.camera import CameraModel
from kp_training.data.rooms.furniture import INDOORS, OUTDOORS, Thing, box, house
from kp_training.data.rooms.materials import Palette, Photographs
from kp_training.data.rooms.rendering import Lamp, Surface, World, look, rectangle, render

FORMAT = 2
"""Changes whenever the same seed would give other pixels."""

CLEARANCE = 0.4  # metres between the camera and anything
KNOT_FRAMES = 24  # frames a waypoint
SHOULDER = 190  # grey level above which highlights are pressed together, so that they keep their texture


@dataclass(frozen=True)
class Zone:
    """A box without anything in it but the camera: least and greatest x, y, z in metres."""

    low: np.ndarray
    high: np.ndarray

    def overlaps(self, place, size) -> bool:
        """Whether something of `size` on the ground at `place`, turned in any way, would come too near."""
        reach = float(np.hypot(*size[:2])) / 2 + CLEARANCE
        return bool((np.abs(place[:2] - (self.low + self.high)[:2] / 2) < (self.high - self.low)[:2] / 2 + reach).all())


@dataclass(frozen=True, eq=False)
class Room:
    """world: what is to be seen.  zone: where the camera moves.  focus: where it looks.  angle: its width in degrees.

    seed: numbers that the camera's path and the sensor draw from.
    """

    world: World
    zone: Zone
    focus: Zone
    angle: float
    seed: tuple[int, ...]

    def camera(self, height: int, width: int) -> CameraModel:
        """The camera for images of height×width, as wide as at any other size."""
        focal = width / 2 / np.tan(np.deg2rad(self.angle) / 2)
        matrix = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
        return CameraModel(width, height, matrix)

    def poses(self, frames: int) -> np.ndarray:
        """frames×4×4 world_from_camera of the path; a longer path begins like a shorter one."""
        rng = np.random.default_rng([*self.seed, 1])
        knots = rng.uniform(0, 1, (frames // KNOT_FRAMES + 4, 7))
        knots[:, :6] = 0.5 + 0.5 * np.sin(np.pi * (knots[:, :6] - 0.5))  # more often near the ends than in the middle
        path = _spline(knots, np.arange(frames) / KNOT_FRAMES)
        positions = self.zone.low + path[:, :3] * (self.zone.high - self.zone.low)
        targets = self.focus.low + path[:, 3:6] * (self.focus.high - self.focus.low)
        rolls = np.deg2rad(15) * (2 * path[:, 6] - 1)
        return np.stack([look(*row) for row in zip(positions, targets, rolls)])

    def frame(self, number: int, pose: np.ndarray, camera: CameraModel) -> tuple[np.ndarray, np.ndarray]:
        """H×W×3 BGR uint8 and H×W float32 depth (metres, 0 = none): exposure and grain are of the frame `number`."""
        rng = np.random.default_rng([*self.seed, 2, number])
        color, depth = render(self.world, camera, pose)
        wanted = 112 * np.exp(0.2 * np.sin(number / 11 + self.seed[-1]))
        color *= float(np.clip((wanted / max(color.mean(), 1)) ** 0.8, 0.4, 4))
        over = np.maximum(color - SHOULDER, 0) / (255 - SHOULDER)
        color = np.minimum(color, SHOULDER) + (255 - SHOULDER) * (1 - np.exp(-over))
        color += rng.standard_normal(color.shape[:2], np.float32)[..., None] * 1.5
        return np.clip(color + 0.5, 0, 255).astype(np.uint8), depth


def make_room(seed: int, number: int, photographs: Photographs, held_out: bool = False) -> Room:
    """Scene `number`: a street where it is 2 modulo 3, else a room.

    photographs: for pictures and other surfaces.  held_out: another series, never trained on.
    """
    numbers = (seed, int(held_out), number)
    rng = np.random.default_rng([*numbers, 0])
    build = KINDS[("room", "room", "street")[number % 3]]
    return build(rng, Palette(rng, photographs), numbers)


def _spline(knots: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Uniform cubic B-spline at `places` (one knot a unit): twice differentiable, and inside the knots' hull."""
    first = np.minimum(places.astype(int), len(knots) - 4)
    t = (places - first)[:, None]
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    return sum(weight * knots[first + step] for step, weight in enumerate(weights)) / 6


def _room(rng: np.random.Generator, palette: Palette, seed: tuple[int, ...]) -> Room:
    """Four walls with pictures, a door, windows and a skirting; furniture along them and in the middle."""
    width, length, height = rng.uniform([4.5, 4.5, 2.5], [7.5, 7.5, 3.3])
    zone_size = np.array([rng.uniform(1.6, 2.4), rng.uniform(1.2, 1.8)])
    middle = np.array([width / 2 + rng.uniform(-0.4, 0.4), 0.7 + zone_size[1] / 2])
    zone = Zone(np.array([*(middle - zone_size / 2), 0.8]), np.array([*(middle + zone_size / 2), height - 0.6]))
    focus = Zone(np.array([0.1 * width, 0.75 * length, 0.3]), np.array([0.9 * width, length, 0.65 * height]))
    surfaces = _shell(palette, width, length, height)
    room = (np.zeros(2), np.array([width, length]))
    against = [(np.array([x, y]), turn) for x, y, turn in _places_along(rng, width, length)]
    free = [(rng.uniform(0.5, [width - 0.5, length - 0.5]), rng.uniform(0, 2 * np.pi)) for _ in range(30)]
    surfaces += _furnish(palette, INDOORS, against + free, zone, room, 16)
    lamps = []
    for _ in range(rng.integers(2, 4)):
        place = rng.uniform([0.5, 0.5, height - 0.5], [width - 0.5, length - 0.5, height - 0.2])
        lamps.append(_lamp(rng, place, rng.uniform(0.4, 0.9), rng.uniform(2, 4)))
    ambient = rng.uniform(0.35, 0.6) * rng.uniform(0.9, 1.1, 3)
    world = World(tuple(surfaces), palette.textures(), tuple(lamps), _triple(ambient))
    return Room(world, zone, focus, float(rng.uniform(58, 78)), seed)


def _shell(palette: Palette, width: float, length: float, height: float) -> list[Surface]:
    """Floor, ceiling and walls, a rug, and what hangs on the walls."""
    rng = palette.rng
    floor = palette.spread(("wood", "tiles", "stone", "fabric"), 1.8)
    ceiling = palette.spread(("plaster", "tiles", "wood"), 2.5)
    rug = rng.uniform([1.5, 1.2], [2.6, 2.0])
    x, y = rng.uniform([0.2, 0.3], np.array([width, length]) - rug - 0.2)
    surfaces = [
        rectangle((0, length, 0), (width, 0, 0), (0, -length, 0), floor),
        rectangle((0, 0, height), (width, 0, 0), (0, length, 0), ceiling),
        rectangle((x, y + rug[1], 0.012), (rug[0], 0, 0), (0, -rug[1], 0), palette.cover(("fabric", "photo"), *rug)),
    ]
    skirting = palette.spread(("wood",), 1)
    main = palette.spread(("plaster", "fabric", "tiles", "wood"), rng.uniform(1.5, 3))
    corners = np.array([(0, length), (width, length), (width, 0), (0, 0)])
    for (x, y), (right, up) in zip(corners, np.roll(corners, -1, axis=0) - corners):
        along, span = np.array([right, up, 0.0]), float(np.hypot(right, up))
        own = rng.uniform() < 0.4
        cover = palette.spread(("plaster", "fabric", "tiles", "photo"), rng.uniform(1, 3)) if own else main
        surfaces.append(rectangle((x, y, height), along, (0, 0, -height), cover))
        inward = np.array([up, -right, 0.0]) / span
        surfaces.append(rectangle(np.array([x, y, 0.1]) + 0.015 * inward, along, (0, 0, -0.1), skirting))
        surfaces += _hangings(palette, np.array([x, y, 0.0]), along / span, inward, span, height)
    return surfaces


def _hangings(palette: Palette, corner, along, inward, span: float, height: float) -> list[Surface]:
    """Pictures in frames, a window or a door, side by side on a wall."""
    rng, surfaces, place = palette.rng, [], float(palette.rng.uniform(0.1, 0.5))
    while True:
        wide, kind = float(rng.uniform(0.45, 1.4)), str(rng.choice(["door", "window", *4 * ["picture"]]))
        if place + wide > span - 0.1:
            return surfaces
        top = 2.0 if kind == "door" else float(rng.uniform(1.5, min(2.2, height - 0.15)))
        tall = 2.0 if kind == "door" else min(top - 0.1, float(wide * rng.uniform(0.6, 1.3)))
        textures = {"door": ("wood",), "window": ("photo", "sky"), "picture": ("photo",)}[kind]
        picture = palette.cover(textures, wide, tall, glow=0.7 if kind == "window" else 0.0)
        frame = palette.spread(("wood", "plaster", "stone"), 0.5, gloss=0.2)
        for margin, out, material in ((0.05, 0.02, frame), (0, 0.035, picture)):
            upper = corner + along * (place - margin) + inward * out + [0, 0, top + margin]
            low = tall + margin * (1 if kind == "door" else 2)
            surfaces.append(rectangle(upper, along * (wide + 2 * margin), (0, 0, -low), material))
        place += wide + float(rng.uniform(0.15, 0.8))


def _places_along(rng: np.random.Generator, width: float, length: float) -> list[tuple[float, float, float]]:
    """x, y and turn of things with their backs to the walls, the far wall first."""
    places = [(x, length - 0.45, 0.0) for x in rng.uniform(0.6, width - 0.6, 10)]
    places += [(0.45, y, np.pi / 2) for y in rng.uniform(0.6, length - 0.6, 8)]
    return places + [(width - 0.45, y, -np.pi / 2) for y in rng.uniform(0.6, length - 0.6, 8)]


def _furnish(
    palette: Palette, things: Sequence[Callable[[Palette], Thing]], places, zone: Zone, ground, most: int
) -> list[Surface]:
    """Up to `most` things at `places` (x, y and turn), none in another, in the camera's way or off the `ground`."""
    surfaces: list[Surface] = []
    taken: list[tuple[np.ndarray, float]] = []
    for place, turn in places:
        thing = things[int(palette.rng.integers(len(things)))](palette)
        half = _half_extent(thing.size, turn)
        inside = (place - half > ground[0] - 0.02).all() and (place + half < ground[1] + 0.02).all()
        clear = all((np.abs(place - other) > half + room).any() for other, room in taken)
        if inside and clear and not zone.overlaps(place, thing.size):
            surfaces += thing.at([*place, 0.0], turn)
            taken.append((place, half))
        if len(taken) == most:
            break
    return surfaces


def _half_extent(size, turn: float) -> np.ndarray:
    """Half of width and depth on the ground of what is turned."""
    cos, sin = abs(np.cos(turn)), abs(np.sin(turn))
    return np.array([cos * size[0] + sin * size[1], sin * size[0] + cos * size[1]]) / 2


def _street(rng: np.random.Generator, palette: Palette, seed: tuple[int, ...]) -> Room:
    """A square between houses, with a kerb, trees, posts and cars under a sky without depth."""
    zone = Zone(np.array([-2.5, -1.5, 1.0]), np.array([2.5, 1.5, 2.6]))
    focus = Zone(np.array([-6, 9, 0.3]), np.array([6, 14, 3.0]))
    surfaces = _land(palette)
    for x in np.arange(-24, 25, 12):
        far = house(palette)
        surfaces += far.at((x + rng.uniform(-1.5, 1.5), rng.uniform(15, 19) + far.size[1] / 2, 0.0), rng.normal(0, 0.1))
    for side in (-1, 1):
        near = house(palette)
        turn = -side * np.pi / 2 + rng.normal(0, 0.15)
        surfaces += near.at((side * (rng.uniform(9, 12) + near.size[1] / 2), rng.uniform(1, 8), 0.0), turn)
    places = [(rng.uniform([-8, 3], [8, 14]), rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.15)) for _ in range(60)]
    surfaces += _furnish(palette, OUTDOORS, places, zone, (np.array([-8.5, 2.5]), np.array([8.5, 14.5])), 18)
    lamps = [_lamp(rng, rng.uniform([-60, -90, 50], [60, -20, 90]), rng.uniform(0.5, 0.8), 1e4),
             _lamp(rng, rng.uniform([-5, 3, 3], [5, 9, 5]), rng.uniform(0.2, 0.6), 4)]
    ambient = rng.uniform(0.4, 0.55) * np.array([1.1, 1.0, 0.92])
    world = World(tuple(surfaces), palette.textures(), tuple(lamps), _triple(ambient), (215.0, 205.0, 195.0))
    return Room(world, zone, focus, float(rng.uniform(58, 78)), seed)


def _land(palette: Palette) -> list[Surface]:
    """Ground with a kerb and patches on it, woods all round, and the sky."""
    rng, reach, woods = palette.rng, 45.0, palette.spread(("leaves",), 8)
    surfaces = [
        rectangle((-reach, reach, 0), (2 * reach, 0, 0), (0, -2 * reach, 0), palette.spread(("stone", "tiles"), 2)),
        rectangle((-300, -300, 60), (600, 0, 0), (0, 600, 0), palette.spread(("sky",), 160, glow=1.0, sky=True)),
        rectangle((-reach, reach, 9), (2 * reach, 0, 0), (0, 0, -9), woods),
        rectangle((-reach, -reach, 9), (0, 2 * reach, 0), (0, 0, -9), woods),
        rectangle((reach, reach, 9), (0, -2 * reach, 0), (0, 0, -9), woods),
    ]
    kerb = rng.uniform(6.5, 8)
    surfaces += box((-reach, kerb, 0), (2 * reach, reach - kerb, 0.14), palette.spread(("tiles", "stone"), 2.5))
    for _ in range(40):
        (x, y), (width, depth) = rng.uniform([-8, 1], [8, 15]), rng.uniform(0.2, 1.3, 2)
        material = palette.cover(("stone", "tiles", "photo", "plaster", "wood"), width, depth)
        base = 0.144 if y - depth > kerb else 0.004
        if base < 0.1 and y > kerb:
            continue
        kind = str(rng.choice(["rectangle", "disc"]))
        surfaces.append(rectangle((x, y, base), (width, 0, 0), (0, -depth, 0), material, kind=kind))
    return surfaces


def _lamp(rng: np.random.Generator, place, power: float, reach: float) -> Lamp:
    warm = rng.uniform(-0.15, 0.1)
    return Lamp(_triple(place), (power * (1 + warm), power, power * (1 - warm)), float(reach))


def _triple(values) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z


KINDS: dict[str, Callable[[np.random.Generator, Palette, tuple[int, ...]], Room]] = {"room": _room, "street": _street}
