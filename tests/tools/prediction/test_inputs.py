import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mspose.errors import MsposeError
from mspose.tools.prediction.inputs import ImageFile, Video, find_sources, read_queries

SHADES = range(20, 240, 20)


def write_video(path: Path, *, size=(80, 60), fourcc="MJPG", fps=25.0) -> Path:
    """A frame per shade: blue, green and red parts differ, and the left half is black."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), fps, size)
    assert writer.isOpened()
    for shade in SHADES:
        frame = np.full((size[1], size[0], 3), (20, 100, shade), np.uint8)
        frame[:, : size[0] // 2] = 0
        writer.write(frame)
    writer.release()
    return path


def turn_video(path: Path) -> None:
    """Note in an MP4's track header that it is to be shown turned by 90 degrees, as phones do."""
    data = bytearray(path.read_bytes())
    start = data.find(b"tkhd") + 4 + 40  # version 0: the matrix begins 40 bytes after the version
    one = 0x10000
    for place, value in enumerate([0, one, 0, -one, 0, 0, 60 * one, 0, 0x40000000]):
        data[start + 4 * place : start + 4 * place + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)


def write_image(path: Path, size=(80, 60), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 100, 50)).save(path, **options)
    return path


def exif(**tags: float) -> Image.Exif:
    made = Image.Exif()
    if "orientation" in tags:
        made[0x0112] = tags["orientation"]
    if "focal_mm" in tags:
        made.get_ifd(0x8769)[0xA405] = tags["focal_mm"]
    return made


def views(*inputs, **options):
    return list(read_queries(find_sources(inputs, **options)))


def names(folder: Path, *inputs) -> list[str]:
    return [source.path.relative_to(folder).as_posix() for source in find_sources(inputs)]


def test_a_folder_is_all_images_in_it_in_natural_order(tmp_path):
    for name in (
        "b/2.png",
        "b/10.png",
        "b/1.JPG",
        "a 1/x.webp",
        "a 1/y.tiff",
        "ü.bmp",
        "b/.hidden.png",
    ):
        write_image(tmp_path / name)
    write_image(tmp_path / ".cache" / "z.png")
    write_image(tmp_path / "b" / "frame-000000.color.png")
    for name in ("b/frame-000000.depth.png", "b/frame-000000.depth.proj.png"):
        write_image(tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    write_video(tmp_path / "b" / "clip.avi")
    (tmp_path / "circle").symlink_to(tmp_path)
    found = [
        "a 1/x.webp",
        "a 1/y.tiff",
        "b/1.JPG",
        "b/2.png",
        "b/10.png",
        "b/frame-000000.color.png",
        "ü.bmp",
    ]
    assert names(tmp_path, tmp_path) == found
    assert {source.folder for source in find_sources([tmp_path])} == {tmp_path}
    linked = tmp_path.parent / "linked"
    linked.mkdir()
    (linked / "sequence").symlink_to(tmp_path / "b")
    assert names(linked, linked)[0] == "sequence/1.JPG"


def test_several_inputs_stay_in_their_order(tmp_path):
    for name in ("9.png", "f/3.png", "f/1.png"):
        write_image(tmp_path / name)
    clip = write_video(tmp_path / "clip.avi")
    assert names(tmp_path, tmp_path / "9.png", clip, tmp_path / "f") == [
        "9.png",
        "clip.avi",
        "f/1.png",
        "f/3.png",
    ]
    with pytest.raises(MsposeError, match=r"f/1.png is there twice"):
        find_sources([tmp_path / "f", tmp_path / "f" / ".." / "f" / "1.png"])


def test_what_is_left_out_of_a_folder_is_told(tmp_path, caplog):
    write_image(tmp_path / "1.png")
    clip = write_video(tmp_path / "clip.avi")
    assert names(tmp_path, clip, tmp_path) == ["clip.avi", "1.png"]
    assert caplog.messages == []
    for name in ("b.HEIC", "a.heic"):
        (tmp_path / name).touch()
    assert names(tmp_path, tmp_path) == ["1.png"]
    video, photo = caplog.messages
    assert video == f"videos in folders are not read, give them by their names: {clip}"
    assert photo.endswith(f"save them as JPEG: {tmp_path / 'a.heic'} and 1 more")


def test_an_image_without_an_ending_is_an_image(tmp_path):
    write_image(tmp_path / "photo.png").rename(tmp_path / "photo")
    (source,) = find_sources([tmp_path / "photo"])
    assert isinstance(source, ImageFile)


@pytest.mark.parametrize(("name", "fourcc"), [("clip.avi", "MJPG"), ("clip.mp4", "mp4v")])
def test_a_video_has_its_colours_and_times(tmp_path, name, fourcc):
    clip = write_video(tmp_path / name, fourcc=fourcc)
    (source,) = find_sources([clip])
    assert isinstance(source, Video)
    assert source.images == len(SHADES)
    for number, ((view, image_HW3), shade) in enumerate(zip(views(clip), SHADES, strict=True)):
        assert (view.name, view.width, view.height) == (f"{clip}#{number}", 80, 60)
        assert view.time_s == pytest.approx(number / 25, abs=1e-6)
        np.testing.assert_allclose(image_HW3[30, 60], (shade, 100, 20), atol=12)
        assert image_HW3[30, 20].max() < 20
        assert image_HW3.flags["C_CONTIGUOUS"]


def test_every_nth_frame_of_a_video(tmp_path):
    clip = write_video(tmp_path / "clip.avi")
    (source,) = find_sources([clip], every=4)
    assert source.images == 3
    found = [view for view, _ in views(clip, every=4)]
    assert [view.name.rpartition("#")[2] for view in found] == ["0", "4", "8"]
    assert [view.time_s for view in found] == pytest.approx([0, 0.16, 0.32], abs=1e-6)


def test_a_video_that_is_to_be_turned_is_turned(tmp_path):
    clip = write_video(tmp_path / "phone.mp4", fourcc="mp4v")
    turn_video(clip)
    (view, image_HW3), *_ = views(clip)
    assert (view.width, view.height) == (60, 80)
    assert image_HW3[20, 30].max() < 20 < image_HW3[60, 30].max()  # what was left is above


class StoppedClock:
    """A capture of five frames whose file gives no times, and announces more than there are."""

    def __init__(self, *_):
        self.number = -1

    def set(self, *_):
        return True

    def get(self, which):
        return {cv2.CAP_PROP_FPS: 10.0, cv2.CAP_PROP_FRAME_COUNT: 8.0, cv2.CAP_PROP_POS_MSEC: 0.0}[
            which
        ]

    def grab(self):
        self.number += 1
        return self.number < 5

    def retrieve(self):
        return True, np.zeros((6, 8, 3), np.uint8)

    def release(self):
        pass


def test_a_video_without_times_has_those_of_its_rate_and_one_that_ends_early_says_so(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(cv2, "VideoCapture", StoppedClock)
    found = [view.time_s for view, _ in Video(tmp_path / "clip.avi", tmp_path, 8).read()]
    assert found == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert all(first < second for first, second in itertools.pairwise(found))
    assert "decoded 5 of about 8 frames" in caplog.text


def test_pixels_are_read_as_they_are_stored_and_tags_are_told(tmp_path):
    write_image(tmp_path / "phone.jpg", (80, 60), exif=exif(orientation=6, focal_mm=26))
    ((view, image_HW3),) = views(tmp_path / "phone.jpg")
    assert image_HW3.shape == (60, 80, 3)
    assert (view.width, view.height, view.turn_tag, view.time_s) == (80, 60, 6, None)
    # 26 mm on film of 36 x 24: the same share of the image's diagonal
    assert view.focal_px == pytest.approx(26 / np.hypot(36, 24) * 100)
    for name, tags in (
        ("plain", None),
        ("odd", exif(orientation=77, focal_mm=0)),
        ("tiff", exif(orientation=6)),
    ):
        path = write_image(
            tmp_path / f"{name}.{'tiff' if name == 'tiff' else 'jpg'}", exif=tags or Image.Exif()
        )
        ((view, _),) = views(path)
        assert (view.turn_tag, view.focal_px) == (1, None)


def test_what_is_wrong_with_an_image_comes_in_its_place(tmp_path):
    for number in range(3):
        write_image(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"broken")
    first, fault, last = views(tmp_path)
    assert isinstance(fault, MsposeError)
    assert "1.png is not an image" in str(fault)
    assert (first[0].name, last[0].name) == (str(tmp_path / "0.png"), str(tmp_path / "2.png"))


def test_what_cannot_be_read_is_named(tmp_path):
    def refused(pattern: str, name: str | bytes, content: bytes | None = None) -> None:
        path = tmp_path / (name if isinstance(name, str) else name.decode(errors="surrogateescape"))
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(MsposeError, match=pattern):
            find_sources([path])

    clip = write_video(tmp_path / "clip.avi").read_bytes()
    refused("there is no file or folder .*nowhere", "nowhere")
    refused(
        "text.mp4 is neither an image nor a video that OpenCV can open", "text.mp4", b"hello\n" * 50
    )
    refused(
        "head.avi .*none of its frames can be decoded|head.avi is neither", "head.avi", clip[:1000]
    )
    refused(
        "photo.HEIC is neither an image nor .*: save it as JPEG", "photo.HEIC", b"ftypheic" * 50
    )
    refused("empty.mp4 is an empty file", "empty.mp4", b"")
    refused(r"images.zip is an archive: unpack it", "images.zip", b"PK\5\6" + bytes(18))
    refused("a video's name has to be UTF-8", b"clip\xff.avi", clip)
    (tmp_path / "folder").mkdir()
    refused(r"no images in .*folder \(searched .png, .jpg, .jpeg, .*folders below", "folder")
    (tmp_path / "folder" / "clip.MP4").write_bytes(clip)
    refused(
        "no images in .*; videos in folders are not read, give them by their names:"
        " .*folder/clip.MP4$",
        "folder",
    )
    with pytest.raises(MsposeError, match="a path is empty"):
        find_sources([""])
