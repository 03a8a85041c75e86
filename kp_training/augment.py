"""What light, lens, sensor and codec do to an image: each effect a function, a style a list of them."""

from __future__ import annotations

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


def noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of up to 15 levels."""
    return _to_bytes(image + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(1, 15)))


def blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Defocus: Gaussian of σ 0.4 to 1.8 pixels."""
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.8))


def motion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Motion blur over 3 to 9 pixels in any direction, centred so that points stay where they are."""
    length, angle = rng.uniform(1, 4), rng.uniform(0, np.pi)
    kernel = np.zeros((11, 11), np.float32)
    tip = np.array([np.cos(angle), np.sin(angle)]) * length
    for step in np.linspace(-1, 1, 23):
        x, y = np.rint(5 + step * tip).astype(int)
        kernel[y, x] = 1
    return cv2.filter2D(image, -1, kernel / kernel.sum())


def jpeg(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """JPEG at quality 5 to 80."""
    quality = int(rng.uniform(5, 80))
    _, code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(code, cv2.IMREAD_UNCHANGED)


def paper_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of σ = 0.05 of the range (the code's; the paper prints 0.02)."""
    return _to_bytes(image + rng.standard_normal(image.shape, np.float32) * np.float32(0.05 * 255))


def paper_blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur with a kernel of 0, 1, 3 or 5 pixels."""
    size = int(rng.choice([0, 1, 3, 5]))
    return image if size < 3 else cv2.GaussianBlur(image, (size, size), 0)


def paper_jitter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness and contrast ±0.5, saturation ±0.2, hue ±0.05 of a BGR image.

    The code draws these and drops them by mistake; the paper applies them, and so do we.
    """
    image = gain_by(image, rng.uniform(0.5, 1.5), rng.uniform(0.5, 1.5))
    if image.ndim == 2:
        return image
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
    hue = ((hue.astype(np.int16) + round(rng.uniform(-0.05, 0.05) * 180)) % 180).astype(np.uint8)
    saturation = _to_bytes(saturation * rng.uniform(0.8, 1.2))
    return cv2.cvtColor(cv2.merge([hue, saturation, value]), cv2.COLOR_HSV2BGR)


def gain_by(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Multiply by `brightness`, then spread about the mean by `contrast`."""
    bright = image.astype(np.float32) * brightness
    return _to_bytes((bright - bright.mean()) * contrast + bright.mean())


STYLES: dict[str, tuple[tuple[Effect, float], ...]] = {
    "off": (),
    "paper": ((paper_jitter, 1.0), (paper_noise, 0.5), (paper_blur, 1.0)),
    "paper_code": ((paper_noise, 0.5), (paper_blur, 1.0)),
    "camera": ((light, 0.4), (gain, 0.6), (gamma, 0.4), (blur, 0.3), (motion, 0.15), (noise, 0.4), (jpeg, 0.4)),
}


def apply_style(image: np.ndarray, style: str, rng: np.random.Generator) -> np.ndarray:
    """`image` (H×W or H×W×3 uint8) after each effect of `style` with its probability, in the order of a real camera."""
    if style not in STYLES:
        raise unknown_name("photometric style", style, STYLES)
    for effect, probability in STYLES[style]:
        if rng.uniform() < probability:
            image = effect(image, rng)
    return image
