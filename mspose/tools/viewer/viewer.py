"""The viewer: cameras and paths of a scene, the panel beside them, and its controls."""

import math
import threading
from typing import Any

import numpy as np
import viser
from matplotlib.colors import to_rgb

from mspose.data.frames import evenly
from mspose.plotting import ORANGE
from mspose.poses import Array, quaternion_to_rotation
from mspose.tools.viewer.frame_images import FrameImages
from mspose.tools.viewer.scene_view import (
    ANGLE,
    ERRORS,
    SceneView,
    error_colours,
    ground,
    overview,
    path_segments,
)

TRUTH = (235, 235, 235)
CHOSEN_TRUTH = (255, 255, 255)
CHOSEN = tuple(round(255 * value) for value in to_rgb(ORANGE))
PANEL_SIDE, FRUSTUM_SIDE = 300, 90  # shorter side of images, pixels
FRUSTUMS, MOST_FRUSTUMS = 16, 200
MOST_LINES = 3000  # of a kind: thousands more would be a tangle, and slow without a GPU
OVERVIEW, TRUE_CAMERA, ESTIMATED_CAMERA = "overview", "true camera", "estimate"
NEAR, FAR = 1e-3, 1e3  # clipping planes of browsers, times the scene's extent


class Viewer:
    """One scene at a time, for all browsers that are connected.

    Attributes:
        view: the current scene.
        chosen: the handles of the chosen frame's frustums, `truth` and `estimate`.
        ended: set when the server is about to stop: nothing is drawn any more.
        frustums: of some frames, those of truth and estimate by the frame's number.
    """

    def __init__(
        self,
        server: viser.ViserServer,
        scenes: dict[str, SceneView],
        images: FrameImages,
        *,
        title: str,
    ) -> None:
        self.server = server
        self.scenes = scenes
        self.images = images
        self.ended = threading.Event()
        self.view = next(iter(scenes.values()))
        self.chosen: dict[str, viser.CameraFrustumHandle] = {}
        self.frustums: dict[int, tuple[viser.CameraFrustumHandle, viser.CameraFrustumHandle]] = {}
        self.lock = threading.RLock()  # callbacks run in several threads
        server.gui.configure_theme(
            dark_mode=True, show_logo=False, show_share_button=False, control_width="large"
        )
        server.gui.set_panel_label(title)
        server.gui.main_panel.dock_right()
        self._make_panel()
        self.show_scene(self.view.scene)

    def _make_panel(self) -> None:
        gui, names = self.server.gui, list(self.scenes)
        self.scene = gui.add_dropdown(
            "scene", names, initial_value=names[0], hint="scenes have no common frame"
        )
        self.summary = gui.add_markdown("")
        self.frame: Any = gui.add_slider("frame", min=0, max=1, step=1, initial_value=0)
        self.rank = gui.add_button_group("go to", ["best", "median", "worst"])
        self.playing = gui.add_checkbox("play", initial_value=False)
        self.speed = gui.add_slider("frames a second", min=1, max=30, step=1, initial_value=8)
        self.camera = gui.add_button_group("view from", [OVERVIEW, TRUE_CAMERA, ESTIMATED_CAMERA])
        self.image = gui.add_image(
            np.zeros((3, 4, 3), np.uint8), format="jpeg", jpeg_quality=85, visible=False
        )
        self.facts = gui.add_markdown("")
        self.colour = gui.add_dropdown("colours", [f"{name} error" for name in ERRORS])
        self.legend = gui.add_html("")
        with gui.add_folder("what is drawn", expand_by_default=False):
            self.truth = gui.add_checkbox("true path", initial_value=True, hint="white")
            self.estimates = gui.add_checkbox(
                "estimates", initial_value=True, hint="coloured by error"
            )
            self.lines = gui.add_checkbox(
                "errors", initial_value=True, hint="lines from truth to estimate"
            )
            self.cameras = gui.add_checkbox(
                "cameras", initial_value=True, hint="some frames, evenly spread"
            )
            self.count = gui.add_slider(
                "cameras shown", min=1, max=MOST_FRUSTUMS, step=1, initial_value=FRUSTUMS
            )
            self.size = gui.add_slider("their size", min=0.2, max=4.0, step=0.1, initial_value=1.0)
        self.scene.on_update(lambda _: self.show_scene(self.scene.value))
        self.frame.on_update(lambda _: self.show_frame(int(self.frame.value)))
        self.rank.on_click(lambda _: self._go_to(self.view.frame_of_rank(self.rank.value)))
        self.camera.on_click(self._on_camera)
        for changed in (
            self.colour,
            self.truth,
            self.estimates,
            self.lines,
            self.cameras,
            self.count,
            self.size,
        ):
            changed.on_update(lambda _: self.draw())

    def _go_to(self, number: int) -> None:
        self.frame.value = number

    def _on_camera(self, event: viser.GuiEvent[Any]) -> None:
        if event.client is not None:  # the browser that the button was clicked in
            self.view_from(event.client, self.camera.value)

    def show_scene(self, name: str) -> None:
        """Draw this scene in place of the one before, and view it from above."""
        with self.lock:
            if self.ended.is_set():
                return
            self.view = view = self.scenes[name]
            position, orientation = (float(np.median(view.error_N[error])) for error in ERRORS)
            self.summary.content = (
                f"{len(view.image)} frames, median error **{position:.3f} m / {orientation:.2f}°**"
            )
            self.server.scene.set_up_direction(view.up_3)
            camera = self.server.initial_camera
            camera.position, camera.look_at = overview(view)
            camera.up, camera.fov = view.up_3, ANGLE
            camera.near, camera.far = NEAR * view.extent, FAR * view.extent
            self.frame.value = 0
            self.frame.max = max(1, len(view.image) - 1)
            self.draw()
        for client in self.server.get_clients().values():
            self.view_from(client, OVERVIEW)

    def draw(self) -> None:
        """Draw everything anew, as the panel says."""
        with self.lock, self.server.atomic():
            if self.ended.is_set():
                return
            view, scene = self.view, self.server.scene
            scene.reset()
            self.chosen, self.frustums = {}, {}
            error = self.colour.value.removesuffix(" error")
            colour_N3 = view.colour_N3(error)
            centre_3, turn_4, side, square = ground(view)
            self.legend.content = legend(error, view.limit[error], square)
            scene.add_grid(
                "/ground", side, side, cell_size=square, section_size=10 * square,
                cell_color=(70, 74, 80), section_color=(110, 114, 120), position=centre_3,
                wxyz=turn_4, shadow_opacity=0.0,
                fade_distance=50 * view.extent,
            )  # fmt: skip
            point = 0.006 * view.extent * min(1.0, math.sqrt(300 / len(view.image)))
            some = evenly(len(view.image), MOST_LINES)
            if self.truth.value:
                path_M23 = path_segments(
                    [view.image[number] for number in some], view.true_position_N3[some]
                )
                self._lines("/truth/path", path_M23, np.full(path_M23.shape, TRUTH, np.uint8), 2.0)
                self._points(
                    "/truth/points",
                    view.true_position_N3,
                    np.full_like(colour_N3, TRUTH),
                    0.6 * point,
                )
            if self.estimates.value:
                self._points("/estimates", view.position_N3, colour_N3, 1.6 * point)
            if self.lines.value:
                error_M23 = np.stack([view.true_position_N3, view.position_N3], axis=1)[some]
                self._lines(
                    "/errors", error_M23, np.repeat(colour_N3[some][:, None], 2, axis=1), 1.5
                )
            if self.cameras.value:
                self._draw_frustums(colour_N3)
            self.show_frame(int(self.frame.value))
        threading.Thread(target=self._fill_frustums, args=(self.frustums,), daemon=True).start()

    def show_frame(self, number: int) -> None:
        """Choose a frame: its two cameras stand out, its image and errors are in the panel."""
        with self.lock:
            number = min(number, len(self.view.image) - 1)
            if self.ended.is_set() or number != min(
                int(self.frame.value), len(self.view.image) - 1
            ):
                return  # or the slider has gone on while we waited
            view = self.view
            poses = {
                "truth": (view.true_position_N3[number], view.true_orientation_N4[number]),
                "estimate": (view.position_N3[number], view.orientation_N4[number]),
            }
            if not self.chosen:
                for name, colour in (("truth", CHOSEN_TRUTH), ("estimate", CHOSEN)):
                    self.chosen[name] = self._frustum(
                        f"/chosen/{name}", *poses[name], colour, chosen=True
                    )
            for name, (position_3, orientation_4) in poses.items():
                self.chosen[name].position, self.chosen[name].wxyz = position_3, orientation_4
            for other, pair in self.frustums.items():
                for handle in pair:  # the smaller one would hide the image of the chosen one
                    handle.visible = other != number
            error_123 = np.stack([poses["truth"][0], poses["estimate"][0]])[None]
            self._lines("/chosen/error", error_123, np.full(error_123.shape, CHOSEN, np.uint8), 4.0)
            large = self.images.read(view.image[number], PANEL_SIDE)
            missing = self.images.missing or f"not to be read below {self.images.root}"
            self.facts.content = facts(view, number, "" if large is not None else missing)
            self.image.visible = large is not None
            self.chosen["truth"].image = large
            if large is not None:
                self.image.image = large

    def view_from(self, client: viser.ClientHandle, camera: str) -> None:
        """Move a browser's camera to one of the chosen frame's, or above the scene."""
        with self.lock, client.atomic():
            view, number = self.view, min(int(self.frame.value), len(self.view.image) - 1)
            client.camera.far = FAR * view.extent
            if camera == OVERVIEW:
                client.camera.near = NEAR * view.extent
                client.camera.up_direction = view.up_3
                client.camera.position, client.camera.look_at = overview(view)
                client.camera.fov = ANGLE
                return
            true = camera == TRUE_CAMERA
            position_3 = (view.true_position_N3 if true else view.position_N3)[number]
            orientation_4 = (view.true_orientation_N4 if true else view.orientation_N4)[number]
            right_3, down_3, forward_3 = quaternion_to_rotation(orientation_4)[0].T
            half = math.tan(self.images.angle / 2)
            depth = self._scale(chosen=True) / (half * half * self.images.aspect / 3) ** (
                1 / 3
            )  # as viser draws them
            # not viser's `wxyz`: it turns the camera where the browser last said that it stands
            client.camera.position = position_3
            client.camera.look_at = position_3 + view.extent * forward_3
            level_3 = view.up_3 - (view.up_3 @ right_3) * right_3  # the mouse orbits around it
            client.camera.up_direction = level_3 if level_3 @ -down_3 > 0.05 else -down_3
            client.camera.near = self._nearest(number, depth, true)
            narrow = max(
                1.0, self.images.aspect / client.camera.aspect
            )  # so that the window has the whole image
            client.camera.fov = 2 * math.atan(narrow * half)

    def _nearest(self, number: int, depth: float, true: bool) -> float:
        """Near clipping plane of a chosen camera, which cuts away the images of other cameras.

        depth: from the true camera to the image, which is drawn there for the estimated camera too.
        """
        view, half = self.view, math.tan(self.images.angle / 2)
        corners_43 = depth * np.array(
            [(x * half * self.images.aspect, y * half, 1) for x in (-1, 1) for y in (-1, 1)]
        )
        corners_43 = corners_43 @ quaternion_to_rotation(view.true_orientation_N4[number])[0].T
        if not true:
            corners_43 = corners_43 + view.true_position_N3[number] - view.position_N3[number]
        forward_3 = quaternion_to_rotation(
            (view.true_orientation_N4 if true else view.orientation_N4)[number]
        )[0, :, 2]
        return max(0.98 * float((corners_43 @ forward_3).min()), 0.05 * depth)

    def play(self) -> None:
        """Go through the frames in a loop while `play` is ticked, until `ended` is set."""
        while not self.ended.wait(1 / self.speed.value):
            with self.lock:  # the scene may be about to change
                if self.playing.value and self.server.get_clients():
                    self.frame.value = (int(self.frame.value) + 1) % len(self.view.image)

    def end(self) -> None:
        """Wait for the current drawing; nothing is drawn afterwards."""
        with self.lock:
            self.ended.set()

    def _draw_frustums(self, colour_N3: Any) -> None:
        view = self.view
        for number in evenly(len(view.image), int(self.count.value)).tolist():
            truth = self._frustum(
                f"/cameras/true/{number}",
                view.true_position_N3[number],
                view.true_orientation_N4[number],
                TRUTH,
            )
            colour = tuple(int(value) for value in colour_N3[number])
            estimate = self._frustum(
                f"/cameras/estimated/{number}",
                view.position_N3[number],
                view.orientation_N4[number],
                colour,
            )
            for handle in (truth, estimate):
                handle.on_click(
                    lambda event: self._go_to(int(event.target.name.rpartition("/")[2]))
                )
            self.frustums[number] = (truth, estimate)

    def _fill_frustums(self, frustums: dict[int, Any]) -> None:
        """Load the images of the true frustums, until these are replaced."""
        for number, (truth, _) in frustums.items():
            with self.lock:
                if self.ended.is_set() or self.frustums is not frustums:
                    return
                if (small := self.images.read(self.view.image[number], FRUSTUM_SIDE)) is not None:
                    truth.image = small

    def _frustum(
        self,
        name: str,
        position_3: Array,
        orientation_4: Array,
        colour: Any,
        *,
        chosen: bool = False,
    ) -> viser.CameraFrustumHandle:
        """Add a camera; viser's poses and camera axes are ours."""
        return self.server.scene.add_camera_frustum(
            name,
            self.images.angle,
            self.images.aspect,
            scale=self._scale(chosen=chosen),
            color=colour,
            thickness=3.5 if chosen else 1.5,
            thickness_units="screen",
            format="jpeg",
            jpeg_quality=80,
            position=position_3,
            wxyz=orientation_4,
            cast_shadow=False,
            receive_shadow=False,
        )

    def _scale(self, *, chosen: bool) -> float:
        return float(self.size.value) * self.view.extent * (0.075 if chosen else 0.04)

    def _lines(self, name: str, segments_M23: Array, colour_M23: Any, thickness: float) -> None:
        if len(segments_M23):
            self.server.scene.add_line_segments(
                name, segments_M23, colour_M23, thickness=thickness, thickness_units="screen"
            )

    def _points(self, name: str, position_N3: Array, colour_N3: Any, size: float) -> None:
        self.server.scene.add_point_cloud(
            name, position_N3, colour_N3, point_size=size, point_shape="circle", precision="float32"
        )


def facts(view: SceneView, number: int, missing: str) -> str:
    """Describe a frame in Markdown."""
    predicted = view.predicted_scene[number]
    position, orientation = (view.error_N[error][number] for error in ERRORS)
    truth, estimate = (
        _metres(here_N3[number] + view.origin_3)
        for here_N3 in (view.true_position_N3, view.position_N3)
    )
    lines = [
        f"**{position:.3f} m / {orientation:.2f}°** error",
        _literally(view.image[number]),
        f"true position {truth} m, estimated {estimate} m",
    ]
    if predicted not in (None, view.scene):
        lines.append(
            f"**taken for** {_literally(predicted)}: the estimate is a pose in that scene's frame"
        )
    if missing:
        lines.append(f"no image: {_literally(missing)}")
    return "\n\n".join(lines)


def _literally(text: str) -> str:
    """Quote text of unknown origin as code: the page could run HTML or JavaScript in Markdown."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"


def _metres(position_3: Array) -> str:
    return "(" + ", ".join(f"{value:.2f}" for value in position_3) + ")"


def legend(error: str, limit: float, square: float) -> str:
    """Legend of the error colours in HTML."""
    stops = ", ".join(
        "rgb({},{},{})".format(*colour) for colour in error_colours(np.linspace(0, 1, 9)).tolist()
    )
    style = "font-size:0.85em;padding:0 0.75em 0.3em 0.75em"
    return (
        f'<div style="{style}"><div'
        ' style="height:0.8em;border-radius:0.2em;background:linear-gradient(to right,'
        f' {stops})"></div><div'
        f' style="display:flex;justify-content:space-between"><span>0</span><span>{error}'
        f" error</span><span>{limit:.3g} {ERRORS[error]} and more</span></div>squares on the"
        f" ground: {square:g} m; the chosen frame: truth white, estimate orange</div>"
    )
