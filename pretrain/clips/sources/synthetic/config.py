"""Settings of the synthetic clip source."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

# One line an action: what the hands do. The planners are in actions.py, the sentences in captions.py.
ACTIONS: tuple[str, ...] = (
    "reach",
    "pick up",
    "put down",
    "push",
    "stack",
    "pour",
    "hand over",
    "pull open",
    "push shut",
    "open door",
    "open lid",
    "press",
    "turn",
)
SCENES = ("table", "counter")
# Those that a robot arm does, too. Its planners are in robot_plan.py.
ROBOT_ACTIONS = tuple(action for action in ACTIONS if action not in ("pour", "hand over"))


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """What the synthetic source makes.

    Attributes:
        image_size: height and width of the square frames, in pixels.
        frames: frames a clip (T); the clip lasts frames / rgb_fps seconds, at least 1.5 s so that an action fits.
        rgb_fps: frames a second of rgb, depth, segmentation and contact.
        pose_fps: rate of the camera trajectory, of the gaze and of the hands' joints, Hz.
        fov_degrees: range of the camera's field of view, drawn once a clip.
        objects: range of the number of things in a scene, 3 to 8.
        actions: which rows of ACTIONS are drawn, in equal numbers.
        scenes: which scene kinds are drawn.
        quality: rendering quality, "fast" or "full".
        robots: share of the clips in which somebody stands around a table and watches a robot arm, 0 to 1; `fov_degrees` and
            `objects` do not bear on these. The other clips are what they are without it.

    Raises:
        ValueError: a value out of its range or an unknown name.
    """

    image_size: int = 128
    frames: int = 16
    rgb_fps: float = 8.0
    pose_fps: float = 30.0
    fov_degrees: tuple[float, float] = (62.0, 80.0)
    objects: tuple[int, int] = (3, 8)
    actions: tuple[str, ...] = ACTIONS
    scenes: tuple[str, ...] = SCENES
    quality: str = "fast"
    robots: float = 0.0

    def __post_init__(self) -> None:
        def require(field: str, holds: bool, expected: str) -> None:
            if not holds:
                raise ValueError(f"SyntheticConfig.{field} is {getattr(self, field)!r}; expected {expected}")

        require("image_size", 16 <= self.image_size <= 1024, "16 to 1024 pixels")
        require("rgb_fps", 1.0 <= self.rgb_fps <= 60.0, "1 to 60 frames a second")
        require("frames", 1.5 <= self.frames / self.rgb_fps <= 10.0, "a clip of 1.5 to 10 s (frames / rgb_fps)")
        require("pose_fps", 5.0 <= self.pose_fps <= 240.0, "5 to 240 Hz")
        low, high = self.fov_degrees
        require("fov_degrees", 40.0 <= low <= high <= 110.0, "two angles in order, 40 to 110 degrees")
        fewest, most = self.objects
        require("objects", 3 <= fewest <= most <= 8, "two counts in order, 3 to 8")
        require("quality", self.quality in ("fast", "full"), '"fast" or "full"')
        require("robots", 0.0 <= self.robots <= 1.0, "a share of 0 to 1")
        for field, table in (("actions", ACTIONS), ("scenes", SCENES)):
            names = getattr(self, field)
            require(field, len(names) > 0, f"at least one of {', '.join(table)}")
            for name in names:
                if name not in table:
                    close = difflib.get_close_matches(name, table, n=1)
                    hint = f"; did you mean {close[0]!r}?" if close else ""
                    raise ValueError(f"SyntheticConfig.{field} has {name!r}; expected of {', '.join(table)}{hint}")

        if self.robots > 0 and not set(self.actions) & set(ROBOT_ACTIONS):
            raise ValueError(
                f"SyntheticConfig.robots is {self.robots}, but a robot arm does none of {', '.join(self.actions)}; "
                f"expected one of {', '.join(ROBOT_ACTIONS)} among the actions"
            )

    @property
    def duration_s(self) -> float:
        return self.frames / self.rgb_fps
