"""Made-up scenes with known geometry: a hand and boxes in front of a wall, with masks, depth and camera."""

from typing import Any

import numpy as np

from pretrain.annotate.records import SIDES, Detection, Scene, Track, encode_mask
from pretrain.clips.schema import Clip

SIZE, FRAMES, FOCAL = 64, 9, 64.0
# A camera at 0.4 m, looking along the world's y, level: x right, z up.
POSE = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0.4], [0, 0, 0, 1]])


def make_scene(
    things: dict[str, Any], *, narration: str = "#C C picks up the red can", metric: bool = True, posed: bool = True,
    detections: dict[int, tuple[Detection, ...]] | None = None,
) -> Scene:  # fmt: skip
    """`things`: name -> (ids as in a clip) path: for each frame (x, y, z, half width) in metres, or None = not seen.

    "left hand" and "right hand" are hands; others are square faces parallel to the image.
    """
    depth = np.full((FRAMES, SIZE, SIZE), 2.0, np.float32)
    ids = np.zeros((FRAMES, SIZE, SIZE), np.uint8)
    names = [f"{side} hand" for side in SIDES] + [name for name in things if not name.endswith(" hand")]
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    for frame in range(FRAMES):
        for name, path in things.items():
            place = path(frame)
            if place is None:
                continue
            x, y, z, half = place
            inside = (abs((columns - SIZE / 2) * z / FOCAL - x) <= half) & (
                abs((rows - SIZE / 2) * z / FOCAL - y) <= half
            )
            inside &= z < depth[frame]
            depth[frame][inside], ids[frame][inside] = z, 1 + names.index(name)
    clip = Clip(
        key="made-up", rgb=np.full((FRAMES, SIZE, SIZE, 3), 100, np.uint8), rgb_times_s=np.arange(FRAMES) / 4.0,
        depth=depth, intrinsics=np.array([[FOCAL, 0, SIZE / 2], [0, FOCAL, SIZE / 2], [0, 0, 1.0]]),
        world_from_camera=np.repeat(POSE[None], FRAMES, axis=0) if posed else None, camera_hz=4.0, narration=narration,
    )  # fmt: skip
    tracks = tuple(
        Track(
            id=id_, kind="hand" if id_ < 3 else "object", label=names[id_ - 1] if id_ > 2 else "",
            side=SIDES[id_ - 1] if id_ < 3 else None, masks=tuple(encode_mask(frame == id_) for frame in ids),
            scores=(1.0,) * FRAMES,
        )
        for id_ in sorted(set(ids.ravel().tolist()) - {0})
    )  # fmt: skip
    return Scene(
        clip=clip, detections=detections or {}, tracks=tracks, depth_m=depth if metric else None,
        depth_inverse=None if metric else 1 / depth,
    )  # fmt: skip


def still(x: float, y: float = 0.0, z: float = 0.6, half: float = 0.04):
    return lambda frame: (x, y, z, half)


def reaching(start: float = -0.24, stop: float = -0.075, y: float = 0.0, z: float = 0.6):
    """Along x to the thing in the middle, there at frame 4, and staying."""
    return lambda frame: (start + (stop - start) * min(frame / 4, 1.0), y, z, 0.03)
