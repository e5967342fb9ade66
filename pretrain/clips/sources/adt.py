"""Aria Digital Twin (ADT): Aria recordings with motion-captured poses, gaze and true depth; and their synthetic double.

Read from ``root`` (the directory of the sequences)::

    <sequence>/aria_trajectory.csv, eyegaze.csv          the forms of MPS; poses by motion capture, gaze depth from the true scene
    <sequence>/mps/slam/online_calibration.jsonl         (also MPS/slam)

and, published as VRS files, taken out of them in the layouts of :mod:`pretrain.clips.sources.aria_recording`::

    <sequence>/video.mp4 or 214-1.mp4                    of video.vrs
    <sequence>/synthetic_video.mp4                       of synthetic_video.vrs: a recording of its own, named <sequence>-synthetic
    <sequence>/depth_images/<timestamp_ns>.png           stream 345-1 of depth_images.vrs, the one of the RGB camera

The documentation ("ADT Data Format") says: depth is that along the camera's z axis, in millimetres, on the pixels of the fisheye picture,
30 Hz, exactly for the pictures of video.vrs. From memory: the stream's number. Assumed: that the synthetic pictures have the
calibration of the real ones, of which they are a rendering. No division into splits is published.
"""

from collections.abc import Iterator
from pathlib import Path

from pretrain.clips.skipping import Skipped
from pretrain.clips.sources.aria import read_eye_gaze, read_online_calibration, read_trajectory
from pretrain.clips.sources.aria_recording import Sensors, exported_pictures, upright_recording
from pretrain.clips.sources.fisheye624 import check_fov
from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.recording import NOT_GIVEN, Recording, SequenceSource

_TRAJECTORY = "aria_trajectory.csv"
_SYNTHETIC = "-synthetic"
_STREAM = "214-1"


def list_names(root: Path, options: SourceOptions) -> Iterator[str | Skipped]:
    """Names of the sequences, and of their synthetic doubles where there are any.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a field of view that no pinhole has; a split.
    """
    check_fov(options.rectify_fov_deg)
    if options.split != "all":
        raise ValueError(f"split={options.split}: ADT is published without splits; give split=all")
    directories = [path.parent for path in sorted(root.glob(f"*/{_TRAJECTORY}"))]
    if not directories:
        raise FileNotFoundError(
            f"root={root}: no <sequence>/{_TRAJECTORY} in it; give the directory that holds ADT's sequences"
        )
    for directory in directories:
        yield directory.name
        if (directory / "synthetic_video.mp4").is_file():
            yield f"{directory.name}{_SYNTHETIC}"


def open_recording(root: Path, name: str, options: SourceOptions) -> Recording:
    """One sequence.

    Raises:
        RecordingError: its files are not as they should be.
        VideoError: its video cannot be read.
    """
    synthetic = name.endswith(_SYNTHETIC)
    directory = root / name.removesuffix(_SYNTHETIC)
    pictures = exported_pictures(
        directory, ("synthetic_video" if synthetic else "video",), "" if synthetic else _STREAM
    )
    mps = next((directory / one for one in ("mps", "MPS") if (directory / one).is_dir()), directory / "mps")
    gaze, depth = directory / "eyegaze.csv", directory / "depth_images"
    dropped = {key: NOT_GIVEN for key, there in (("gaze", gaze.is_file()), ("depth", depth.is_dir())) if not there}
    sensors = Sensors(
        camera=read_online_calibration(mps / "slam" / "online_calibration.jsonl", *pictures.sensor_size),
        trajectory=read_trajectory(directory / _TRAJECTORY),
        gaze=read_eye_gaze(gaze) if "gaze" not in dropped else None,
        depth_directory=depth if "depth" not in dropped else None,
        dropped=dropped,
    )
    return upright_recording(name, pictures, sensors, options, {"synthetic": synthetic})


ADT = SequenceSource(list_names=list_names, open_recording=open_recording)
