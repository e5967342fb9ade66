"""A made-up scene of coloured points before a moving camera, exported in the formats of recorded data sets.

World and camera axes are chosen so that no wrong axis, no transposed rotation and no inverse can pass: the path turns about all three axes
and moves along all three. Pictures are drawn from the truth with OpenCV's projection; nothing of the readers is used.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from coded_video import steady, write_video
from scipy.spatial.transform import Rotation

FRAMES, HZ = 66, 30.0
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
# Metres in the world, about 1.5 m before a camera that looks along the world's +x with the world's z up.
POINTS = {"red": (1.5, 0.25, 1.2), "green": (1.7, -0.25, 1.25), "blue": (1.3, 0.05, 1.02), "yellow": (1.9, -0.05, 1.45)}
RADIUS_M, BACKGROUND_M = 0.045, 4.0
# OpenCV's camera (x right, y down, z ahead) that looks along the world's x.
_LOOKING = np.asarray([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])


def world_from_camera(time_s: np.ndarray | float) -> np.ndarray:
    """The true path: float64[n, 4, 4]."""
    time_s = np.atleast_1d(np.asarray(time_s, np.float64))
    angles = np.stack([0.05 * np.sin(2 * time_s), 0.1 * time_s - 0.08, 0.06 * np.sin(3 * time_s + 1)], axis=1)
    poses = np.tile(np.eye(4), (len(time_s), 1, 1))
    poses[:, :3, :3] = _LOOKING @ Rotation.from_euler("xyz", angles).as_matrix()
    poses[:, :3, 3] = np.stack([0.1 * time_s, 0.06 * np.sin(2 * time_s), 1.2 + 0.05 * np.cos(2 * time_s)], axis=1)
    return poses


@dataclass(frozen=True)
class Camera:
    """A pinhole camera as OpenCV counts pixels, with its distortion."""

    width: int
    height: int
    matrix: np.ndarray
    distortion: tuple[float, ...] = (0.0,) * 8

    @classmethod
    def of(cls, width: int, height: int, focal: float, stretch: float = 1.0, **more) -> "Camera":
        # Off the middle, so that a crop or a turn that forgets the principal point shows.
        matrix = [[focal, 0, 0.52 * width], [0, focal * stretch, 0.47 * height], [0, 0, 1]]
        return cls(width, height, np.asarray(matrix), **more)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points of the camera's frame [n, 3] to OpenCV pixels [n, 2]."""
        zero = np.zeros(3)
        return cv2.projectPoints(points.reshape(-1, 1, 3), zero, zero, self.matrix, np.asarray(self.distortion))[0][
            :, 0
        ]

    def see(self, time_s: float) -> tuple[np.ndarray, np.ndarray]:
        """Pixels [n, 2] and depths [n] of all points."""
        inverse = np.linalg.inv(world_from_camera(time_s)[0])
        points = np.asarray(list(POINTS.values())) @ inverse[:3, :3].T + inverse[:3, 3]
        return self.project(points), points[:, 2]

    def picture(self, time_s: float) -> np.ndarray:
        """uint8[H, W, 3]."""
        image = np.full((self.height, self.width, 3), 40, np.uint8)
        for colour, pixel, depth in zip(COLOURS.values(), *self.see(time_s), strict=True):
            self._disc(image, pixel, depth, colour)
        return image

    def depth(self, time_s: float, width: int = 0, height: int = 0) -> np.ndarray:
        """float64[H, W] metres, the picture's view at another resolution."""
        size = (width or self.width, height or self.height)
        scale = np.asarray(size) / (self.width, self.height)
        map_ = np.full(size[::-1], BACKGROUND_M)
        for pixel, depth in zip(*self.see(time_s), strict=True):
            self._disc(map_, (pixel + 0.5) * scale - 0.5, depth, float(depth), scale)
        return map_

    def _disc(self, image: np.ndarray, pixel: np.ndarray, depth: float, value, scale=(1.0, 1.0)) -> None:
        focal = np.asarray([self.matrix[0, 0], self.matrix[1, 1]]) * scale
        axes = np.maximum(np.rint(16 * RADIUS_M * focal / depth).astype(int), 32)
        centre = np.rint(16 * pixel).astype(int)
        cv2.ellipse(image, tuple(centre.tolist()), tuple(axes.tolist()), 0, 0, 360, value, -1, cv2.LINE_8, 4)


def looked_at(time_s: np.ndarray | float) -> np.ndarray:
    """Index of the point that the wearer looks at: another one each half second."""
    return (np.atleast_1d(time_s) / 0.5).astype(int) % len(POINTS)


def write_pictures(path: Path, camera: Camera, frames: int = FRAMES) -> Path:
    """An MP4 of near lossless pictures."""
    pictures = [camera.picture(index / HZ) for index in range(frames)]
    return write_video(path, steady(frames, HZ), pictures=pictures, options={"crf": "6", "preset": "ultrafast"})


def save(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


# --- HoloAssist: camera x ahead, y left, z up; ticks of 100 ns; gaze as rays in the world ---

HOLO_START = 637_917_497_145_832_487


def export_holoassist(root: Path, name: str = "R007-7July-DSLR", frames: int = FRAMES) -> None:
    camera = Camera.of(448, 252, 380.0)
    export = root / name / "Export_py"
    write_pictures(export / "Video_pitchshift.mp4", camera, frames)
    ticks = [HOLO_START + round(index * 1e7 / HZ) for index in range(frames)]
    save(export / "Video" / "VideoMp4Timing.txt", f"{ticks[0]}\n{ticks[-1]}\n")
    save(export / "Video" / "Intrinsics.txt", "\t".join(map(str, [*camera.matrix.reshape(-1), 0.0, 448, 252])))
    ahead_left_up_from_opencv = np.asarray([[0, 0, 1.0, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    poses = world_from_camera(np.arange(frames) / HZ) @ np.linalg.inv(ahead_left_up_from_opencv)
    pose_lines, eye_lines = [], []
    for index, (tick, pose) in enumerate(zip(ticks, poses, strict=True)):
        time_s = index / HZ
        pose_lines.append("\t".join([str(time_s), str(tick), *map(repr, pose.reshape(-1).tolist())]))
        # The reader takes the point half a metre along the ray; the eye sits so that this is the thing itself.
        point = np.asarray(list(POINTS.values())[looked_at(time_s)[0]])
        direction = point - world_from_camera(time_s)[0, :3, 3] + (0, 0.02, 0.01)
        origin = point - 0.5 * direction / np.linalg.norm(direction)
        eye_lines.append(
            "\t".join([str(time_s), str(tick), *map(repr, [*origin.tolist(), *(2 * direction).tolist()]), "1"])
        )
    save(export / "Video" / "Pose_sync.txt", "\n".join(pose_lines) + "\n")
    save(export / "Eyes" / "Eyes_sync.txt", "\n".join(eye_lines) + "\n")
    split = root / "data_split" / "train-v1_2.txt"
    save(split, (split.read_text() if split.exists() else "") + f"{name}\n")


# --- H2O: PNG files, camera to world in OpenCV's axes ---


def export_h2o(root: Path, name: str = "subject1_ego/h1/0", frames: int = FRAMES, first: int = 0) -> None:
    camera = Camera.of(320, 180, 260.0)
    place = root / name / "cam4"
    save(
        place / "cam_intrinsics.txt",
        f"{camera.matrix[0, 0]} {camera.matrix[1, 1]} {camera.matrix[0, 2]} {camera.matrix[1, 2]} 320 180",
    )
    for index in range(frames):
        number = f"{first + index:06d}"
        time_s = index / HZ
        pose = " ".join(map(repr, world_from_camera(time_s).reshape(-1).tolist()))
        save(place / "cam_pose" / f"{number}.txt", pose)
        write_png(place / "rgb" / f"{number}.png", camera.picture(time_s)[:, :, ::-1])
        write_png(place / "depth" / f"{number}.png", np.rint(camera.depth(time_s) * 1000).astype(np.uint16))


def write_png(path: Path, image: np.ndarray) -> None:
    save(path, cv2.imencode(path.suffix, image)[1].tobytes())


# --- ARCTIC: distorted JPEG files, world to camera, a pickled dict, numbers shifted by an offset ---

ARCTIC_OFFSET = 3


def export_arctic(root: Path, name: str = "s01/box_grab_01", frames: int = FRAMES) -> None:
    camera = Camera.of(420, 300, 300.0, distortion=(-0.5, 0.12, 0.002, -0.001, 0.01, 0.03, 0.01, 0.0))
    subject, sequence = name.split("/")
    for index in range(-1, frames):
        image = cv2.imencode(".jpg", camera.picture(index / HZ)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])[1]
        save(root / "images" / name / "0" / f"{index + ARCTIC_OFFSET:05d}.jpg", image.tobytes())
    poses = np.linalg.inv(world_from_camera(np.arange(frames) / HZ))
    stored = {
        "R_k_cam_np": poses[:, :3, :3],
        "T_k_cam_np": poses[:, :3, 3:],
        "intrinsics": camera.matrix,
        "dist8": np.asarray(camera.distortion),
        "R0": np.eye(3),
        "T0": np.zeros((3, 1)),
        "ego_markers.ref": np.zeros((4, 3), np.float32),
        "ego_markers.label": np.asarray(["a", "bc"]),
    }
    buffer = io.BytesIO()
    np.save(buffer, stored, allow_pickle=True)  # type: ignore[arg-type]
    save(root / "raw_seqs" / subject / f"{sequence}.egocam.dist.npy", buffer.getvalue())
    save(root / "meta" / "misc.json", json.dumps({subject: {"ioi_offset": ARCTIC_OFFSET, "gender": "male"}}))


# --- TACO: a video, a lossless depth video of another size and rate, world to camera ---


def export_taco(root: Path, name: str = "(stir, spoon, bowl)/20231105_019", frames: int = FRAMES) -> None:
    camera = Camera.of(256, 188, 150.0, stretch=1.3)
    write_pictures(root / "Egocentric_RGB_Videos" / name / "color.mp4", camera, frames)
    depths = [camera.depth(index / HZ, 240, 135) for index in range(frames)]
    depth_path = root / "Egocentric_Depth_Videos" / name / "egocentric_depth.avi"
    write_gray16(depth_path, [np.rint(depth * 4000).astype(np.uint16) for depth in depths], rate=15)
    place = root / "Egocentric_Camera_Parameters" / name
    save(place / "egocentric_intrinsic.txt", "\n".join(" ".join(map(repr, row)) for row in camera.matrix.tolist()))
    buffer = io.BytesIO()
    np.save(buffer, np.linalg.inv(world_from_camera(np.arange(frames) / HZ)))
    save(place / "egocentric_frame_extrinsic.npy", buffer.getvalue())


def write_gray16(path: Path, maps: list[np.ndarray], rate: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width = maps[0].shape
        stream.pix_fmt = "gray16le"
        for map_ in maps:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(map_, format="gray16le")))
        container.mux(stream.encode())


# --- EgoGen: npz of OpenGL poses and of depth beside a video ---


def export_egogen(root: Path, name: str = "seminar_d78_0", frames: int = FRAMES) -> None:
    # The script's camera counts pixels from the corner, so the middle of 320 x 288 is 159.5, 143.5 for OpenCV.
    camera = Camera(320, 288, np.asarray([[200.0, 0, 159.5], [0, 200, 143.5], [0, 0, 1]]))
    write_pictures(root / "rgb" / f"{name}.mp4", camera, frames)
    right_up_back_from_opencv = np.diag([1.0, -1, -1, 1])
    poses = world_from_camera(np.arange(frames) / HZ) @ np.linalg.inv(right_up_back_from_opencv)
    depths = np.stack([camera.depth(index / HZ) for index in range(frames)]).astype(np.float32)
    for folder, array in (("cam", poses), ("depth", depths)):
        buffer = io.BytesIO()
        np.savez(buffer, array)
        save(root / folder / f"{name}.npz", buffer.getvalue())


EXPORTERS = {
    "holoassist": export_holoassist,
    "h2o": export_h2o,
    "arctic": export_arctic,
    "taco": export_taco,
    "egogen": export_egogen,
}
# What each data set's clips must have, beside pictures, poses and intrinsics.
MORE = {"holoassist": {"gaze"}, "h2o": {"depth"}, "arctic": set(), "taco": {"depth"}, "egogen": {"depth"}}
