import numpy as np
import pandas as pd
import pytest

from mspose.errors import MsposeError
from mspose.tools.importing.splits import SplitBy, block_splits, describe_split, split_frames


def frames(**counts: int) -> pd.DataFrame:
    """Rows of scenes and sequences, `a_walk=12`: 12 moments of the sequence walk of scene a."""
    rows = [
        (*key.split("_"), f"{key.split('_')[1]}/{number}.jpg", number, "")
        for key, count in counts.items()
        for number in range(count)
    ]
    return pd.DataFrame(rows, columns=["scene", "sequence", "name", "moment", "given"])


def letters(split: np.ndarray) -> str:
    return "".join({"train": ".", "test": "T", "": "-"}[name] for name in split)


def split(table: pd.DataFrame, *args, left_out=(), **options) -> str:
    return letters(split_frames(table, SplitBy(*args, **options), left_out))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((20, 2, 5, 1), "...-TT-......-TT-..."),
        ((20, 2, 5, 0), "....TT........TT...."),
        ((9, 3, 2, 2), ".--TTT--."),
        ((3, 1, 5, 1), ".-T"),
        ((1, 1, 5, 1), "."),
        ((4, 1, 2, 9), "-T-T"),
    ],
)
def test_blocks_by_hand(arguments, expected):
    assert letters(block_splits(*arguments)) == expected


@pytest.mark.parametrize(
    ("count", "train", "test", "block", "margin"),
    [
        (1000, 720, 200, 50, 10),
        (250, 180, 50, 50, 10),
        (100, 72, 20, 20, 4),
        (30, 22, 6, 6, 1),
        (5, 2, 1, 1, 1),
    ],
)
def test_short_sequences_have_shorter_blocks(count, train, test, block, margin):
    table = frames(a_walk=count)
    found = split(table)
    assert (found.count("."), found.count("T")) == (train, test)
    text = describe_split(table, SplitBy())
    assert "of every 5 blocks of a sequence one is for testing" in text
    assert f"blocks of {block} frame" in text
    assert f", {margin} dropped on each side" in text


def test_blocks_as_asked_for():
    found = split(frames(a_walk=40), block=4, test_every=3, margin=2)
    assert [number for number in range(40) if found[number] == "T"] == [
        number for number in range(40) if number // 4 % 3 == 1
    ]
    assert split(frames(a_one=10, a_two=10, b_one=10), block=2, margin=1) == "...-TT-..." * 3
    for count in (23, 57, 260, 301):
        by = split_frames(frames(a_walk=count), SplitBy(margin=7))
        train, test = np.flatnonzero(by == "train"), np.flatnonzero(by == "test")
        assert abs(train[:, None] - test).min() == 8


def test_frames_of_one_moment_stay_together():
    table = frames(a_rig=30)
    table["moment"] = np.arange(30) // 3
    assert split(table, block=2, margin=1) == "." * 9 + "---TTTTTT---" + "." * 9


def test_sequences():
    table = frames(a_one=3, a_two=3, b_one=3, b_two=3)
    assert split(table, "sequence", test_sequences=["two"]) == "...TTT" * 2
    assert split(table, "sequence", test_sequences=["a/one", "b/two"]) == "TTT......TTT"
    for names, message in (
        (["three"], r"there is no sequence 'three'; there are: a/one, a/two, b/one, b/two"),
        (["a/one"], "scene b would have no test frames; its sequences: one, two"),
        (["one", "two"], "scene a would have no train frames"),
    ):
        with pytest.raises(MsposeError, match=message):
            split(table, "sequence", test_sequences=names)


@pytest.fixture
def by_list(tmp_path):
    """`by_list(table, test, train)`: the split of `table` by lists of these contents."""

    def run(table, test: str, train: str | None = None, left_out=()) -> str:
        (tmp_path / "test.txt").write_text(test)
        (tmp_path / "train.txt").write_text(train or "")
        train_list = tmp_path / "train.txt" if train else None
        lists = {"test_list": tmp_path / "test.txt", "train_list": train_list}
        return split(table, "list", left_out=left_out, **lists)

    return run


def test_lists(by_list):
    table = frames(a_one=4, a_two=2)
    comments = "# held out\none/1.jpg\r\n./one/3.jpg\n\nwas/broken.jpg\n"
    assert by_list(table, comments, left_out=["was/broken.jpg"]) == ".T.T.."
    assert by_list(table, "one\\1.jpg\n", "two/0.jpg\na/two/1.jpg\n") == "-T--.."
    assert by_list(frames(a_one=2, b_one=2), "a/one/0.jpg\nb/one/1.jpg") == "T..T"


@pytest.mark.parametrize(
    ("test", "train", "message"),
    [
        ("one/1.jpg\none/9.jpg", None, "test.txt, line 2: there is no image one/9.jpg"),
        ("a/one/1.jpg", "a/one/1.jpg", "train.txt, line 1: a/one/1.jpg is in the other list too"),
        ("# none", None, "scene a would have no test frames; choose others"),
        ("two/0.jpg", None, "line 1: several scenes .* two/0.jpg: say a/two/0.jpg, b/two/0.jpg"),
    ],
)
def test_bad_lists(test, train, message, by_list):
    table = frames(a_one=4, a_two=2, b_two=2)
    with pytest.raises(MsposeError, match=message):
        by_list(table, test, train)


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (SplitBy("sequence", block=3, test_sequences=["a"]), "--block belongs to --split blocks"),
        (SplitBy(test_sequences=["a"]), "--test-sequences belongs to --split sequence"),
        (SplitBy("given", margin=0), "--margin belongs to --split blocks"),
        (SplitBy("sequence"), "--test-sequences"),
        (SplitBy("list"), "--test-list"),
    ],
)
def test_options_without_effect(by, message):
    with pytest.raises(MsposeError, match=message):
        by.refuse_idle_options()


@pytest.mark.parametrize(("count", "options"), [(2, {}), (40, {"block": 50}), (12, {"margin": 50})])
def test_scenes_that_are_too_short(count, options):
    message = r"scene a would have no \w+ frames; its frames are in 1 sequence .*--block"
    with pytest.raises(MsposeError, match=message):
        split(frames(a_one=count), **options)
