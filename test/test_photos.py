"""Folders of photographs: what is used, what is left out and why."""

from __future__ import annotations

import logging

import cv2
import numpy as np
import pytest

from kp_frontend.errors import InputError
from kp_training.data import survey as surveys
from kp_training.data.photos import PhotoFolder
from kp_training.data.survey import ImageFile, read_photo, survey


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KP_FRONTEND_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photo() -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)



def _all_files(folder) -> list[str]:
    return sorted(file.name for file in survey(folder).usable)


def test_bad_files_are_counted_by_reason_in_one_warning(tmp_path, photo, caplog):
    folder = tmp_path / "photos"
    folder.mkdir()
    cv2.imwrite(str(folder / "good.jpg"), photo)
    cv2.imwrite(str(folder / "good.png"), photo)
    cv2.imwrite(str(folder / "small.png"), photo[:63])
    cv2.imwrite(str(folder / "small.jpg"), photo[:, :63])
    cv2.imwrite(str(folder / "least.png"), photo[:64])
    whole = (folder / "good.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:3000])
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.webp").touch()
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "notes.txt").write_text("not looked at")
    with caplog.at_level(logging.WARNING):
        for held_out in (False, True):
            try:
                PhotoFolder(folder, held_out)
            except InputError:
                continue
    assert _all_files(folder) == ["good.jpg", "good.png", "least.png"]
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "left out 2 cut short, 1 empty, 2 smaller than 64 pixels, 2 unreadable, of 10 image files (the first: cut.jpg)"
    ]


def test_a_folder_with_nothing_usable_says_what_it_holds(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"no photograph for training \(1 image files, 0 usable, 1 unreadable\)"):
        PhotoFolder(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        PhotoFolder(tmp_path / "missing")


def test_grey_deep_and_animated_images_are_used(tmp_path, photo):
    grey = photo[..., 0]
    animation = cv2.Animation() if hasattr(cv2, "Animation") else None
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    cv2.imwrite(str(tmp_path / "twelve_bits.png"), photo.astype(np.uint16) * 16)
    cv2.imwrite(str(tmp_path / "deep_grey.png"), grey.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "float.tiff"), photo.astype(np.float32) / 255)
    expected = ["deep_grey.png", "float.tiff", "grey.png", "twelve_bits.png"]
    if animation is not None:
        animation.frames, animation.durations = [photo, 255 - photo], [100, 100]
        for suffix in ("gif", "webp", "png"):
            cv2.imwriteanimation(str(tmp_path / f"moving.{suffix}"), animation)
            expected.append(f"moving.{suffix}")
    assert _all_files(tmp_path) == sorted(expected)
    np.testing.assert_array_equal(read_photo(tmp_path / "grey.png"), cv2.merge([grey] * 3))
    bright = np.clip(photo * (255 / photo.max()) + 0.5, 0, 255).astype(np.uint8)
    for name in ("twelve_bits.png", "float.tiff"):
        np.testing.assert_allclose(read_photo(tmp_path / name).astype(int), bright.astype(int), atol=1)
    assert read_photo(tmp_path / "deep_grey.png").shape == photo.shape
    if animation is not None:
        np.testing.assert_array_equal(read_photo(tmp_path / "moving.png"), photo)


def test_turned_photographs_are_read_upright(tmp_path, photo):
    """EXIF orientation 6: the camera was held upright and the file lies on its side."""
    code = cv2.imencode(".jpg", photo)[1].tobytes()
    entry = b"\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00"
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00" + entry + bytes(4)
    marked = code[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + code[2:]
    (tmp_path / "turned.jpg").write_bytes(marked)
    assert read_photo(tmp_path / "turned.jpg").shape == (100, 80, 3)


def test_a_photograph_lost_while_training_is_replaced_with_one_warning(tmp_path, photo, caplog):
    for number in range(20):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full_like(photo, 10 * number))
    photos = PhotoFolder(tmp_path)
    before = photos[1]
    (tmp_path / photos.files[0].name).unlink()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            np.testing.assert_array_equal(photos[0], before)
    assert sum("takes its place" in record.getMessage() for record in caplog.records) == 1
    for file in photos.files[1:]:
        (tmp_path / file.name).write_bytes(b"")
    with pytest.raises(InputError, match="can be read any more"):
        photos[5]


def test_identity_follows_the_files(tmp_path, photo):
    for number in range(12):
        cv2.imwrite(str(tmp_path / f"{number}.png"), photo)
    first = PhotoFolder(tmp_path)
    assert PhotoFolder(tmp_path).identity == first.identity
    assert first.identity != PhotoFolder(tmp_path, held_out=True).identity
    cv2.imwrite(str(tmp_path / first.files[0].name), photo[:70])
    assert PhotoFolder(tmp_path).identity != first.identity


def test_checks_are_remembered_by_name_size_and_time(tmp_path, photo, monkeypatch):
    monkeypatch.setattr(surveys, "PATIENCE", -1.0)
    folder, checked = tmp_path / "photos", []
    folder.mkdir()
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(folder / name), photo)
    fault = surveys._fault
    monkeypatch.setattr(surveys, "_fault", lambda path: (checked.append(path.name), fault(path))[1])
    survey(folder)
    assert sorted(checked) == ["a.png", "b.png"]
    surveys._survey.cache_clear()
    survey(folder)
    assert len(checked) == 2, "a later run reads the record"
    (folder / "b.png").write_text("no image")
    cv2.imwrite(str(folder / "c.png"), photo)
    assert [file.name for file in survey(folder).usable] == ["a.png", "c.png"]
    assert sorted(checked[2:]) == ["b.png", "c.png"], "what did not change is not looked at again"


@pytest.mark.parametrize("content", ["", "{", "[3]", "null", '[["a.png", 1]]'])
def test_a_damaged_record_is_made_again(tmp_path, photo, content):
    cv2.imwrite(str(tmp_path / "a.png"), photo)
    surveys._cache_file(tmp_path.resolve()).write_text(content)
    assert [file.name for file in survey(tmp_path).usable] == ["a.png"]


def test_a_record_that_cannot_be_written_is_said_and_survived(tmp_path, photo, monkeypatch, caplog):
    monkeypatch.setattr(surveys, "PATIENCE", -1.0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("KP_FRONTEND_CACHE", str(tmp_path / "file"))
    cv2.imwrite(str(tmp_path / "a.png"), photo)
    with caplog.at_level(logging.WARNING):
        assert isinstance(survey(tmp_path).usable[0], ImageFile)
    assert "not remembered" in caplog.text
