"""What every source of clips yields: which stretch of which video is a clip, and what is said of it."""

import hashlib
import math
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pretrain.clips.skipping import Skipped
from pretrain.clips.video import LONGEST_S, TIME_OUTSIDE

# Why a line of annotation gives no clip; the same words are counted in a store's manifest.
LINE_DAMAGED = "damaged line of annotation"
FIELD_WRONG = "missing or wrong field"
TEXT_NOT_UTF8 = "text not UTF-8"
NARRATION_EMPTY = "empty narration"
NARRATION_UNSURE = "narration marked #unsure"
PASS_INCOMPLETE = "annotation not complete"
TIME_NOT_FINITE = "time not finite"
TIMES_REVERSED = "end not after start"
TIME_NEGATIVE = "time before the video"
ID_INVALID = "invalid id"
ID_DUPLICATE = "duplicate id"

# Two frames of any video lie further apart; shorter spans are mistakes.
_SHORTEST_S = 0.001
# Ids become file names below the directory of videos: nothing that could lead out of it.
_ID_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+ -]*")
# With the longest name of a member, a key must fit the 100 characters that tar gives a file name.
_MAX_KEY_LENGTH = 72
# "#C C", "#O man X": who acts, in Ego4D's narrations, and no more than that.
_ONLY_TAGS = re.compile(r"(#\w+|\b[A-Z]\b|[\s.,])*")
# Bytes that were no UTF-8, as the readers keep them and as they are shown.
_ESCAPED_BYTES = {0xDC00 + byte: f"\\x{byte:02x}" for byte in range(0x80, 0x100)}


@dataclass(frozen=True, kw_only=True)
class VideoPart:
    """A file that holds a recording from ``start_s`` to ``end_s`` of the recording's clock (None = to its end)."""

    path: str
    start_s: float = 0.0
    end_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class ClipRequest:
    """One clip to cut.

    Attributes:
        key: the clip's key in the store.
        parts: the files that hold the recording where the clip is, in order; paths below the directory of videos.
        start_s, end_s: the clip, in seconds of the recording.
        narration: what happens, in Ego4D's form.
        anchor_s: set where a rule of ours chose start and end around this time: then an end that lies after the video's is cut,
            as long as the anchor is in the video. None = start and end are the annotators', and must both be in it.
        meta: what else is known; plain JSON.
    """

    key: str
    parts: tuple[VideoPart, ...]
    start_s: float
    end_s: float
    narration: str
    anchor_s: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)


class LineError(ValueError):
    """A line of annotation that gives no clip; ``reason`` is one of the constants above."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def skipped_line(error: LineError, *, source: str, key: str = "") -> Skipped:
    """The line as the store lists it. What is not UTF-8 is shown as ``\\xNN``."""
    texts = [
        text.translate(_ESCAPED_BYTES).encode("utf-8", "backslashreplace").decode()
        for text in (key, source, error.detail[:200])
    ]
    return Skipped(key=texts[0], source=texts[1], reason=error.reason, detail=texts[2])


def make_key(*parts: str) -> str:
    """A valid clip key from some ids: the same for the same ids, another for others.

    Characters that a key cannot have become ``_``, and what is too long is cut; then a hash of the ids keeps keys apart.
    """
    whole = "-".join(parts)
    key = re.sub(r"[^A-Za-z0-9_-]", "_", whole)
    if not key[:1].isalnum():
        key = f"v{key}"
    if key != whole or len(key) > _MAX_KEY_LENGTH:
        digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:10]
        key = f"{key[: _MAX_KEY_LENGTH - 11]}-{digest}"
    return key


def shown(value: Any) -> str:
    """A value from a user's file in a message: short whatever it is, also if it is deep or a number of 5,000 digits."""
    try:
        return reprlib.repr(value)
    except ValueError:
        return f"a very long {type(value).__name__}"


def checked_id(value: Any, name: str) -> str:
    """An id that may name a file.

    Raises:
        LineError: not a string, or with characters that a file name of a data set does not have.
    """
    if not isinstance(value, str) or not value:
        raise LineError(FIELD_WRONG, f"{name} is {shown(value)}, expected an id")
    if not _ID_PATTERN.fullmatch(value):
        raise LineError(ID_INVALID, f"{name} is {shown(value)}")
    return value


def checked_span(start: Any, end: Any) -> tuple[float, float]:
    """Start and end in seconds.

    Raises:
        LineError: not numbers, not finite, before 0 or beyond any video, or the end not after the start.
    """
    start_s, end_s = checked_time(start, "start"), checked_time(end, "end")
    if start_s < 0:
        raise LineError(TIME_NEGATIVE, f"start {start_s:g} s")
    if end_s < start_s + _SHORTEST_S:
        raise LineError(TIMES_REVERSED, f"start {start_s:g} s, end {end_s:g} s")
    return start_s, end_s


def checked_time(value: Any, name: str) -> float:
    """Seconds from a number or its text."""
    try:
        if isinstance(value, bool):
            raise ValueError
        time_s = float(value)
    except (TypeError, ValueError, OverflowError):
        raise LineError(FIELD_WRONG, f"{name} is {shown(value)}, expected seconds") from None
    if not math.isfinite(time_s):
        raise LineError(TIME_NOT_FINITE, f"{name} is {shown(value)}")
    if time_s > LONGEST_S:
        raise LineError(TIME_OUTSIDE, f"{name} is {time_s:g} s")
    return time_s


def checked_narration(value: Any) -> str:
    """A narration with its white space in order.

    Raises:
        LineError: not a string, not UTF-8, or nothing but white space and tags of who acts.
    """
    if not isinstance(value, str):
        raise LineError(FIELD_WRONG, f"the narration is {shown(value)}, expected text")
    check_text(value)
    narration = " ".join(value.split())
    if _ONLY_TAGS.fullmatch(narration):
        raise LineError(NARRATION_EMPTY, repr(value[:80]))
    if "#unsure" in narration.lower():
        raise LineError(NARRATION_UNSURE, narration)
    return narration


def check_text(*values: str) -> None:
    """Raises LineError if a text holds bytes that were no UTF-8 (the readers keep them as lone surrogates)."""
    for value in values:
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise LineError(TEXT_NOT_UTF8, value)


def chunked_parts(uid: str, start_s: float, end_s: float, chunk_s: float) -> tuple[VideoPart, ...]:
    """The files ``<uid>.mp4/<chunk start>.mp4`` in which a clip lies: each holds ``chunk_s`` seconds, so a clip that crosses
    a border lies in two or more. An end exactly on a border needs nothing of the next file."""
    first = int(start_s // chunk_s)
    last = max(first, math.ceil(end_s / chunk_s) - 1)
    return tuple(
        VideoPart(
            path=f"{uid}.mp4/{_number(index * chunk_s)}.mp4", start_s=index * chunk_s, end_s=(index + 1) * chunk_s
        )
        for index in range(first, last + 1)
    )


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def parts_at(parts: Sequence[VideoPart], time_s: float) -> int:
    """Index of the part that holds a time of the recording: the last that starts at or before it."""
    held = [index for index, part in enumerate(parts) if part.start_s <= time_s]
    assert held, "no part holds the start of its clip"
    return held[-1]
