import math

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mspose.data.cache import open_cache
from mspose.data.image_statistics import describe_images
from mspose.errors import MsposeError
from mspose.tools.prediction.inputs import Query
from mspose.tools.prediction.training_images import QueryCheck, TrainingImages, training_images

TRAINING = TrainingImages(((640, 480), (480, 640)), (1.2, 1.25, 1.3))


def check(
    view: Query, training: TrainingImages | None = TRAINING, focal_px: float | None = None
) -> list[str]:
    return QueryCheck(training, focal_px).warnings(view)


def described(folder, images: dict[str, tuple[tuple[int, int], float]], *, size: int = 48):
    for name, (shape, _) in images.items():
        Image.new("RGB", shape).save(folder / name)
    frames = pd.DataFrame({"dataset": "x", "split": "train", "image": list(images)}).assign(
        focal_px=[focal for _, focal in images.values()]
    )
    frames, cache = open_cache(
        frames, folder, short_side=size, folder=folder / "cache", progress=False
    )
    return frames, cache, describe_images(frames, cache, folder)


def test_training_images_are_described_to_the_pixel(tmp_path):
    # 641 and 640 pixels are the same after resizing, and not to be told by rounding
    wide, wider, tall = (640, 480), (1921, 1080), (480, 641)
    images = {f"{number}.png": (wide, 600.0) for number in range(3)}
    images |= {"3.png": (tall, 480.0), "4.png": (wider, 2160.0), "5.png": (tall, math.nan)}
    frames, cache, found = described(tmp_path, images)
    assert found == {
        "image_sizes": [[640, 480, 3], [480, 641, 2], [1921, 1080, 1]],
        "focal_px": 600.0,
        "focal_per_short_side": [1.0, 1.25, 2.0],
    }
    (tmp_path / "4.png").unlink()
    again = describe_images(frames, cache, tmp_path)["image_sizes"]
    assert again[:2] == found["image_sizes"][:2]
    assert again[2] == pytest.approx([1921, 1080, 1], abs=1080 / 48)  # from the resized frame alone
    part = frames.iloc[3:].reset_index(drop=True)
    assert describe_images(part, cache, tmp_path)["image_sizes"][0] == [480, 641, 2]


def test_of_many_sizes_the_most_frequent_are_listed(tmp_path):
    images = {f"{number}.png": ((50 + 2 * number, 50), math.nan) for number in range(12)}
    *_, found = described(tmp_path, images | {"again.png": ((72, 50), math.nan)})
    assert len(found["image_sizes"]) == 10
    assert found["image_sizes"][0] == [72, 50, 2]
    assert found["focal_px"] is found["focal_per_short_side"] is None


def test_what_a_model_says_is_read_back(tmp_path):
    *_, found = described(tmp_path, {"a.png": ((80, 60), 70.0)})
    assert training_images(found) == TrainingImages(((80, 60),), (70 / 60, 70 / 60, 70 / 60))
    assert training_images({**found, "focal_per_short_side": None}) == TrainingImages(
        ((80, 60),), None
    )
    for broken in (None, 3, [], [[1, 2]], [[0, 5, 1]]):
        assert training_images({"focal_px": 70.0, "image_sizes": broken}) is None
    assert training_images({**found, "focal_per_short_side": [2, 1, 3]}).focal is None


def test_an_image_as_in_training_is_no_news():
    assert check(Query("a", 640, 480, focal_px=600)) == []
    assert check(Query("a", 642, 480)) == []  # as some cameras round
    assert check(Query("a", 480, 640, focal_px=1.36 * 480)) == []  # 5 % beyond the longest
    assert check(Query("a", 640, 480), focal_px=580) == []


@pytest.mark.parametrize(
    ("query", "focal_px", "expected"),
    [
        (Query("a", 1280, 960), None, "a is 1280x960, training images are 640x480, 480x640"),
        (Query("a", 640, 360), None, "a is 640x360, another shape than all training images"),
        (Query("a", 640, 480, focal_px=800), None, "640x480, is 1.28 times that of training (624"),
        (Query("a", 640, 480, focal_px=600), 400, "640x480, is 0.69 times that of training (576"),
        (Query("a", 640, 480, turn_tag=6), None, "EXIF orientation 6; its pixels are taken as"),
    ],
)
def test_each_difference_is_warned_of(query, focal_px, expected):
    (warning,) = check(query, focal_px=focal_px)
    assert expected in warning


def test_whether_the_field_of_view_is_another_is_left_to_the_reader_where_nothing_says_it():
    (unknown,) = check(Query("a", 1280, 960))
    (known,) = check(Query("a", 1280, 960), focal_px=1200)
    assert unknown == f"{known}; unless it has their field of view too, positions are off"


def test_a_difference_is_told_once_and_counted():
    looks = QueryCheck(TRAINING)
    said = [looks.warnings(Query(str(number), 1280, 960, focal_px=3000)) for number in range(3)]
    assert [len(words) for words in said] == [2, 0, 0]
    assert len(looks.warnings(Query("turned", 640, 480, turn_tag=3))) == 1
    looks.warnings(Query("fine", 640, 480))
    counts = "3 of another size; 3 of another focal length; 1 with an EXIF tag to turn it"
    assert looks.summary() == f"of 5 images: {counts}"
    assert QueryCheck(TRAINING).summary() is None


def test_where_not_all_sizes_are_listed_the_shape_alone_counts():
    many = TrainingImages(tuple((100 + number, 100) for number in range(10)), None)
    assert check(Query("a", 1050, 1000), many) == []
    assert "another shape" in check(Query("a", 160, 100), many)[0]


def test_a_model_that_does_not_say_is_told_once():
    looks = QueryCheck(None)
    assert "does not say what sizes and focal lengths" in looks.warnings(Query("a", 640, 480))[0]
    assert looks.warnings(Query("b", 640, 480)) == []
    sizes_alone = TrainingImages(((640, 480),), None)
    assert check(Query("a", 640, 480), sizes_alone) == []
    (warning,) = check(Query("a", 640, 480, focal_px=600), sizes_alone)
    assert "does not say what focal length" in warning


def test_the_focal_length_of_a_camera_is_the_best_that_is_known():
    view, plain = Query("a", 640, 480, focal_px=600), Query("b", 320, 240)
    assert QueryCheck(TRAINING, 500).camera(view) == (500, "as given")
    assert QueryCheck(TRAINING).camera(view) == (600, "from EXIF")
    assert QueryCheck(TRAINING).camera(plain) == (1.25 * 240, "not measured: as in training")
    with pytest.raises(
        MsposeError, match="b: its focal length is not known, nor that of training: give --focal-px"
    ):
        QueryCheck(TrainingImages(((640, 480),), None)).camera(plain)
    assert np.isfinite(QueryCheck(None).camera(view)[0])
