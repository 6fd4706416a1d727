import numpy as np
import pandas as pd
import pytest

from mspose.errors import MsposeError
from mspose.tools.importing.splits import SplitBy, block_splits, describe_split, split_frames


def frames(**counts: int) -> pd.DataFrame:
    """Rows of scenes and sequences, `a_walk=12`: 12 moments of the sequence walk of scene a."""
    rows = [
        {
            "scene": scene,
            "sequence": sequence,
            "name": f"{sequence}/{number}.jpg",
            "moment": number,
            "given": "",
        }
        for scene, sequence, count in ((*key.split("_"), count) for key, count in counts.items())
        for number in range(count)
    ]
    return pd.DataFrame(rows)


def letters(split: np.ndarray) -> str:
    return "".join({"train": ".", "test": "T", "": "-"}[name] for name in split)


def test_blocks_by_hand():
    assert letters(block_splits(20, 2, 5, 1)) == "...-TT-......-TT-..."
    assert letters(block_splits(20, 2, 5, 0)) == "....TT........TT...."
    assert letters(block_splits(9, 3, 2, 2)) == ".--TTT--."
    assert letters(block_splits(3, 1, 5, 1)) == ".-T"
    assert letters(block_splits(1, 1, 5, 1)) == "."
    assert letters(block_splits(4, 1, 2, 9)) == "-T-T"


@pytest.mark.parametrize(
    ("count", "train", "test", "block", "margin"),
    [(1000, 720, 200, 50, 10), (250, 180, 50, 50, 10), (100, 72, 20, 20, 4), (30, 22, 6, 6, 1), (5, 2, 1, 1, 1)],
)  # fmt: skip
def test_short_sequences_have_shorter_blocks(count, train, test, block, margin):
    table = frames(a_walk=count)
    split = split_frames(table, SplitBy())
    assert ((split == "train").sum(), (split == "test").sum()) == (train, test)
    said = describe_split(table, SplitBy())
    assert (
        f"every 5th block of a sequence is for testing; blocks of {block} frame{'s' * (block > 1)},"
        f" {margin} dropped" in said
    )


def test_what_is_said_is_done():
    split = split_frames(frames(a_walk=40), SplitBy(block=4, test_every=3, margin=2))
    expected = ["T" if number // 4 % 3 == 1 else "?" for number in range(40)]
    assert [letter if letter == "T" else "?" for letter in letters(split)] == expected
    assert "every 3rd block" in describe_split(frames(a_walk=40), SplitBy(test_every=3))


def test_no_training_frame_is_within_the_margin_of_a_test_frame():
    for count in (23, 57, 260, 301):
        split = split_frames(frames(a_walk=count), SplitBy(margin=7))
        train, test = np.flatnonzero(split == "train"), np.flatnonzero(split == "test")
        assert abs(train[:, None] - test).min() == 8


def test_sequences_have_blocks_of_their_own():
    split = split_frames(frames(a_one=10, a_two=10, b_one=10), SplitBy(block=2, margin=1))
    assert letters(split) == "...-TT-..." * 3


def test_frames_of_one_moment_stay_together():
    table = frames(a_rig=30)
    table["moment"] = np.arange(30) // 3
    assert (
        letters(split_frames(table, SplitBy(block=2, margin=1)))
        == "." * 9 + "---TTTTTT---" + "." * 9
    )


def test_sequences():
    table = frames(a_one=3, a_two=3, b_one=3, b_two=3)
    assert letters(split_frames(table, SplitBy("sequence", test_sequences=["two"]))) == "...TTT" * 2
    one_each = SplitBy("sequence", test_sequences=["a/one", "b/two"])
    assert letters(split_frames(table, one_each)) == "TTT......TTT"
    assert describe_split(table, one_each) == "by sequence; for testing: a/one, b/two"
    with pytest.raises(
        MsposeError, match=r"there is no sequence 'three'; there are: a/one, a/two, b/one, b/two"
    ):
        split_frames(table, SplitBy("sequence", test_sequences=["three"]))
    with pytest.raises(
        MsposeError, match="scene b would have no test frames; its sequences: one, two"
    ):
        split_frames(table, SplitBy("sequence", test_sequences=["a/one"]))
    with pytest.raises(MsposeError, match="scene a would have no train frames"):
        split_frames(table, SplitBy("sequence", test_sequences=["one", "two"]))


@pytest.fixture
def by_list(tmp_path):
    def make(test: str, train: str | None = None) -> SplitBy:
        (tmp_path / "test.txt").write_text(test)
        (tmp_path / "train.txt").write_text(train or "")
        return SplitBy(
            "list",
            test_list=tmp_path / "test.txt",
            train_list=tmp_path / "train.txt" if train else None,
        )

    return make


def test_lists(by_list):
    table = frames(a_one=4, a_two=2)
    by = by_list("# held out\none/1.jpg\r\n./one/3.jpg\n\nwas/broken.jpg\n")
    assert letters(split_frames(table, by, ["was/broken.jpg"])) == ".T.T.."
    by = by_list("one\\1.jpg\n", "two/0.jpg\na/two/1.jpg\n")
    assert letters(split_frames(table, by)) == "-T--.."
    assert "test.txt and " in describe_split(table, by)
    with pytest.raises(
        MsposeError,
        match="test.txt, line 2: there is no image one/9.jpg; names are those of the model",
    ):
        split_frames(table, by_list("one/1.jpg\none/9.jpg"))
    with pytest.raises(MsposeError, match="train.txt, line 1: one/1.jpg is in the other list too"):
        split_frames(table, by_list("one/1.jpg", "one/1.jpg"))
    with pytest.raises(MsposeError, match="scene a would have no test frames; choose others"):
        split_frames(table, by_list("# none"))


def test_a_name_in_several_scenes(by_list):
    table = frames(a_one=2, b_one=2)
    assert letters(split_frames(table, by_list("a/one/0.jpg\nb/one/1.jpg"))) == "T..T"
    with pytest.raises(
        MsposeError,
        match="line 1: several scenes have an image one/0.jpg: say a/one/0.jpg, b/one/0",
    ):
        split_frames(table, by_list("one/0.jpg"))


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (
            SplitBy("sequence", block=3, test_sequences=["a"]),
            "--block belongs to --split blocks: with --split sequence",
        ),
        (SplitBy(test_sequences=["a"]), "--test_sequences belongs to --split sequence"),
        (SplitBy("given", margin=0), "--margin belongs to --split blocks"),
        (SplitBy("sequence"), "name the sequences for testing with --test_sequences"),
        (SplitBy("list"), "name the file that lists the test images"),
    ],
)
def test_options_without_effect(by, message):
    with pytest.raises(MsposeError, match=message):
        by.refuse_idle_options()


@pytest.mark.parametrize(
    ("counts", "by"),
    [
        ({"a_one": 2}, SplitBy()),
        ({"a_one": 40}, SplitBy(block=50)),
        ({"a_one": 12}, SplitBy(margin=50)),
    ],
)
def test_scenes_that_are_too_short(counts, by):
    with pytest.raises(
        MsposeError,
        match=r"scene a would have no \w+ frames; its frames are in 1 sequence .*--block",
    ):
        split_frames(frames(**counts), by)
