"""Where the tracked things of a scene are: masks, visible surfaces in the camera's and the world's frame, gaps between them.

Axes: T video frames, H W pixels, n points.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from jaxtyping import Bool, Float64
from scipy.spatial import cKDTree

from pretrain.annotate.records import Scene, Track
from pretrain.clips.schema import Clip

# Labels by which open-vocabulary detectors say no more than "a thing".
GENERIC_LABELS = frozenset({"", "object", "object in hand", "thing", "item", "targetobject", "target object", "hand"})
_LARGEST_CLOUD = 600  # points of a surface that gaps are measured with; a hand has a few thousand pixels
_STILL_GREY = 6.0  # grey levels by which a background may differ between frames of a camera that stands still

# Where a noun phrase of a narration ends.
_PHRASE_END = (
    "with|on|in|into|onto|from|to|of|at|over|under|off|out|up|down|by|for|and|or|then|while|using|through|around|near|"
    "towards|toward|away|open|shut|closed|beside|behind|inside|against|aside|together|apart"
)
_PHRASE = re.compile(rf"\b(?:the|a|an|his|her|their|some)\s+((?:(?!(?:{_PHRASE_END})\b)[a-z'-]+\s*)+)")


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A track with its decoded masks. `name` is how captions call it; `named` False: by nothing better than "object"."""

    id: int
    kind: str
    side: str | None
    name: str
    named: bool
    masks: Bool[np.ndarray, "T H W"]
    pixels: np.ndarray

    def seen(self, frame: int, least_pixels: int) -> bool:
        return bool(self.pixels[frame] >= least_pixels)


class Surfaces:
    """The things of a scene in space. Points come from depth and intrinsics, the world's frame from the camera poses."""

    def __init__(self, scene: Scene, *, seen_pixels: int) -> None:
        self.scene = scene
        self.clip = scene.clip
        self.things = tuple(_read_track(track, scene.clip) for track in scene.tracks)
        self.seen_pixels = seen_pixels
        self._points: dict[tuple[int, int], np.ndarray | None] = {}

    @property
    def metric(self) -> bool:
        return self.scene.depth_m is not None and self.clip.intrinsics is not None

    @property
    def hands(self) -> list[Thing]:
        return [thing for thing in self.things if thing.kind == "hand" and thing.side]

    @property
    def objects(self) -> list[Thing]:
        return [thing for thing in self.things if thing.kind == "object"]

    @cached_property
    def poses(self) -> Float64[np.ndarray, "T 4 4"] | None:
        """world_from_camera at the frames' times, the nearest sample; None without poses."""
        clip = self.clip
        if clip.world_from_camera is None or clip.rgb_times_s is None:
            return None
        samples = np.rint(clip.rgb_times_s * clip.camera_hz).astype(int)
        return clip.world_from_camera[np.clip(samples, 0, len(clip.world_from_camera) - 1)]

    @cached_property
    def axes(self) -> Float64[np.ndarray, "3 3"] | None:
        """Rows right, away, up: unit vectors of the world's frame as the wearer would say them.

        Up is the world's z axis, away the level part of the optical axis on average over the clip. None without poses, or
        when the wearer looks straight down so that "away" means nothing.
        """
        if self.poses is None:
            return None
        away = self.poses[:, :2, 2].mean(axis=0)
        if np.linalg.norm(away) < 0.2:
            return None
        away = np.append(away / np.linalg.norm(away), 0.0)
        up = np.array([0.0, 0.0, 1.0])
        return np.stack([np.cross(away, up), away, up])

    @cached_property
    def still(self) -> bool:
        """Whether the camera stands still, seen from the background alone: its pixels hardly change."""
        rgb = self.clip.rgb
        if rgb is None:
            return False
        covered = np.any([thing.masks[0] | thing.masks[-1] for thing in self.things], axis=0)
        if covered.mean() > 0.8:
            return False
        change = np.abs(rgb[0].astype(np.int16) - rgb[-1]).mean(axis=-1)
        return bool(np.percentile(change[~covered], 90) < _STILL_GREY)

    def points(self, thing: Thing, frame: int) -> Float64[np.ndarray, "n 3"] | None:
        """The visible surface of a thing in the camera's frame, metres, without stray pixels at its edge; None where it
        is not seen or its depth not known."""
        key = (thing.id, frame)
        if key not in self._points:
            self._points[key] = self._lift(thing, frame)
        return self._points[key]

    def _lift(self, thing: Thing, frame: int) -> np.ndarray | None:
        depths, matrix = self.scene.depth_m, self.clip.intrinsics
        if depths is None or matrix is None or not thing.seen(frame, self.seen_pixels):
            return None
        depth = depths[frame]
        mask = thing.masks[frame] & (depth > 0) & np.isfinite(depth)
        inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1).astype(bool)
        if thing.kind == "object" and inner.sum() >= 2 * self.seen_pixels:
            mask = inner  # pixels at the edge often show the depth of what is behind
        rows, columns = np.nonzero(mask)
        if len(rows) < self.seen_pixels:
            return None
        z = depth[rows, columns].astype(np.float64)
        if thing.kind == "object":
            middle = np.median(z)
            spread = max(3 * 1.4826 * np.median(np.abs(z - middle)), 0.04)
            kept = np.abs(z - middle) < spread
            rows, columns, z = rows[kept], columns[kept], z[kept]
        x = (columns + 0.5 - matrix[0, 2]) / matrix[0, 0] * z
        y = (rows + 0.5 - matrix[1, 2]) / matrix[1, 1] * z
        return np.stack([x, y, z], axis=1)

    def placed(self, thing: Thing, frame: int) -> Float64[np.ndarray, "n 3"] | None:
        """Points along right, away and up, metres; None without poses."""
        points = self.points(thing, frame)
        if points is None or self.poses is None or self.axes is None:
            return None
        pose = self.poses[frame]
        return (points @ pose[:3, :3].T + pose[:3, 3]) @ self.axes.T

    def gap_m(self, one: Thing, other: Thing, frame: int) -> float:
        """Metres between the visible surfaces, the third smallest distance of a point to the other cloud (a stray pixel
        does not count); NaN where one is not seen."""
        clouds = [cloud for thing in (one, other) if (cloud := self.points(thing, frame)) is not None]
        if len(clouds) < 2:
            return float("nan")
        small, large = sorted((cloud[:: -(-len(cloud) // _LARGEST_CLOUD)] for cloud in clouds), key=len)
        distances, _ = cKDTree(large).query(small)
        return float(np.partition(distances, 2)[2])

    def gap_px(self, one: Thing, other: Thing, frame: int) -> float:
        """Pixels between two masks, 0 = they touch or overlap; NaN where one is not seen."""
        if not (one.seen(frame, self.seen_pixels) and other.seen(frame, self.seen_pixels)):
            return float("nan")
        distance = cv2.distanceTransform((~one.masks[frame]).astype(np.uint8), cv2.DIST_L2, 3)
        return max(float(distance[other.masks[frame]].min()) - 1.0, 0.0)

    def inverse_share(self, thing: Thing, frame: int) -> float:
        """Median relative inverse depth of a thing as a share of the frame's range (1 nearest, 0 farthest), or NaN."""
        inverse = self.scene.depth_inverse
        if inverse is None or not thing.seen(frame, self.seen_pixels):
            return float("nan")
        known = np.isfinite(inverse[frame])
        values = inverse[frame][known & thing.masks[frame]]
        if len(values) < self.seen_pixels:
            return float("nan")
        far, near = np.percentile(inverse[frame][known], (2, 98))
        return float((np.median(values) - far) / (near - far)) if near > far else float("nan")


def _read_track(track: Track, clip: Clip) -> Thing:
    masks = [track.mask(frame) for frame in range(len(track.masks))]
    shape = next((mask.shape for mask in masks if mask is not None), (1, 1))
    stack = np.stack([np.zeros(shape, bool) if mask is None else mask for mask in masks])
    label = " ".join(track.label.lower().split())
    named = track.kind == "hand" or label not in GENERIC_LABELS
    name = f"{track.side} hand" if track.kind == "hand" else label if named else "object"
    return Thing(
        id=track.id, kind=track.kind, side=track.side, name=name, named=named, masks=stack,
        pixels=stack.sum(axis=(1, 2)),
    )  # fmt: skip


def narration_objects(narration: str) -> tuple[str, ...]:
    """The noun phrases of a narration in Ego4D's form, without articles and hands, e.g. ("red can", "box").

    A phrase begins after an article or a possessive and ends before a preposition, a conjunction or the end.
    """
    text = re.sub(r"^#\w+\s+\w+\s+", "", " ".join(narration.lower().split()))
    phrases = [" ".join(found.split()) for found in _PHRASE.findall(text)]
    return tuple(dict.fromkeys(name for name in phrases if name and not re.search(r"\b(hand|hands|one|other)\b", name)))


def frames_seen(things: Sequence[Thing], least_pixels: int) -> list[int]:
    """Frames in which all of the things are seen."""
    return [frame for frame in range(len(things[0].masks)) if all(thing.seen(frame, least_pixels) for thing in things)]
