"""EPIC-KITCHENS-100: a CSV of 15 columns (also that of the retrieval benchmark), and ``<participant>/videos/<video_id>.MP4``.

Times are taken from start_timestamp and stop_timestamp; the frame numbers beside them lean on a frame rate that differs between videos.
The narrations are commands ("take plate"); the store's form is Ego4D's, so they become "#C C takes plate".
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretrain.clips.skipping import Skipped
from pretrain.clips.sources.lines import read_rows
from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.request import (
    FIELD_WRONG,
    ClipRequest,
    LineError,
    VideoPart,
    check_text,
    checked_id,
    checked_narration,
    checked_span,
    checked_time,
    make_key,
    skipped_line,
)
from pretrain.clips.video import TIME_OUTSIDE

COLUMNS = ("narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp",
           "start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class", "all_nouns",
           "all_noun_classes")  # fmt: skip
_TIMESTAMP = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d+)?)")
_QUOTED = re.compile(r"""'([^']*)'|"([^"]*)\"""")
_IRREGULAR = {"have": "has", "be": "is", "do": "does", "go": "goes"}


def read_requests(annotations: Path, videos: Path, options: SourceOptions) -> Iterator[ClipRequest | Skipped]:
    """One clip a line.

    Raises:
        FileNotFoundError, ValueError: a file is missing, empty, no text or has another header.
    """
    durations_s = _read_durations(Path(options.video_info)) if options.video_info else {}
    paths: dict[tuple[str, str], str] = {}
    for number, row in read_rows(annotations, COLUMNS, ","):
        key = "" if isinstance(row, LineError) else make_key(row["narration_id"])
        try:
            if isinstance(row, LineError):
                raise row
            checked_id(row["narration_id"], "narration_id")
            participant = checked_id(row["participant_id"], "participant_id")
            video = checked_id(row["video_id"], "video_id")
            start_s, end_s = checked_span(seconds(row["start_timestamp"]), seconds(row["stop_timestamp"]))
            if end_s > durations_s.get(video, end_s) + 0.5:
                raise LineError(TIME_OUTSIDE, f"ends at {end_s:g} s, {video} at {durations_s[video]:g} s")
            place = (participant, video)
            if place not in paths:
                paths[place] = _find_video(videos, participant, video)
            yield ClipRequest(
                key=key,
                parts=(VideoPart(path=paths[place]),),
                start_s=start_s,
                end_s=end_s,
                narration=narration_of(checked_narration(row["narration"]), row["verb"]),
                meta=_meta(row),
            )
        except LineError as error:
            yield skipped_line(error, source=f"line {number}", key=key)


def seconds(timestamp: str) -> float:
    """ "HH:MM:SS.xx" in seconds.

    Raises:
        LineError: another form.
    """
    match = _TIMESTAMP.fullmatch(timestamp.strip())
    if match is None:
        raise LineError(FIELD_WRONG, f"{timestamp!r:.40}, expected HH:MM:SS.xx")
    return round(int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]), 6)


def narration_of(command: str, verb: str) -> str:
    """A command in Ego4D's form: "put down plate" gives "#C C puts down plate".

    The word that is bent is the first of ``verb`` ("put-down"); a narration without it ("still stirring") stays as it is.
    """
    words = command.split()
    stem = re.split(r"[-\s]", verb.strip().lower())[0]
    lower = [word.lower() for word in words]
    # The verb column is a class's name for some lines, and another word than the narration's first, which is a verb by far most often.
    place = lower.index(stem) if stem in lower else (None if lower[0].endswith("ing") else 0)
    if place is not None:
        words[place] = third_person(lower[place])
    return f"#C C {' '.join(words)}"


def third_person(verb: str) -> str:
    """Present tense of a verb for one person: "take" → "takes", "wash" → "washes", "put-down" → "puts-down"."""
    first, dash, rest = verb.partition("-")
    if first in _IRREGULAR:
        bent = _IRREGULAR[first]
    elif re.search(r"(s|x|z|ch|sh|o)$", first):
        bent = f"{first}es"
    elif re.search(r"[^aeiou]y$", first):
        bent = f"{first[:-1]}ies"
    else:
        bent = f"{first}s"
    return f"{bent}{dash}{rest}"


def _meta(row: dict[str, str]) -> dict[str, Any]:
    check_text(row["verb"], row["noun"])
    classes = {}
    for name in ("verb_class", "noun_class"):
        try:
            classes[name] = int(row[name])
        except ValueError:
            raise LineError(FIELD_WRONG, f"{name} is {row[name]!r:.40}, expected a number") from None
    return {
        "narration_id": row["narration_id"],
        "participant_id": row["participant_id"],
        "video_id": row["video_id"],
        "command": row["narration"],
        "verb": row["verb"],
        "noun": row["noun"],
        **classes,
        "all_nouns": [one or other for one, other in _QUOTED.findall(row["all_nouns"])],
        "all_noun_classes": [int(number) for number in re.findall(r"\d+", row["all_noun_classes"])],
    }


def _find_video(videos: Path, participant: str, video: str) -> str:
    names = [
        f"{place}{video}{suffix}"
        for place in (f"{participant}/videos/", f"{participant}/", "")
        for suffix in (".MP4", ".mp4")
    ]
    return next((name for name in names if (videos / name).is_file()), names[0])


def _read_durations(path: Path) -> dict[str, float]:
    durations_s: dict[str, float] = {}
    for number, row in read_rows(path, ("video_id", "duration"), ",", "video_info"):
        if isinstance(row, LineError):
            raise ValueError(f"video_info={path}: line {number}: {row}")
        try:
            durations_s[row["video_id"]] = checked_time(row["duration"], "duration")
        except LineError as error:
            raise ValueError(f"video_info={path}: line {number}: {error}") from None
    return durations_s
