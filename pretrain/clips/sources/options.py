"""What a user may set of the sources; each source reads its own."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Settings of the sources.

    Attributes:
        alpha_s: ego4d: the alpha of the span rule, in seconds.
        chunk_s: egoclip, lavila: length of the chunks into which the videos are cut, in seconds; 0 = look.
        video_info: epic100: EPIC_100_video_info.csv; empty = not given.
    """

    alpha_s: float = 4.9
    chunk_s: float = 0.0
    video_info: str = ""
