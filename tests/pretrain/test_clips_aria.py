"""Aria's camera model and the readers of Ego-Exo4D, HOT3D and ADT, on a made-up scene exported in each data set's own format.

The scene: a few coloured points, a head that moves, a wearer who looks at one point after the other. It is drawn with the fisheye camera as
the sensor would store it, on its side. What is read back must show each point, upright, where the clip's camera says.
"""

import csv
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pretrain.clips.schema import Clip, check_content
from pretrain.clips.skipping import Skipped
from pretrain.clips.sources import aria, aria_recording, egoexo4d
from pretrain.clips.sources.adt import ADT
from pretrain.clips.sources.egoexo4d import EGOEXO4D
from pretrain.clips.sources.fisheye624 import Fisheye624, rectify
from pretrain.clips.sources.hot3d import HOT3D_ARIA, HOT3D_QUEST
from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.recording import FILE_DAMAGED, FILE_MISSING, Recording, SequenceSource, cut_clips
from pretrain.clips.sources.resample import RecordingError

sys.path.insert(0, str(Path(__file__).parent))
from coded_video import steady, write_video

SIDE, FPS, FRAMES = 352, 30, 66
CLIP = {"clip_s": 2.0, "frames": 8, "image_size": 256}
START_US = 113_585_169_151
# Of an Aria's RGB camera (rounded from a published sample of HOT3D), for 1408 pixels, and of a Quest's left one.
RGB_PARAMS = [609.36, 706.27, 704.18, 0.3842, -0.3806, -0.1221, 1.5555, -1.9892, 0.7252,
              -0.000996, 0.000204, 0.002203, -0.000409, -0.001457, 0.00025]  # fmt: skip
QUEST_PARAMS = [
    504.6,
    504.6,
    638.4,
    509.4,
    0.04398,
    -0.04486,
    0.01613,
    -0.01093,
    0.00351,
    -0.00052,
    0.00048,
    -0.00005,
    0,
    0,
    0,
    0,
]
# The calibrated place of that RGB camera on that headset, [w, [x, y, z]].
RGB_TRANSLATION, RGB_QUATERNION = (
    [-0.003826, -0.012723, -0.003147],
    [0.943178513, [0.328675408, 0.037675508, 0.031101868]],
)
QUEST_TRANSLATION, QUEST_QUATERNION = (
    [0.026765, -0.129385, -0.030892],
    [-0.449950203, 0.400239852, -0.557169791, 0.571764550],
)
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def rigid(rotation: Rotation, translation) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation.as_matrix(), translation
    return matrix


DEVICE_FROM_RGB = rigid(Rotation.from_quat([*RGB_QUATERNION[1], RGB_QUATERNION[0]]), RGB_TRANSLATION)
DEVICE_FROM_QUEST = rigid(Rotation.from_quat([*QUEST_QUATERNION[1:], QUEST_QUATERNION[0]]), QUEST_TRANSLATION)


@dataclass(frozen=True)
class Scene:
    """Everything is known: the points in the world, the sensor's camera at any time."""

    camera: Fisheye624
    device_from_camera: np.ndarray

    @property
    def points(self) -> np.ndarray:
        """Red is up, green to the right, blue below, as the wearer sees it at the start: x right, y up, z back."""
        return np.array([[0.1, 0.65, -1.2], [0.6, 0.0, -1.4], [-0.15, -0.5, -1.1]])

    def world_from_sensor(self, time_s: float) -> np.ndarray:
        """Of the camera as its picture is stored: at time 0 its x goes down and its y to the left."""
        sideways = Rotation.from_matrix(np.array([[0, -1, 0], [-1, 0, 0], [0, 0, -1.0]]))
        head = Rotation.from_euler("yxz", [12 * time_s, -5 * time_s, 4 * math.sin(2 * time_s)], degrees=True)
        return rigid(head * sideways, [0.1 * time_s, 0.05 * math.sin(3 * time_s), -0.08 * time_s])

    def world_from_device(self, time_s: float) -> np.ndarray:
        return self.world_from_sensor(time_s) @ np.linalg.inv(self.device_from_camera)

    def sensor_points(self, time_s: float) -> np.ndarray:
        camera_from_world = np.linalg.inv(self.world_from_sensor(time_s))
        return self.points @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]

    def picture(self, time_s: float, *, gray: bool = False) -> np.ndarray:
        """As the sensor stores it. Subpixel discs."""
        image = np.full((self.camera.height, self.camera.width, 3), 90, np.uint8)
        for index, ((x, y), colour) in enumerate(
            zip(self.camera.project(self.sensor_points(time_s)), COLOURS.values(), strict=True)
        ):
            # cv2 counts from the centre of the first pixel, in 1/256 here.
            centre = (round((x - 0.5) * 256), round((y - 0.5) * 256))
            shade = (255 - 110 * index,) * 3 if gray else colour
            cv2.circle(image, centre, (4 if gray else 6) * 256, shade, -1, cv2.LINE_AA, 8)
        return image

    def target(self, time_s: float) -> int:
        """Which point the wearer looks at."""
        return int(time_s / 0.7) % 3

    def depth_mm(self, time_s: float) -> np.ndarray:
        """A wall across the optical axis at 2 m, and the discs at their own depth; as the sensor stores it."""
        depth = np.full((self.camera.height, self.camera.width), 2000, np.uint16)
        points = self.sensor_points(time_s)
        for (x, y), z in zip(self.camera.project(points), points[:, 2], strict=True):
            cv2.circle(
                depth,
                (round((x - 0.5) * 256), round((y - 0.5) * 256)),
                6 * 256,
                round(z * 1000),
                -1,
                cv2.LINE_8,
                8,
            )
        return depth


ARIA = Scene(
    Fisheye624.from_params(RGB_PARAMS, width=1408, height=1408, where="test").resized(SIDE, SIDE), DEVICE_FROM_RGB
)
QUEST = Scene(
    Fisheye624.from_params(QUEST_PARAMS, width=1280, height=1024, where="test").resized(400, 320), DEVICE_FROM_QUEST
)
TIMES_S = steady(FRAMES, FPS)


# ------------------------------------------------------------------------------------------------ the camera model

small = st.floats(-0.02, 0.02)


@st.composite
def cameras(draw) -> Fisheye624:
    return Fisheye624.from_params(
        [draw(st.floats(200, 800)), draw(st.floats(600, 800)), draw(st.floats(600, 800)),
         *[draw(small) for _ in range(6)], *[draw(st.floats(-0.002, 0.002)) for _ in range(6)]],
        width=1408, height=1408, where="test",
    )  # fmt: skip


directions = st.tuples(st.floats(0, 1.0), st.floats(-math.pi, math.pi), st.floats(0.1, 10))


def point(direction: tuple[float, float, float]) -> np.ndarray:
    theta, phi, distance = direction
    return distance * np.array([math.sin(theta) * math.cos(phi), math.sin(theta) * math.sin(phi), math.cos(theta)])


@settings(max_examples=60, deadline=None)
@given(cameras(), st.lists(directions, min_size=1, max_size=8))
def test_unproject_inverts_project(camera, drawn):
    points = np.stack([point(one) for one in drawn])
    rays = camera.unproject(camera.project(points))
    np.testing.assert_allclose(rays, points / np.linalg.norm(points, axis=1, keepdims=True), atol=1e-7)


@pytest.mark.parametrize("params", [RGB_PARAMS, QUEST_PARAMS])
def test_real_cameras_round_trip_over_their_picture(params):
    width, height = (1408, 1408) if len(params) == 15 else (1280, 1024)
    camera = Fisheye624.from_params(params, width=width, height=height, where="test")
    pixels = np.stack(np.meshgrid(np.linspace(0, width, 29), np.linspace(0, height, 29)), axis=-1)
    rays = camera.unproject(pixels)
    seen = np.isfinite(rays[..., 0])
    assert seen.mean() > 0.9 and seen[14, 14]
    np.testing.assert_allclose(camera.project(rays[seen]), pixels[seen], atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(directions)
def test_without_distortion_it_is_the_equidistant_fisheye(direction):
    camera = Fisheye624.from_params([500, 640, 480, *[0] * 12], width=1280, height=960, where="test")
    theta, phi, _ = direction
    expected = 500 * theta * np.array([math.cos(phi), math.sin(phi)]) + (640.5, 480.5)
    np.testing.assert_allclose(camera.project(point(direction)), expected, atol=1e-9)


def test_radial_terms_are_those_of_opencv():
    """OpenCV's fisheye has the first four of the six, and counts pixels from the first one's centre as Aria does."""
    k = [0.05, -0.02, 0.01, -0.003]
    camera = Fisheye624.from_params([400, 640, 480, *k, *[0] * 8], width=1280, height=960, where="test")
    points = np.random.default_rng(0).uniform((-1, -1, 0.5), (1, 1, 2), (20, 3))
    matrix = np.array([[400, 0, 640], [0, 400, 480], [0, 0, 1.0]])
    expected, _ = cv2.fisheye.projectPoints(points[:, None], np.zeros(3), np.zeros(3), matrix, np.array(k))
    np.testing.assert_allclose(camera.project(points), expected[:, 0] + 0.5, atol=1e-9)


def test_tangential_and_prism_terms_by_hand():
    camera = Fisheye624.from_params(
        [1, 0, 0, *[0] * 6, 0.01, -0.02, 0.03, 0.04, -0.05, 0.06], width=1, height=1, where="test"
    )
    a, b = 0.3, -0.2
    d = a * a + b * b
    theta = math.hypot(a, b)
    u = a + 0.01 * (2 * a * a + d) - 0.02 * 2 * a * b + 0.03 * d + 0.04 * d * d
    v = b - 0.02 * (2 * b * b + d) + 0.01 * 2 * a * b - 0.05 * d + 0.06 * d * d
    seen = camera.project(np.array([a, b, theta / math.tan(theta)]))
    np.testing.assert_allclose(seen, (u + 0.5, v + 0.5), atol=1e-12)


def test_what_the_model_cannot_see_is_nan():
    camera = Fisheye624.from_params([500, 640, 480, -0.5, *[0] * 11], width=1280, height=960, where="test")
    assert camera.max_angle_rad == pytest.approx(math.sqrt(1 / 1.5))
    seen = camera.project(np.array([[0, 0, -1], [1, 0, 0], [math.tan(0.9), 0, 1], [math.tan(0.7), 0, 1]]))
    assert np.isnan(seen[:3]).all() and np.isfinite(seen[3]).all()
    # 500 * max radius = 272 pixels from the centre is the end of the picture.
    assert np.isfinite(camera.unproject(np.array([640.5 + 270, 480.5]))).all()
    assert np.isnan(camera.unproject(np.array([640.5 + 280, 480.5]))).all()


@pytest.mark.parametrize("params", [[1.0] * 14, [math.nan, *[1.0] * 14], [-1.0, *[1.0] * 14]])
def test_wrong_parameters_are_named(params):
    with pytest.raises(ValueError, match=r"file\.json: "):
        Fisheye624.from_params(params, width=10, height=10, where="file.json")


def test_resizing_and_cropping_move_points_with_the_picture():
    """The full sensor of 2880 and its half without 32 pixels a side are the same camera."""
    full = Fisheye624.from_params([1218.7, 1444.0, 1441.0, *RGB_PARAMS[3:]], width=2880, height=2880, where="test")
    half = full.cropped(32).resized(1408, 1408)
    points = np.array([[0.3, -0.2, 1.0], [-0.5, 0.1, 0.8]])
    np.testing.assert_allclose(half.project(points), (full.project(points) - 32) / 2, atol=1e-9)
    # What ego-exo4d-egopose computes, in Aria's convention: (c - 0.5 - 32) / 2.
    assert half.centre[0] - 0.5 == pytest.approx((1444.0 - 0.5 - 32) / 2)


@pytest.mark.parametrize("stored_turns", [0, aria.TURNS_TO_UPRIGHT])
def test_a_rectified_picture_shows_points_where_the_pinhole_says(stored_turns):
    stored = np.rot90(ARIA.picture(0.5), stored_turns)
    rectification = rectify(ARIA.camera, fov_deg=95, size=300, turns=aria.TURNS_TO_UPRIGHT, stored_turns=stored_turns)
    picture = rectification.image(np.ascontiguousarray(stored))
    upright = ARIA.sensor_points(0.5) @ turn_by_hand()[:3, :3]
    expected = (upright @ rectification.intrinsics.T)[:, :2] / upright[:, 2:]
    for index, colour in enumerate(COLOURS):
        np.testing.assert_allclose(blob(picture, colour), expected[index], atol=0.4)
    np.testing.assert_allclose(rectification.pixels(ARIA.camera.project(ARIA.sensor_points(0.5))), expected, atol=1e-6)
    assert rectification.intrinsics[0, 0] == pytest.approx(150 / math.tan(math.radians(47.5)))


# --------------------------------------------------------------------------------------------------------- the turn


def turn_by_hand() -> np.ndarray:
    """sensor from upright, restated: right in the upright picture is minus y of the sensor, down is its x."""
    return np.array([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def test_the_design_of_the_glasses_says_that_the_turned_camera_is_upright():
    """In the Central Pupil Frame (x left, y up, z ahead): right is -x, down is -y. Nothing of this package's turn is in these numbers."""
    upright = (aria.CPF_FROM_RGB @ turn_by_hand())[:3, :3]
    np.testing.assert_allclose(upright, np.diag([-1, -1, 1]), atol=0.14)


def test_the_calibrated_camera_is_where_the_design_puts_it():
    """Design of the left SLAM camera, which is the device's frame, against the RGB camera of a real calibration."""
    y, z = np.array([0.793353, 0, -0.608761]), np.array([0.607927, -0.052336, 0.792266])
    cpf_from_device = np.eye(4)
    cpf_from_device[:3] = np.stack([np.cross(y, z), y, z, [0.069051, 0.002372, 0.009254]], axis=1)
    difference = np.linalg.inv(aria.CPF_FROM_RGB) @ cpf_from_device @ DEVICE_FROM_RGB
    assert np.degrees(Rotation.from_matrix(difference[:3, :3]).magnitude()) < 2
    assert np.linalg.norm(difference[:3, 3]) < 0.004


def test_the_turn_of_a_real_recording_is_upright_by_gravity():
    """One pose of a published sample each: the picture's down must look down in a world whose up is z (Aria) or y (Quest)."""
    aria_world = Rotation.from_quat([0.752519, 0.029778, -0.513036, 0.411852]).as_matrix() @ DEVICE_FROM_RGB[:3, :3]
    quest_world = Rotation.from_quat([-0.334256, 0.635358, -0.292552, 0.631670]).as_matrix() @ DEVICE_FROM_QUEST[:3, :3]
    for world_from_sensor, up in ((aria_world, [0, 0, 1]), (quest_world, [0, 1, 0])):
        turned = np.asarray(up) @ world_from_sensor @ turn_by_hand()[:3, :3]
        assert turned[1] < -0.3 and abs(turned[0]) < -turned[1]


# ---------------------------------------------------------------------------------------------------------- the gaze


def test_gaze_points_are_those_of_the_official_tools():
    """The numbers are the expectations in projectaria_tools, core/mps/test/TestEyeGaze.cpp."""
    seen = aria.gaze_points(np.tan([-0.102910490016660]), np.tan([-0.288851886987686]), np.array([1.179526637404006]))
    np.testing.assert_allclose(seen[0], (-0.116201334110103, -0.334355951558995, 1.12516063), atol=1e-6)
    yaw = np.arctan(aria.combined_yaw_tangent(np.array([-0.1264797]), np.array([-0.07706982])))
    assert yaw[0] == pytest.approx(-0.10183712, abs=1e-6)


def test_both_forms_of_gaze_files_and_gaps(tmp_path):
    old = tmp_path / "old.csv"
    old.write_text(
        "tracking_timestamp_us,yaw_rads_cpf,pitch_rads_cpf,depth_m\n1,0.1,0.2,2.0\n2,nan,0.2,1.0\n3,0.1,,1.0\n4,0.1,0.2,\n5,0.1,0.2,0\n"
    )
    gaze = aria.read_eye_gaze(old)
    assert gaze.times_ns.tolist() == [1000, 2000, 3000, 4000, 5000]
    assert np.isfinite(gaze.points_cpf).all(1).tolist() == [True, False, False, True, True]
    np.testing.assert_allclose(np.linalg.norm(gaze.points_cpf[[0, 3, 4]], axis=1), [2, 1, 1])
    new = tmp_path / "new.csv"
    new.write_text(
        "tracking_timestamp_us,left_yaw_rads_cpf,right_yaw_rads_cpf,pitch_rads_cpf,depth_m\n1,0.1736692,0.4544311,-0.5258917,0.2420538\n"
    )
    x, y, z = aria.read_eye_gaze(new).points_cpf[0]
    # Of a published sample: where the rays of two eyes 63 mm apart meet is depth_m away.
    assert 0.063 / (math.tan(0.4544311) - math.tan(0.1736692)) == pytest.approx(z, abs=1e-5) and x > 0 > y


# ----------------------------------------------------------------------------------------- the scene as files of Aria


def write_rows(path: Path, header: str, rows: list[list]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return path


TRAJECTORY_HEADER = (
    "graph_uid,tracking_timestamp_us,utc_timestamp_ns,tx_world_device,ty_world_device,tz_world_device,qx_world_device,"
    "qy_world_device,qz_world_device,qw_world_device,device_linear_velocity_x_device,device_linear_velocity_y_device,"
    "device_linear_velocity_z_device,angular_velocity_x_device,angular_velocity_y_device,angular_velocity_z_device,"
    "gravity_x_world,gravity_y_world,gravity_z_world,quality_score,geo_available,tx_ecef_device,ty_ecef_device,tz_ecef_device,"
    "qx_ecef_device,qy_ecef_device,qz_ecef_device,qw_ecef_device"
)
GAZE_HEADER = (
    "tracking_timestamp_us,left_yaw_rads_cpf,right_yaw_rads_cpf,pitch_rads_cpf,depth_m,left_yaw_low_rads_cpf,right_yaw_low_rads_cpf,"
    "pitch_low_rads_cpf,left_yaw_high_rads_cpf,right_yaw_high_rads_cpf,pitch_high_rads_cpf,tx_left_eye_cpf,ty_left_eye_cpf,"
    "tz_left_eye_cpf,tx_right_eye_cpf,ty_right_eye_cpf,tz_right_eye_cpf,session_uid"
)
OLD_GAZE_HEADER = "tracking_timestamp_us,yaw_rads_cpf,pitch_rads_cpf,depth_m,yaw_low_rads_cpf,pitch_low_rads_cpf,yaw_high_rads_cpf,pitch_high_rads_cpf"


def write_trajectory(path: Path, scene: Scene = ARIA) -> Path:
    rows = []
    for milliseconds in range(0, 2300, 4):
        pose = scene.world_from_device(milliseconds / 1000)
        numbers = [*pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_quat()]
        rows.append(["9f", START_US + 1000 * milliseconds, -1, *numbers, *[0] * 6, 0, 0, -9.81, 1.0, 0, *[0] * 7])
    return write_rows(path, TRAJECTORY_HEADER, rows)


def write_calibration(path: Path) -> Path:
    def camera(label: str, params: list[float], translation, quaternion) -> dict:
        projection = {"Params": params, "Description": "see FisheyeRadTanThinPrism.h", "Name": "FisheyeRadTanThinPrism"}
        pose = {"Translation": translation, "UnitQuaternion": quaternion}
        return {
            "Calibrated": True,
            "Projection": projection,
            "T_Device_Camera": pose,
            "SerialNumber": "0",
            "Label": label,
        }

    slam = camera("camera-slam-left", [241.5, 318.4, 237.4, *[0.0] * 12], [0.0, 0.0, 0.0], [1.0, [0.0, 0.0, 0.0]])
    rgb = camera("camera-rgb", RGB_PARAMS, RGB_TRANSLATION, RGB_QUATERNION)
    line = {
        "utc_timestamp_ns": -1,
        "tracking_timestamp_us": START_US,
        "ImuCalibrations": [],
        "CameraCalibrations": [slam, rgb],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps({**line, "tracking_timestamp_us": START_US + 33_333 * index}) + "\n" for index in range(3))
    )
    return path


def gaze_angles(time_s: float) -> tuple[float, float, float, float]:
    """Left and right yaw, pitch and distance of the point looked at, from where it is in the sensor's camera by the design."""
    x, y, z = aria.CPF_FROM_RGB[:3, :3] @ ARIA.sensor_points(time_s)[ARIA.target(time_s)] + aria.CPF_FROM_RGB[:3, 3]
    return math.atan((x - 0.0315) / z), math.atan((x + 0.0315) / z), math.atan(y / z), math.hypot(x, y, z)


def write_gaze(path: Path, *, old: bool = False) -> Path:
    """10 Hz; the fourth sample is a gap."""
    rows = []
    for index in range(23):
        left, right, pitch, depth = gaze_angles(index / 10)
        time_us = START_US + 100_000 * index
        if old:
            yaw = math.atan((math.tan(left) + math.tan(right)) / 2)
            rows.append([time_us, yaw if index != 3 else "nan", pitch, depth, 0, 0, 0, 0])
        else:
            rows.append(
                [
                    time_us,
                    left if index != 3 else "",
                    right,
                    pitch,
                    depth,
                    *[0.0] * 6,
                    0.0315,
                    0,
                    0,
                    -0.0315,
                    0,
                    0,
                    "5379",
                ]
            )
    return write_rows(path, OLD_GAZE_HEADER if old else GAZE_HEADER, rows)


def upright(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(cv2.rotate(picture, cv2.ROTATE_90_CLOCKWISE))


def write_pictures(path: Path, *, turned: bool, scene: Scene = ARIA, gray: bool = False) -> Path:
    pictures = [scene.picture(time_s, gray=gray) for time_s in TIMES_S]
    return write_video(
        path,
        TIMES_S,
        pictures=[upright(one) for one in pictures] if turned else pictures,
        options={"crf": "10", "preset": "ultrafast"},
    )


def tag_times(path: Path, times_ns: list[int]) -> Path:
    """As vrs_to_mp4 does with FFmpeg: the list in the description of the container, streams copied."""
    bare = path.rename(path.with_name("bare.mp4"))
    with av.open(str(bare)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        target.metadata["description"] = str(times_ns)
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    bare.unlink()
    return path


FRAMES_NS = [START_US * 1000 + round(time_s * 1e9) for time_s in TIMES_S]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[str, bytes]:
    """The videos, encoded once: name -> the file."""
    root = tmp_path_factory.mktemp("pictures")
    stored = write_pictures(root / "stored.mp4", turned=False)
    turned = write_pictures(root / "turned.mp4", turned=True)
    quest = write_pictures(root / "quest.mp4", turned=False, scene=QUEST, gray=True)
    files = {"stored": stored.read_bytes(), "turned": turned.read_bytes(), "quest": quest.read_bytes()}
    return {**files, "tagged": tag_times(turned, FRAMES_NS).read_bytes()}


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_egoexo4d(root: Path, pictures: dict[str, bytes], *, lead: int = 0) -> None:
    """Take fair_cooking_05_2; the trajectory starts ``lead`` frames before the video, as only timesync.csv tells."""
    take = root / "takes" / "fair_cooking_05_2"
    put(take / "frame_aligned_videos" / "aria01_214-1.mp4", pictures["turned"])
    write_trajectory(take / "trajectory" / "closed_loop_trajectory.csv")
    write_calibration(take / "trajectory" / "online_calibration.jsonl")
    write_gaze(take / "eye_gaze" / "general_eye_gaze.csv")
    info = {"take_uid": "u2", "take_name": take.name, "timesync_start_idx": 4, "timesync_end_idx": 5 + FRAMES}
    (root / "takes.json").write_text(json.dumps([info, {"take_uid": "u9", "take_name": "other_1"}]))
    rows = [[index, "", index] for index in range(5)]
    rows += [[5 + index, time_ns, index] for index, time_ns in enumerate(FRAMES_NS)]
    write_rows(
        root / "captures" / "fair_cooking_05" / "timesync.csv",
        "cam01_frame_number,aria01_214-1_capture_timestamp_ns,x",
        rows,
    )
    put(
        root / "annotations" / "splits.json",
        json.dumps({"split_to_take_uids": {"train": ["u9"], "val": ["u2"]}}).encode(),
    )


def write_hot3d_aria(root: Path, pictures: dict[str, bytes], *, tagged: bool) -> None:
    recording = root / "P0003_c701bd11"
    put(recording / "metadata.json", b'{"recording_name": "P0003_c701bd11", "headset": "Aria"}')
    write_trajectory(recording / "mps" / "slam" / "closed_loop_trajectory.csv")
    write_calibration(recording / "mps" / "slam" / "online_calibration.jsonl")
    write_gaze(recording / "mps" / "eye_gaze" / "general_eye_gaze.csv")
    write_exported(recording, "recording", pictures, tagged=tagged)


def write_exported(directory: Path, name: str, pictures: dict[str, bytes], *, tagged: bool) -> None:
    if tagged:
        put(directory / f"{name}.mp4", pictures["tagged"])
    else:
        put(directory / "214-1.mp4", pictures["stored"])
        write_rows(directory / "214-1_timestamps.csv", "timestamp_ns", [[time_ns] for time_ns in FRAMES_NS])


def write_hot3d_quest(root: Path, pictures: dict[str, bytes]) -> None:
    recording = root / "P0002_273c2819"
    put(recording / "metadata.json", b'{"recording_name": "P0002_273c2819", "headset": "Quest3"}')
    code_ns = [43_124_400_000_000 + round(time_s * 1e9) for time_s in TIMES_S]
    rows = []
    for time_s, time_ns in zip(TIMES_S, code_ns, strict=True):
        pose = QUEST.world_from_device(time_s)
        x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
        rows.append([58635154735610, time_ns, *pose[:3, 3], w, x, y, z])
    write_rows(
        recording / "ground_truth" / "headset_trajectory.csv",
        "object_uid,timestamp[ns],t_wo_x[m],t_wo_y[m],t_wo_z[m],q_wo_w,q_wo_x,q_wo_y,q_wo_z",
        rows,
    )
    models = [
        {"T_Device_Camera": {"quaternion_wxyz": QUEST_QUATERNION, "translation_xyz": QUEST_TRANSLATION}, "imageHeight": 1024,
         "imageWidth": 1280, "label": f"camera-slam-{side}", "maxSolidAngle": 1.48,
         "projectionModelType": "CameraModelType.FISHEYE624", "projectionParams": QUEST_PARAMS, "serialNumber": "2", "stream_id": stream}
        for side, stream in (("left", "1201-1"), ("right", "1201-2"))
    ]  # fmt: skip
    put(recording / "camera_models.json", json.dumps(models).encode())
    put(recording / "1201-1.mp4", pictures["quest"])
    write_rows(recording / "1201-1_timestamps.csv", "timestamp_ns", [[time_ns] for time_ns in code_ns])


def write_adt(root: Path, pictures: dict[str, bytes], *, tagged: bool) -> None:
    sequence = root / "Apartment_release_clean_seq131_M1292"
    write_trajectory(sequence / "aria_trajectory.csv")
    write_calibration(sequence / "MPS" / "slam" / "online_calibration.jsonl")
    write_gaze(sequence / "eyegaze.csv", old=True)
    write_exported(sequence, "video", pictures, tagged=tagged)
    put(sequence / "synthetic_video.mp4", pictures["tagged"])
    (sequence / "depth_images").mkdir()
    for time_s, time_ns in zip(TIMES_S, FRAMES_NS, strict=True):
        cv2.imwrite(
            str(sequence / "depth_images" / f"{time_ns}.png"), ARIA.depth_mm(time_s), [cv2.IMWRITE_PNG_COMPRESSION, 1]
        )


@dataclass(frozen=True)
class Case:
    source: SequenceSource
    write: Callable[[Path, dict[str, bytes]], None]
    scene: Scene = ARIA
    gaze: bool = True
    depth: bool = False


CASES = {
    "egoexo4d": Case(EGOEXO4D, write_egoexo4d),
    "hot3d aria, vrs_to_mp4": Case(HOT3D_ARIA, lambda root, made: write_hot3d_aria(root, made, tagged=True)),
    "hot3d aria, as stored": Case(HOT3D_ARIA, lambda root, made: write_hot3d_aria(root, made, tagged=False)),
    "hot3d quest": Case(HOT3D_QUEST, write_hot3d_quest, scene=QUEST, gaze=False),
    "adt, vrs_to_mp4": Case(ADT, lambda root, made: write_adt(root, made, tagged=True), depth=True),
    "adt, as stored": Case(ADT, lambda root, made: write_adt(root, made, tagged=False), depth=True),
}


def opened(case: Case, root: Path, **options) -> Recording:
    recording = next(iter(case.source(root, SourceOptions(split="all", **options))))
    assert isinstance(recording, Recording), recording
    return recording


def cut_one(recording: Recording) -> Clip:
    clip = next(cut_clips(recording, **CLIP))
    assert isinstance(clip, Clip), clip
    check_content(clip)
    return clip


def blob(picture: np.ndarray, colour: str, near: np.ndarray | None = None) -> np.ndarray:
    """Middle of a coloured disc, or of the grey one ``near`` a place, in pixels from the corner."""
    values = picture.astype(np.float64)
    rows, columns = np.indices(values.shape[:2]) + 0.5
    if near is None:
        chosen = np.array(COLOURS[colour]) > 0
        weight = np.clip(values[..., chosen].min(-1) - values[..., ~chosen].max(-1) - 40, 0, None)
    else:
        shade = 255 - 110 * list(COLOURS).index(colour)
        close = np.hypot(columns - near[0], rows - near[1]) < 12
        weight = np.clip(np.abs(values.mean(-1) - 90) - 20, 0, None) * close
        assert np.abs(values.mean(-1)[close] - shade).min() < 12, f"no {colour} in the picture"
    assert weight.sum() > 0, f"no {colour} in the picture"
    return np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()


def square_px(scene: Scene, upright_px: np.ndarray, size: int) -> np.ndarray:
    """Pixels of the upright picture in the central square of a clip."""
    width, height = scene.camera.height, scene.camera.width
    side = min(width, height)
    return (upright_px - ((width - side) / 2, (height - side) / 2)) * (size / side)


def projected(scene: Scene, clip: Clip, world_from_camera: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Where a clip's own camera puts points of the world: by its pinhole, or (no intrinsics) by the scene's fisheye, turned by hand."""
    camera_from_world = np.linalg.inv(world_from_camera)
    inside = points @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
    if clip.intrinsics is not None:
        return (inside @ clip.intrinsics.T)[:, :2] / inside[:, 2:]
    sensor_px = scene.camera.project(inside @ turn_by_hand()[:3, :3].T)
    upright_px = np.stack([scene.camera.height - sensor_px[:, 1], sensor_px[:, 0]], axis=1)
    return square_px(scene, upright_px, clip.rgb.shape[1])


def worst_error_px(scene: Scene, clip: Clip) -> float:
    """The farthest that a disc lies from where the clip's camera says, over all discs and frames."""
    worst = 0.0
    for frame, time_s in enumerate(clip.rgb_times_s):
        # The camera at the frame's time: 30 Hz samples, and the frames lie on them.
        pose = clip.world_from_camera[round(time_s * clip.camera_hz)]
        for index, expected in enumerate(projected(scene, clip, pose, scene.points)):
            if not (expected > 8).all() or not (expected < clip.rgb.shape[1] - 8).all():
                continue
            seen = blob(clip.rgb[frame], list(COLOURS)[index], None if scene is ARIA else expected)
            worst = max(worst, float(np.linalg.norm(seen - expected)))
    return worst


@pytest.fixture(params=list(CASES))
def case(request, tmp_path, pictures) -> tuple[Case, Path]:
    chosen = CASES[request.param]
    chosen.write(tmp_path, pictures)
    return chosen, tmp_path


@pytest.mark.parametrize("rectify_fov_deg", [0.0, 90.0])
def test_a_data_set_read_back_is_the_scene(case, rectify_fov_deg):
    chosen, root = case
    scene = chosen.scene
    recording = opened(chosen, root, rectify_fov_deg=rectify_fov_deg)
    clip = cut_one(recording)
    assert clip.rgb.shape == (8, 256, 256, 3)
    assert (clip.intrinsics is not None) == bool(rectify_fov_deg)
    assert worst_error_px(scene, clip) < 0.8
    # Red is up and green to the right of blue at the start: the picture is upright, whatever the numbers say.
    if scene is ARIA:
        red, green, blue = (blob(clip.rgb[0], colour) for colour in COLOURS)
        assert red[1] < green[1] < blue[1] and green[0] > max(red[0], blue[0])

    true_poses = np.stack([scene.world_from_sensor(index / 30) @ turn_by_hand() for index in range(60)])
    relative, expected = (np.linalg.inv(poses[0]) @ poses for poses in (clip.world_from_camera, true_poses))
    np.testing.assert_allclose(relative[:, :3, 3], expected[:, :3, 3], atol=5e-4)
    np.testing.assert_allclose(relative[:, :3, :3], expected[:, :3, :3], atol=5e-4)

    assert (clip.gaze is not None) == chosen.gaze
    if chosen.gaze:
        # The nearest of samples at 10 Hz; number 3 is a gap.
        samples = [index for index in range(60) if index % 3 == 0 and index != 9]
        wanted = [scene.points[scene.target(index / 30)] for index in samples]
        seen = np.stack(
            [
                projected(scene, clip, clip.world_from_camera[i], w[None])[0]
                for i, w in zip(samples, wanted, strict=True)
            ]
        )
        # The design's camera is a degree from the calibrated one: 3 px of 256 over the 110 degrees that it sees.
        on_design = np.linalg.norm(clip.gaze[samples] - seen, axis=1)
        assert np.isnan(clip.gaze[9]).all() and not np.isnan(clip.gaze[samples]).any()
        assert on_design.max() < 0.5

    assert (clip.depth is not None) == chosen.depth
    if chosen.depth:
        for index, world in enumerate(scene.points):
            x, y = projected(scene, clip, clip.world_from_camera[0], world[None])[0]
            depth_m = scene.sensor_points(0.0)[index, 2]
            assert clip.depth[0, int(y), int(x)] == pytest.approx(depth_m, abs=0.002)
        assert np.median(clip.depth[0][clip.depth[0] > 0]) == 2.0


WRONG_TURNS = {"the turn left out": 0, "the wrong direction": 1, "half a turn": 2}


@pytest.mark.parametrize("turns", WRONG_TURNS.values(), ids=WRONG_TURNS.keys())
def test_a_wrong_turn_fails_the_check(tmp_path, pictures, monkeypatch, turns):
    """Of the poses alone, the pictures as they are: the discs are not where the camera says."""
    case = CASES["egoexo4d"]
    case.write(tmp_path, pictures)
    monkeypatch.setattr(aria, "TURNS_TO_UPRIGHT", turns)
    clip = cut_one(opened(case, tmp_path))
    assert worst_error_px(ARIA, clip) > 30


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_wrongly_turned_pictures_fail_the_check(tmp_path, pictures, turns):
    case = CASES["adt, as stored"]
    case.write(tmp_path, pictures)
    recording = opened(case, tmp_path)
    assert recording.rotate_quarter_turns == 3
    with pytest.raises(AssertionError):
        assert worst_error_px(ARIA, cut_one(replace(recording, rotate_quarter_turns=turns))) < 30


def test_the_synthetic_double_of_adt_is_a_recording_of_its_own(tmp_path, pictures):
    write_adt(tmp_path, pictures, tagged=True)
    names = list(ADT.list_names(tmp_path, SourceOptions(split="all")))
    assert names == ["Apartment_release_clean_seq131_M1292", "Apartment_release_clean_seq131_M1292-synthetic"]
    synthetic = ADT.open(tmp_path, names[1], SourceOptions(split="all"))
    assert synthetic.meta == {"synthetic": True} and worst_error_px(ARIA, cut_one(synthetic)) < 0.8


# ------------------------------------------------------------------------------------------- clocks, splits and labels


def test_ego_exo4d_frames_take_their_times_from_timesync(tmp_path, pictures):
    """Were the video's start mistaken for the trajectory's, the poses would be 5 frames off."""
    write_egoexo4d(tmp_path, pictures)
    trajectory = tmp_path / "takes" / "fair_cooking_05_2" / "trajectory" / "closed_loop_trajectory.csv"
    lines = trajectory.read_text().splitlines()
    early = [lines[1].replace(str(START_US), str(START_US - 4000 * number)) for number in range(40, 0, -1)]
    trajectory.write_text("\n".join([lines[0], *early, *lines[1:]]))
    recording = opened(CASES["egoexo4d"], tmp_path)
    assert recording.meta == {"clock": "timesync"} and worst_error_px(ARIA, cut_one(recording)) < 0.8
    (tmp_path / "takes.json").unlink()
    guessed = opened(CASES["egoexo4d"], tmp_path)
    assert guessed.meta == {"clock": "start of the trajectory"} and worst_error_px(ARIA, cut_one(guessed)) > 1.5


def test_ego_exo4d_without_trajectory_uses_the_projected_gaze(tmp_path, pictures):
    write_egoexo4d(tmp_path, pictures)
    take = tmp_path / "takes" / "fair_cooking_05_2"
    for path in (take / "trajectory").iterdir():
        path.unlink()
    rows = [[index, 1408 * 0.25 + index, 1408 * 0.75] for index in range(22)]
    write_rows(take / "eye_gaze" / "general_eye_gaze_2d.csv", "frame_num,x,y", rows)
    clip = cut_one(opened(CASES["egoexo4d"], tmp_path))
    assert clip.world_from_camera is None and clip.meta["dropped"] == {
        "camera": "not in the files",
        "depth": "not in the files",
    }
    np.testing.assert_allclose(clip.gaze[30], [64 + 10.5 * 256 / 1408, 192 + 0.5 * 256 / 1408], atol=1e-3)


def test_splits(tmp_path, pictures):
    write_egoexo4d(tmp_path, pictures)
    assert list(EGOEXO4D.list_names(tmp_path, SourceOptions(split="val"))) == ["fair_cooking_05_2"]
    assert list(EGOEXO4D.list_names(tmp_path, SourceOptions(split="train"))) == []
    (tmp_path / "annotations" / "splits.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"splits\.json.*split=all"):
        list(EGOEXO4D.list_names(tmp_path, SourceOptions(split="train")))
    for name in ("P0014_a", "P0020_b", "P0003_c"):
        put(tmp_path / name / "metadata.json", b'{"headset": "Aria"}')
    splits = [list(HOT3D_ARIA.list_names(tmp_path, SourceOptions(split=split))) for split in ("train", "val", "test")]
    assert splits == [["P0003_c"], ["P0014_a"], ["P0020_b"]]


@pytest.mark.parametrize("source", [EGOEXO4D, HOT3D_ARIA], ids=["egoexo4d", "hot3d"])
def test_intermediate_files_of_egom2p(tmp_path, pictures, source):
    """Ego-Exo4D's are of the sensor's camera, HOT3D's of the upright one."""
    turn = np.eye(4) if source is EGOEXO4D else turn_by_hand()
    poses = np.stack([ARIA.world_from_sensor(time_s) @ turn for time_s in TIMES_S])
    gaze = np.full((FRAMES, 2), (352.0, 1056.0))
    gaze[5] = np.nan
    put(tmp_path / "rgb" / "chunk-0.mp4", pictures["turned"])
    (tmp_path / "label").mkdir()
    np.savez(tmp_path / "label" / "chunk-0.npz", cam=poses, gaze=gaze)
    recording = next(iter(source(tmp_path, SourceOptions(split="all"))))
    clip = cut_one(recording)
    assert worst_error_px(ARIA, clip) < 0.8
    assert np.isnan(clip.gaze[5]).all()
    np.testing.assert_allclose(clip.gaze[0], np.array([352.5, 1056.5]) * 256 / 1408, atol=1e-3)


# ------------------------------------------------------------------------------------------------------- bad input


def damage(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


BAD = {
    "a column missing": ("mps/slam/closed_loop_trajectory.csv", lambda path: damage(path, "qx_world_device,qy_world_device", "a,b"),
                         FILE_DAMAGED, "its header has no qx_world_device, qy_world_device"),
    "times that go back": ("mps/slam/closed_loop_trajectory.csv", lambda path: damage(path, f",{START_US + 8000},", f",{START_US},"),
                           FILE_DAMAGED, "times must increase, line 4"),
    "a cell that is no number": ("mps/slam/closed_loop_trajectory.csv", lambda path: damage(path, f",{START_US + 8000},", ",soon,"),
                                 FILE_DAMAGED, "soon"),
    "an empty trajectory": ("mps/slam/closed_loop_trajectory.csv", lambda path: path.write_text(TRAJECTORY_HEADER + "\n"),
                            FILE_DAMAGED, "no line below the header"),
    "no calibration": ("mps/slam/online_calibration.jsonl", Path.unlink, FILE_MISSING, "online_calibration.jsonl: no such file"),
    "a torn calibration": ("mps/slam/online_calibration.jsonl", lambda path: path.write_text(path.read_text()[:700] * 2),
                           FILE_DAMAGED, "online_calibration.jsonl: line"),
    "no RGB camera": ("mps/slam/online_calibration.jsonl", lambda path: damage(path, "camera-rgb", "camera-x"),
                      FILE_DAMAGED, "no camera 'camera-rgb'"),
    "another projection": ("mps/slam/online_calibration.jsonl", lambda path: damage(path, '"FisheyeRadTanThinPrism"}', '"KannalaBrandtK3"}'),
                           FILE_DAMAGED, "KannalaBrandtK3"),
    "gaze without angles": ("mps/eye_gaze/general_eye_gaze.csv", lambda path: damage(path, "right_yaw_rads_cpf", "right"),
                            FILE_DAMAGED, "no right_yaw_rads_cpf"),
    "no pictures": ("recording.mp4", Path.unlink, FILE_MISSING, "recording.mp4 (by vrs_to_mp4 of projectaria_tools) or 214-1.mp4"),
    "untagged pictures": ("recording.mp4", lambda path: path.write_bytes(UNTAGGED[0]), FILE_DAMAGED, "'description' tag"),
}  # fmt: skip
UNTAGGED: list[bytes] = []


@pytest.mark.parametrize("fault", BAD)
def test_bad_files_are_named(tmp_path, pictures, fault):
    UNTAGGED[:] = [pictures["turned"]]
    write_hot3d_aria(tmp_path, pictures, tagged=True)
    name, spoil, reason, words = BAD[fault]
    spoil(tmp_path / "P0003_c701bd11" / name)
    skipped = next(iter(HOT3D_ARIA(tmp_path, SourceOptions(split="all"))))
    assert isinstance(skipped, Skipped) and skipped.reason == reason, skipped
    assert words in skipped.detail and "\n" not in skipped.detail


@pytest.mark.parametrize(
    "quaternion, reason", [("0.9,0.9,0.9,0.9", "pose not a rigid motion"), ("nan,0,0,1", "pose not finite")]
)
def test_a_bad_quaternion_costs_its_clip_the_camera(tmp_path, pictures, quaternion, reason):
    write_hot3d_aria(tmp_path, pictures, tagged=True)
    path = tmp_path / "P0003_c701bd11" / "mps" / "slam" / "closed_loop_trajectory.csv"
    lines = path.read_text().splitlines()
    # A row that survives the thinning to 200 Hz: the rows are 4 ms apart, and every slot of 5 ms keeps its first.
    for number in (100, 101):
        cells = lines[number].split(",")
        lines[number] = ",".join([*cells[:6], *quaternion.split(","), *cells[10:]])
    path.write_text("\n".join(lines))
    clip = cut_one(opened(CASES["hot3d aria, vrs_to_mp4"], tmp_path))
    assert clip.world_from_camera is None and clip.meta["dropped"]["camera"] == reason
    assert clip.gaze is not None


def test_a_root_that_is_no_data_set_and_wrong_options(tmp_path):
    for source in (EGOEXO4D, HOT3D_ARIA, HOT3D_QUEST, ADT):
        with pytest.raises(FileNotFoundError, match="root="):
            list(source.list_names(tmp_path, SourceOptions(split="all")))
        with pytest.raises(ValueError, match="rectify_fov_deg=200"):
            list(source.list_names(tmp_path, SourceOptions(split="all", rectify_fov_deg=200)))
    with pytest.raises(ValueError, match="split=all"):
        list(ADT.list_names(tmp_path, SourceOptions(split="train")))


def test_frames_missing_in_a_listed_video_are_counted():
    frames = aria_recording.ListedFrames(
        path=Path("x.mp4"), numbers=np.arange(3), times_s=np.array([0, 0.03, 1.0]), fps=30.0
    )
    for times_s, words in (([0.5], "frames missing"), ([2.0], "time outside"), ([-1.0], "time outside")):
        with pytest.raises(ValueError, match=words):
            frames.read(np.array(times_s), 0.2)


def test_depth_that_cannot_be_used_is_left_out(tmp_path, pictures):
    write_adt(tmp_path, pictures, tagged=True)
    directory = tmp_path / "Apartment_release_clean_seq131_M1292" / "depth_images"
    for path in directory.iterdir():
        cv2.imwrite(str(path), np.zeros((4, 4), np.uint8))
    clip = cut_one(opened(CASES["adt, vrs_to_mp4"], tmp_path))
    assert clip.depth is None and clip.meta["dropped"] == {"depth": "depth unreadable"}


def test_errors_are_recording_errors(tmp_path):
    with pytest.raises(RecordingError, match="no such file"):
        aria.read_csv(tmp_path / "x.csv", ("a",))
    assert egoexo4d.LABEL_FOLDER == "label"
