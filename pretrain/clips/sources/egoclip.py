"""EgoClip: a table parted by tabs, and Ego4D's videos, whole or in chunks.

Columns: clip_idx, video_uid, video_dur, narration_source, narration_ind, narration_time, clip_start, clip_end, clip_text, tag_verb,
tag_noun. The published file has lines of another number of cells, which its authors' reader drops; here they are skipped and counted.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from pretrain.clips.skipping import Skipped
from pretrain.clips.sources.layout import ChunkedVideos
from pretrain.clips.sources.lines import read_rows
from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.request import (
    ClipRequest,
    LineError,
    checked_id,
    checked_narration,
    checked_span,
    make_key,
    skipped_line,
)

COLUMNS = ("clip_idx", "video_uid", "clip_start", "clip_end", "clip_text")
_TAGS = ("tag_verb", "tag_noun")


def read_requests(annotations: Path, videos: Path, options: SourceOptions) -> Iterator[ClipRequest | Skipped]:
    """One clip a line.

    Raises:
        FileNotFoundError, ValueError: the file is missing, empty, no text or has another header.
    """
    layout = ChunkedVideos(videos, options.chunk_s)
    for number, row in read_rows(annotations, COLUMNS, "\t"):
        key = "" if isinstance(row, LineError) else make_key(row["video_uid"], row["clip_idx"])
        try:
            if isinstance(row, LineError):
                raise row
            uid = checked_id(row["video_uid"], "video_uid")
            checked_id(row["clip_idx"], "clip_idx")
            start_s, end_s = checked_span(row["clip_start"], row["clip_end"])
            yield ClipRequest(
                key=key,
                parts=layout.parts(uid, start_s, end_s),
                start_s=start_s,
                end_s=end_s,
                narration=checked_narration(row["clip_text"]),
                meta={
                    "video_uid": uid,
                    **{name: row[name] for name in ("narration_source", "narration_time") if row.get(name)},
                    **{name: [int(tag) for tag in re.findall(r"\d+", row[name])] for name in _TAGS if name in row},
                },
            )
        except LineError as error:
            yield skipped_line(error, source=f"line {number}", key=key)
