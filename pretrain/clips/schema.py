"""One ego clip, as every part of EgoArm sees it.

A clip holds a few seconds of egocentric video and whatever is known about it. Only ``key`` is always there: a modality
that a data set lacks, or that a reader was not asked to decode, is ``None`` (or empty, for text).

Axis letters: T video frames, H and W pixels, C camera samples, G gaze samples, K hand samples, J joints of a hand.

Conventions
- Images are RGB, upright, row 0 on top. A pixel coordinate (x, y) has its origin at the outer corner of the top left
  pixel, so the centre of that pixel is (0.5, 0.5).
- ``world_from_camera`` maps a point of the camera frame to the world, ``p_world = world_from_camera @ p_camera``. The
  camera frame is OpenCV's: x right, y down, z forward. Lengths are metres.
- Depth is metric, along the optical axis (not along the ray). 0 means "not known".
- Segmentation holds an id a pixel: 0 background, 1 left hand, 2 right hand, 3 and up objects; ``labels`` names them.
- Time 0 is the start of the clip. Camera sample i is at ``i / camera_hz``, gaze sample i at ``i / gaze_hz``, hand sample
  i at ``i / hands_hz``.
- Hands come left, then right. Their joints are points of the world in metres. 21 joints are those of ``HAND_JOINTS``, in
  that order; a source of another number says in ``meta`` which they are.
"""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8

BACKGROUND_ID = 0
LEFT_HAND_ID = 1
RIGHT_HAND_ID = 2
FIRST_OBJECT_ID = 3

# The 21 joints of a hand, as OpenPose (Simon et al. 2017) and many data sets order them: the wrist, then each finger from
# the palm to the tip.
HAND_JOINTS: tuple[str, ...] = (
    "wrist",
    "thumb cmc", "thumb mcp", "thumb ip", "thumb tip",
    "index mcp", "index pip", "index dip", "index tip",
    "middle mcp", "middle pip", "middle dip", "middle tip",
    "ring mcp", "ring pip", "ring dip", "ring tip",
    "little mcp", "little pip", "little dip", "little tip",
)  # fmt: skip
# (nearer to the wrist, farther from it) indices into HAND_JOINTS: the 20 lines of a drawn hand.
HAND_BONES: tuple[tuple[int, int], ...] = tuple(
    (0 if joint % 4 == 1 else joint - 1, joint) for joint in range(1, len(HAND_JOINTS))
)

# A key is the stem of a clip's members in a tar shard, and WebDataset ends the stem at the first dot.
_KEY_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """A few seconds of egocentric video with its modalities.

    The constructor checks names, dtypes and shapes, which is cheap; :func:`check_content` also looks at the values.

    Attributes:
        key: name of the clip, unique in its store; letters, digits, ``-`` and ``_``.
        rgb: frames.
        rgb_times_s: time of each frame, in seconds, strictly increasing.
        depth: metres along the optical axis at the times of ``rgb``; 0 = not known.
        segmentation: id a pixel at the times of ``rgb``.
        labels: name of each id in ``segmentation`` and ``contact``, without the background.
        contact: id of the object that the left and the right hand touch in each frame, 0 = none.
        intrinsics: pinhole matrix in pixels of ``rgb``.
        world_from_camera: camera poses at ``camera_hz``.
        gaze: point of gaze (x, y) in pixels of the ``rgb`` image at ``gaze_hz``; NaN = gap.
        hands: joints of the left and the right hand in the world, in metres, at ``hands_hz``, whether seen or not; all
            of a hand's joints NaN = that hand is not there or not known.
        narration: what happens, in Ego4D's form, e.g. "#C C picks up the red can".
        captions: enriched sentences that also say where things are.
        facts: the spatial facts behind the captions, each a JSON object.
        meta: seed, action and the like, a JSON object.

    Raises:
        ValueError: names the field, what was given and what was expected.
    """

    key: str
    rgb: UInt8[np.ndarray, "T H W 3"] | None = None
    rgb_times_s: Float64[np.ndarray, " T"] | None = None
    depth: Float32[np.ndarray, "T H W"] | None = None
    segmentation: UInt8[np.ndarray, "T H W"] | None = None
    labels: dict[int, str] = field(default_factory=dict)
    contact: UInt8[np.ndarray, "T 2"] | None = None
    intrinsics: Float64[np.ndarray, "3 3"] | None = None
    world_from_camera: Float64[np.ndarray, "C 4 4"] | None = None
    camera_hz: float = 30.0
    gaze: Float32[np.ndarray, "G 2"] | None = None
    gaze_hz: float = 30.0
    hands: Float32[np.ndarray, "K 2 J 3"] | None = None
    hands_hz: float = 30.0
    narration: str = ""
    captions: tuple[str, ...] = ()
    facts: tuple[dict[str, Any], ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.key, str) or not _KEY_PATTERN.fullmatch(self.key):
            raise ValueError(
                f"clip key {self.key!r}: expected letters, digits, '-' and '_', starting with a letter or digit"
            )
        axes: dict[str, tuple[int, str]] = {}
        for name, (dtype, shape) in ARRAY_FIELDS.items():
            _check_array(self.key, name, getattr(self, name), dtype, shape, axes)
        for name in ("camera_hz", "gaze_hz", "hands_hz"):
            rate = getattr(self, name)
            if not isinstance(rate, int | float) or not rate > 0:
                raise ValueError(f"clip {self.key!r}: {name} is {rate!r}, expected a rate in Hz above 0")
        _check_text(self)

    @property
    def duration_s(self) -> float | None:
        """Length of the clip: the last frame counts as long as the mean gap between frames. None without times."""
        times_s = self.rgb_times_s
        if times_s is None or len(times_s) == 0:
            return None
        gap_s = (times_s[-1] - times_s[0]) / (len(times_s) - 1) if len(times_s) > 1 else 0.0
        return float(times_s[-1] - times_s[0] + gap_s)

    def replace(self, **changes: Any) -> "Clip":
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)


# dtype and axes of each array field; an int in place of a letter is a fixed length.
ARRAY_FIELDS: dict[str, tuple[str, tuple[str | int, ...]]] = {
    "rgb": ("uint8", ("T", "H", "W", 3)),
    "rgb_times_s": ("float64", ("T",)),
    "depth": ("float32", ("T", "H", "W")),
    "segmentation": ("uint8", ("T", "H", "W")),
    "contact": ("uint8", ("T", 2)),
    "intrinsics": ("float64", (3, 3)),
    "world_from_camera": ("float64", ("C", 4, 4)),
    "gaze": ("float32", ("G", 2)),
    "hands": ("float32", ("K", 2, "J", 3)),
}


def check_content(clip: Clip) -> None:
    """Checks the values of a clip before it is stored.

    Raises:
        ValueError: times that do not increase, depth that is negative or not finite, a pose that is not a rigid motion,
            half a gaze point, a hand of which only some joints are known, an id without a label, facts or meta that are
            not JSON.
    """
    times_s = clip.rgb_times_s
    if times_s is not None and not (np.isfinite(times_s).all() and (np.diff(times_s) > 0).all()):
        raise ValueError(
            f"clip {clip.key!r}: rgb_times_s must be finite and strictly increasing, got {times_s.tolist()}"
        )
    if clip.depth is not None and not (np.isfinite(clip.depth).all() and (clip.depth >= 0).all()):
        raise ValueError(f"clip {clip.key!r}: depth must be finite and >= 0 m (0 = not known)")
    for name in ("segmentation", "contact"):
        ids = getattr(clip, name)
        if ids is None:
            continue
        present = np.flatnonzero(np.bincount(ids.reshape(-1), minlength=256))
        unnamed = sorted(set(present.tolist()) - {BACKGROUND_ID} - set(clip.labels))
        if unnamed:
            raise ValueError(
                f"clip {clip.key!r}: {name} holds ids {unnamed} that labels does not name; "
                f"labels has {sorted(clip.labels)}"
            )
    if clip.world_from_camera is not None:
        _check_rigid(clip.key, clip.world_from_camera)
    if clip.intrinsics is not None and not (
        clip.intrinsics[0, 0] > 0 and clip.intrinsics[1, 1] > 0 and np.array_equal(clip.intrinsics[2], (0, 0, 1))
    ):
        raise ValueError(
            f"clip {clip.key!r}: intrinsics must have focal lengths above 0 and last row (0, 0, 1), "
            f"got {clip.intrinsics.tolist()}"
        )
    if clip.gaze is not None:
        gaps = np.isnan(clip.gaze)
        if np.isinf(clip.gaze).any() or (gaps[:, 0] != gaps[:, 1]).any():
            raise ValueError(f"clip {clip.key!r}: a gaze sample must be two finite numbers, or NaN twice for a gap")
    if clip.hands is not None:
        _check_hands(clip.key, clip.hands)
    for name in ("facts", "meta"):
        try:
            json.dumps(getattr(clip, name), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"clip {clip.key!r}: {name} must be plain JSON: {error}") from None


def _check_array(
    key: str, name: str, value: Any, dtype: str, shape: tuple[str | int, ...], axes: dict[str, tuple[int, str]]
) -> None:
    """Checks one array field; ``axes`` collects the length of each letter and the field that set it."""
    if value is None:
        return
    expected = f"{dtype}[{', '.join(str(axis) for axis in shape)}]"
    if not isinstance(value, np.ndarray):
        raise ValueError(f"clip {key!r}: {name} is a {type(value).__name__}, expected a numpy array {expected}")
    given = f"{value.dtype}[{', '.join(str(length) for length in value.shape)}]"
    if value.dtype != np.dtype(dtype) or value.ndim != len(shape):
        raise ValueError(f"clip {key!r}: {name} is {given}, expected {expected}")
    for axis, length in zip(shape, value.shape, strict=True):
        if isinstance(axis, int):
            if length != axis:
                raise ValueError(f"clip {key!r}: {name} is {given}, expected {expected}")
        elif length == 0:
            raise ValueError(f"clip {key!r}: {name} is {given}: axis {axis} is empty")
        else:
            known, owner = axes.setdefault(axis, (length, name))
            if length != known:
                raise ValueError(f"clip {key!r}: {name} is {given}, but {owner} has {axis} = {known}")


def _check_text(clip: Clip) -> None:
    for id_, name in clip.labels.items():
        if not isinstance(id_, int) or not 1 <= id_ <= 255 or not isinstance(name, str) or not name:
            raise ValueError(f"clip {clip.key!r}: labels has {id_!r}: {name!r}, expected an int in 1..255 and a name")
    if not isinstance(clip.narration, str):
        raise ValueError(f"clip {clip.key!r}: narration is a {type(clip.narration).__name__}, expected a str")
    for name, member in (("captions", str), ("facts", dict)):
        value = getattr(clip, name)
        if not isinstance(value, tuple) or not all(isinstance(item, member) for item in value):
            raise ValueError(f"clip {clip.key!r}: {name} must be a tuple of {member.__name__}, got {value!r:.80}")
    if not isinstance(clip.meta, dict):
        raise ValueError(f"clip {clip.key!r}: meta is a {type(clip.meta).__name__}, expected a dict")


def _check_hands(key: str, hands: Float32[np.ndarray, "K 2 J 3"]) -> None:
    known = np.isfinite(hands).all(axis=(2, 3))
    wrong = np.argwhere(~known & ~np.isnan(hands).all(axis=(2, 3)))
    if len(wrong):
        sample, side = wrong[0].tolist()
        raise ValueError(
            f"clip {key!r}: the {('left', 'right')[side]} hand of hands sample {sample} is known in part; its joints must "
            "all be finite (metres in the world), or all NaN where the hand is not known"
        )


def _check_rigid(key: str, world_from_camera: Float64[np.ndarray, "C 4 4"]) -> None:
    rotation = world_from_camera[:, :3, :3]
    identity_error = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max()
    last_row_error = np.abs(world_from_camera[:, 3] - (0, 0, 0, 1)).max()
    # "not <=" so that NaN fails too.
    if not (identity_error <= 1e-5 and last_row_error <= 1e-9 and (np.linalg.det(rotation) > 0).all()):
        raise ValueError(f"clip {key!r}: world_from_camera must hold rigid motions (rotation, translation, 0 0 0 1)")
    if not np.isfinite(world_from_camera).all():
        raise ValueError(f"clip {key!r}: world_from_camera must be finite")
