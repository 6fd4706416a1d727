import errno
import hashlib
import io
import logging
import random
import shutil
import stat
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mspose.data import download
from mspose.data.cards import load_frames, read_card
from mspose.data.download import download_scenes
from mspose.errors import MsposeError

POSE = b"1 0 0 0\r\n0 1 0 0\r\n0 0 1 0\r\n0 0 0 1\r\n"


def make_zip(members):
    """The bytes of a zip archive: name -> content, or (ZipInfo, content) pairs."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, content)
    return file.getvalue()


def seven_scenes_zip(scene="attic", **more):
    """The shape of 7Scenes' archives: a folder with the split files and a zip for each sequence."""
    members = {
        f"{scene}/": b"",
        f"{scene}/TrainSplit.txt": b"sequence1\r\n",
        f"{scene}/TestSplit.txt": b"sequence2\r\n",
    }
    for sequence in ("seq-01", "seq-02"):
        frames = {f"{sequence}/": b"", f"{sequence}/Thumbs.db": b"junk"}
        for number in range(3):
            frames[f"{sequence}/frame-{number:06d}.color.png"] = random.Random(number).randbytes(
                50_000
            )
            frames[f"{sequence}/frame-{number:06d}.pose.txt"] = POSE
        members[f"{scene}/{sequence}.zip"] = make_zip(frames)
    return make_zip({**members, **more})


def cambridge_zip(scene="Tower"):
    line = "seq1/frame{:05d}.png 1 2 3 1 0 0 0"
    header = "Visual Landmark Dataset V1\nImageFile, Camera Position [X Y Z W P Q R]\n\n"
    return make_zip(
        {
            f"{scene}/dataset_train.txt": header + line.format(1) + "\n" + line.format(2),
            f"{scene}/dataset_test.txt": header + line.format(3),
            **{f"{scene}/seq1/frame{number:05d}.png": b"an image" for number in (1, 2, 3)},
            f"{scene}/reconstruction.nvm": b"NVM_V3",
            f"__MACOSX/{scene}/._dataset_train.txt": b"",
        }
    )


class Server:
    """A local HTTP server with a few ways to behave badly."""

    def __init__(self):
        self.files = {}
        self.ranges = True  # knows the Range header
        self.break_after = 0  # closes the connection after so many bytes of each answer
        self.requests = []  # (path, Range header)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()

    def answer(self, handler):
        wanted = handler.headers.get("Range")
        self.requests.append((handler.path, wanted))
        data = self.files.get(handler.path)
        if data is None:
            handler.send_error(404)
            return
        start, status = 0, 200
        if wanted and self.ranges:
            start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
            if start >= len(data):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(data)}")
                handler.end_headers()
                return
        body = data[start:]
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.end_headers()
        handler.wfile.write(body[: self.break_after] if self.break_after else body)
        handler.close_connection = True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def card(tmp_path, server):
    """A card of 7Scenes' format with scenes attic (served) and cellar (with no address)."""
    server.files["/attic.zip"] = seven_scenes_zip()
    path = tmp_path / "cards" / "rooms.yaml"
    path.parent.mkdir()
    path.write_text(
        "format: 7scenes\nroot: data\nsource: a shelf\nscenes:\n  attic: {url:"
        f" {server.url}/attic.zip}}\n  cellar:\n"
    )
    return read_card(path)


def with_checksum(card, checksum):
    text = card.path.read_text().replace("attic.zip}", f"attic.zip, sha256: {checksum}}}")
    card.path.write_text(text)
    return read_card(card.path)


def fetch(card, scenes=("attic",), **options):
    said = []
    download_scenes(card, scenes, progress=False, report=said.append, **options)
    return "\n".join(said)


def left_behind(card):
    return sorted(path.name for path in card.root.iterdir()) if card.root.exists() else []


def test_a_scene_is_fetched_unpacked_and_read(card, server):
    said = fetch(card)
    for split, sequence in (("train", "seq-01"), ("test", "seq-02")):
        frames = load_frames(card, split=split, scenes=["attic"])
        assert frames["image"].tolist() == [
            f"attic/{sequence}/frame-{n:06d}.color.png" for n in range(3)
        ]
    assert left_behind(card) == ["attic", "attic.sha256"]
    assert sorted(path.name for path in (card.root / "attic").iterdir()) == [
        "TestSplit.txt",
        "TrainSplit.txt",
        "seq-01",
        "seq-02",
    ]
    checksum = hashlib.sha256(server.files["/attic.zip"]).hexdigest()
    assert (card.root / "attic.sha256").read_text() == f"{checksum}  attic.zip\n"
    assert "no checksum is published" in said
    assert f"in {card.root / 'attic'} (3 train, 3 test frames)" in said


def test_cambridges_shape(tmp_path, server):
    server.files["/1810/Tower.zip"] = cambridge_zip()
    path = tmp_path / "sights.yaml"
    path.write_text(
        f"format: cambridge\nscenes:\n  Tower: {{url: '{server.url}/1810/Tower.zip'}}\n"
    )
    card = read_card(path)
    assert download_scenes(card, progress=False, report=lambda line: None) == {
        "Tower": card.root / "Tower"
    }
    assert len(load_frames(card, split="train")) == 2
    assert len(load_frames(card, split="test")) == 1
    assert left_behind(card) == ["Tower", "Tower.sha256"]


def test_a_scene_that_is_whole_is_left_alone(card, server):
    fetch(card)
    server.requests.clear()
    note = card.root / "attic" / "note.txt"
    note.touch()
    said = fetch(card)
    assert said == f"attic: already in {card.root / 'attic'} (3 train, 3 test frames); left alone"
    assert note.exists()
    assert not server.requests


def test_a_folder_that_is_not_whole_is_neither_used_nor_overwritten(card, server):
    fetch(card)
    shutil.rmtree(card.root / "attic" / "seq-02")
    with pytest.raises(
        MsposeError, match=r"attic is there but not whole \(.*names sequence 2.*move it away"
    ):
        fetch(card)
    assert (card.root / "attic" / "seq-01").is_dir()


def test_fewer_frames_than_published_are_said(card, caplog):
    card.path.write_text(
        card.path.read_text().replace("attic.zip}", "attic.zip, frames: {train: 3, test: 1000}}")
    )
    with caplog.at_level(logging.WARNING, logger="mspose"):
        fetch(read_card(card.path))
    assert "attic has 3 test frames, published are 1000" in caplog.text
    assert "train" not in caplog.text


def test_another_root(card, tmp_path):
    fetch(card, root=tmp_path / "other" / "place")
    assert (
        len(load_frames(card, root=tmp_path / "other" / "place", split="train", scenes=["attic"]))
        == 3
    )
    assert not card.root.exists()


def test_an_interrupted_download_goes_on_where_it_stopped(card, server):
    length, step = len(server.files["/attic.zip"]), 3 * download.CHUNK
    server.break_after = step
    fetch(card)
    assert [wanted for _, wanted in server.requests] == [
        None,
        *(f"bytes={at}-" for at in range(step, length, step)),
    ]
    assert length > 2 * step
    assert left_behind(card) == ["attic", "attic.sha256"]


@pytest.mark.parametrize("kept", [1000, None])
def test_a_killed_download_goes_on_in_the_next_run(card, server, kept):
    card.root.mkdir()
    data = server.files["/attic.zip"]
    (card.root / "attic.zip.part").write_bytes(data[:kept])
    fetch(with_checksum(card, hashlib.sha256(data).hexdigest()))
    assert server.requests == [("/attic.zip", f"bytes={kept or len(data)}-")]
    assert left_behind(card) == ["attic"]


@pytest.mark.parametrize("part", [b"of an older file", b"x" * 1_000_000])
def test_a_part_of_another_file_is_thrown_away(card, server, part):
    card.root.mkdir()
    (card.root / "attic.zip.part").write_bytes(part)
    with pytest.raises(MsposeError, match="checksum|is not a zip archive"):
        fetch(with_checksum(card, hashlib.sha256(server.files["/attic.zip"]).hexdigest()))
    assert left_behind(card) == []
    fetch(card)
    assert len(load_frames(card, split="train", scenes=["attic"])) == 3


def test_a_server_without_ranges_sends_the_whole_again(card, server):
    server.ranges = False
    card.root.mkdir()
    (card.root / "attic.zip.part").write_bytes(b"x" * 1000)
    fetch(card)
    assert len(load_frames(card, split="train", scenes=["attic"])) == 3


def test_a_server_that_breaks_off_for_good_keeps_the_part(card, server):
    server.ranges, server.break_after = False, 2 * download.CHUNK
    with pytest.raises(
        MsposeError,
        match=r"attic.zip broke off after 65,536 bytes and 5 attempts .* run this again to",
    ):
        fetch(card)
    assert left_behind(card) == ["attic.zip.part"]
    server.ranges, server.break_after = True, 0
    fetch(card)
    assert server.requests[-1] == ("/attic.zip", "bytes=65536-")
    assert left_behind(card) == ["attic", "attic.sha256"]


def test_the_servers_refusal_is_one_line(card, server):
    server.files.clear()
    with pytest.raises(
        MsposeError, match=r"the server refuses http://.*/attic.zip: 404 Not Found$"
    ):
        fetch(card)
    assert left_behind(card) == []


def test_no_network(card, server):
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(
        MsposeError,
        match=r"cannot reach http://.*/attic.zip \(ConnectionError\): is there a network\?",
    ):
        fetch(card)
    card.path.write_text(card.path.read_text().replace("http://", "htp://"))
    with pytest.raises(MsposeError, match=r"cannot download htp://"):
        fetch(read_card(card.path))


def test_checksums(card, server, caplog):
    wrong = with_checksum(card, "f" * 64)
    with pytest.raises(
        MsposeError,
        match=r"attic.zip does not have the checksum of the published archive \(sha256 ffff",
    ):
        fetch(wrong)
    assert left_behind(card) == []
    card.path.write_text(
        card.path.read_text().replace(
            "f" * 64, hashlib.sha256(server.files["/attic.zip"]).hexdigest()
        )
    )
    fetch(read_card(card.path))
    assert left_behind(card) == ["attic"]


def test_a_changed_archive_is_noticed_by_the_recorded_checksum(card, caplog):
    card.root.mkdir()
    (card.root / "attic.sha256").write_text("1" * 64 + "  attic.zip\n")
    with caplog.at_level(logging.WARNING, logger="mspose"):
        fetch(card)
    assert "attic.zip is another file than the one downloaded before" in caplog.text


def test_what_is_not_a_zip_is_refused(card, server):
    whole = server.files["/attic.zip"]
    server.files["/attic.zip"] = b"<html>moved</html>"
    with pytest.raises(
        MsposeError,
        match=r"attic.zip is not a zip archive, or is cut off: it begins with b'<html>moved",
    ):
        fetch(card)
    assert left_behind(card) == []
    server.files["/attic.zip"] = whole
    fetch(card)


def test_a_scene_without_address(card):
    with pytest.raises(
        MsposeError, match=r"rooms knows no address of scene cellar: .*\(a shelf\).*--archive"
    ):
        fetch(card, ["cellar"])
    card.path.write_text(card.path.read_text() + "how_to_get: ask me\n")
    with pytest.raises(MsposeError, match=r"^ask me$"):
        fetch(read_card(card.path), ["cellar"])


def test_unknown_scenes_and_cards_without_downloads(card, tmp_path):
    with pytest.raises(MsposeError, match=r"rooms has no scene 'loft'; its scenes: attic, cellar"):
        fetch(card, ["loft"])
    (tmp_path / "v.yaml").write_text("format: virtual\nscenes: [a]\n")
    with pytest.raises(MsposeError, match=r"v is not a data set to download"):
        fetch(read_card(tmp_path / "v.yaml"), ["a"])


def test_a_local_archive_is_used_and_kept(card, server, tmp_path):
    archives = tmp_path / "archives"
    archives.mkdir()
    for scene in ("attic", "cellar"):
        (archives / f"{scene}.zip").write_bytes(seven_scenes_zip(scene))
    fetch(card, (), archive=archives)
    assert left_behind(card) == ["attic", "cellar"]
    assert sorted(path.name for path in archives.iterdir()) == ["attic.zip", "cellar.zip"]
    shutil.rmtree(card.root)
    fetch(card, ["cellar"], archive=archives / "cellar.zip")
    assert left_behind(card) == ["cellar"]
    shutil.rmtree(card.root)
    card.root.mkdir()
    shutil.copy(archives / "attic.zip", card.root)
    fetch(card)
    assert left_behind(card) == ["attic", "attic.zip"]
    assert not server.requests


def test_local_archives_that_are_not_right(card, tmp_path):
    with pytest.raises(MsposeError, match=r"attic: no such archive: .*/nowhere"):
        fetch(card, archive=tmp_path / "nowhere")
    with pytest.raises(MsposeError, match=r"attic: no such archive: .*/attic.zip"):
        fetch(card, archive=tmp_path)
    path = tmp_path / "attic.zip"
    path.write_bytes(seven_scenes_zip()[:-30])
    with pytest.raises(MsposeError, match=r"attic.zip is not a zip archive, or is cut off"):
        fetch(card, archive=path)
    path.write_bytes(seven_scenes_zip("cellar"))
    with pytest.raises(MsposeError, match=r"is not an archive of scene attic"):
        fetch(card, archive=path)
    path.write_bytes(make_zip({"readme.txt": b"hello"}))
    with pytest.raises(
        MsposeError,
        match=r"is not an archive of scene attic: there is no attic/TrainSplit.txt in it",
    ):
        fetch(card, archive=path)
    with pytest.raises(MsposeError, match=r"attic.zip is one archive: name its one scene"):
        fetch(card, (), archive=path)
    path.write_bytes(seven_scenes_zip())
    with pytest.raises(
        MsposeError, match=r"does not have the checksum of the published archive \(sha256 ffff"
    ):
        fetch(with_checksum(card, "f" * 64), archive=path)
    assert left_behind(card) == []
    assert path.exists()


def test_an_archive_without_the_scenes_folder(card, tmp_path):
    members = {"TrainSplit.txt": b"sequence1", "TestSplit.txt": b"sequence2"}
    for sequence in ("seq-01", "seq-02"):
        members[f"{sequence}/frame-000000.color.jpg"] = b"an image"
        members[f"{sequence}/frame-000000.pose.txt"] = POSE
    path = tmp_path / "attic.zip"
    path.write_bytes(make_zip(members))
    fetch(card, archive=path)
    assert len(load_frames(card, split="train", scenes=["attic"])) == 1
    assert left_behind(card) == ["attic"]


def link(name, target="/etc/passwd"):
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("../evil.txt", b""),
        ("attic/../../evil.txt", b""),
        ("..\\evil.txt", b""),
        ("/tmp/evil.txt", b""),
        ("C:evil.txt", b""),
        link("evil"),
    ],
    ids=["up", "down and up", "backslash", "absolute", "drive", "link"],
)
@pytest.mark.parametrize("depth", ["outer", "inner"])
def test_unsafe_members_are_refused(card, server, tmp_path, name, content, depth):
    inner = [(f"seq-01/frame-000000.{kind}", POSE) for kind in ("color.png", "pose.txt")]
    outer = [("attic/TrainSplit.txt", b"sequence1"), ("attic/TestSplit.txt", b"sequence1")]
    (outer if depth == "outer" else inner).append((name, content))
    server.files["/attic.zip"] = make_zip([*outer, ("attic/seq-01.zip", make_zip(inner))])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(MsposeError, match=r"attic.*zip is refused: its member '.*evil") as caught:
        fetch(card)
    assert ("seq-01.zip" in str(caught.value)) == (depth == "inner")
    after = sorted(tmp_path.rglob("*"))
    assert [path for path in after if card.root not in [path, *path.parents]] == before
    assert left_behind(card) == ["attic.sha256"]
    assert not Path("/tmp/evil.txt").exists()


def test_a_broken_inner_zip_is_named_and_nothing_is_left(card, server):
    whole = seven_scenes_zip()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    inner = bytearray(members["attic/seq-02.zip"])
    for change in (
        bytes(inner[:-40]),
        bytes(inner[:200]) + b"\xff" * 40 + bytes(inner[240:]),
        b"no zip",
    ):
        server.files["/attic.zip"] = make_zip({**members, "attic/seq-02.zip": change})
        with pytest.raises(
            MsposeError, match=r"attic.zip/attic/seq-02.zip is not a zip archive, or is broken"
        ):
            fetch(card)
        assert left_behind(card) == ["attic.sha256"]


def test_an_archive_without_a_sequence_that_it_names_is_refused(card, server):
    server.files["/attic.zip"] = make_zip(
        {"attic/TrainSplit.txt": b"sequence1", "attic/TestSplit.txt": b"sequence2"}
    )
    with pytest.raises(
        MsposeError,
        match=r"attic.zip is refused, scene attic is not whole in it: .*names sequence 1",
    ):
        fetch(card)
    assert left_behind(card) == ["attic.sha256"]


def test_an_encrypted_archive_is_refused(card, server):
    data = bytearray(seven_scenes_zip())
    first = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", first + 4)  # the first member is the folder
    data[second + 8] |= 1
    server.files["/attic.zip"] = bytes(data)
    with pytest.raises(MsposeError, match=r"attic.zip cannot be unpacked: .*encrypted"):
        fetch(card)
    assert left_behind(card) == ["attic.sha256"]


def test_a_full_disk_while_downloading(card):
    card.root.mkdir()
    (card.root / "attic.zip.part").symlink_to("/dev/full")
    with pytest.raises(MsposeError, match=r"the disk is full .*; free space and run this again"):
        fetch(card)


def test_a_full_disk_while_unpacking_keeps_the_archive_for_the_next_run(card, server, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "copyfileobj", full)
        with pytest.raises(
            MsposeError, match=r"the disk is full .*; free space and run this again"
        ):
            fetch(card)
    assert left_behind(card) == ["attic.sha256", "attic.zip"]
    server.requests.clear()
    fetch(card)
    assert len(load_frames(card, split="train", scenes=["attic"])) == 3
    assert not server.requests


def test_the_free_space_is_checked_before_unpacking(card, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=100)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        MsposeError, match=r"disk is full \(attic.zip needs [0-9,]+ bytes, 100 are free\)"
    ):
        fetch(card)
    assert left_behind(card) == ["attic.sha256", "attic.zip"]


def test_a_root_that_cannot_be_made(card, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MsposeError, match=r"cannot write .*/file/data: Not a directory"):
        fetch(card, root=tmp_path / "file" / "data")


def test_what_a_killed_run_left_is_cleared(card):
    (card.root / ".attic.unpacking" / "old").mkdir(parents=True)
    fetch(card)
    assert left_behind(card) == ["attic", "attic.sha256"]


def test_two_processes_that_get_a_scene_at_once_both_have_it(card, server, caplog):
    wait = threading.Event()
    answer = server.answer
    server.answer = lambda handler: (wait.wait(20), answer(handler))
    with ThreadPoolExecutor(2) as pool, caplog.at_level("INFO", logger="mspose"):
        first = pool.submit(fetch, card)
        while not server.requests and not (card.root / ".attic.lock").exists():
            time.sleep(0.01)
        second = pool.submit(fetch, card)
        while "waiting for another process, which gets scene attic" not in caplog.text:
            time.sleep(0.01)
        wait.set()
        said = [first.result(60), second.result(60)]
    assert sum("left alone" in text for text in said) == 1
    assert len(server.requests) == 1
    assert left_behind(card) == ["attic", "attic.sha256"]


def test_an_archive_that_unpacks_to_too_much_is_refused(card, server, monkeypatch):
    server.files["/attic.zip"] = seven_scenes_zip(**{"attic/zeros": bytes(2**20)})
    monkeypatch.setattr(download, "MOST_BYTES", 2**20)
    with pytest.raises(
        MsposeError, match=r"it unpacks to .* MSPOSE_MOST_UNPACKED_BYTES in the env"
    ):
        fetch(card)
    assert left_behind(card) == ["attic.sha256"]
