"""Warping and lighting on the training device does what the loader does."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from kp_frontend.errors import InputError
from kp_training import augment, device_augment
from kp_training.data.pairs import GEOMETRIES, HomographyPairs, PairBatch, PairConfig
from kp_training.data.procedural import ProceduralImages
from kp_training.geometry import views
from kp_training.geometry.homography import homography_from_corners, view_corners


def _name(effect) -> str:
    settings = getattr(effect, "keywords", {})
    return getattr(effect, "func", effect).__name__ + "".join(f" {key}={value}" for key, value in settings.items())


ALL = {_name(effect): effect for style in augment.STYLES.values() for effect, _ in style}


class SmoothPhotos:
    """Photographs of slow waves, of different sizes, that any right interpolation agrees on."""

    identity = "smooth"
    sizes = ((300, 420), (96, 100), (400, 250))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> np.ndarray:
        height, width = self.sizes[index]
        y, x = np.mgrid[:height, :width] * (600 / max(height, width))
        waves = [np.sin(x / (17 + channel) + y / 41) + np.cos(y / (23 - channel) - x / 37) for channel in range(3)]
        return np.stack([127 + 60 * wave for wave in waves], -1).astype(np.uint8)


@pytest.mark.parametrize("geometry", list(GEOMETRIES))
@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_device_and_loader_make_the_same_pairs(geometry, color):
    config = PairConfig(geometry=geometry, style="off", color=color, height=64, width=80)
    points = (lambda index: np.float32([[100, 90, 1], [150, 120, 0.5]])) if geometry == "wide" else None
    loaded = HomographyPairs(SmoothPhotos(), config, 3, points)
    pairs = HomographyPairs(SmoothPhotos(), config, 3, points, on_device=True)
    numbers = range(9)
    ours = pairs.finish(default_collate([pairs[number] for number in numbers]))
    theirs = default_collate([loaded[number] for number in numbers])
    assert isinstance(ours, PairBatch)
    for name in ("homography", "labels0", "labels1"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    for view in "01":
        mask, image = getattr(ours, f"mask{view}"), getattr(ours, f"image{view}")
        assert image.dtype == torch.uint8
        assert (mask != getattr(theirs, f"mask{view}")).float().mean() < 2e-3
        difference = (image.int() - getattr(theirs, f"image{view}").int()).abs().float()
        assert difference.mean() < 0.7
        assert difference.quantile(0.999) <= 4, "beyond the photograph too, where it is mirrored"


def test_finish_leaves_the_loaders_pairs_alone():
    pairs = HomographyPairs(SmoothPhotos(), PairConfig(height=32, width=32), seed=0)
    batch = default_collate([pairs[0], pairs[1]])
    assert pairs.finish(batch) is batch


def test_device_pairs_follow_torchs_seed():
    config = PairConfig(height=32, width=32)
    pairs = HomographyPairs(ProceduralImages(2), config, seed=0, on_device=True)
    items = default_collate([pairs[0], pairs[1]])
    batches = [(torch.manual_seed(seed), pairs.finish(items))[1] for seed in (1, 1, 2)]
    assert torch.equal(batches[0].image0, batches[1].image0)
    assert not torch.equal(batches[0].image0, batches[2].image0)


def test_shrunk_views_do_not_alias():
    """A fine chessboard seen from afar is grey, at any distance and turn."""
    photo = np.uint8(255) * ((np.indices((900, 1200)).sum(0) // 2 % 2) == 1).astype(np.uint8)
    corners = view_corners(64, 64)
    for shrink, angle in ((4, 0.0), (6, 0.8), (10, 0.3)):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        photo_from_view = homography_from_corners(corners, (corners - 31.5) @ turn.T * shrink + [600, 450])
        part = views.cut_part(photo, photo_from_view, 64, 64)
        view, _ = views.warp_parts(views.Part(*(value[None] for value in part)), 64, 64)
        assert abs(view.mean() - 127.5) < 2
        assert view.std() < 6


@pytest.mark.parametrize("shift", [(-70, -60), (75, 64), (-70, 64)])
def test_a_view_mostly_beyond_the_border_is_mirrored(shift):
    """What it shows lies deeper in the photograph than the corner that it covers."""
    photo = SmoothPhotos()[0][:80, :96, 0]
    corners = view_corners(80, 96)
    photo_from_view = homography_from_corners(corners, corners + shift)
    reference, mask = views.warp_view(photo, photo_from_view, 80, 96)
    part = views.cut_part(photo, photo_from_view, 80, 96)
    ours, shown = views.warp_parts(views.Part(*(value[None] for value in part)), 80, 96)
    np.testing.assert_allclose(ours[0, 0].numpy(), reference, atol=1)
    np.testing.assert_array_equal(shown[0].numpy(), mask)
    assert 0 < mask.mean() < 0.1


def test_a_part_is_no_larger_than_its_side_and_keeps_what_the_view_shows():
    photo = np.random.default_rng(0).integers(0, 256, (2000, 3000), dtype=np.uint8)
    corners = view_corners(64, 96)
    part = views.cut_part(photo, homography_from_corners(corners, corners + [1400, 900]), 64, 96)
    side = views.part_side(64, 96)
    assert part.pixels.shape == (1, side, side)
    view, mask = views.warp_parts(views.Part(*(value[None] for value in part)), 64, 96)
    np.testing.assert_allclose(view[0, 0].numpy(), photo[900:964, 1400:1496], atol=0.1)
    assert mask.all()
    assert part.extent.max() < 120, "not the whole photograph travels"


@pytest.mark.parametrize("style", list(augment.STYLES))
def test_styles_leave_as_many_images_alone_as_the_loaders(style):
    images = torch.randint(256, (300, 1, 32, 32), generator=torch.Generator().manual_seed(0)).float()
    torch.manual_seed(0)
    lit = device_augment.light_images(images, style)
    assert lit.shape == images.shape
    rng = np.random.default_rng(0)
    greys = images[:, 0].numpy().astype(np.uint8)
    theirs = [(augment.apply_style(image, style, rng) == image).all() for image in greys]
    assert (lit == images).flatten(1).all(1).float().mean() == pytest.approx(np.mean(theirs), abs=0.1)


def test_an_unknown_style_is_named():
    with pytest.raises(InputError, match=r"photometric style 'night'.*camera"):
        device_augment.light_images(torch.zeros(1, 1, 8, 8), "night")


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("channels", [1, 3])
def test_effects_keep_shape_and_differ_between_images(name, channels):
    image = torch.randint(256, (1, channels, 41, 54), generator=torch.Generator().manual_seed(0)).float()
    images = image.expand(6, -1, -1, -1).contiguous()
    effect = device_augment.twin(ALL[name])
    torch.manual_seed(0)
    lit = device_augment.apply_effects(images, [(effect, 1.0)])
    assert lit.shape == images.shape
    assert lit.min() >= 0
    assert lit.max() <= 255
    assert (lit != images).any()
    assert any((lit[0] != other).any() for other in lit[1:])
    assert torch.equal(device_augment.apply_effects(images, [(effect, 0.0)]), images)


def test_each_image_is_drawn_for_itself():
    torch.manual_seed(1)
    dark = device_augment.apply_effects(torch.ones(400, 1, 4, 4), [(torch.zeros_like, 0.3)]) == 0
    assert dark.float().mean() == pytest.approx(0.3, abs=0.08)
    assert set(dark.flatten(1).sum(1).tolist()) == {0, 16}, "an image changes as a whole"


def _photo(color: bool) -> np.ndarray:
    from skimage import data

    image = cv2.resize(data.astronaut(), (96, 80), interpolation=cv2.INTER_AREA)
    return image if color else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _energies(images: np.ndarray, before: np.ndarray) -> np.ndarray:
    """N×9: of N×H×W×C, mean, spread, extremes, fine and coarse differences, uneven light, and change."""
    images = images.astype(np.float64)
    change = np.abs(images - before.reshape(images.shape[1:])).mean((1, 2, 3))
    extremes = [images.min((1, 2, 3)), images.max((1, 2, 3))]
    steps = [np.abs(np.diff(images, axis=axis)).mean((1, 2, 3)) for axis in (1, 2)]
    coarse = np.abs(images[:, 8:] - images[:, :-8]).mean((1, 2, 3))
    halves = images[:, :, :40].mean((1, 2, 3)) - images[:, :, -40:].mean((1, 2, 3))
    return np.column_stack([images.mean((1, 2, 3)), images.std((1, 2, 3)), *extremes, *steps, coarse, halves, change])


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("color", [False, True])
def test_effects_have_the_statistics_of_their_twins(name, color):
    draws, image = 200, _photo(color)
    rng = np.random.default_rng(0)
    theirs = [ALL[name](image[..., ::-1] if color else image, rng) for _ in range(draws)]
    theirs = np.stack(theirs)[..., ::-1] if color else np.stack(theirs)[..., None]
    torch.manual_seed(0)
    batch = torch.from_numpy(image.transpose(2, 0, 1) if color else image[None]).float().expand(draws, -1, -1, -1)
    ours = device_augment.apply_effects(batch.contiguous(), [(device_augment.twin(ALL[name]), 1.0)])
    theirs, ours = (_energies(images, image) for images in (theirs, ours.permute(0, 2, 3, 1).numpy()))
    # The means agree within the error of 200 draws, and the draws spread as widely.
    error = np.sqrt((theirs.var(0) + ours.var(0)) / draws)
    mean, spread = theirs.mean(0), theirs.std(0)
    np.testing.assert_array_less(np.abs(mean - ours.mean(0)), 3.5 * error + 0.02 * np.abs(mean) + 0.1)
    np.testing.assert_array_less(np.abs(spread - ours.std(0)), 0.22 * spread + 0.3)


def test_speckle_is_as_much_black_as_white():
    torch.manual_seed(0)
    speckled = device_augment.speckle(torch.full((50, 3, 20, 20), 128.0), most=0.4)
    shares = [(speckled == level).all(1).float().mean() for level in (0, 255, 128)]
    assert shares == pytest.approx([0.2, 0.2, 0.6], abs=0.05)


def test_jpeg_is_the_codecs():
    """Grey at each quality, as libjpeg writes and reads it, within rounding."""
    image = _photo(False)
    for quality in (20, 40, 70):
        _, code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        theirs = cv2.imdecode(code, cv2.IMREAD_UNCHANGED).astype(float)
        image_batch, qualities = torch.from_numpy(image)[None, None].float(), torch.full((1, 1, 1, 1), float(quality))
        ours = device_augment.compress(image_batch, qualities)[0, 0].clamp(0, 255).round().numpy()
        difference = np.abs(ours - theirs)
        assert difference.mean() < 0.6
        assert np.abs(image - theirs).mean() > 4 * difference.mean()


def test_hsv_there_and_back_and_as_opencv():
    images = torch.rand((2, 3, 9, 11), generator=torch.Generator().manual_seed(0)) * 255
    hue, saturation, value = device_augment.to_hsv(images)
    torch.testing.assert_close(device_augment.from_hsv(hue, saturation, value), images, atol=1e-2, rtol=0)
    reference = cv2.cvtColor(images[0].permute(1, 2, 0).numpy() / 255, cv2.COLOR_RGB2HSV)
    ours = torch.cat([hue * 360, saturation, value / 255], 1)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(ours, reference, atol=1e-2)


def test_filters_agree_with_opencv():
    images = torch.rand((2, 2, 20, 24), generator=torch.Generator().manual_seed(0))
    kernels = torch.rand((2, 3, 5), generator=torch.Generator().manual_seed(1))
    filtered = device_augment.filter_images(images, kernels)
    for image, kernel, ours in zip(images, kernels, filtered):
        for channel, result in zip(image, ours):
            np.testing.assert_allclose(result, cv2.filter2D(channel.numpy(), -1, kernel.numpy()), atol=1e-5)
