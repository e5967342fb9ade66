"""Image files of recordings."""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from pretrain.clips.video import VIDEO_MISSING, VIDEO_UNDECODABLE, VideoError


def read_image(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """An image in RGB.

    Raises:
        VideoError: missing or damaged.
    """
    if not path.is_file():
        raise VideoError(path, VIDEO_MISSING, f"{path.name}: no such image")
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise VideoError(path, VIDEO_UNDECODABLE, f"{path.name}: not a whole image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image.

    Raises:
        VideoError: missing or damaged.
    """
    height, width = read_image(path).shape[:2]
    return width, height
