"""The 3-D viewer: what it shows, where it listens, and that a browser can look at it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mspose.data.cards import load_frames, read_card
from mspose.errors import MsposeError
from mspose.files import with_checksum
from mspose.metrics import with_errors, write_predictions
from mspose.poses import normalize_quaternion, quaternion_to_rotation, rotation_to_quaternion
from mspose.run import Run
from mspose.tools.viewer.frame_images import images_of_run
from mspose.tools.viewer.scene_view import (
    ANGLE,
    error_colours,
    ground,
    overview,
    path_segments,
    scene_view,
    up_direction,
)
from mspose.tools.viewer.server import free_port, viewing

viser = pytest.importorskip("viser")
from mspose.tools.viewer.viewer import ESTIMATED_CAMERA, OVERVIEW, TRUE_CAMERA, Viewer, facts  # noqa: E402


def predictions_of(frames: pd.DataFrame) -> pd.DataFrame:
    """Estimates that are off by up to some decimetres and degrees; in `attic`, one frame is taken
    for the cellar.
    """
    rng = np.random.default_rng(3)
    table = frames[["image", "scene", "tx", "ty", "tz", "qw", "qx", "qy", "qz"]].reset_index(
        drop=True
    )
    table = table.assign(predicted_scene=table["scene"], scene_probability=0.9)
    for name in ("tx", "ty", "tz"):
        table[f"{name}_est"] = table[name] + rng.normal(0, 0.1, len(table))
    turned = normalize_quaternion(
        table[["qw", "qx", "qy", "qz"]].to_numpy() + rng.normal(0, 0.02, (len(table), 4))
    )
    table[["qw_est", "qx_est", "qy_est", "qz_est"]] = turned
    table.loc[0, "predicted_scene"] = "cellar"
    return with_errors(table)


@pytest.fixture(scope="module")
def run(small_run, small_data, tmp_path_factory):
    """A run with predictions, whose images are on disk; not to be changed."""
    folder = tmp_path_factory.mktemp("viewed") / "seed-0"
    folder.mkdir()
    for name in ("config.yaml", "model.json"):
        shutil.copy(small_run / name, folder / name)
    table = predictions_of(load_frames(read_card(small_data), split="test"))
    write_predictions(folder / "predictions" / "test.csv", table)
    (folder / "predictions" / "test.json").write_text(json.dumps({"dataset": "small"}))
    return folder


@pytest.fixture
def own_run(run, tmp_path):
    return shutil.copytree(run, tmp_path / "a run" / "seed-0")


@pytest.fixture(scope="module")
def table(run):
    return pd.read_csv(run / "predictions" / "test.csv")


@pytest.fixture
def viewer(run, table):
    server = viser.ViserServer(host="127.0.0.1", port=free_port("127.0.0.1", 0), verbose=False)
    scenes = {name: scene_view(table, name) for name in ("attic", "cellar")}
    images = images_of_run(Run(run), table["image"].tolist(), None)
    made = Viewer(server, scenes, images, title="a run")
    yield made
    made.end()
    server.stop()


def test_a_scene_shows_its_own_frames_with_the_poses_of_the_file(table):
    view = scene_view(table, "cellar")
    rows = table[table["scene"] == "cellar"]
    assert view.image == list(rows["image"])
    np.testing.assert_array_equal(view.true_position_N3, rows[["tx", "ty", "tz"]])
    np.testing.assert_array_equal(view.position_N3, rows[["tx_est", "ty_est", "tz_est"]])
    np.testing.assert_allclose(view.true_orientation_N4, rows[["qw", "qx", "qy", "qz"]], atol=1e-15)
    np.testing.assert_allclose(
        view.orientation_N4, rows[["qw_est", "qx_est", "qy_est", "qz_est"]], atol=1e-15
    )
    assert view.error_N["position"][view.frame_of_rank("worst")] == rows["position_error_m"].max()
    assert view.error_N["position"][view.frame_of_rank("best")] == rows["position_error_m"].min()
    assert (
        view.error_N["position"][view.frame_of_rank("median")] == rows["position_error_m"].median()
    )


def test_a_scene_far_from_its_origin_is_seen_from_nearby_and_keeps_its_numbers(table):
    far = table.assign(**{name: table[name] + 4_000_000 for name in ("tx", "tx_est")})
    near, view = scene_view(table, "attic"), scene_view(far, "attic")
    assert np.abs(view.true_position_N3).max() < 10
    shift_3 = np.array([4_000_000, 0, 0])
    np.testing.assert_allclose(
        view.true_position_N3 + view.origin_3, near.true_position_N3 + shift_3
    )
    np.testing.assert_allclose(
        view.position_N3 - view.true_position_N3, near.position_N3 - near.true_position_N3
    )
    np.testing.assert_array_equal(near.origin_3, 0)
    assert f"({far['tx'].iloc[0]:.2f}, " in facts(view, 0, "")


def test_names_are_never_read_as_code_by_the_page(table):
    view = scene_view(table, "attic")
    view.image[1] = "a`{alert(1)}`\n\n<img src=x onerror=alert(2)>.png"
    lines = facts(view, 1, "no `folder` {here}").splitlines()
    assert "`a'{alert(1)}' <img src=x onerror=alert(2)>.png`" in lines
    assert "no image: `no 'folder' {here}`" in lines


def held_level(yaws, pitch, roll=0.0):
    """Orientations of cameras that look around a world whose up is (0, 0.6, 0.8), tilted down by
    `pitch`, radians.
    """
    up = np.array([0.0, 0.6, 0.8])
    rotations = []
    for yaw in yaws:
        level = np.cos(yaw) * np.array([1.0, 0, 0]) + np.sin(yaw) * np.array([0, 0.8, -0.6])
        forward = np.cos(pitch) * level - np.sin(pitch) * up
        right = np.cross(forward, up) / np.linalg.norm(np.cross(forward, up))
        down = np.cross(forward, right)
        right, down = (
            np.cos(roll) * right + np.sin(roll) * down,
            np.cos(roll) * down - np.sin(roll) * right,
        )
        rotations.append(np.stack([right, down, forward], axis=1))
    return rotation_to_quaternion(np.array(rotations))


@pytest.mark.parametrize(
    ("yaws", "pitch"),
    [(np.linspace(0, 6, 40), 0.5), (np.linspace(0, 1.5, 40), 0.7), (np.linspace(0, 6, 40), -0.3)],
)
def test_up_is_at_right_angles_to_image_rows_however_cameras_are_tilted(yaws, pitch):
    np.testing.assert_allclose(up_direction(held_level(yaws, pitch)), [0, 0.6, 0.8], atol=1e-6)


def test_up_of_a_camera_that_never_turned_is_its_image_s(table):
    orientation_N4 = held_level([0.3] * 5, 0.0)
    np.testing.assert_allclose(up_direction(orientation_N4), [0, 0.6, 0.8], atol=1e-6)
    np.testing.assert_allclose(up_direction(orientation_N4[:1]), [0, 0.6, 0.8], atol=1e-6)
    assert np.linalg.norm(
        up_direction(table[["qw", "qx", "qy", "qz"]].to_numpy())
    ) == pytest.approx(1)


def test_paths_end_where_a_sequence_does_and_at_jumps():
    position_N3 = np.zeros((8, 3))
    position_N3[:, 0] = [0, 1, 2, 3, 30, 31, 32, 33]
    image = ["a/1.png", "a/2.png", "a/3.png", "a/4.png", "a/5.png", "a/6.png", "b/1.png", "b/2.png"]
    starts = path_segments(image, position_N3)[:, 0, 0].tolist()
    assert starts == [0, 1, 2, 30, 32]
    assert path_segments(["a/1.png"], np.zeros((1, 3))).shape == (0, 2, 3)
    assert path_segments(["a/1.png", "a/2.png"], np.zeros((2, 3))).shape == (1, 2, 3)


def test_colours_brighten_with_the_error_and_end_at_the_limit():
    brightness = error_colours(np.linspace(0, 1, 12)).astype(float) @ [0.3, 0.6, 0.1]
    assert (np.diff(brightness) > 0).all()
    np.testing.assert_array_equal(error_colours([1.0, 7.0])[0], error_colours([1.0, 7.0])[1])


def test_the_view_from_above_looks_down_on_the_scene_and_the_ground_lies_below(table):
    view = scene_view(table, "attic")
    position_3, at_3 = overview(view)
    assert (position_3 - at_3) @ view.up_3 > 0
    centre_3, turn_4, side, square = ground(view)
    assert centre_3 @ view.up_3 < np.median(view.true_position_N3 @ view.up_3)
    assert side > view.extent
    assert square == pytest.approx(1.0)
    assert np.linalg.norm(turn_4) == pytest.approx(1)


def test_the_view_from_above_has_the_whole_path(table):
    bend = np.linspace(0, 3, 400)
    path_N3 = np.stack([40 * np.cos(bend), 40 * np.sin(bend), 0.2 * bend], axis=1)
    long = table.iloc[np.zeros(400, int)].assign(
        tx=path_N3[:, 0], ty=path_N3[:, 1], tz=path_N3[:, 2], scene="attic"
    )
    view = scene_view(long, "attic")
    position_3, at_3 = overview(view)
    forward_3 = (at_3 - position_3) / np.linalg.norm(at_3 - position_3)
    right_3 = np.cross(forward_3, view.up_3) / np.linalg.norm(np.cross(forward_3, view.up_3))
    seen_N3 = (view.true_position_N3 - position_3) @ np.stack(
        [right_3, np.cross(forward_3, right_3), forward_3]
    ).T
    assert (np.abs(seen_N3[:, :2]) < np.tan(ANGLE / 2) * seen_N3[:, 2:]).all()


@pytest.mark.parametrize("rows", [1, 2])
def test_a_scene_of_one_place_can_be_shown(table, rows):
    view = scene_view(table[:1].loc[[0] * rows].reset_index(drop=True), "attic")
    for values in (
        *overview(view),
        *ground(view),
        [view.extent],
        view.colour_N3("position"),
        view.up_3,
    ):
        assert np.isfinite(values).all()
    assert view.extent > 0


def test_cameras_stand_where_the_file_says(viewer, table):
    rows = table[table["scene"] == "attic"].reset_index(drop=True)
    assert sorted(viewer.frustums) == list(range(len(rows)))
    for number, (truth, estimate) in viewer.frustums.items():
        row = rows.iloc[number]
        np.testing.assert_allclose(truth.position, row[["tx", "ty", "tz"]].astype(float))
        np.testing.assert_allclose(truth.wxyz, row[["qw", "qx", "qy", "qz"]].astype(float))
        np.testing.assert_allclose(
            estimate.position, row[["tx_est", "ty_est", "tz_est"]].astype(float)
        )
        np.testing.assert_allclose(
            estimate.wxyz, row[["qw_est", "qx_est", "qy_est", "qz_est"]].astype(float)
        )
    assert viewer.images.aspect == pytest.approx(80 / 60)


def test_the_slider_moves_the_chosen_cameras_and_brings_the_image(viewer, table):
    viewer.frame.value = 3
    row = table[table["scene"] == "attic"].iloc[3]
    np.testing.assert_allclose(
        viewer.chosen["truth"].position, row[["tx", "ty", "tz"]].astype(float)
    )
    np.testing.assert_allclose(
        viewer.chosen["estimate"].position, row[["tx_est", "ty_est", "tz_est"]].astype(float)
    )
    np.testing.assert_allclose(
        viewer.chosen["estimate"].wxyz, row[["qw_est", "qx_est", "qy_est", "qz_est"]].astype(float)
    )
    assert (
        f"{row['position_error_m']:.3f} m / {row['orientation_error_deg']:.2f}°"
        in viewer.facts.content
    )
    assert viewer.image.visible
    assert viewer.image.image.shape == (300, 400, 3)
    assert not viewer.frustums[3][0].visible
    assert viewer.frustums[2][0].visible
    viewer.frame.value = 0
    assert "**taken for** `cellar`" in viewer.facts.content


def test_an_image_that_is_gone_is_said_with_the_frame(viewer):
    viewer.view.image[2] = "attic/gone.png"
    viewer.frame.value = 2
    assert not viewer.image.visible
    assert viewer.chosen["truth"].image is None
    assert f"no image: `not to be read below {viewer.images.root}`" in viewer.facts.content
    viewer.frame.value = 3
    assert viewer.image.visible
    assert "no image" not in viewer.facts.content


def test_another_scene_takes_the_place_of_the_first(viewer, table):
    viewer.frame.value = 4
    viewer.scene.value = "cellar"
    assert viewer.frame.value == 0
    row = table[table["scene"] == "cellar"].iloc[0]
    np.testing.assert_allclose(
        viewer.chosen["truth"].position, row[["tx", "ty", "tz"]].astype(float)
    )
    assert row["image"] in viewer.facts.content
    viewer.cameras.value = False
    assert viewer.frustums == {}
    viewer.cameras.value = True
    viewer.count.value = 2
    assert list(viewer.frustums) == [0, 4]
    viewer.colour.value = "orientation error"
    assert "orientation error" in viewer.legend.content


def test_images_are_found_where_the_run_or_the_caller_says(
    run, own_run, table, small_data, tmp_path
):
    names = [table["image"].iloc[0], "cellar/none.png"]
    for some in (names, names[::-1]):  # as where one scene's images alone are here
        found = images_of_run(Run(run), some, None)
        assert (found.missing, found.root) == ("", small_data.parent)
    assert found.read(names[0], 30).shape == (30, 40, 3)
    assert found.read(names[1], 30) is None
    assert "image not found" in images_of_run(Run(run), names[1:], None).missing
    (own_run / "config.yaml").unlink()
    without = images_of_run(Run(own_run), names, None)
    assert "no such settings file" in without.missing
    assert without.read(names[0], 30) is None
    assert images_of_run(Run(own_run), names, str(small_data.parent)).missing == ""
    with pytest.raises(MsposeError, match="image not found"):
        images_of_run(Run(own_run), names, str(tmp_path))


def test_the_field_of_view_is_that_of_the_training_camera(own_run, table):
    description = json.loads((own_run / "model.json").read_text())
    description["trained_on"] |= {"focal_px": 30.0, "image_sizes": [[160, 120, 9]]}
    (own_run / "model.json").write_text(json.dumps(with_checksum(description)))
    with_images = images_of_run(Run(own_run), table["image"].tolist(), None)
    assert with_images.angle == pytest.approx(np.pi / 2)  # 60 pixels high
    (own_run / "config.yaml").unlink()
    without = images_of_run(Run(own_run), table["image"].tolist(), None)
    assert without.angle == pytest.approx(2 * np.arctan(2))
    assert without.aspect == pytest.approx(4 / 3)


def test_it_listens_on_this_machine_alone_and_stops(run):
    with viewing(run, "test", "cellar", None, "127.0.0.1", 0) as (viewer, address):
        assert viewer.view.scene == "cellar"
        host, port = address.removeprefix("http://").split(":")
        assert host == "127.0.0.1"
        socket.create_connection((host, int(port)), timeout=10).close()
        tables = [
            path.read_text()
            for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
            if path.is_file()
        ]
        listening = [line.split()[1] for line in "".join(tables).splitlines() if " 0A " in line]
        mine = [address for address in listening if address.endswith(f":{int(port):04X}")]
        assert mine == [f"0100007F:{int(port):04X}"]
    with pytest.raises(OSError):
        socket.create_connection((host, int(port)), timeout=1)


def test_a_port_that_is_taken_gives_the_next_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < free_port("127.0.0.1", port) <= port + 19
    with pytest.raises(MsposeError, match=r"cannot listen at no\.such\.host\.invalid, port 8080"):
        free_port("no.such.host.invalid", 8080)
    with pytest.raises(MsposeError, match="cannot listen at 203.0.113.7"):
        free_port("203.0.113.7", 8080)


def test_bad_input_is_one_line(own_run, refused, tmp_path, monkeypatch):
    refused(f"{tmp_path / 'none'} has no predictions/test.csv", "view", tmp_path / "none")
    refused("there are: attic, cellar", "view", own_run, "--scene", "kitchen")
    said = "has no predictions/train.csv.*there are predictions of: test"
    refused(said, "view", own_run, "--split", "train")
    refused("image not found", "view", own_run, "--root", tmp_path)
    (own_run / "predictions" / "test.csv").write_text("image,scene\na,b\n")
    refused("column tx", "view", own_run)
    (own_run / "predictions" / "test.csv").unlink()
    refused("run `mspose evaluate` first", "view", own_run)
    monkeypatch.setitem(sys.modules, "viser", None)
    refused("pip install viser", "view", own_run)


def test_the_end_waits_for_what_is_being_drawn_and_nothing_is_drawn_after_it(viewer, monkeypatch):
    drawing, drawn = threading.Event(), []

    def draw_slowly():
        with viewer.lock:
            drawing.set()
            drawn.append(viewer.ended.wait(0.2))

    threading.Thread(target=draw_slowly).start()
    assert drawing.wait(10)
    viewer.end()
    assert drawn == [False]  # it was done before the end
    monkeypatch.setattr(viewer.server.scene, "reset", None)
    monkeypatch.setattr(viewer.server.scene, "set_up_direction", None)
    viewer.draw()
    viewer.show_scene("cellar")


def test_ctrl_c_ends_it_well(run, tmp_path):
    command = [sys.executable, "-m", "mspose", "view", str(run), "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as viewer:
        assert viewer.stdout is not None
        assert viewer.stdout.readline().startswith("http://127.0.0.1:")
        assert viewer.stdout.readline() == "Ctrl-C ends it\n"
        viewer.send_signal(signal.SIGINT)
        rest, errors = viewer.communicate(timeout=60)
    assert (viewer.returncode, rest, errors) == (0, "", "mspose: the viewer has ended\n")


def corners_of_image(viewer, row):
    """Corners (4, 3) of the chosen image where viser's browser draws it."""
    y = np.tan(viewer.chosen["truth"].fov / 2)
    x = y * viewer.chosen["truth"].aspect
    depth = viewer.chosen["truth"].scale / (x * y / 3) ** (1 / 3)
    corners_43 = depth * np.array([(i * x, j * y, 1) for i in (-1, 1) for j in (-1, 1)])
    rotation_33 = quaternion_to_rotation(row[["qw", "qx", "qy", "qz"]].astype(float).to_numpy())[0]
    return corners_43 @ rotation_33.T + row[["tx", "ty", "tz"]].astype(float).to_numpy()


def seen_from(camera, points_N3):
    return (points_N3 - camera.position) @ quaternion_to_rotation(camera.wxyz)[0]


def soon(check):
    """Call `check` until it passes: a browser reports where its camera is in its own time."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            return check()
        except AssertionError:
            time.sleep(0.05)
    return check()


def test_a_browser_sees_it_and_looks_through_the_cameras(viewer, browser, table, monkeypatch):
    page, said = browser.new_page(), []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda line: said.append(line) if line.type == "error" else None)
    page.goto(f"http://127.0.0.1:{viewer.server.get_port()}")
    page.wait_for_selector("canvas")
    page.get_by_text("5 frames, median error").wait_for()
    page.get_by_text(table["image"].iloc[0]).wait_for()
    page.get_by_role("button", name="worst", exact=True).click()
    rows = table[table["scene"] == "attic"]
    row = rows.iloc[int(rows["position_error_m"].argmax())]
    page.get_by_text(row["image"]).wait_for()
    client = next(iter(viewer.server.get_clients().values()))

    def looks_through(place, end):
        position_3 = row[[f"{name}{end}" for name in ("tx", "ty", "tz")]].astype(float)
        orientation_4 = row[[f"{name}{end}" for name in ("qw", "qx", "qy", "qz")]].astype(float)
        np.testing.assert_allclose(client.camera.position, position_3, atol=1e-5)
        assert abs(client.camera.wxyz @ orientation_4) == pytest.approx(1, abs=1e-5)
        image_corners_43 = seen_from(client.camera, corners_of_image(viewer, row))
        assert client.camera.near == pytest.approx(0.98 * image_corners_43[:, 2].min(), rel=1e-3)
        if place == TRUE_CAMERA:  # the window has the whole image, and its height is the window's
            half = np.tan(client.camera.fov / 2)
            assert np.abs(image_corners_43[:, 1] / image_corners_43[:, 2]).max() <= half * (
                1 + 1e-3
            )

    def looks_from_above():
        np.testing.assert_allclose(client.camera.look_at, viewer.view.centre_3, atol=1e-5)

    for place, check in (
        (TRUE_CAMERA, lambda: looks_through(TRUE_CAMERA, "")),
        (ESTIMATED_CAMERA, lambda: looks_through(ESTIMATED_CAMERA, "_est")),
        (OVERVIEW, looks_from_above),
    ):
        page.get_by_role("button", name=place, exact=True).click()
        soon(check)
    camera, stale_3 = type(client.camera), client.camera.position
    with monkeypatch.context() as late:  # a report from before arrives while the camera is moved
        late.setattr(camera, "position", property(lambda _: stale_3, camera.position.fset))
        viewer.view_from(client, TRUE_CAMERA)
    soon(lambda: looks_through(TRUE_CAMERA, ""))
    playing = threading.Thread(target=viewer.play)
    viewer.speed.value, viewer.playing.value = 30, True
    playing.start()
    for scene in ("cellar", "attic"):  # while it plays
        viewer.scene.value = scene
        page.get_by_text(table[table["scene"] == scene]["image"].iloc[3]).wait_for()
    viewer.end()
    playing.join(30)
    page.close()
    # the browser forgets an image that another replaced before it was drawn
    assert [
        line
        for line in said
        if isinstance(line, str) or not line.location["url"].startswith("blob:")
    ] == []


@pytest.mark.parametrize("upgrade", [False, True])
@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("127.0.0.1:{port}", None, True),
        ("127.0.0.1:{port}", "http://127.0.0.1:{port}", True),
        ("localhost:{port}", "http://localhost:{port}", True),
        ("localhost:9000", "http://localhost:9000", True),  # through a tunnel
        ("127.0.0.1:{port}", "http://evil.example", False),
        ("127.0.0.1:{port}", "http://127.0.0.1:1", False),
        ("127.0.0.1:{port}", "null", False),
        ("evil.example:{port}", "http://evil.example:{port}", False),  # a name that leads here
        ("", None, False),
    ],
)
def test_pages_of_other_sites_get_no_answer(served, host, origin, allowed, upgrade):
    port = int(served.rpartition(":")[2])
    headers = {"Host": host.format(port=port)}
    if origin is not None:
        headers["Origin"] = origin.format(port=port)
    if upgrade:
        headers |= {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest("GET", "/", skip_host=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    assert status == ((101 if upgrade else 200) if allowed else 403)


@pytest.fixture(scope="module")
def served(run):
    with viewing(run, "test", None, None, "127.0.0.1", 0) as (_, address):
        yield address
