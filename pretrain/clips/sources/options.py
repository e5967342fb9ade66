"""What a user may set of the sources; each source reads its own."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Settings of the sources.

    Attributes:
        alpha_s: ego4d: the alpha of the span rule, in seconds.
        chunk_s: egoclip, lavila: length of the chunks into which the videos are cut, in seconds; 0 = look.
        video_info: epic100: EPIC_100_video_info.csv; empty = not given.
        split: recordings: "train", "val" or "test" as the data set (or EgoM2P) divides it, or "all".
        rectify_fov_deg: egoexo4d, hot3d, adt: field of view, from side to side, of the pinhole pictures that the fisheye ones are turned
            into; 0 = as recorded, and then the clips have no intrinsics.
    """

    alpha_s: float = 4.9
    chunk_s: float = 0.0
    video_info: str = ""
    split: str = "train"
    rectify_fov_deg: float = 0.0
