"""The intermediate files of EgoM2P's own curation: an npz of poses and gaze beside a video, for Ego-Exo4D and HOT3D.

``<folder>/<name>.npz`` holds ``cam`` [n, 4, 4], camera to world in metres, and where there is gaze ``gaze`` [n, 2], pixels of the upright
1408 x 1408 picture, n = 120 samples at 30 Hz (a 4 s chunk). That much is stated in the authors' repository; where the video of a chunk
lies is not. Assumed: under the same stem, as ``rgb/<name>.mp4``, ``video/<name>.mp4`` or ``<name>.mp4``, upright, its first frame at sample 0; and
pixels are counted from the centre of the first, as in all of Aria's tools.
"""

import zipfile
from pathlib import Path

import numpy as np

from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.recording import (
    FILE_DAMAGED,
    FILE_MISSING,
    RECORDING_EMPTY,
    Recording,
    VideoFrames,
    turned_camera,
)
from pretrain.clips.sources.resample import RecordingError
from pretrain.clips.video import probe_video

_RATE_HZ = 30.0
PICTURE_SIDE = 1408
_VIDEO_FOLDERS = ("rgb", "video", "")


def open_label(root: Path, path: Path, name: str, options: SourceOptions, *, pose_turns: int, size: int) -> Recording:
    """One chunk.

    Args:
        pose_turns: counter-clockwise quarter turns that bring the poses' cameras to the upright picture.
        size: side of the picture in whose pixels the gaze is.

    Raises:
        RecordingError: missing or damaged.
        VideoError: the video cannot be read.
    """
    if options.rectify_fov_deg:
        raise RecordingError(FILE_MISSING, f"{path}: rectify_fov_deg is set, and these files have no calibration")
    places = [root / folder / f"{name}.mp4" for folder in _VIDEO_FOLDERS]
    video = next((place for place in places if place.is_file()), places[0])
    info = probe_video(video)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            stored = {key: np.asarray(arrays[key], np.float64) for key in ("cam", "gaze") if key in arrays}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RecordingError(FILE_DAMAGED, f"{path}: not a whole npz of numbers ({error})") from None
    if not stored:
        raise RecordingError(RECORDING_EMPTY, f"{path}: neither 'cam' nor 'gaze' in it")
    modalities = {}
    for key, shape in (("cam", (4, 4)), ("gaze", (2,))):
        if key in stored and (stored[key].shape[1:] != shape or not len(stored[key])):
            raise RecordingError(
                FILE_DAMAGED, f"{path}: {key} is {stored[key].shape}, expected [n, {', '.join(map(str, shape))}]"
            )
    if "cam" in stored:
        modalities["poses_s"] = np.arange(len(stored["cam"])) / _RATE_HZ
        modalities["world_from_camera"] = stored["cam"] @ turned_camera(pose_turns)
    if "gaze" in stored:
        modalities["gaze_s"] = np.arange(len(stored["gaze"])) / _RATE_HZ
        gaze_px = (stored["gaze"] + 0.5) * (np.asarray([info.width, info.height]) / size)
        modalities["gaze_px"] = gaze_px.astype(np.float32)
    return Recording(
        name=name,
        frames=VideoFrames(path=video),
        start_s=0.0,
        end_s=min(info.duration_s, *(len(array) / _RATE_HZ for array in stored.values())),
        meta={"layout": "egom2p label"},
        **modalities,
    )
