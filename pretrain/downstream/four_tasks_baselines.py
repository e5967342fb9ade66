"""What the four tasks are predicted by without a model: by nothing, by the mean of other clips, by a constant or a plane that
knows the truth, and for the camera by visual odometry.

A baseline gives the array that a model would, and is scored in the same way.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from pretrain.clips.schema import Clip
from pretrain.downstream.depth_errors import best_plane
from pretrain.downstream.four_tasks_truth import Truth, truth_of
from pretrain.downstream.gaze import first_fixation, image_centre, mean_gaze, normalised, pixels
from pretrain.downstream.generation import gray_depth, mean_colour
from pretrain.downstream.trajectory import mean_motion, still_camera
from pretrain.downstream.visual_odometry import (
    VisualOdometryConfig,
    at_rate,
    estimate_trajectory,
    fit_path_length,
    with_path_length,
)
from pretrain.egom2p.modalities import SEQUENCE_HZ, SEQUENCE_SAMPLES

NO_FIT = "absent: no clips given to take a mean of"


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What is learned from clips that are not scored; None where none of them says it.

    Attributes:
        clips: how many.
        gaze: mean gaze in the window's coordinates.
        camera: mean motion.
        path_m: the length that visual odometry's paths are given; None leaves them in arbitrary units.
    """

    clips: int = 0
    gaze: Float64[np.ndarray, " 2"] | None = None
    camera: Float64[np.ndarray, "P 4 4"] | None = None
    path_m: float | None = None


def fit_baselines(clips: Iterable[Clip], config: VisualOdometryConfig, *, odometry_clips: int = 64) -> Fitted:
    """Means over clips, which should be those that the model was trained on. `odometry_clips`: how many of them (the first
    ones) visual odometry is run on to learn the length of its paths, which takes most of the time."""
    gaze, camera, estimated, true = [], [], [], []
    count = 0
    for clip in clips:
        truth = truth_of(clip)
        count += 1
        if truth.gaze_px is not None:
            gaze.append(normalised(truth.gaze_px, truth.window))
        if truth.camera is not None:
            camera.append(truth.camera)
            if len(estimated) < odometry_clips:
                poses = OdometryBaseline(config, None)(truth)
                if poses is not None:
                    estimated.append(poses)
                    true.append(truth.camera)
    return Fitted(
        clips=count,
        gaze=mean_gaze(gaze) if gaze else None,
        camera=mean_motion(np.stack(camera)) if camera else None,
        path_m=fit_path_length(estimated, true) if estimated else None,
    )


class OdometryBaseline:
    """Visual odometry that keeps count of how it fared.

    Args:
        path_m: length of every path in metres; None = arbitrary units, in which only figures after Sim(3) mean anything.
    """

    def __init__(self, config: VisualOdometryConfig, path_m: float | None) -> None:
        self._config, self._path_m = config, path_m
        self.counts: Counter[str] = Counter()

    def __call__(self, truth: Truth) -> Float64[np.ndarray, "P 4 4"] | None:
        if truth.rgb is None or truth.square_intrinsics is None or truth.frame_times_s is None:
            self.counts["without intrinsics or frames"] += 1
            return None
        found = estimate_trajectory(truth.rgb, truth.square_intrinsics, self._config)
        self.counts["clips"] += 1
        self.counts["lost clips"] += found.lost > 0
        self.counts["lost frames"] += found.lost
        self.counts["unresolved frames"] += found.unresolved
        self.counts["rotation only"] += not found.moved
        poses = at_rate(found, truth.frame_times_s, SEQUENCE_SAMPLES, SEQUENCE_HZ)
        return poses if self._path_m is None else with_path_length(poses, self._path_m)

    def notes(self) -> tuple[str, ...]:
        if not self.counts["clips"]:
            return ()
        count = self.counts
        text = (
            f"visual odometry, {count['clips']} clips: {count['rotation only']} show a rotation only, {count['lost clips']} have "
            f"frames before which it lost the image and took the camera to stand still ({count['lost frames']} frames), "
            f"{count['unresolved frames']} frames have parallax that no essential matrix explains"
        )
        if skipped := count["without intrinsics or frames"]:
            text += f"; {skipped} clips without intrinsics or frames have none"
        if self._path_m is None:
            return (text, "visual odometry is in arbitrary units: only its figures after Sim(3) are to be read")
        return (text, f"visual odometry's paths are {self._path_m:.3g} m long, as fits other clips best")


# What a clip's truth is turned into by a method without a model; None = it says nothing of this clip.
Baseline = Callable[[Truth], np.ndarray | None]


def baselines(fitted: Fitted, config: VisualOdometryConfig) -> dict[str, dict[str, Baseline | str]]:
    """Task -> name -> the method, or why there is none. The first of each task that is there needs no image and no truth but
    for depth and rgb, where a constant has to know the clip's own: it is what `chance` says."""
    gaze, camera = fitted.gaze, fitted.camera
    return {
        "gaze": {
            "image centre": lambda truth: pixels(image_centre(SEQUENCE_SAMPLES), truth.window),
            "mean gaze": NO_FIT
            if gaze is None
            else lambda truth: pixels(np.tile(gaze, (SEQUENCE_SAMPLES, 1)), truth.window),
            "previous fixation": _held,
        },
        "camera": {
            "still camera": lambda truth: still_camera(SEQUENCE_SAMPLES),
            "mean motion": NO_FIT if camera is None else lambda truth: camera,
            "visual odometry": OdometryBaseline(config, fitted.path_m),
        },
        "depth": {
            "best constant": lambda truth: None if truth.metres is None else np.ones(truth.metres.shape),
            "best plane": lambda truth: None if truth.metres is None else best_plane(truth.metres, truth.known),
        },
        "rgb": {
            "mean colour": lambda truth: None if truth.rgb is None else mean_colour(truth.rgb),
            "depth as gray": lambda truth: None if truth.inverse_depth is None else gray_depth(truth.inverse_depth),
        },
    }


def _held(truth: Truth) -> np.ndarray | None:
    if truth.gaze_px is None:
        return None
    return pixels(first_fixation(normalised(truth.gaze_px, truth.window)), truth.window)
