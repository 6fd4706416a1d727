"""The renderer against geometry: where known points land, what hides what, and that nothing falls
through.
"""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mspose.data.virtual.atlas import MIP_LEVELS, halved, pack_atlas
from mspose.data.virtual.rendering import Camera, Lighting, _close_pinholes, clip_near, render_frame
from mspose.data.virtual.rooms import SCENE_NAMES, build_scene
from mspose.data.virtual.scene import Place, SceneBuilder, blurred
from mspose.data.virtual.space import Space
from mspose.data.virtual.textures import bricks, paving, plaster
from mspose.data.virtual.trajectory import trajectory

EVEN = Lighting(vignette=0.0, ambient=1.0, lamp_strength=0.0)


def plain(value):
    return lambda rng, height, width: np.full((height, width, 3), value, np.uint8)


def look(position, target, roll=0.0):
    forward = np.asarray(target, float) - position
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    rolled = cv2.Rodrigues(np.array([0.0, 0.0, roll]))[0]
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=-1) @ rolled
    pose[:3, 3] = position
    return pose


def finished(builder):
    return builder.finish(3.0, (np.zeros(3), np.ones(3)), (np.zeros(3), np.ones(3)))


def blob_centre(image, colour):
    """Centre (x, y) of the pixels that are of this pure colour, weighted by how much they are."""
    colour = np.asarray(colour, float)
    others = colour == 0
    weight = np.clip(
        image[..., ~others].min(axis=-1).astype(float) - image[..., others].max(axis=-1, initial=0),
        0,
        None,
    )
    weight[weight < 25] = 0
    if not weight.any():
        return None
    y, x = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
}
CAMERAS = [Camera(), Camera(321, 161, 200.0), Camera(96, 72, 87.75)]


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: f"{camera.width}px")
@pytest.mark.parametrize("number", range(6))
def test_marked_points_appear_within_a_pixel_of_where_the_label_puts_them(camera, number):
    rng = np.random.default_rng(number)
    points = {
        "red": (-0.9, 3.0, 2.1),
        "green": (1.1, 3.0, 0.4),
        "blue": (-1.3, 2.2, 0.9),
        "yellow": (0.4, 2.6, 1.5),
        "cyan": (0.2, 1.9, 1.1),
    }
    builder = SceneBuilder("markers")
    builder.patch((-9, 3.001, 9), (18, 0, 0), (0, 0, -18), plain(90))
    for colour, point in points.items():
        size = 0.06
        corner = np.add(point, (-size / 2, 0, size / 2))
        builder.patch(corner, (size, 0, 0), (0, 0, -size), plain(COLOURS[colour]), glowing=True)
    position = rng.uniform((-1.2, -0.8, 0.8), (1.2, 0.4, 1.8))
    pose = look(position, rng.uniform((-0.3, 2.5, 1.0), (0.3, 2.5, 1.5)), rng.uniform(-0.4, 0.4))

    image, depth = render_frame(finished(builder), pose, camera, EVEN)

    seen = 0
    for colour, point in points.items():
        (x, y), z = (array[0] for array in camera.project([point], pose))
        if not (8 < x < camera.width - 9 and 8 < y < camera.height - 9):
            continue
        seen += 1
        found = blob_centre(image, COLOURS[colour])
        assert found is not None, colour
        assert np.hypot(*(found - (x, y))) < 1.0, colour
        assert depth[round(y), round(x)] == pytest.approx(z, abs=0.05)
    assert seen >= 2


@pytest.mark.parametrize("distance", [0.8, 1.6, 3.0, 6.0])
def test_points_painted_into_a_texture_appear_where_they_belong_at_every_sharpness(distance):
    marks = {
        (40, 60): (255, 0, 0),
        (200, 330): (0, 255, 0),
        (110, 225): (0, 0, 255),
    }  # texel (y, x)

    def painted(rng, height, width):
        assert (height, width) == (270, 390)
        image = np.full((height, width, 3), 60, np.uint8)
        for (y, x), colour in marks.items():
            cv2.circle(image, (x, y), 9, colour, -1)
        return image

    builder = SceneBuilder("texture")
    corner, right, down = np.array((-1.3, 2.0, 1.9)), np.array((2.6, 0, 0)), np.array((0, 0, -1.8))
    builder.patch(corner, right, down, painted, glowing=True)
    camera, pose = Camera(), look((0.15, 2.0 - distance, 1.1), (0.05, 2.0, 1.0), 0.1)
    image, _ = render_frame(finished(builder), pose, camera, EVEN)
    seen = 0
    for (y, x), colour in marks.items():
        point = corner + (x + 0.5) / 390 * right + (y + 0.5) / 270 * down
        pixel = camera.project([point], pose)[0][0]
        if (pixel > 15).all() and (pixel < (304, 224)).all():
            seen += 1
            assert np.abs(blob_centre(image, colour) - pixel).max() < 0.6
    assert seen >= 1


def test_a_camera_at_the_origin_looking_north_has_east_to_the_right_and_up_on_top():
    builder = SceneBuilder("axes")
    for x, z, value in ((-1, 1, (255, 0, 0)), (1, 1, (0, 255, 0)), (-1, -1, (0, 0, 255))):
        builder.patch(
            (x - 0.3, 4.0, z + 0.3), (0.6, 0, 0), (0, 0, -0.6), plain(value), glowing=True
        )
    pose = np.eye(4)
    pose[:3, :3] = np.array(
        [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
    ).T  # camera x = east, y = down, z = north
    assert np.allclose(pose[:3, :3] @ (0, 0, 1), (0, 1, 0))
    image, depth = render_frame(finished(builder), pose, Camera(), EVEN)
    red, green, blue = (blob_centre(image, COLOURS[name]) for name in ("red", "green", "blue"))
    middle = np.array((319 / 2, 239 / 2))
    assert np.allclose(red - middle, (-292.5 / 4, -292.5 / 4), atol=0.3)
    assert np.allclose(green - middle, (292.5 / 4, -292.5 / 4), atol=0.3)
    assert np.allclose(blue - middle, (-292.5 / 4, 292.5 / 4), atol=0.3)
    assert np.isinf(depth[120, 160])
    assert depth[round(red[1]), round(red[0])] == pytest.approx(4.0, abs=1e-3)


def test_what_stands_behind_a_box_is_hidden_until_one_looks_past_it():
    builder = SceneBuilder("hidden")
    builder.patch((-4, 4, 4), (8, 0, 0), (0, 0, -8), plain(80))
    builder.patch((-0.1, 3.5, 1.1), (0.2, 0, 0), (0, 0, -0.2), plain((255, 0, 0)), glowing=True)
    with_box = SceneBuilder("hidden")
    with_box.textures, with_box.quads = list(builder.textures), list(builder.quads)
    with_box.box(Place(0.0, 2.0, 0.6), 0.6, 0.6, 0.8, plain((0, 90, 0)))
    front, side = look((0.0, 0.0, 1.0), (0.0, 2.0, 1.0)), look((1.6, 0.0, 1.0), (0.5, 2.5, 1.0))
    for pose, hidden in ((front, True), (side, False)):
        assert (
            blob_centre(render_frame(finished(builder), pose, Camera(), EVEN)[0], (255, 0, 0))
            is not None
        )
        marker = blob_centre(render_frame(finished(with_box), pose, Camera(), EVEN)[0], (255, 0, 0))
        assert (marker is None) == hidden


def test_a_surface_is_drawn_from_its_front_alone():
    builder = SceneBuilder("back")
    builder.patch((-1, 2, 1), (2, 0, 0), (0, 0, -2), plain(200))
    assert np.isfinite(
        render_frame(finished(builder), look((0, 0, 0), (0, 2, 0)), Camera(), EVEN)[1]
    ).any()
    assert not np.isfinite(
        render_frame(finished(builder), look((0, 4, 0), (0, 2, 0)), Camera(), EVEN)[1]
    ).any()


@pytest.mark.parametrize("cell", [0.5, 20.0], ids=["small pieces", "whole walls"])
def test_a_wall_that_reaches_behind_the_camera_leaves_no_hole(cell, monkeypatch):
    monkeypatch.setattr("mspose.data.virtual.scene.CELL_M", cell)
    monkeypatch.setitem(SceneBuilder.patch.__kwdefaults__, "cell", cell)
    builder = SceneBuilder("near")
    room = Space(builder, 6.0, 6.0, 3.0, [plain(c) for c in (60, 100, 140, 180)])
    room.ceiling(plain(220))
    builder.floor(6.0, 6.0, plain(30))
    scene = finished(builder)
    for position, target in (
        ((2.88, -2.0, 1.5), (2.88, 3.0, 1.4)),  # a hand's breadth from the wall, along it
        ((2.9, 0.0, 1.5), (3.0, 0.4, 1.5)),  # nearly touching it
        ((0.0, -2.5, 0.12), (0.3, 3.0, 0.1)),  # on the floor
        ((-2.9, -2.9, 2.9), (3.0, 3.0, 0.0)),  # out of a corner
        ((0.0, 0.0, 1.5), (0.3, 0.2, -0.5)),  # down
    ):
        image, depth = render_frame(scene, look(position, target), Camera(), EVEN)
        assert np.isfinite(depth).all()
        y, x = np.mgrid[0:240, 0:320]
        rays = (
            np.stack([(x - 159.5) / 292.5, (y - 119.5) / 292.5, np.ones_like(x)], axis=-1)
            * depth[..., None]
        )
        pose = look(position, target)
        hits = rays @ pose[:3, :3].T + pose[:3, 3]
        on_wall = np.abs(hits - (0, 0, 1.5)) - (3.0, 3.0, 1.5)
        assert (
            np.abs(on_wall.max(axis=-1)).max() < 0.03
        )  # every pixel shows the shell of the room, at its depth
        assert (image > 0).all()


@pytest.mark.parametrize("name", SCENE_NAMES)
def test_every_pixel_of_every_scene_shows_a_surface_and_none_in_front_is_missing(name):
    scene, camera = build_scene(name, 0), Camera(160, 120, 146.25)
    rng = np.random.default_rng(5)
    centres = scene.corners_Q43.mean(axis=1)
    visible = 0
    for pose in trajectory(scene, rng, 8):
        image, depth = render_frame(scene, pose, camera, Lighting.draw(rng))
        assert image.shape == (120, 160, 3)
        assert image.dtype == np.uint8
        assert np.isfinite(depth).all()
        assert depth.min() > 0.1
        pixels, z = camera.project(centres, pose)
        facing = np.einsum(
            "qk,qk->q", pose[:3, 3] - centres, scene.normals_Q3
        ) > 0.3 * np.linalg.norm(pose[:3, 3] - centres, axis=1)
        column, row = np.rint(pixels).astype(int).T
        inside = (z > 0.2) & facing & (column >= 2) & (column < 158) & (row >= 2) & (row < 118)
        around = [
            depth[row[inside] + dy, column[inside] + dx] for dy in (-2, 0, 2) for dx in (-2, 0, 2)
        ]
        assert (np.min(around, axis=0) < 1.02 * z[inside] + 0.02).all()
        visible += int((np.abs(around[4] - z[inside]) < 0.02 * z[inside] + 0.02).sum())
    assert visible > 300
    boxes_low, boxes_high = scene.corners_Q43.min(axis=1), scene.corners_Q43.max(axis=1)
    assert (
        not ((boxes_low < scene.view_high_3 + 0.05) & (boxes_high > scene.view_low_3 - 0.05))
        .all(axis=1)
        .any()
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 2.0))
def test_clipping_keeps_exactly_the_part_in_front(seed, near):
    triangles = np.random.default_rng(seed).uniform(-3, 3, (20, 3, 3))
    front, of = clip_near(triangles, near)
    back, _ = clip_near(triangles * (1, 1, -1) + (0, 0, 2 * near), near)

    def area(t):
        return np.linalg.norm(np.cross(t[:, 1] - t[:, 0], t[:, 2] - t[:, 0]), axis=1).sum() / 2

    assert (front[..., 2] >= near).all()
    assert area(front) + area(back) == pytest.approx(area(triangles), rel=1e-9)
    for number, triangle in enumerate(triangles):
        normal = np.cross(triangle[1] - triangle[0], triangle[2] - triangle[0])
        assert np.allclose(
            (front[of == number] - triangle[0]) @ normal, 0, atol=1e-9
        )  # parts lie in its plane


def test_single_pixels_between_triangles_are_closed_and_wider_gaps_are_not():
    depth = np.arange(1.0, 49.0, dtype=np.float32).reshape(6, 8)
    values = np.repeat(depth[None], 3, axis=0)
    hit = np.ones((6, 8), bool)
    hit[1, 2] = hit[5, 4] = hit[2, 0] = False  # alone, at the lower edge, at the left edge
    hit[3:5, 5:7] = False  # a gap two pixels wide
    depth[~hit], values[:, ~hit] = 99, 0
    closed = _close_pinholes(values, depth, hit)
    assert closed[1, 2]
    assert closed[5, 4]
    assert closed[2, 0]
    assert not closed[3:5, 5:7].any()
    assert depth[1, 2] in (2 + 8, 3)  # a neighbour's
    assert (values[:, 1, 2] == depth[1, 2]).all()
    assert (closed | (depth == 99)).all()


def test_the_atlas_holds_every_texture_and_its_halves_apart():
    rng = np.random.default_rng(0)
    textures = [
        np.full((h, w, 3), 10 + 20 * i, np.uint8)
        for i, (h, w) in enumerate(((64, 300), (7, 4), (200, 90), (4, 4)))
    ]
    textures.append(rng.integers(0, 255, (33, 65, 3), dtype=np.uint8))
    atlas, origin, size = pack_atlas(textures)
    for i, texture in enumerate(textures):
        assert tuple(size[i, 0]) == (texture.shape[1], texture.shape[0])
        for level in range(MIP_LEVELS):
            (x, y), (w, h) = origin[i, level].astype(int), size[i, level].astype(int)
            part = atlas[y - 1 : y + h + 1, x - 1 : x + w + 1]
            assert part.shape == (h + 2, w + 2, 3)
            if i < 4:
                assert (
                    part == 10 + 20 * i
                ).all()  # the border too: interpolation reads no neighbour
    x, y = origin[4, 0].astype(int)
    assert (atlas[y : y + 33, x : x + 65] == textures[4]).all()


@pytest.mark.parametrize("size", [(4, 4), (5, 90), (33, 65), (200, 7)])
def test_a_halved_texture_holds_the_means_of_equal_areas(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    high, wide = size
    fine = (
        image.repeat(high // 2, axis=0).repeat(wide // 2, axis=1).astype(float)
    )  # divides into halves evenly
    means = fine.reshape(high // 2, high, wide // 2, wide, 3).mean(axis=(1, 3))
    assert np.abs(halved(image) - means).max() <= 0.5 + 1e-9


def test_a_blurred_picture_holds_the_means_of_squares():
    image = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    padded = np.pad(image, 3, mode="edge").astype(float)
    means = np.lib.stride_tricks.sliding_window_view(padded, (7, 7)).mean(axis=(2, 3))
    assert np.array_equal(blurred(image, 3), np.floor(means + 1e-9))


def test_sequences_are_lit_differently_and_a_little():
    scene = build_scene("atelier", 0)
    pose = trajectory(scene, np.random.default_rng(0), 3)[1]
    images = [
        render_frame(scene, pose, Camera(), Lighting.draw(np.random.default_rng(seed)))[0].astype(
            float
        )
        for seed in range(4)
    ]
    for i in range(4):
        for j in range(i):
            assert 2.0 < np.abs(images[i] - images[j]).mean() < 60.0


def test_colour_gains_and_vignette_act_as_named():
    builder = SceneBuilder("grey")
    builder.patch((-9, 2, 9), (18, 0, 0), (0, 0, -18), plain(100), glowing=True)
    scene, pose = finished(builder), look((0, 0, 0), (0, 2, 0))
    image = render_frame(
        scene, pose, Camera(), Lighting(gain=1.2, colour=(1.1, 1.0, 0.9), vignette=0.2)
    )[0].astype(float)
    assert np.allclose(image[119:121, 159:161].mean(axis=(0, 1)), (132, 120, 108), atol=1)
    assert np.allclose(image[0, 0], 0.8 * np.array((132, 120, 108)), atol=1.5)


@pytest.mark.parametrize(
    "painter", [plaster((200, 100, 50), 0.3, 5), bricks((150, 80, 60)), paving((160, 150, 140))]
)
@pytest.mark.parametrize("size", [(4, 4), (5, 90), (300, 7)])
def test_painters_fill_any_size(painter, size):
    image = painter(np.random.default_rng(0), *size)
    assert image.shape == (*size, 3)
    assert image.dtype == np.uint8
