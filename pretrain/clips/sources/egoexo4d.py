"""Ego-Exo4D: the wearer's Aria video of each take, with MPS trajectory and eye gaze.

Read from ``root`` (the download's top directory, or ``takes/`` itself)::

    takes/<take>/frame_aligned_videos/<aria>_214-1.mp4       or, where that is missing, downscaled/448/<aria>_214-1.mp4 below it
    takes/<take>/trajectory/closed_loop_trajectory.csv, online_calibration.jsonl
    takes/<take>/eye_gaze/personalized_eye_gaze.csv, general_eye_gaze.csv, general_eye_gaze_2d.csv
    takes.json, captures/<capture>/timesync.csv              device time of each frame
    takes.json, annotations/splits.json                      for split=train, val or test

What the documentation (docs.ego-exo4d-data.org: Takes, MPS, tutorial "Gaze") says: the video is upright, 30 Hz, 1408 x 1408; trajectory and
gaze are on the device's clock; frame i was taken at ``<aria>_214-1_capture_timestamp_ns`` of row ``timesync_start_idx + 1 + i`` of the capture's
timesync.csv, where the capture's name is the take's without its last number; ``general_eye_gaze_2d.csv`` has ``x``, ``y`` in pixels of the
1408 picture, a row every third frame. Assumed: that its first row belongs to frame 0; and, where takes.json or timesync.csv was not
downloaded, that frame 0 was taken at the first row of the (trimmed) trajectory, which may be wrong by a frame and is said in
``meta["clock"]``.

Gaze that was calibrated to the wearer comes first, then the general one; the projection by Ego-Exo4D itself serves where there is no
calibration. There is no depth. Where ``root`` has ``label/<name>.npz`` and no takes, EgoM2P's own intermediate files are read (see
:mod:`pretrain.clips.sources.egom2p_labels`): their poses are of the sensor's picture, as EgoM2P turns them by "cw90" after loading.

Axis letters: n samples.
"""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from pretrain.clips.skipping import Skipped
from pretrain.clips.sources.aria import (
    TURNS_TO_UPRIGHT,
    AriaCamera,
    EyeGaze,
    Trajectory,
    read_csv,
    read_eye_gaze,
    read_online_calibration,
    read_trajectory,
)
from pretrain.clips.sources.aria_recording import Pictures, Sensors, listed_frames, upright_recording
from pretrain.clips.sources.egom2p_labels import PICTURE_SIDE, open_label
from pretrain.clips.sources.fisheye624 import check_fov
from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.recording import (
    FILE_DAMAGED,
    FILE_MISSING,
    NOT_GIVEN,
    Recording,
    SequenceSource,
    VideoFrames,
    skipped_recording,
)
from pretrain.clips.sources.resample import RecordingError
from pretrain.clips.video import VIDEO_MISSING, probe_video

LABEL_FOLDER = "label"
_VIDEO_NAME = "*_214-1.mp4"
_GAZE_NAMES = ("personalized_eye_gaze.csv", "general_eye_gaze.csv")
_GAZE_2D_NAMES = ("personalized_eye_gaze_2d.csv", "general_eye_gaze_2d.csv")
_FRAMES_A_GAZE_ROW = 3


def list_names(root: Path, options: SourceOptions) -> Iterator[str | Skipped]:
    """Names of the takes that have an Aria video, or of EgoM2P's chunks.

    Raises:
        FileNotFoundError: neither is there, or what a split needs is missing.
        ValueError: a field of view that no pinhole has; an unknown split.
    """
    check_fov(options.rectify_fov_deg)
    takes = _takes(root)
    labels = sorted((root / LABEL_FOLDER).glob("*.npz"))
    if not takes.is_dir() and not labels:
        raise FileNotFoundError(
            f"root={root}: no takes/<take>/frame_aligned_videos and no {LABEL_FOLDER}/*.npz in it; give the directory into which "
            "the downloader of Ego-Exo4D wrote"
        )
    if not takes.is_dir():
        if options.split != "all":
            raise ValueError(
                f"split={options.split}: EgoM2P's files of Ego-Exo4D do not say to which split they belong; give split=all"
            )
        yield from (path.stem for path in labels)
        return
    chosen = None if options.split == "all" else _names_in_split(takes.parent, options.split)
    for take in sorted(path for path in takes.iterdir() if path.is_dir()):
        if chosen is not None and take.name not in chosen:
            continue
        if _find_video(take) is None:
            detail = f"no {_VIDEO_NAME} in frame_aligned_videos"
            yield skipped_recording(root, take.name, RecordingError(VIDEO_MISSING, detail))
        else:
            yield take.name


def open_recording(root: Path, name: str, options: SourceOptions) -> Recording:
    """One take.

    Raises:
        RecordingError: its files are not as they should be.
        VideoError: its video cannot be read.
    """
    takes = _takes(root)
    if not takes.is_dir():
        path = root / LABEL_FOLDER / f"{name}.npz"
        return open_label(root, path, name, options, pose_turns=TURNS_TO_UPRIGHT, size=PICTURE_SIDE)
    take = takes / name
    video = _find_video(take)
    if video is None:
        raise RecordingError(VIDEO_MISSING, f"{take}: no {_VIDEO_NAME} in frame_aligned_videos")
    dropped: dict[str, str] = {"depth": NOT_GIVEN}
    trajectory: Trajectory | None = None
    camera: AriaCamera | None = None
    try:
        info = probe_video(video)
        camera = read_online_calibration(take / "trajectory" / "online_calibration.jsonl", info.width, info.height)
        trajectory = read_trajectory(take / "trajectory" / "closed_loop_trajectory.csv")
    except RecordingError as error:
        dropped["camera"] = _missing_only(error)
    pictures, clock = _pictures(takes.parent, name, video, trajectory)
    sensors = Sensors(
        camera=camera, trajectory=trajectory, dropped=dropped, **_gaze(take, pictures, camera, clock, dropped)
    )
    return upright_recording(name, pictures, sensors, options, {"clock": clock})


def _takes(root: Path) -> Path:
    return root if root.name == "takes" else root / "takes"


def _find_video(take: Path) -> Path | None:
    videos = take / "frame_aligned_videos"
    for folder in (videos, videos / "downscaled" / "448"):
        # A take may have several wearers; the first is the one that the others' cameras are aligned to.
        found = sorted(folder.glob(_VIDEO_NAME))
        if found:
            return found[0]
    return None


def _missing_only(error: RecordingError) -> str:
    """A modality that was not downloaded is left out; a damaged file is no reason to go on without it."""
    if error.reason != FILE_MISSING:
        raise error
    return NOT_GIVEN


def _pictures(root: Path, name: str, video: Path, trajectory: Trajectory | None) -> tuple[Pictures, str]:
    times_ns = _timesync_ns(root, name, video.stem)
    if times_ns is not None:
        known = np.flatnonzero(times_ns > 0)
        return listed_frames(video, known, times_ns[known], TURNS_TO_UPRIGHT), "timesync"
    info = probe_video(video)
    start_ns = int(trajectory.times_ns[0]) if trajectory is not None else 0
    pictures = Pictures(
        frames=VideoFrames(path=video),
        zero_ns=start_ns,
        end_s=info.duration_s,
        width=info.width,
        height=info.height,
        turned=TURNS_TO_UPRIGHT,
    )
    return pictures, "start of the trajectory" if trajectory is not None else "unknown"


def _gaze(
    take: Path, pictures: Pictures, camera: AriaCamera | None, clock: str, dropped: dict[str, str]
) -> dict[str, Any]:
    """The fields of ``Sensors`` for gaze."""
    directory = take / "eye_gaze"
    path = next((directory / name for name in _GAZE_NAMES if (directory / name).is_file()), None)
    if path is not None and camera is not None and clock != "unknown":
        gaze: EyeGaze = read_eye_gaze(path)
        return {"gaze": gaze}
    path = next((directory / name for name in _GAZE_2D_NAMES if (directory / name).is_file()), None)
    if path is None:
        dropped["gaze"] = NOT_GIVEN
        return {}
    table = read_csv(path, ("x", "y"))
    points = (np.stack([table["x"], table["y"]], axis=1) + 0.5) * (pictures.width / PICTURE_SIDE)
    gaze_s = np.arange(len(points)) * (_FRAMES_A_GAZE_ROW / probe_video(_find_video(take) or take).fps)
    return {"gaze_s": gaze_s, "gaze_px": points}


def _timesync_ns(root: Path, name: str, stream: str) -> Int64[np.ndarray, " n"] | None:
    """Device time of each frame of a take, 0 = unknown; None if the files were not downloaded."""
    capture = root / "captures" / re.sub(r"_\d+$", "", name) / "timesync.csv"
    if not capture.is_file() or not (root / "takes.json").is_file():
        return None
    spans = _take_spans(root / "takes.json")
    if name not in spans:
        raise RecordingError(
            FILE_DAMAGED, f"{root / 'takes.json'}: no take_name {name!r} with timesync_start_idx and _end_idx"
        )
    first, last = spans[name]
    column = f"{stream}_capture_timestamp_ns"
    times = read_csv(capture, (column,))[column][first + 1 : last]
    return np.nan_to_num(times).astype(np.int64)


def _names_in_split(root: Path, split: str) -> set[str]:
    """Names of the takes of a split, by annotations/splits.json, which knows them by uid."""
    paths = (root / "annotations" / "splits.json", root / "takes.json")
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"split={split}: {path} says which takes that are, and is missing; download it, or give split=all"
            )
    try:
        by_split = json.loads(paths[0].read_bytes())["split_to_take_uids"]
        name_of = {take["take_uid"]: take["take_name"] for take in json.loads(paths[1].read_bytes())}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{paths[0]} or {paths[1].name}: not Ego-Exo4D's ({type(error).__name__}: {error})") from None
    if split not in by_split:
        raise ValueError(f"split={split}: expected {', '.join(by_split)} or all")
    return {name_of[uid] for uid in by_split[split] if uid in name_of}


@lru_cache(maxsize=2)
def _take_spans(path: Path) -> dict[str, tuple[int, int]]:
    try:
        takes = json.loads(path.read_bytes())
        return {
            take["take_name"]: (int(take["timesync_start_idx"]), int(take["timesync_end_idx"]))
            for take in takes
            if take.get("timesync_start_idx") is not None and take.get("timesync_end_idx") is not None
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordingError(FILE_DAMAGED, f"{path}: not the list of takes ({type(error).__name__}: {error})") from None


EGOEXO4D = SequenceSource(list_names=list_names, open_recording=open_recording)
