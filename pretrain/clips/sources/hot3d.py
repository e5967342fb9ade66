"""HOT3D: recordings of Project Aria (RGB, gaze) and Quest 3 (grey, no gaze), as two sources.

Read from ``root`` (the directory of the recordings, each a directory like P0003_c701bd11)::

    metadata.json                            "headset": "Aria" or "Quest3"
    mps/slam/closed_loop_trajectory.csv, online_calibration.jsonl      Aria
    mps/eye_gaze/personalized_eye_gaze.csv, general_eye_gaze.csv       Aria
    headset_trajectory.csv                   object_uid, timestamp[ns], t_wo_{x,y,z}[m], q_wo_{w,x,y,z}; here or in ground_truth/
    camera_models.json                       Quest 3; here or in ground_truth/

and the pictures, which are published inside recording.vrs, taken out of it in a layout of :mod:`pretrain.clips.sources.aria_recording`:
``recording.mp4`` or ``214-1.mp4`` (Aria's RGB), ``1201-1.mp4`` (Quest's left camera).

The forms are those of the loaders and samples in facebookresearch/hot3d. The headset's trajectory counts in time code, Aria's MPS files
in device time; a VRS file maps one to the other, the rest of the recording does not. In the published sample of an Aria the two
trajectories are the same poses, so Aria's are taken from MPS, whose clock is that of the frames and the gaze; Quest's frames are
stamped with the time code of the trajectory. In the published sample of a Quest its cameras stand on their side like Aria's RGB camera
(its optical frame, in a world with y up, has x down and y to the left), so its pictures, too, are turned to be upright.

The split is EgoM2P's, by participant: P0001 and P0014 val, P0004, 5, 6, 8, 16 and 20 test, the others train.

Where ``root`` has ``<name>.npz`` of EgoM2P (in ``label/`` or by itself) and no recordings, these are read. No axis fix is known for them, so
their poses are taken to be of the upright picture already.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.clips.skipping import Skipped
from pretrain.clips.sources.aria import (
    Trajectory,
    increasing_ns,
    pose_matrices,
    read_camera_models,
    read_csv,
    read_eye_gaze,
    read_online_calibration,
    read_trajectory,
)
from pretrain.clips.sources.aria_recording import Sensors, exported_pictures, upright_recording
from pretrain.clips.sources.egom2p_labels import PICTURE_SIDE, open_label
from pretrain.clips.sources.fisheye624 import check_fov
from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.recording import FILE_DAMAGED, NOT_GIVEN, Recording, SequenceSource
from pretrain.clips.sources.resample import RecordingError

_AT_HEADSET = {"Aria": "214-1", "Quest3": "1201-1"}
_QUEST_CAMERA = "camera-slam-left"
_GAZE_NAMES = ("personalized_eye_gaze.csv", "general_eye_gaze.csv")
_LABEL_FOLDERS = ("label", "")
_VAL = ("P0001", "P0014")
_TEST = ("P0004", "P0005", "P0006", "P0008", "P0016", "P0020")


@dataclass(frozen=True)
class Hot3d:
    """The recordings of one headset.

    Attributes:
        headset: "Aria" or "Quest3", as metadata.json has it.
    """

    headset: str

    def list_names(self, root: Path, options: SourceOptions) -> Iterator[str | Skipped]:
        """Names of the recordings of this headset, or of EgoM2P's chunks.

        Raises:
            FileNotFoundError: there are none.
            ValueError: a field of view that no pinhole has; an unknown split.
        """
        check_fov(options.rectify_fov_deg)
        if options.split not in ("train", "val", "test", "all"):
            raise ValueError(f"split={options.split}: expected train, val, test or all")
        names = [path.parent.name for path in sorted(root.glob("*/metadata.json")) if _headset(path) == self.headset]
        names = names or sorted({path.stem for folder in _LABEL_FOLDERS for path in (root / folder).glob("*.npz")})
        if not names:
            raise FileNotFoundError(
                f'root={root}: no <recording>/metadata.json with "headset": "{self.headset}" and no *.npz in it; give the directory that holds '
                "HOT3D's recordings"
            )
        yield from (name for name in names if options.split in ("all", _split(name)))

    def open_recording(self, root: Path, name: str, options: SourceOptions) -> Recording:
        """One recording.

        Raises:
            RecordingError: its files are not as they should be.
            VideoError: its video cannot be read.
        """
        directory = root / name
        if not directory.is_dir():
            path = next((root / folder / f"{name}.npz" for folder in _LABEL_FOLDERS if (root / folder / f"{name}.npz").is_file()),
                        root / f"{name}.npz")  # fmt: skip
            return open_label(root, path, name, options, pose_turns=0, size=PICTURE_SIDE)
        if self.headset == "Aria":
            return _open_aria(directory, name, options)
        return _open_quest(directory, name, options)


def _open_aria(directory: Path, name: str, options: SourceOptions) -> Recording:
    pictures = exported_pictures(directory, ("recording",), _AT_HEADSET["Aria"])
    slam, gaze = directory / "mps" / "slam", directory / "mps" / "eye_gaze"
    gaze_path = next((gaze / one for one in _GAZE_NAMES if (gaze / one).is_file()), None)
    sensors = Sensors(
        camera=read_online_calibration(slam / "online_calibration.jsonl", *pictures.sensor_size),
        trajectory=read_trajectory(slam / "closed_loop_trajectory.csv"),
        gaze=None if gaze_path is None else read_eye_gaze(gaze_path),
        dropped={"depth": NOT_GIVEN} | ({"gaze": NOT_GIVEN} if gaze_path is None else {}),
    )
    return upright_recording(name, pictures, sensors, options, {"headset": "Aria"})


def _open_quest(directory: Path, name: str, options: SourceOptions) -> Recording:
    pictures = exported_pictures(directory, (), _AT_HEADSET["Quest3"])
    sensors = Sensors(
        camera=read_camera_models(_in_either(directory, "camera_models.json"), _QUEST_CAMERA, *pictures.sensor_size),
        trajectory=read_headset_trajectory(_in_either(directory, "headset_trajectory.csv")),
        dropped={"depth": NOT_GIVEN, "gaze": NOT_GIVEN},
    )
    return upright_recording(name, pictures, sensors, options, {"headset": "Quest3", "rgb_is_gray": True})


def read_headset_trajectory(path: Path) -> Trajectory:
    """``headset_trajectory.csv``: world from headset, in time code.

    Raises:
        RecordingError: missing, empty, a column missing, times that do not increase, more than one headset.
    """
    position = [f"t_wo_{axis}[m]" for axis in "xyz"]
    quaternion = [f"q_wo_{axis}" for axis in "xyzw"]
    table = read_csv(path, ("object_uid", "timestamp[ns]", *position, *quaternion))
    if len(np.unique(table["object_uid"])) > 1:
        raise RecordingError(FILE_DAMAGED, f"{path}: more than one object_uid, expected one headset")
    return Trajectory(
        times_ns=increasing_ns(path, table["timestamp[ns]"], 1),
        world_from_device=pose_matrices(
            np.stack([table[one] for one in quaternion], axis=1), np.stack([table[one] for one in position], axis=1)
        ),
    )


def _split(name: str) -> str:
    """By the participant with whose id a recording's name starts."""
    participant = name[:5]
    return "val" if participant in _VAL else "test" if participant in _TEST else "train"


def _in_either(directory: Path, name: str) -> Path:
    below = directory / "ground_truth" / name
    return below if below.is_file() else directory / name


def _headset(path: Path) -> str:
    """What a recording's metadata.json says; a damaged one is that of no headset we know."""
    try:
        return str(json.loads(path.read_bytes())["headset"])
    except (ValueError, KeyError, TypeError):
        return ""


_aria, _quest = Hot3d("Aria"), Hot3d("Quest3")
HOT3D_ARIA = SequenceSource(list_names=_aria.list_names, open_recording=_aria.open_recording)
HOT3D_QUEST = SequenceSource(list_names=_quest.list_names, open_recording=_quest.open_recording)
