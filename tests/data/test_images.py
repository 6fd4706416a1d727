import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Resize
from torchvision.transforms.v2 import functional as F

from mspose.data.images import (
    centre_crop,
    find_image,
    normalize,
    read_image,
    resize_short_side,
    to_rgb8,
)
from mspose.errors import MsposeError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (24, 37, 3), dtype=np.uint8)


def test_find_image(tmp_path):
    (tmp_path / "seq-01").mkdir()
    (tmp_path / "seq-01/frame-000001.color.jpg").touch()
    (tmp_path / "seq-01/frame-000002.color.png").touch()
    (tmp_path / "seq-01/frame-000002.color.jpg").touch()
    assert (
        find_image(tmp_path, "seq-01/frame-000001.color.png")
        == tmp_path / "seq-01/frame-000001.color.jpg"
    )
    assert find_image(tmp_path, "seq-01/frame-000001.color.jpeg").suffix == ".jpg"
    assert find_image(tmp_path, "seq-01/frame-000002.color.jpg").suffix == ".jpg"
    assert find_image(tmp_path, "seq-01/frame-000002.color.png").suffix == ".png"
    with pytest.raises(
        MsposeError,
        match=r"image not found: /.*seq-01/frame-000003.color.png \(nor with .png, .jpg",
    ):
        find_image(tmp_path, "seq-01/frame-000003.color.png")
    with pytest.raises(MsposeError, match=r"image not found"):
        find_image(tmp_path, "seq-01")


@pytest.mark.parametrize(
    ("said", "there"),
    [
        ("seq/a.jpg", "seq/a.JPG"),
        ("seq/a.JPG", "seq/a.jpg"),
        ("seq/a.jpg", "seq/A.Jpg"),
        ("seq/a.png", "seq/a.tiff"),
        ("seq/a.tga", "seq/a.WebP"),
        ("seq/a", "seq/a.BMP"),
        ("seq/a.01", "seq/a.01.jpg"),
        ("seq/a.jpg", "SEQ/a.jpg"),
    ],
)
def test_an_image_of_another_case_or_ending_is_the_same(said, there, tmp_path):
    other = tmp_path / there
    other.parent.mkdir()
    for name in (other.name, f"{other.name}.txt", "b.jpg", "a.1.jpg"):
        (other.parent / name).touch()
    assert find_image(tmp_path, said) == other
    other.unlink()
    with pytest.raises(MsposeError, match="image not found"):
        find_image(tmp_path, said)


def test_of_several_the_one_of_the_same_case_is_meant(tmp_path):
    for name in ("A.jpg", "a.png", "b.PNG", "B.PNG"):
        (tmp_path / name).touch()
    assert find_image(tmp_path, "a.jpeg").name == "a.png"
    assert find_image(tmp_path, "A.jpeg").name == "A.jpg"
    assert find_image(tmp_path, "B.png").name == "B.PNG"


def test_rgb_comes_back_as_it_was(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(found, picture)
    assert found.dtype == np.uint8
    assert found.flags.writeable
    assert found.flags.c_contiguous


def test_jpeg(tmp_path):
    smooth = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 48, 0) * np.ones(
        3, np.uint8
    )
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - smooth).max() < 6
    Image.fromarray(smooth).convert("L").save(tmp_path / "grey.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "grey.jpg").astype(int) - smooth).max() < 6
    Image.fromarray(smooth).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - smooth).max() < 12


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_of_8_and_16_bits(tmp_path, suffix):
    grey = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert cv2.imwrite(str(tmp_path / f"a{suffix}"), grey)
    found = read_image(tmp_path / f"a{suffix}")
    assert found.shape == (256, 256, 3)
    assert (found == found[:, :, :1]).all()
    assert (
        np.abs(found[:, :, 0] - grey / 257).max() < 1
    )  # scaled: 0 stays 0, 65535 is 255, nothing is clipped
    assert cv2.imwrite(str(tmp_path / f"b{suffix}"), (grey // 256).astype(np.uint8))
    np.testing.assert_array_equal(read_image(tmp_path / f"b{suffix}"), found)


def test_colour_of_16_bits_agrees_with_grey_of_16_bits(tmp_path):
    rgb = np.random.default_rng(1).integers(0, 65536, (32, 40, 3), dtype=np.uint16)
    assert cv2.imwrite(str(tmp_path / "a.png"), rgb[:, :, ::-1])
    found = read_image(tmp_path / "a.png")
    assert np.abs(found - rgb / 257).max() < 1
    assert cv2.imwrite(str(tmp_path / "grey.png"), rgb[:, :, 1])
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png")[:, :, 2], found[:, :, 1])


def test_transparency_is_dropped(tmp_path, picture):
    alpha = np.random.default_rng(2).integers(0, 256, (24, 37, 1), dtype=np.uint8)
    Image.fromarray(np.concatenate([picture, alpha], 2)).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), picture)
    Image.fromarray(np.concatenate([picture[:, :, :1], alpha], 2), "LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "la.png"), np.repeat(picture[:, :, :1], 3, 2)
    )


@pytest.mark.filterwarnings("error")
def test_palettes_and_bits(tmp_path, picture):
    palette = Image.fromarray(picture).quantize(16)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), np.array(palette.convert("RGB")))
    palette.save(tmp_path / "transparent.png", transparency=bytes(range(16)))
    np.testing.assert_array_equal(
        read_image(tmp_path / "transparent.png"), np.array(palette.convert("RGB"))
    )
    bits = Image.fromarray(picture[:, :, 0] > 127)
    bits.save(tmp_path / "bits.png")
    assert set(np.unique(read_image(tmp_path / "bits.png"))) == {0, 255}


def test_broken_files_are_named(tmp_path, picture):
    big = np.random.default_rng(3).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    for suffix in ("png", "jpg"):
        whole = tmp_path / f"whole.{suffix}"
        Image.fromarray(big).save(whole)
        data = whole.read_bytes()
        for share in (0.001, 0.1, 0.5, 0.97):
            path = tmp_path / f"cut.{suffix}"
            path.write_bytes(data[: int(len(data) * share)])
            with pytest.raises(MsposeError, match=rf"cut.{suffix}") as caught:
                read_image(path)
            assert "\n" not in str(caught.value)
    damaged = bytearray((tmp_path / "whole.png").read_bytes())
    damaged[len(damaged) // 2] ^= 0x55
    (tmp_path / "damaged.png").write_bytes(damaged)
    with pytest.raises(MsposeError, match=r"image .*damaged.png cannot be read: broken data"):
        read_image(tmp_path / "damaged.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(MsposeError, match=r"image .*empty.png is an empty file"):
        read_image(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("<html>not found</html>")
    with pytest.raises(MsposeError, match=r"text.png is not an image"):
        read_image(tmp_path / "text.png")
    with pytest.raises(MsposeError, match=r"cannot read .*nothing.png: No such file"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(MsposeError, match=r"cannot read .*: Is a directory"):
        read_image(tmp_path)


def test_images_of_32_bits_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(MsposeError, match=r"a.tif cannot be read: 32 bits per channel"):
        read_image(tmp_path / "a.tif")


def test_arrays_of_a_user(picture):
    assert to_rgb8(picture) is picture
    turned = to_rgb8(picture[::-1, :, ::-1])
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(turned, picture[::-1, :, ::-1])
    for wrong, message in (
        (picture[:, :, 0], r"expected shape \(H, W, 3\), RGB, found \(24, 37\)"),
        (picture.transpose(2, 0, 1), r"found \(3, 24, 37\)"),
        (picture[None], r"found \(1, 24, 37, 3\)"),
        (np.zeros((5, 5, 4), np.uint8), r"found \(5, 5, 4\)"),
        (np.zeros((0, 5, 3), np.uint8), r"found \(0, 5, 3\)"),
        (picture / 255, "expected uint8 values from 0 to 255, found float64"),
        (picture.astype(np.int64), "found int64"),
        ("picture.png", "expected a NumPy array uint8 .*, found str"),
        (picture.tolist(), "found list"),
    ):
        with pytest.raises(ValueError, match=message):
            to_rgb8(wrong)


@pytest.mark.parametrize(
    "shape", [(480, 640), (640, 480), (100, 100), (37, 1001), (257, 255), (3, 2)]
)
@pytest.mark.parametrize("size", [256, 37, 20, 101])
def test_resize_is_torchvisions_bit_for_bit(shape, size):
    image = np.random.default_rng(4).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = np.array(Resize(size)(Image.fromarray(image)))
    np.testing.assert_array_equal(resize_short_side(image, size), expected)


@pytest.mark.parametrize("size", [256, 37, 20, 101])
def test_tall_images_are_resized_along_rows_first(size):
    image = np.random.default_rng(4).integers(0, 256, (1001, 37, 3), dtype=np.uint8)
    rows = Image.fromarray(image).resize((size, 1001), Image.Resampling.BILINEAR)
    expected = rows.resize(
        (size, int(size * 1001 / 37)), Image.Resampling.BILINEAR
    )  # of one axis: in one order
    np.testing.assert_array_equal(resize_short_side(image, size), expected)
    by_torchvision = np.array(Resize(size)(Image.fromarray(image)))
    np.testing.assert_allclose(resize_short_side(image, size).astype(int), by_torchvision, atol=1)


@pytest.mark.parametrize("size", [(256, 341), (341, 256), (224, 224), (257, 300)])
def test_the_centre_crop_is_torchvisions(size):
    image = torch.arange(size[0] * size[1]).reshape(1, *size)
    top, left = centre_crop(*size, 224)
    assert torch.equal(
        image[:, top : top + 224, left : left + 224], F.center_crop(image, [224, 224])
    )


def test_normalize_is_torchvisions():
    image_B3HW = torch.rand(2, 3, 4, 5)
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    torch.testing.assert_close(
        normalize(image_B3HW, mean, std), F.normalize(image_B3HW, list(mean), list(std))
    )


def test_a_real_frame():
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not there")
    path = find_image(SHARED / "7scenes", "redkitchen/seq-01/frame-000000.color.png")
    image = read_image(path)
    assert path.suffix == ".jpg"
    assert image.shape == (480, 640, 3)
    np.testing.assert_array_equal(
        resize_short_side(image, 256), np.array(Resize(256)(Image.open(path).convert("RGB")))
    )


def cuts(data: bytes) -> list[int]:
    """Lengths to cut a file to."""
    return [*range(12, len(data), max(1, len(data) // 60)), *range(len(data) - 8, len(data))]


@pytest.mark.parametrize("tail", [b"", b"\xff", b"\xd9", b"\xff\xd9", b"\0", b"\xff\xd9\0"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"restart_marker_rows": 1}),
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("PPM", {}),
    ],
)
def test_an_image_that_is_cut_off_is_refused_or_is_the_same(tmp_path, kind, options, tail):
    steps = np.add.outer(np.arange(72), np.arange(96))
    pixels = np.stack([steps * 2 % 256, steps % 256, 255 - steps % 256], 2).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 40, pixels.shape, dtype=np.uint8)
    path = tmp_path / "image.jpg"  # whatever its name
    Image.fromarray(pixels // 2 + noise).save(path, kind, **options)
    whole, data = read_image(path), path.read_bytes()
    uncompressed = kind in ("BMP", "PPM") or (kind == "TIFF" and not options)
    if kind == "WEBP" or uncompressed:
        tail = b""  # else other pixels, of which the format does not tell that they are
    for length in cuts(data):
        path.write_bytes(data[:length] + tail)
        try:
            found = read_image(path)
        except MsposeError:
            continue
        assert np.array_equal(found, whole), f"cut to {length} of {len(data)}"


def test_formats_are_told_by_content_and_those_that_start_programs_are_not_read(
    tmp_path, picture, monkeypatch
):
    marker = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {marker}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
    (tmp_path / "photo.jpg").write_bytes(postscript)
    with pytest.raises(MsposeError, match=r"photo\.jpg is not an image \(JPEG, PNG, .*PPM\)"):
        read_image(tmp_path / "photo.jpg")
    assert not marker.exists()
    for kind in ("GIF", "ICO", "PCX"):
        Image.fromarray(picture).save(tmp_path / "photo.jpg", kind)
        with pytest.raises(MsposeError, match=r"photo\.jpg is not an image"):
            read_image(tmp_path / "photo.jpg")
    Image.fromarray(picture).save(tmp_path / "photo.jpg", "PNG")
    np.testing.assert_array_equal(read_image(tmp_path / "photo.jpg"), picture)


def test_an_image_of_too_many_pixels_is_refused_before_it_takes_memory(tmp_path):
    (tmp_path / "huge.ppm").write_bytes(b"P6 60000 60000 255\n")
    with pytest.raises(MsposeError, match=r"huge\.ppm has more than .* pixels, .*MSPOSE_MOST_PIX"):
        read_image(tmp_path / "huge.ppm")


def test_pipes_and_devices_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "device.png"):
        with pytest.raises(MsposeError, match="not a regular file"):
            read_image(tmp_path / name)
        with pytest.raises(MsposeError, match="image not found"):
            find_image(tmp_path, name)


@pytest.mark.parametrize("name", ["../b/x.png", "/etc/x.png", "a/../../x.png", "..", "a\0.png"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    with pytest.raises(MsposeError, match="leads outside of the folder|NUL character"):
        find_image(tmp_path, name)
