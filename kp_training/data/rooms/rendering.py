"""Textured rectangles, discs, balls and tubes drawn by ray casting: colour, exact depth, smooth edges.

Who is seen is found first, for the centre of each pixel and four places round it (``_visible``); then all that is
seen is coloured at once (``_colors``), with one sample a pixel inside a surface and four at its edges and where the
view grazes it.  Every surface has its own frame: its middle is the origin, and a rectangle lies in x (right) and
y (down) with z away from who looks at it; a tube runs along z.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from kp_frontend.camera import CameraModel
from kp_training.data.rooms.textures import Textures

NEAR = 0.05  # metres; nothing nearer is drawn
FLAT = ("rectangle", "disc")
GRAZING = 0.35  # cosine of the angle to the normal, below which a pixel gets four samples
SAMPLES = np.array([[0, 0], [-1, -3], [3, -1], [1, 3], [-3, 1]], np.float32) / 8  # the first is the depth's


@dataclass(frozen=True)
class Material:
    """texture: number in the scene's `Textures`.  scale: texels a metre, across and down.  start: first texel.

    tint: BGR gains.  gloss: strength of highlights.  glow: 0 = lit by the lamps, 1 = shines as its texture is.
    sky: has no depth.
    """

    texture: int
    scale: tuple[float, float] = (200.0, 200.0)
    start: tuple[float, float] = (0.0, 0.0)
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gloss: float = 0.0
    glow: float = 0.0
    sky: bool = False


@dataclass(frozen=True, eq=False)
class Surface:
    """kind: of `KINDS`.  origin: middle, metres, world.  axes: 3×3, rows are the local x, y, z in the world.

    size: what `KINDS` says, metres.  two_sided: seen from behind as well.
    """

    kind: str
    origin: np.ndarray
    axes: np.ndarray
    size: tuple[float, float, float]
    material: Material
    two_sided: bool = False


def rectangle(corner, right, down, material: Material, two_sided: bool = False, kind: str = "rectangle") -> Surface:
    """All corner + u·right + v·down with u and v in [0, 1], for `right` at right angles to `down`; or its ellipse.

    One sees it looking along right × down.
    """
    corner, right, down = (np.asarray(vector, float) for vector in (corner, right, down))
    width, height = float(np.linalg.norm(right)), float(np.linalg.norm(down))
    axes = np.stack([right / width, down / height, np.cross(right, down) / (width * height)])
    return Surface(kind, corner + (right + down) / 2, axes, (width / 2, height / 2, 0), material, two_sided)


def ball(center, radius: float, material: Material) -> Surface:
    """A sphere."""
    return Surface("ball", np.asarray(center, float), np.eye(3), (radius, radius, radius), material, True)


def tube(base, axis, radius: float, material: Material) -> Surface:
    """The side of a cylinder from `base` to base + axis; it has no ends."""
    axis = np.asarray(axis, float)
    length = float(np.linalg.norm(axis))
    z = axis / length
    x = np.cross(z, np.eye(3)[np.argmin(np.abs(z))])
    x /= np.linalg.norm(x)
    axes = np.stack([x, np.cross(z, x), z])
    return Surface("tube", np.asarray(base, float) + axis / 2, axes, (radius, radius, length / 2), material, True)


@dataclass(frozen=True)
class Lamp:
    """place: metres.  color: BGR gains right before it.  reach: metres at which half of that is left."""

    place: tuple[float, float, float]
    color: tuple[float, float, float]
    reach: float


@dataclass(frozen=True, eq=False)
class World:
    """surfaces: anything, in any order.  ambient: BGR gains everywhere.  background: BGR, 0 to 255, of no surface."""

    surfaces: tuple[Surface, ...]
    textures: Textures
    lamps: tuple[Lamp, ...]
    ambient: tuple[float, float, float]
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        every, materials = self.surfaces, [surface.material for surface in self.surfaces]
        table = {
            "origin": np.array([surface.origin for surface in every]),
            "axes": np.array([surface.axes for surface in every]),
            "size": np.array([surface.size for surface in every], np.float32),
            "kind": np.array([list(KINDS).index(surface.kind) for surface in every]),
            "flat": np.array([surface.kind in FLAT for surface in every]),
            "two_sided": np.array([surface.two_sided for surface in every]),
            "hull": np.array([_hull(surface) for surface in every]),
            "texture": np.array([material.texture for material in materials]),
            "scale": np.array([material.scale for material in materials], np.float32),
            "start": np.array([material.start for material in materials], np.float32),
            "tint": np.array([material.tint for material in materials], np.float32),
            "gloss": np.array([material.gloss for material in materials], np.float32),
            "glow": np.array([material.glow for material in materials], np.float32),
            "sky": np.array([material.sky for material in materials]),
        }
        object.__setattr__(self, "table", table)


def render(world: World, camera: CameraModel, world_from_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """H×W×3 float32 colours (BGR, 0 to 255 and above) and H×W float32 depth along z in metres, 0 = none.

    camera: without distortion.  Depth is that of the pixel's centre.
    """
    views = _rays(world, camera, world_from_camera)
    which, depth = _visible(world, views, camera, world_from_camera)
    fine = (which != which[0]).any(0) | _grazing(world, views, which[0])
    chosen = np.concatenate([~fine[None], np.broadcast_to(fine, (len(SAMPLES) - 1, *fine.shape))])
    sample, y, x = np.nonzero(chosen)
    width = 1 - 0.5 * (sample > 0).astype(np.float32)  # of a sample, in pixels
    x, y = x.astype(np.float32) + SAMPLES[sample, 0], y.astype(np.float32) + SAMPLES[sample, 1]
    colors = _colors(world, views, which[chosen].astype(np.intp), depth[chosen], x, y,
                     width / np.float32(camera.matrix[0, 0]))
    image, single = np.empty((*fine.shape, 3), np.float32), int(fine.size - fine.sum())
    image[~fine] = colors[:single]
    image[fine] = colors[single:].reshape(len(SAMPLES) - 1, -1, 3).mean(0)
    exists = (which[0] >= 0) & ~world.table["sky"][which[0]]
    return image, np.where(exists, depth[0], 0).astype(np.float32)


def _hull(surface: Surface) -> np.ndarray:
    """8×3 corners of the box round a surface, in the world."""
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    return surface.origin + (signs * surface.size) @ surface.axes


def _rays(world: World, camera: CameraModel, world_from_camera: np.ndarray) -> np.ndarray:
    """(S+1)×3×4 float32: what is seen at pixel (x, y) at depth t lies at t·M[:, :3]·(x, y, 1) + M[:, 3].

    That is in each surface's frame, the last one in the world's.
    """
    ray_from_pixel = world_from_camera[:3, :3] @ np.linalg.inv(camera.matrix)
    axes = np.concatenate([world.table["axes"], np.eye(3)[None]])
    origins = np.concatenate([world.table["origin"], np.zeros((1, 3))])
    place = np.einsum("sij,sj->si", axes, world_from_camera[:3, 3] - origins)
    return np.concatenate([axes @ ray_from_pixel, place[..., None]], -1).astype(np.float32)


def _visible(world: World, views: np.ndarray, camera: CameraModel, world_from_camera: np.ndarray):
    """Number of the nearest surface (-1 = none) and its depth (inf = none), both samples×H×W."""
    which = np.full((len(SAMPLES), camera.height, camera.width), -1, np.int32)
    depth = np.full(which.shape, np.inf, np.float32)
    hits = list(KINDS.values())
    boxes = _boxes(world.table["hull"], camera, world_from_camera)
    seen = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    seen &= world.table["two_sided"] | (views[:-1, 2, 3] < 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        for number in np.flatnonzero(seen):
            left, top, right, bottom = boxes[number]
            box = np.s_[:, top:bottom, left:right]
            x = np.arange(left, right, dtype=np.float32) + SAMPLES[:, None, None, 0]
            y = np.arange(top, bottom, dtype=np.float32)[:, None] + SAMPLES[:, None, None, 1]
            a, b, c = views[number, :, :3].T
            rays = [a[axis] * x + (b[axis] * y + c[axis]) for axis in range(3)]
            hit, distance = hits[world.table["kind"][number]](rays, views[number, :, 3], world.table["size"][number])
            hit &= (distance > NEAR) & (distance < depth[box])
            np.copyto(depth[box], distance, where=hit)
            np.copyto(which[box], number, where=hit)
    return which, depth


def _boxes(hulls: np.ndarray, camera: CameraModel, world_from_camera: np.ndarray) -> np.ndarray:
    """S×4 pixels left, top, right, bottom (the last two excluded) that S×8×3 corners can cover; empty where none."""
    points = (hulls - world_from_camera[:3, 3]) @ world_from_camera[:3, :3]
    starts, ends = np.array(list(combinations(range(points.shape[1]), 2))).T
    start, end = points[:, starts], points[:, ends]
    rise = end[..., 2] - start[..., 2]
    crosses = (start[..., 2] < NEAR) != (end[..., 2] < NEAR)  # the box is cut at the near plane
    share = (NEAR - start[..., 2]) / np.where(crosses, rise, 1)
    points = np.concatenate([points, start + share[..., None] * (end - start)], 1)
    points[..., 2][:, hulls.shape[1]:] = NEAR
    drawn = np.concatenate([points[:, : hulls.shape[1], 2] >= NEAR, crosses], 1)[..., None]
    pixels = points / np.where(drawn, points[..., 2:], 1) @ camera.matrix[:2].T
    low = np.where(drawn, pixels, np.inf).min(1, initial=1e6)
    high = np.where(drawn, pixels, -np.inf).max(1, initial=-1e6)
    size = (camera.width, camera.height)
    low, high = np.clip(np.floor(low - 0.5), 0, size), np.clip(np.ceil(high + 0.5) + 1, 0, size)
    return np.concatenate([low, high], 1).astype(int)


def _hit_rectangle(rays, eye, size):
    distance = -eye[2] / rays[2]
    return (np.abs(eye[0] + distance * rays[0]) <= size[0]) & (np.abs(eye[1] + distance * rays[1]) <= size[1]), distance


def _hit_disc(rays, eye, size):
    distance = -eye[2] / rays[2]
    x, y = ((eye[axis] + distance * rays[axis]) / np.float32(size[axis]) for axis in range(2))
    return x * x + y * y <= 1, distance


def _hit_ball(rays, eye, size):
    return _nearer_root(rays, eye, size[0])


def _hit_tube(rays, eye, size):
    hit, distance = _nearer_root(rays[:2], eye[:2], size[0])
    return hit & (np.abs(eye[2] + distance * rays[2]) <= size[2]), distance


def _nearer_root(rays, eye, radius):
    """Least t at which eye + t·ray is `radius` from the origin."""
    along = sum(eye[axis] * ray for axis, ray in enumerate(rays))
    squared = sum(ray * ray for ray in rays)
    root = along * along - squared * (eye @ eye - np.float32(radius) ** 2)
    return root >= 0, (-along - np.sqrt(root)) / squared


KINDS: dict[str, Callable] = {
    "rectangle": _hit_rectangle,  # half width, half height
    "disc": _hit_disc,  # the same, of an ellipse
    "ball": _hit_ball,  # radius
    "tube": _hit_tube,  # radius, -, half length
}
"""By kind of surface: (rays, eye, size) in its frame → where it is hit, and the depth there."""


def _grazing(world: World, views: np.ndarray, which: np.ndarray) -> np.ndarray:
    """H×W bool: a flat surface is seen at a small angle there."""
    y, x = np.indices(which.shape, dtype=np.float32)
    a, b, c = (np.ascontiguousarray(views[:-1, 2, column])[which] for column in range(3))
    slope = a * x + (b * y + c)
    squared = sum((row[0] * x + (row[1] * y + row[2])) ** 2 for row in views[-1])
    return world.table["flat"][which] & (slope * slope < GRAZING**2 * squared) & (which >= 0)


def _colors(world: World, views, which, depth, x, y, pixel) -> np.ndarray:
    """N×3 float32 of N samples at pixels x, y whose width at one metre is `pixel` metres."""
    table, nothing = world.table, which < 0
    depth = np.where(nothing, np.float32(1), depth)
    columns = np.ascontiguousarray(views[:-1].reshape(-1, 12).T)
    local = [depth * (a[which] * x + (b[which] * y + c[which])) + d[which] for a, b, c, d in columns.reshape(3, 4, -1)]
    rays = np.stack([a * x + (b * y + c) for a, b, c, _ in views[-1]])
    points = depth * rays + views[-1, :, 3:]
    toward = rays / -np.sqrt((rays * rays).sum(0))
    u, v, normals = _surface(table, which, local)
    cosine = (normals * toward).sum(0)
    normals *= np.where(cosine < 0, np.float32(-1), np.float32(1))
    scale, start = table["scale"].T, table["start"].T
    across, down = scale[0][which], scale[1][which]
    footprint = depth * pixel * np.maximum(across, down) / np.sqrt(np.maximum(np.abs(cosine), 0.05))
    colors = world.textures.sample(table["texture"][which], u * across + start[0][which], v * down + start[1][which],
                                   np.log2(np.maximum(footprint, 1e-3)))
    colors *= table["tint"][which]
    glow = table["glow"][which][:, None]
    colors *= _light(world, points, normals) * (1 - glow) + glow
    glossy = np.flatnonzero((table["gloss"][which] > 0) & ~nothing)
    shine = _highlights(world, points[:, glossy], normals[:, glossy], toward[:, glossy])
    colors[glossy] += shine * (255 * table["gloss"][which[glossy]])[:, None]
    colors[nothing] = world.background
    return colors


def _surface(table, which, local):
    """Texture coordinates in metres (N each) and normals in the world (3×N) at N points in their surfaces' frames."""
    kind, axes = table["kind"][which], table["axes"].astype(np.float32)
    normals = np.stack([component[which] for component in np.ascontiguousarray(axes[:, 2].T)])
    half = table["size"].T
    u, v = local[0] + half[0][which], local[1] + half[1][which]
    for name in ("ball", "tube"):
        rows = np.flatnonzero(kind == list(KINDS).index(name))
        x, y, z = (component[rows] for component in local)
        radius = half[0][which[rows]]
        u[rows] = np.arctan2(y, x) * radius
        v[rows] = np.arccos(np.clip(z / radius, -1, 1)) * radius if name == "ball" else half[2][which[rows]] - z
        outward = np.stack([x, y, z if name == "ball" else np.zeros_like(z)], -1) / radius[:, None]
        normals[:, rows] = np.einsum("ni,nij->jn", outward, axes[which[rows]])
    return u, v, normals


def _light(world: World, points, normals) -> np.ndarray:
    """N×3: Lambert's gains at 3×N points."""
    above = np.float32(0.85) + np.float32(0.15) * normals[2]  # more comes from above
    light = above[:, None] * np.asarray(world.ambient, np.float32)
    for lamp in world.lamps:
        beam, squared = _beam(lamp, points)
        gain = np.maximum((beam * normals).sum(0), 0) / np.sqrt(squared) / (1 + squared / np.float32(lamp.reach) ** 2)
        light += gain[:, None] * np.asarray(lamp.color, np.float32)
    return light


def _highlights(world: World, points, normals, toward) -> np.ndarray:
    """N×3: Blinn's highlights at 3×N points that are seen from the direction `toward`, to the 32nd power."""
    shine = np.zeros((points.shape[1], 3), np.float32)
    for lamp in world.lamps:
        beam, squared = _beam(lamp, points)
        middle = beam / np.sqrt(squared) + toward
        sharp = np.maximum((middle * normals).sum(0), 0) / np.sqrt((middle * middle).sum(0) + np.float32(1e-9))
        gain = sharp**32 / (1 + squared / np.float32(lamp.reach) ** 2)
        shine += gain[:, None] * np.asarray(lamp.color, np.float32)
    return shine


def _beam(lamp: Lamp, points) -> tuple[np.ndarray, np.ndarray]:
    """3×N from points to the lamp, and its squared length."""
    beam = np.asarray(lamp.place, np.float32)[:, None] - points
    return beam, (beam * beam).sum(0)


def look(position: Sequence[float], target: Sequence[float], roll: float) -> np.ndarray:
    """world_from_camera (z up in the world) that looks from `position` at `target`, rolled by `roll` radians."""
    forward = np.asarray(target, float) - position
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([np.cos(roll) * right + np.sin(roll) * down,
                             np.cos(roll) * down - np.sin(roll) * right, forward], axis=1)
    pose[:3, 3] = position
    return pose
