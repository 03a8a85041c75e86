"""What light, lens, sensor and codec do to an image: each effect a function, a style a list of them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np

from kp_frontend.errors import unknown_name

Effect = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def gain(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Contrast about the mean by ½ to 1½ and brightness by up to ±50 levels."""
    mean = image.mean()
    return _to_bytes((image.astype(np.float32) - mean) * rng.uniform(0.5, 1.5) + mean + rng.uniform(-50, 50))


def gamma(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gamma from 0.5 to 2: exposure, and cameras with another response."""
    table = 255 * (np.arange(256) / 255.0) ** (2.0 ** rng.uniform(-1, 1))
    return cv2.LUT(image, _to_bytes(table))


def light(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A soft shadow or lamp: brightness times 0.4 to 1.6 over a blurred half-plane or ellipse."""
    height, width = image.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    angle, shift, softness = rng.uniform(0, 2 * np.pi), rng.uniform(-0.6, 0.6), rng.uniform(0.03, 0.6)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    bent = along - shift + rng.uniform(-1, 1) * across**2
    field = 1 + rng.uniform(-0.6, 0.6) / (1 + np.exp(-np.clip(bent / softness, -30, 30)))
    return _to_bytes(image * (field if image.ndim == 2 else field[..., None]))


def blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Defocus: Gaussian of σ 0.4 to 1.8 pixels."""
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.8))


def motion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Motion blur over 3 to 9 pixels in any direction, centred so that points stay where they are."""
    length, angle = rng.uniform(1, 4), rng.uniform(0, np.pi)
    return cv2.filter2D(image, -1, _streak(length, angle, 5))


def jpeg(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """JPEG at quality 5 to 80."""
    quality = int(rng.uniform(5, 80))
    _, code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(code, cv2.IMREAD_UNCHANGED)


def kp2d_noise(image: np.ndarray, rng: np.random.Generator, sigma: float = 0.05) -> np.ndarray:
    """Gaussian noise of σ = 0.05 of the range (the code's; the paper prints 0.02)."""
    return _to_bytes(image + rng.standard_normal(image.shape, np.float32) * np.float32(sigma * 255))


def kp2d_blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur with a kernel of 0, 1, 3 or 5 pixels."""
    size = int(rng.choice([0, 1, 3, 5]))
    return image if size < 3 else cv2.GaussianBlur(image, (size, size), 0)


def color_jitter(
    image: np.ndarray, rng: np.random.Generator, *, gain: float = 0.5, saturation: float = 0.2, hue: float = 0.05
) -> np.ndarray:
    """Brightness and contrast times 1 ± gain, saturation times 1 ± saturation, hue ± `hue` of a circle, of a BGR image.

    Of KP2D's code by default (the paper prints a hue of ±0.2).  The code draws these and drops them by mistake; the
    paper applies them, and so do we.
    """
    image = gain_by(image, rng.uniform(1 - gain, 1 + gain), rng.uniform(1 - gain, 1 + gain))
    if image.ndim == 2:
        return image
    angle, strength, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
    angle = ((angle.astype(np.int16) + round(rng.uniform(-hue, hue) * 180)) % 180).astype(np.uint8)
    strength = _to_bytes(strength * rng.uniform(1 - saturation, 1 + saturation))
    return cv2.cvtColor(cv2.merge([angle, strength, value]), cv2.COLOR_HSV2BGR)


def gain_by(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Multiply by `brightness` up to white, then spread about the mean by `contrast`."""
    bright = np.minimum(image.astype(np.float32) * brightness, 255)
    return _to_bytes((bright - bright.mean()) * contrast + bright.mean())


def brightness(image: np.ndarray, rng: np.random.Generator, *, low: float, high: float) -> np.ndarray:
    """From `low` to `high` levels added."""
    return _to_bytes(image + np.float32(rng.uniform(low, high)))


def contrast(image: np.ndarray, rng: np.random.Generator, *, low: float, high: float) -> np.ndarray:
    """Differences from the mean times `low` to `high`."""
    mean = image.mean(dtype=np.float32)
    return _to_bytes((image - mean) * np.float32(rng.uniform(low, high)) + mean)


def linear(image: np.ndarray, rng: np.random.Generator, *, contrast: tuple, brightness: tuple) -> np.ndarray:
    """Levels times 1 + U(*contrast), plus U(*brightness) of the range."""
    slope, offset = 1 + rng.uniform(*contrast), 255 * rng.uniform(*brightness)
    return cv2.LUT(image, _to_bytes(np.arange(256) * slope + offset))


def power(image: np.ndarray, rng: np.random.Generator, *, low: float, high: float) -> np.ndarray:
    """The `low`-th to `high`-th power of levels scaled to [0, 1]."""
    return cv2.LUT(image, _to_bytes(255 * (np.arange(256) / 255.0) ** rng.uniform(low, high)))


def darken(image: np.ndarray, rng: np.random.Generator, *, low: float, high: float) -> np.ndarray:
    """HSV value less by `low` to `high` levels; hue and saturation stay."""
    value = (image if image.ndim == 2 else image.max(-1, keepdims=True)).astype(np.float32)
    factor = np.maximum(value - np.float32(rng.uniform(low, high)), 0) / np.maximum(value, 1)
    return _to_bytes(image * factor)


def sensor_noise(image: np.ndarray, rng: np.random.Generator, *, low: float, high: float) -> np.ndarray:
    """Gaussian noise of σ from `low` to `high` levels."""
    return _to_bytes(image + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(low, high)))


def speckle(image: np.ndarray, rng: np.random.Generator, *, most: float) -> np.ndarray:
    """A share of up to `most` of the pixels black and as many white."""
    share = rng.uniform(0, most)
    draws = rng.random(image.shape[:2], np.float32)
    speckled = image.copy()
    speckled[draws < share] = 0
    speckled[draws > 1 - share] = 255
    return speckled


def shade(
    image: np.ndarray, rng: np.random.Generator, *, low: float, high: float, kernel: tuple[int, int]
) -> np.ndarray:
    """Twenty ellipses, blurred by a Gaussian of `kernel` pixels, whose middle darkens by `low` to `high`, < 0 lightens.

    Drawn and blurred at a quarter of the size: nothing in them is sharper.
    """
    height, width = image.shape[0] // 4 + 1, image.shape[1] // 4 + 1
    mask = np.zeros((height, width), np.float32)
    centres = rng.uniform([0, 0], [width, height], (20, 2))
    axes = np.maximum(rng.uniform(0, min(height, width) / 5, (20, 2)), 0.25)
    fixed = np.rint(np.hstack([centres, axes]) * 16).astype(int).tolist()
    for (x, y, long, short), angle in zip(fixed, rng.uniform(0, 90, 20)):
        cv2.ellipse(mask, (x, y), (long, short), angle, 0, 360, 1.0, -1, cv2.LINE_8, 4)
    size = rng.uniform(*kernel)
    sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8  # what OpenCV takes for a kernel of this size
    field = cv2.GaussianBlur(mask, (0, 0), sigma / 4, borderType=cv2.BORDER_REFLECT_101)
    field = 1 - np.float32(rng.uniform(low, high)) * cv2.resize(field, image.shape[1::-1])
    return _to_bytes(image * (field if image.ndim == 2 else field[..., None]))


def box_blur(image: np.ndarray, rng: np.random.Generator, *, smallest: int, largest: int) -> np.ndarray:
    """Mean over a square of `smallest` to `largest` pixels a side, odd."""
    size = 2 * int(rng.integers(smallest // 2, largest // 2 + 1)) + 1
    return cv2.blur(image, (size, size))


def streak(image: np.ndarray, rng: np.random.Generator, *, shortest: float, longest: float) -> np.ndarray:
    """Motion blur over `shortest` to `longest` pixels in any direction, centred so that points stay where they are."""
    half = (rng.uniform(shortest, longest) - 1) / 2
    return cv2.filter2D(image, -1, _streak(half, rng.uniform(0, np.pi), int(np.ceil(longest / 2))))


def _streak(half: float, angle: float, radius: int) -> np.ndarray:
    """Kernel of 2·radius + 1 pixels a side: an even line through its middle, `half` pixels to both sides."""
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1), np.float32)
    steps = np.linspace(-half, half, 4 * radius + 3)
    x, y = np.rint(radius + np.array([[np.cos(angle)], [np.sin(angle)]]) * steps).astype(int)
    kernel[y, x] = 1
    return kernel / kernel.sum()


STYLES: dict[str, tuple[tuple[Effect, float], ...]] = {
    "off": (),
    # KP2D: as its code means it, as its code does it (the jitter is drawn and dropped), and as the paper prints it.
    "kp2d": ((color_jitter, 1.0), (kp2d_noise, 0.5), (kp2d_blur, 1.0)),
    "kp2d_code": ((kp2d_noise, 0.5), (kp2d_blur, 1.0)),
    "kp2d_paper": (
        (functools.partial(color_jitter, hue=0.2), 1.0), (functools.partial(kp2d_noise, sigma=0.02), 0.5),
        (kp2d_blur, 1.0),
    ),
    "camera": (
        (light, 0.4), (gain, 0.6), (gamma, 0.4), (blur, 0.3), (motion, 0.15),
        (functools.partial(sensor_noise, low=1, high=15), 0.4), (jpeg, 0.4),
    ),
    # Of CAPS, which PoSFeat took over.
    "caps": ((functools.partial(color_jitter, gain=1, saturation=1, hue=0.4), 1.0),),
    "superpoint": (
        (functools.partial(shade, low=-0.5, high=0.8, kernel=(50, 100)), 1.0),
        (functools.partial(brightness, low=-75, high=75), 1.0),
        (functools.partial(contrast, low=0.3, high=1.8), 1.0),
        (functools.partial(streak, shortest=1, longest=7), 1.0),
        (functools.partial(sensor_noise, low=0, high=15), 1.0),
        (functools.partial(speckle, most=0.0035), 1.0),
    ),
    # SuperPoint-PrP's: the same effects, weaker.
    "prp": (
        (functools.partial(shade, low=-0.5, high=0.5, kernel=(100, 150)), 1.0),
        (functools.partial(brightness, low=-50, high=50), 1.0),
        (functools.partial(contrast, low=0.5, high=1.5), 1.0),
        (functools.partial(streak, shortest=1, longest=3), 1.0),
        (functools.partial(sensor_noise, low=0, high=10), 1.0),
    ),
    # Set A of METHODS.md section 4; the noise's range is unstated there, σ² is taken from 10 to 50.
    "silk": (
        (functools.partial(power, low=0.15, high=0.65), 0.1),
        (functools.partial(darken, low=40, high=100), 0.1),
        (functools.partial(box_blur, smallest=3, largest=9), 0.1),
        (functools.partial(streak, shortest=3, longest=25), 0.2),
        (functools.partial(linear, contrast=(-0.5, 0.3), brightness=(-0.3, 0)), 0.5),
        (functools.partial(sensor_noise, low=10**0.5, high=50**0.5), 0.5),
    ),
    # Set B, of the models that are scored on HPatches.
    "silk_hpatches": (
        (functools.partial(linear, contrast=(-0.5, 0.5), brightness=(-0.5, 0.5)), 1.0),
        (functools.partial(sensor_noise, low=0, high=0.04 * 255), 1.0),
        (functools.partial(speckle, most=0.0035), 1.0),
        (functools.partial(streak, shortest=1, longest=3), 1.0),
    ),
    # The paper names these effects and no ranges.
    "sedm": (
        (functools.partial(contrast, low=0.5, high=1.5), 0.5), (functools.partial(brightness, low=-50, high=50), 0.5),
        (blur, 0.3), (functools.partial(sensor_noise, low=0, high=12), 0.3),
        (functools.partial(speckle, most=0.005), 0.2), (jpeg, 0.3),
    ),
}

# Share of the images that a style touches at all, where it is not every one.
SHARES: dict[str, float] = {"silk": 0.95}


def apply_style(image: np.ndarray, style: str, rng: np.random.Generator) -> np.ndarray:
    """`image` (H×W or H×W×3 uint8) after each effect of `style` with its probability, in the order of a real camera."""
    if style not in STYLES:
        raise unknown_name("photometric style", style, STYLES)
    if style in SHARES and rng.uniform() >= SHARES[style]:
        return image
    for effect, probability in STYLES[style]:
        if rng.uniform() < probability:
            image = effect(image, rng)
    return image
