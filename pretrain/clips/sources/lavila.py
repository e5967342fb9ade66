"""LaViLa and AVION: ``ego4d_train.pkl``, or the same as lines of JSON, and Ego4D's videos, whole or in chunks.

An entry is (video_uid, start_s, end_s, narration), where the narration may be a list of narrations, of which the first is taken and
all are kept in ``meta``; a fifth place (the narrator model's likelihoods) is not used. A line of JSON is the same as a list.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretrain.clips.skipping import Skipped
from pretrain.clips.sources.layout import ChunkedVideos
from pretrain.clips.sources.lines import check_text_file
from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.pickles import load_plain
from pretrain.clips.sources.request import (
    FIELD_WRONG,
    ID_DUPLICATE,
    LINE_DAMAGED,
    ClipRequest,
    LineError,
    checked_id,
    checked_narration,
    checked_span,
    make_key,
    shown,
    skipped_line,
)


def read_requests(annotations: Path, videos: Path, options: SourceOptions) -> Iterator[ClipRequest | Skipped]:
    """One clip an entry.

    Raises:
        FileNotFoundError, ValueError: the file is missing, empty, damaged, of another form, or a pickle that names code.
    """
    layout = ChunkedVideos(videos, options.chunk_s)
    entries = _READERS.get(annotations.suffix)
    if entries is None:
        raise ValueError(f"annotations={annotations}: expected a file {' or '.join(f'*{name}' for name in _READERS)}")
    seen: set[int] = set()
    for index, entry in enumerate(entries(annotations)):
        key = ""
        try:
            if isinstance(entry, LineError):
                raise entry
            if not isinstance(entry, list | tuple) or not 4 <= len(entry) <= 5:
                raise LineError(FIELD_WRONG, f"the entry is {shown(entry)}, expected (uid, start, end, narration)")
            uid = checked_id(entry[0], "video_uid")
            key = make_key(uid, f"{index:07d}")
            start_s, end_s = checked_span(entry[1], entry[2])
            texts = entry[3] if isinstance(entry[3], list | tuple) else [entry[3]]
            narrations = [checked_narration(text) for text in texts]
            if not narrations:
                raise LineError(FIELD_WRONG, "the list of narrations is empty")
            same = hash((uid, start_s, end_s, *narrations))
            if same in seen:
                raise LineError(ID_DUPLICATE, "the same entry was there before")
            seen.add(same)
            yield ClipRequest(
                key=key,
                parts=layout.parts(uid, start_s, end_s),
                start_s=start_s,
                end_s=end_s,
                narration=narrations[0],
                meta={"video_uid": uid, **({"narrations": narrations} if len(narrations) > 1 else {})},
            )
        except LineError as error:
            yield skipped_line(error, source=f"entry {index}", key=key)


def _pickled_entries(path: Path) -> Iterator[Any]:
    entries = load_plain(path)
    if not isinstance(entries, list | tuple):
        raise ValueError(f"annotations={path}: it holds a {type(entries).__name__}, expected a list of entries")
    return iter(entries)


def _json_entries(path: Path) -> Iterator[Any]:
    check_text_file(path)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                yield LineError(LINE_DAMAGED, str(error))


_READERS = {".pkl": _pickled_entries, ".jsonl": _json_entries}
