from pathlib import Path

import pytest

from mspose.errors import MsposeError
from mspose.tools.importing.image_paths import find_images

NAMES = [f"images/cam/{number}.jpg" for number in range(30)]


def put(folder: Path, names) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    "prefix",
    ["", "./", "../shots/", "C:\\Users\\me\\shots\\", "D:/shots/", "\\\\server\\disk\\",
     "/home/somebody/shots/", "file:///home/somebody/"],
)  # fmt: skip
@pytest.mark.parametrize("below", ["", "photos/", "images/cam/", "a/b/"])
def test_images_below_the_folder_are_found_by_the_ends_of_their_names(prefix, below, tmp_path):
    """Beside the poses, in a folder that the poses do not name, and without their own folders."""
    top = tmp_path / "shots"
    here = [f"{below}{number}.jpg" for number in range(30)]
    put(top, here)
    folders, files = find_images([prefix + name for name in NAMES], [top], top)
    assert [file and file.relative_to(top).as_posix() for file in files] == here
    assert len(folders) == 1


def test_the_same_number_of_parts_is_left_out_of_all_names(tmp_path):
    """The cameras of a rig share the last parts of their names."""
    names = [f"/elsewhere/{side}/{number}.jpg" for side in "lr" for number in range(9)]
    put(tmp_path, [name.removeprefix("/elsewhere/") for name in names[:15]])
    files = find_images(names, [tmp_path], tmp_path)[1]
    assert [file is not None for file in files] == [True] * 15 + [False] * 3
    assert len(set(files[:15])) == 15


def test_several_folders_that_are_as_likely_are_to_be_chosen_from(tmp_path):
    put(tmp_path, [f"{folder}/{number}.jpg" for folder in ("full", "half") for number in range(5)])
    names = [f"{number}.jpg" for number in range(5)]
    with pytest.raises(MsposeError, match=r"several folders: .*full, .*half: choose with --images"):
        find_images(names, [tmp_path], tmp_path)
    folders, files = find_images(names, [tmp_path / "half"], tmp_path)
    assert folders == [tmp_path / "half"]
    assert None not in files


def test_what_is_not_there_is_not_found(tmp_path):
    put(tmp_path, [".hidden/0.jpg", "a/b/c/d/1.jpg"])
    assert find_images(["0.jpg", "1.jpg"], [tmp_path], tmp_path) == ([tmp_path], [None, None])
