"""What the Project Aria data sets share: calibration, trajectory, eye gaze, and the turn of the sensor.

Formats follow Meta's documentation (facebookresearch.github.io/projectaria_tools, "MPS Output" and "Coordinate conventions") and the
sample files in the repositories facebookresearch/projectaria_tools and facebookresearch/hot3d:

- ``closed_loop_trajectory.csv``: ``tracking_timestamp_us`` (device clock), ``t{x,y,z}_world_device``, ``q{x,y,z,w}_world_device``, 1 kHz.
- ``online_calibration.jsonl``: a line a moment; of ``CameraCalibrations`` the one with ``Label`` "camera-rgb" has ``Projection``
  (``Name``, ``Params``: see :mod:`pretrain.clips.sources.fisheye624`) and ``T_Device_Camera`` (``Translation``, and
  ``UnitQuaternion`` as [w, [x, y, z]]). It does not state the size of the picture: the principal point, near its middle, tells 1408
  pixels (what the data sets record) from the sensor's full 2880, of which 1408 is the half without 32 pixels a side.
- ``general_eye_gaze.csv``, ``personalized_eye_gaze.csv``, 10 Hz or more: ``tracking_timestamp_us``, ``pitch_rads_cpf``, ``depth_m`` (empty
  or 0 = unknown), and ``yaw_rads_cpf`` (before March 2024, ADT) or ``left_yaw_rads_cpf`` and ``right_yaw_rads_cpf`` (since). Angles
  are those of the projections onto the XZ and YZ planes of the Central Pupil Frame (x left, y up, z ahead, from the wearer).

**The turn.** Aria's RGB sensor stands on its side: along the stored picture's rows (x) it goes *down*, along its columns (y) to the
wearer's *left*. A turn of 90 degrees clockwise, three quarter turns counter-clockwise, makes it upright; the camera's frame
turns with it by EgoM2P's "cw90", ``world_from_upright = world_from_camera @ turned_camera(3)``. :data:`TURNS_TO_UPRIGHT` is the one place
that says so; HOT3D's Quest 3 cameras stand the same way. What files exist in which state: Ego-Exo4D's frame-aligned videos and those
of ``vrs_to_mp4`` are upright already, pictures and depth taken out of a VRS file one by one are not, calibrations never are.

Axis letters: n samples.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from scipy.spatial.transform import Rotation

from pretrain.clips.sources.fisheye624 import Fisheye624
from pretrain.clips.sources.recording import FILE_DAMAGED, FILE_MISSING, turned_camera, turned_points
from pretrain.clips.sources.request import shown
from pretrain.clips.sources.resample import RecordingError

RGB_LABEL = "camera-rgb"
# Counter-clockwise, as cut_clip counts: see the head of this file.
TURNS_TO_UPRIGHT = 3

# The pictures that the data sets hold, and the sensor's.
_PICTURE_SIDE, _SENSOR_SIDE, _SENSOR_MARGIN = 1408, 2880, 32
# Where the new gaze model has no depth, and for the old one; the default of Meta's own tools.
_DEFAULT_GAZE_DEPTH_M = 1.0
# Poses come at 1 kHz; between those kept the head is interpolated to micrometres.
_THINNED_NS = 5_000_000
_QUATERNION_TOLERANCE = 1e-3


def _rigid(y_axis: Sequence[float], z_axis: Sequence[float], position: Sequence[float]) -> Float64[np.ndarray, "4 4"]:
    y, z = (np.asarray(axis) / np.linalg.norm(axis) for axis in (y_axis, z_axis))
    matrix = np.eye(4)
    matrix[:3] = np.stack([np.cross(y, z), y, z, np.asarray(position)], axis=1)
    return matrix


# The RGB camera in the Central Pupil Frame, by the glasses' design (projectaria_tools, DeviceCadExtrinsics, small size; the large one
# differs by 2.4 mm and in no angle, and the size is not in the MPS files). Gaze is estimated in the frame of the design, so Meta's tools
# project it with the design's camera too, and not with the calibrated one.
CPF_FROM_RGB = _rigid((1.0, 0.0, 0.0), (0.0, -0.130526, 0.991445), (0.056, 0.007121, 0.012883))


@dataclass(frozen=True, kw_only=True, eq=False)
class AriaCamera:
    """A calibrated camera of a headset whose sensor stands on its side.

    Attributes:
        model: of the picture as the sensor stores it.
        device_from_camera: of the same picture.
    """

    model: Fisheye624
    device_from_camera: Float64[np.ndarray, "4 4"]

    def world_from_upright(self, world_from_device: Float64[np.ndarray, "n 4 4"]) -> Float64[np.ndarray, "n 4 4"]:
        """Poses of the upright picture's OpenCV camera."""
        return world_from_device @ self.device_from_camera @ turned_camera(TURNS_TO_UPRIGHT)

    def upright_px(self, points: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 2"]:
        """Points of the stored picture's camera frame to pixels of the upright picture; NaN stays NaN."""
        return turned_points(self.model.project(points), TURNS_TO_UPRIGHT, self.model.width, self.model.height)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """Poses of a headset.

    Attributes:
        times_ns: on the headset's clock, strictly increasing.
        world_from_device: a quaternion in the file that is not a unit one gives a matrix that is not rigid, which
            :func:`pretrain.clips.sources.recording.cut_clip` finds and counts.
    """

    times_ns: Int64[np.ndarray, " n"]
    world_from_device: Float64[np.ndarray, "n 4 4"]


@dataclass(frozen=True, kw_only=True, eq=False)
class EyeGaze:
    """Points of gaze.

    Attributes:
        times_ns: on the headset's clock, strictly increasing.
        points_cpf: metres in the Central Pupil Frame; NaN = gap.
    """

    times_ns: Int64[np.ndarray, " n"]
    points_cpf: Float64[np.ndarray, "n 3"]


def read_trajectory(path: Path) -> Trajectory:
    """``closed_loop_trajectory.csv``, or ADT's ``aria_trajectory.csv`` of the same form, thinned to 200 Hz.

    Raises:
        RecordingError: missing, empty, a column missing, times that do not increase.
    """
    position = [f"t{axis}_world_device" for axis in "xyz"]
    quaternion = [f"q{axis}_world_device" for axis in "xyzw"]
    table = read_csv(path, ("tracking_timestamp_us", *position, *quaternion))
    times_ns = increasing_ns(path, table["tracking_timestamp_us"], 1000)
    kept = np.ones(len(times_ns), bool)
    slots = times_ns // _THINNED_NS
    kept[1:] = slots[1:] != slots[:-1]
    kept[-1] = True
    poses = pose_matrices(
        np.stack([table[name][kept] for name in quaternion], axis=1),
        np.stack([table[name][kept] for name in position], axis=1),
    )
    return Trajectory(times_ns=times_ns[kept], world_from_device=poses)


def read_eye_gaze(path: Path) -> EyeGaze:
    """Either form of an eye gaze file; a sample without angles is a gap.

    Raises:
        RecordingError: missing, empty, a column missing, times that do not increase.
    """
    required = ("tracking_timestamp_us", "pitch_rads_cpf")
    header = _read_header(path)
    if "yaw_rads_cpf" not in header and "left_yaw_rads_cpf" in header:
        required = (*required, "left_yaw_rads_cpf", "right_yaw_rads_cpf")
    else:
        required = (*required, "yaw_rads_cpf")
    table = read_csv(path, required, optional=("depth_m",))
    times_ns = increasing_ns(path, table["tracking_timestamp_us"], 1000)
    if "yaw_rads_cpf" in table:
        yaw_tangent = np.tan(table["yaw_rads_cpf"])
    else:
        yaw_tangent = combined_yaw_tangent(table["left_yaw_rads_cpf"], table["right_yaw_rads_cpf"])
    depth_m = table.get("depth_m", np.full(len(times_ns), np.nan))
    return EyeGaze(times_ns=times_ns, points_cpf=gaze_points(yaw_tangent, np.tan(table["pitch_rads_cpf"]), depth_m))


def combined_yaw_tangent(left_yaw_rad: np.ndarray, right_yaw_rad: np.ndarray) -> np.ndarray:
    """Tangent of the yaw at which the two eyes' rays, which start at the same distance from the middle, meet."""
    return (np.tan(left_yaw_rad) + np.tan(right_yaw_rad)) / 2


def gaze_points(
    yaw_tangent: Float64[np.ndarray, " n"], pitch_tangent: Float64[np.ndarray, " n"], depth_m: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, "n 3"]:
    """Points in the Central Pupil Frame at a distance (``depth_m`` is along the ray; unknown or not above 0: 1 m)."""
    rays = np.stack([yaw_tangent, pitch_tangent, np.ones_like(yaw_tangent)], axis=1)
    distance_m = np.where(np.nan_to_num(depth_m) > 0, depth_m, _DEFAULT_GAZE_DEPTH_M)
    return rays / np.linalg.norm(rays, axis=1, keepdims=True) * distance_m[:, None]


def gaze_in_rgb(points_cpf: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
    """Points of the Central Pupil Frame in the frame of the RGB camera (of the picture as stored)."""
    return (points_cpf - CPF_FROM_RGB[:3, 3]) @ CPF_FROM_RGB[:3, :3]


def read_online_calibration(path: Path, width: int, height: int) -> AriaCamera:
    """The RGB camera, from the line in the middle of the recording: within it the numbers move by fractions of a pixel.

    Args:
        width, height: of the pictures that it is for, which may be scaled.

    Raises:
        RecordingError: missing, not JSON, no such camera or another model.
    """
    if not path.is_file():
        raise RecordingError(FILE_MISSING, f"{path}: no such file")
    lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    number = len(lines) // 2
    try:
        cameras = json.loads(lines[number])["CameraCalibrations"] if lines else []
        camera = next((one for one in cameras if one["Label"] == RGB_LABEL), None)
        if camera is None:
            raise ValueError(f"no camera {RGB_LABEL!r} among {shown([one['Label'] for one in cameras])}")
        model, pose = camera["Projection"], camera["T_Device_Camera"]
        if model["Name"] != "FisheyeRadTanThinPrism":
            raise ValueError(f"projection {shown(model['Name'])}, expected 'FisheyeRadTanThinPrism'")
        w, xyz = pose["UnitQuaternion"]
        return AriaCamera(
            model=_fitted(model["Params"], width, height),
            device_from_camera=_calibrated_pose([*xyz, w], pose["Translation"]),
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RecordingError(FILE_DAMAGED, f"{path}: line {number + 1}: {_words(error)}") from None


def read_camera_models(path: Path, label: str, width: int, height: int) -> AriaCamera:
    """A camera of HOT3D's ``camera_models.json`` (Quest 3): a list of objects with ``label``, ``imageWidth``, ``imageHeight``,
    ``projectionModelType``, ``projectionParams`` (16 numbers) and ``T_Device_Camera`` (``quaternion_wxyz``, ``translation_xyz``).

    Raises:
        RecordingError: missing, not JSON, no such camera or another model.
    """
    if not path.is_file():
        raise RecordingError(FILE_MISSING, f"{path}: no such file")
    try:
        cameras = json.loads(path.read_bytes())
        camera = next((one for one in cameras if one["label"] == label), None)
        if camera is None:
            raise ValueError(f"no camera {label!r} among {shown([one['label'] for one in cameras])}")
        if not str(camera["projectionModelType"]).endswith("FISHEYE624"):
            raise ValueError(f"projectionModelType {shown(camera['projectionModelType'])}, expected FISHEYE624")
        size = {"width": int(camera["imageWidth"]), "height": int(camera["imageHeight"])}
        pose = camera["T_Device_Camera"]
        w, *xyz = pose["quaternion_wxyz"]
        return AriaCamera(
            model=Fisheye624.from_params(camera["projectionParams"], **size, where=label).resized(width, height),
            device_from_camera=_calibrated_pose([*xyz, w], pose["translation_xyz"]),
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RecordingError(FILE_DAMAGED, f"{path}: {_words(error)}") from None


def pose_matrices(
    quaternions_xyzw: Float64[np.ndarray, "n 4"], positions: Float64[np.ndarray, "n 3"]
) -> Float64[np.ndarray, "n 4 4"]:
    """Rigid motions. Quaternions with rounded digits become unit ones; one that is further off gives a matrix of its own length
    squared, which is no rotation, and one that is not finite gives NaN."""
    length = np.linalg.norm(quaternions_xyzw, axis=1)
    usable = np.isfinite(length) & (length > 0) & np.isfinite(positions).all(1)
    unit = np.where(usable[:, None], quaternions_xyzw, (0.0, 0.0, 0.0, 1.0))
    matrices = np.tile(np.eye(4), (len(length), 1, 1))
    scale = np.where(np.abs(length - 1) <= _QUATERNION_TOLERANCE, 1.0, length**2)
    matrices[:, :3, :3] = Rotation.from_quat(unit).as_matrix() * np.where(length > 0, scale, np.nan)[:, None, None]
    matrices[:, :3, 3] = positions
    matrices[~usable] = np.nan
    return matrices


def read_csv(
    path: Path, columns: Sequence[str], *, optional: Sequence[str] = ()
) -> dict[str, Float64[np.ndarray, " n"]]:
    """Columns of numbers, by name; an empty cell is NaN.

    Raises:
        RecordingError: missing, empty, no text, a column missing (all of them are named), a cell that is no number.
    """
    header = _read_header(path)
    missing = [name for name in columns if name not in header]
    if missing:
        raise RecordingError(
            FILE_DAMAGED, f"{path}: its header has no {', '.join(missing)}; it has {shown(', '.join(header))}"
        )
    names = [*columns, *(name for name in optional if name in header)]
    places = [header.index(name) for name in names]
    try:
        with warnings.catch_warnings():
            # An empty table is an error below, in our words.
            warnings.simplefilter("ignore", UserWarning)
            table = np.loadtxt(
                path, delimiter=",", skiprows=1, usecols=places, ndmin=2, encoding="utf-8-sig", comments=None,
                converters=_number if _has_empty_cells(path) else None,
            )  # fmt: skip
    except (ValueError, IndexError) as error:
        raise RecordingError(FILE_DAMAGED, f"{path}: {error}") from None
    if not len(table):
        raise RecordingError(FILE_DAMAGED, f"{path}: no line below the header")
    return dict(zip(names, table.T, strict=True))


def increasing_ns(path: Path, times: Float64[np.ndarray, " n"], unit_ns: int) -> Int64[np.ndarray, " n"]:
    """Times of a file as nanoseconds.

    Raises:
        RecordingError: a time that is not finite or not after the one before.
    """
    wrong = ~np.isfinite(times)
    wrong[1:] |= np.diff(times) <= 0
    if wrong.any():
        row = int(np.argmax(wrong))
        before = f", after {times[row - 1]:.0f}" if row else ""
        raise RecordingError(FILE_DAMAGED, f"{path}: times must increase, line {row + 2} has {times[row]:.0f}{before}")
    return (times * unit_ns).astype(np.int64)


def _fitted(params: Any, width: int, height: int) -> Fisheye624:
    side = _SENSOR_SIDE if float(params[1]) > (_PICTURE_SIDE + _SENSOR_SIDE) / 4 else _PICTURE_SIDE
    model = Fisheye624.from_params(params, width=side, height=side, where=RGB_LABEL)
    if side == _SENSOR_SIDE and width != _SENSOR_SIDE:
        model = model.cropped(_SENSOR_MARGIN)
    return model.resized(width, height)


def _calibrated_pose(quaternion_xyzw: Sequence[float], position: Sequence[float]) -> Float64[np.ndarray, "4 4"]:
    values = np.asarray([*quaternion_xyzw, *position], np.float64)
    if values.shape != (7,) or not np.isfinite(values).all() or abs(np.linalg.norm(values[:4]) - 1) > 1e-3:
        raise ValueError(f"T_Device_Camera {shown(values.tolist())}: expected a unit quaternion and a translation")
    return pose_matrices(values[None, :4], values[None, 4:])[0]


def _read_header(path: Path) -> list[str]:
    if not path.is_file():
        raise RecordingError(FILE_MISSING, f"{path}: no such file")
    with path.open("rb") as file:
        line = file.readline(1 << 16)
    try:
        return [name.strip() for name in line.decode("utf-8-sig").split(",")]
    except UnicodeDecodeError:
        raise RecordingError(FILE_DAMAGED, f"{path}: not UTF-8 text") from None


def _has_empty_cells(path: Path) -> bool:
    # numpy's fast parser takes no empty cell; a converter makes it several times slower on the long trajectories.
    data = path.read_bytes()
    return data.endswith(b",") or any(mark in data for mark in (b",,", b",\n", b",\r"))


def _number(cell: str) -> float:
    return float(cell) if cell.strip() else float("nan")


def _words(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)
