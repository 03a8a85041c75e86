"""The effects of ``augment`` for a batch of images on the training device, each image with its own parameters.

Images are N×C×H×W float32 (grey or RGB) from 0 to 255; an effect may leave that range, which is cut after it.  The
styles are those of ``augment.STYLES``: an effect there has its twin here under the same name.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kp_frontend.errors import unknown_name
from kp_training.augment import SHARES, STYLES, Effect

BatchEffect = Callable[..., Tensor]


def light_images(images: Tensor, style: str) -> Tensor:
    """`images` after each effect of `style`, on each image with the effect's probability; range 0 to 255."""
    if style not in STYLES:
        raise unknown_name("photometric style", style, STYLES)
    lit = apply_effects(images, [(twin(effect), share) for effect, share in STYLES[style]])
    return _where_drawn(SHARES.get(style, 1.0), lit, images)


def twin(effect: Effect) -> BatchEffect:
    """What does here what `effect` of ``augment`` does to one image, with the same settings."""
    if isinstance(effect, functools.partial):
        return functools.partial(EFFECTS[effect.func.__name__], **effect.keywords)
    return EFFECTS[effect.__name__]


def apply_effects(images: Tensor, effects: Sequence[tuple[BatchEffect, float]]) -> Tensor:
    """`images` after each effect, on each image with the probability beside the effect."""
    for effect, share in effects:
        images = _where_drawn(share, effect(images).clamp(0, 255), images)
    return images


def _where_drawn(share: float, changed: Tensor, images: Tensor) -> Tensor:
    """A random `share` of the images as `changed`, the others as they are."""
    return torch.where(_uniform(images, 0, 1) < share, changed, images)


def _uniform(images: Tensor, low: float, high: float) -> Tensor:
    """N×1×1×1: a number for each image."""
    return low + (high - low) * torch.rand((len(images), 1, 1, 1), device=images.device)


def _mean(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3), keepdim=True)


def _unit_grid(images: Tensor) -> tuple[Tensor, Tensor]:
    """y (H×1) and x (1×W) from −1 to 1."""
    height, width = images.shape[-2:]
    y = torch.linspace(-1, 1, height, device=images.device)
    return y[:, None], torch.linspace(-1, 1, width, device=images.device)[None]


def filter_images(images: Tensor, kernels: Tensor) -> Tensor:
    """Each image correlated with its own kernel of N×h×w (odd sides), mirrored at the border."""
    count, channels = images.shape[:2]
    pad_y, pad_x = kernels.shape[1] // 2, kernels.shape[2] // 2
    padded = F.pad(images, (pad_x, pad_x, pad_y, pad_y), mode="reflect").flatten(0, 1)[None]
    weights = kernels.repeat_interleave(channels, 0)[:, None]
    return F.conv2d(padded, weights, groups=count * channels).reshape(images.shape)


def _filter_rows_and_columns(images: Tensor, kernels: Tensor) -> Tensor:
    """Each image filtered by its own kernel of N×k along both axes."""
    return filter_images(filter_images(images, kernels[:, None]), kernels[:, :, None])


def _streaks(half: Tensor, angle: Tensor, radius: int) -> Tensor:
    """N×(2·radius+1)² kernels: an even line through the middle, `half` pixels to both sides at `angle` (N×1×1×1)."""
    along = torch.linspace(-1, 1, 4 * radius + 3, device=half.device) * half.reshape(-1, 1)
    x, y = (torch.round(radius + along * part.reshape(-1, 1)).long() for part in (torch.cos(angle), torch.sin(angle)))
    side = 2 * radius + 1
    kernels = torch.zeros((len(half), side * side), device=half.device).scatter_(1, y * side + x, 1.0)
    return (kernels / kernels.sum(1, keepdim=True)).reshape(-1, side, side)


def gain(images: Tensor) -> Tensor:
    mean = _mean(images)
    return (images - mean) * _uniform(images, 0.5, 1.5) + mean + _uniform(images, -50, 50)


def gamma(images: Tensor) -> Tensor:
    return 255 * (images / 255) ** (2.0 ** _uniform(images, -1, 1))


def light(images: Tensor) -> Tensor:
    y, x = _unit_grid(images)
    angle, shift, softness = _uniform(images, 0, 2 * torch.pi), _uniform(images, -0.6, 0.6), _uniform(images, 0.03, 0.6)
    along, across = x * torch.cos(angle) + y * torch.sin(angle), y * torch.cos(angle) - x * torch.sin(angle)
    bent = along - shift + _uniform(images, -1, 1) * across**2
    return images * (1 + _uniform(images, -0.6, 0.6) * torch.sigmoid(bent / softness))


def blur(images: Tensor) -> Tensor:
    return _filter_rows_and_columns(images, _gaussians(_uniform(images, 0.4, 1.8), 6))


def _gaussians(sigma: Tensor, radius: int) -> Tensor:
    """N×(2·radius+1) kernels of N×1×1×1 deviations."""
    steps = torch.arange(-radius, radius + 1, device=sigma.device)
    kernels = torch.exp(-0.5 * (steps / sigma.reshape(-1, 1)) ** 2)
    return kernels / kernels.sum(1, keepdim=True)


def motion(images: Tensor) -> Tensor:
    return filter_images(images, _streaks(_uniform(images, 1, 4), _uniform(images, 0, torch.pi), 5))


def jpeg(images: Tensor) -> Tensor:
    return compress(images, _uniform(images, 5, 80).floor())


def compress(images: Tensor, quality: Tensor) -> Tensor:
    """`images` after JPEG at N×1×1×1 quality (1 to 100), colours at full resolution (OpenCV halves them)."""
    percent = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    color = images.shape[1] == 3
    planes = torch.einsum("yc,nchw->nyhw", _YCC.to(images.device), images) if color else images
    tables = torch.tensor([_LUMINANCE] + [_CHROMINANCE] * (planes.shape[1] - 1), device=images.device)
    tables = torch.floor((tables * percent + 50) / 100).clamp(1, 255)[:, :, None, None]
    height, width = planes.shape[-2:]
    planes = F.pad(planes, (0, -width % 8, 0, -height % 8), mode="replicate")
    # The level shift of 128 is the luminance's; the colour differences are centred on 0 here.
    centre = torch.tensor([128.0, 0.0, 0.0][: planes.shape[1]], device=images.device)[:, None, None]
    blocks = (planes - centre).unfold(2, 8, 8).unfold(3, 8, 8)
    basis = _cosines(images.device)
    coefficients = torch.round(basis @ blocks @ basis.T / tables) * tables
    blocks = basis.T @ coefficients @ basis
    planes = blocks.transpose(3, 4).reshape(planes.shape)[..., :height, :width] + centre
    return torch.einsum("cy,nyhw->nchw", torch.linalg.inv(_YCC).to(images.device), planes) if color else planes


def _cosines(device: torch.device) -> Tensor:
    """8×8 orthonormal cosine transform."""
    steps = torch.arange(8.0, device=device)
    basis = 0.5 * torch.cos(torch.pi / 8 * (steps + 0.5) * steps[:, None])
    return basis * torch.where(steps[:, None] == 0, 0.5**0.5, 1.0)


# Full-range BT.601 and the quantisation tables of the JPEG standard's annex K.
_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_LUMINANCE = [
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
]
_CHROMINANCE = [
    [17, 18, 24, 47, 99, 99, 99, 99], [18, 21, 26, 66, 99, 99, 99, 99], [24, 26, 56, 99, 99, 99, 99, 99],
    [47, 66, 99, 99, 99, 99, 99, 99], *[[99] * 8] * 4,
]


def kp2d_noise(images: Tensor, sigma: float = 0.05) -> Tensor:
    return images + torch.randn_like(images) * (sigma * 255)


def kp2d_blur(images: Tensor) -> Tensor:
    kernels = torch.tensor([[0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0.25, 0.5, 0.25, 0],
                            [0.0625, 0.25, 0.375, 0.25, 0.0625]], device=images.device)
    return _filter_rows_and_columns(images, kernels[torch.randint(4, (len(images),), device=images.device)])


def color_jitter(images: Tensor, *, gain: float = 0.5, saturation: float = 0.2, hue: float = 0.05) -> Tensor:
    images = (images * _uniform(images, 1 - gain, 1 + gain)).clamp(0, 255)
    mean = _mean(images)
    images = ((images - mean) * _uniform(images, 1 - gain, 1 + gain) + mean).clamp(0, 255)
    if images.shape[1] == 1:
        return images
    angle, strength, value = to_hsv(images)
    strength = (strength * _uniform(images, 1 - saturation, 1 + saturation)).clamp(0, 1)
    return from_hsv(angle + _uniform(images, -hue, hue), strength, value)


def to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue and saturation from 0 to 1 and value in the range of the RGB images, N×1×H×W each."""
    red, green, blue = images.chunk(3, 1)
    value, least = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    spread = value - least
    safe = spread.clamp_min(1e-6)
    hue = torch.where(value == red, (green - blue) / safe,
                      torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe))
    return (hue / 6).remainder(1), spread / value.clamp_min(1e-6), value


def from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """RGB images of ``to_hsv``'s parts."""
    sector = (torch.tensor([5.0, 3.0, 1.0], device=hue.device)[:, None, None] + 6 * hue).remainder(6)
    return value * (1 - saturation * torch.minimum(sector, 4 - sector).clamp(0, 1))


def brightness(images: Tensor, *, low: float, high: float) -> Tensor:
    return images + _uniform(images, low, high)


def contrast(images: Tensor, *, low: float, high: float) -> Tensor:
    mean = _mean(images)
    return (images - mean) * _uniform(images, low, high) + mean


def linear(images: Tensor, *, contrast: tuple[float, float], brightness: tuple[float, float]) -> Tensor:
    return images * (1 + _uniform(images, *contrast)) + 255 * _uniform(images, *brightness)


def power(images: Tensor, *, low: float, high: float) -> Tensor:
    return 255 * (images / 255) ** _uniform(images, low, high)


def darken(images: Tensor, *, low: float, high: float) -> Tensor:
    value = images.amax(1, keepdim=True)
    return images * (value - _uniform(images, low, high)).clamp_min(0) / value.clamp_min(1)


def sensor_noise(images: Tensor, *, low: float, high: float) -> Tensor:
    return images + torch.randn_like(images) * _uniform(images, low, high)


def speckle(images: Tensor, *, most: float) -> Tensor:
    share, draws = _uniform(images, 0, most), torch.rand_like(images[:, :1])
    return torch.where(draws > 1 - share, 255.0, torch.where(draws < share, 0.0, images))


def shade(images: Tensor, *, low: float, high: float, kernel: tuple[int, int]) -> Tensor:
    height, width = (side // 4 + 1 for side in images.shape[-2:])
    mask = _ellipses(images, height, width)
    sigma = 0.3 * ((_uniform(images, *kernel) - 1) * 0.5 - 1) + 0.8
    field = _filter_rows_and_columns(mask, _gaussians(sigma / 4, min(16, height - 1, width - 1)))
    return images * (1 - _uniform(images, low, high) * F.interpolate(field, images.shape[-2:], mode="bilinear"))


def _ellipses(images: Tensor, height: int, width: int, count: int = 20) -> Tensor:
    """N×1×height×width: 1 in any of `count` ellipses of random place, shape and turn, 0 elsewhere."""
    draws = torch.rand((5, len(images), count, 1, 1), device=images.device)
    y, x = (torch.arange(side, device=images.device) for side in (height, width))
    x, y = x - draws[0] * width, y[:, None] - draws[1] * height
    # OpenCV draws the outline too: half a pixel more.
    long, short = (draws[2:4] * min(height, width) / 5).clamp_min(0.25) + 0.5
    angle = draws[4] * (torch.pi / 2)
    along, across = x * torch.cos(angle) + y * torch.sin(angle), y * torch.cos(angle) - x * torch.sin(angle)
    return ((along / long) ** 2 + (across / short) ** 2 <= 1).any(1, keepdim=True).float()


def box_blur(images: Tensor, *, smallest: int, largest: int) -> Tensor:
    radius = torch.randint(smallest // 2, largest // 2 + 1, (len(images), 1), device=images.device)
    steps = torch.arange(-(largest // 2), largest // 2 + 1, device=images.device)
    return _filter_rows_and_columns(images, (steps.abs() <= radius) / (2 * radius + 1))


def streak(images: Tensor, *, shortest: float, longest: float) -> Tensor:
    half = (_uniform(images, shortest, longest) - 1) / 2
    return filter_images(images, _streaks(half, _uniform(images, 0, torch.pi), math.ceil(longest / 2)))


_TWINS = (gain, gamma, light, blur, motion, jpeg, kp2d_noise, kp2d_blur, color_jitter, brightness, contrast,
          linear, power, darken, sensor_noise, speckle, shade, box_blur, streak)
EFFECTS: dict[str, BatchEffect] = {effect.__name__: effect for effect in _TWINS}
