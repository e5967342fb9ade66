"""Ego4D: ``narration.json`` and ``<uid>.mp4``.

Format (as several readers know it): ``{video_uid: {"narration_pass_1": {"narrations": [{"timestamp_sec", "narration_text",
...}], "summaries": [...]}, "narration_pass_2": {...}, "status": "complete"}}``, in some versions below a key "videos".

A narration has one time and no length. Its clip is that of EgoVLP's contextual variable-length pairing (Lin et al. 2022,
"Egocentric Video-Language Pretraining", section 3.2): ``[t - beta / (2 alpha), t + beta / (2 alpha)]``, where beta is the mean time
between the narrations that follow each other in the video, and alpha the mean beta over all videos, 4.9 s: busy videos give short
clips, and the mean clip lasts a second.

Ours to decide: beta is taken for each pass by itself, for a pass is one annotator's sequence; where it is not known (one narration, or
all at one time) it is alpha. Alpha is a setting and not computed from the file, so that a part of the data gives the same
clips as the whole. A clip is cut at the start and at the end of the video.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pretrain.clips.skipping import Skipped
from pretrain.clips.sources.lines import read_text
from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.request import (
    FIELD_WRONG,
    ID_DUPLICATE,
    PASS_INCOMPLETE,
    TIME_NEGATIVE,
    ClipRequest,
    LineError,
    VideoPart,
    checked_id,
    checked_narration,
    checked_time,
    make_key,
    shown,
    skipped_line,
)

# Narrations of one pass that are nearer than this have no times to speak of.
_SHORTEST_GAP_S = 0.001
_PASSES = ("narration_pass_1", "narration_pass_2")


def read_requests(annotations: Path, videos: Path, options: SourceOptions) -> Iterator[ClipRequest | Skipped]:
    """One clip a narration, in the order of the file.

    Raises:
        FileNotFoundError, ValueError: the file is missing, empty, no JSON or of another form.
    """
    for uid, passes, twice in _read_videos(annotations):
        try:
            checked_id(uid, "video_uid")
            if twice:
                raise LineError(ID_DUPLICATE, "this video was there before")
            if not isinstance(passes, dict):
                raise LineError(FIELD_WRONG, f"the video is a {type(passes).__name__}, expected an object")
        except LineError as error:
            yield skipped_line(error, source=uid, key=make_key(uid))
            continue
        for name in _PASSES:
            # A pass may be missing, or null.
            if passes.get(name) is not None:
                yield from _read_pass(uid, name, passes[name], passes.get("status", "complete"), options.alpha_s)


def span_of(time_s: float, beta_s: float, alpha_s: float) -> tuple[float, float]:
    """Start and end of the clip around a narration's time, not before 0. See the head of this file."""
    half_s = beta_s / (2 * alpha_s)
    return max(0.0, time_s - half_s), time_s + half_s


def mean_gap_s(times_s: Sequence[float], alpha_s: float) -> float:
    """Beta: the mean time between narrations that follow each other; alpha where there is none to speak of."""
    if len(times_s) < 2:
        return alpha_s
    gap_s = (max(times_s) - min(times_s)) / (len(times_s) - 1)
    return gap_s if gap_s >= _SHORTEST_GAP_S else alpha_s


def _read_videos(path: Path) -> list[tuple[str, Any, bool]]:
    """(uid, what is said of it, whether the uid was there before) in order."""

    def keep_doubles(pairs: list[tuple[str, Any]]) -> Any:
        # json keeps the last of two equal names without a word.
        return dict(pairs) if len({name for name, _ in pairs}) == len(pairs) else _Doubled(pairs)

    try:
        whole = json.loads(read_text(path), object_pairs_hook=keep_doubles)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"annotations={path}: not JSON ({error}); download it again") from None
    if isinstance(whole, dict) and isinstance(whole.get("videos"), dict | _Doubled):
        whole = whole["videos"]
    if not isinstance(whole, dict | _Doubled) or not whole.items():
        raise ValueError(
            f"annotations={path}: expected Ego4D's narration.json: an object of video_uid: "
            '{"narration_pass_1": {"narrations": [...]}, ...}'
        )
    videos: list[tuple[str, Any, bool]] = []
    seen: set[str] = set()
    for uid, passes in whole.items():
        videos.append((uid, passes, uid in seen))
        seen.add(uid)
    if not any(isinstance(passes, dict) and any(name in passes for name in _PASSES) for _, passes, _ in videos):
        raise ValueError(
            f"annotations={path}: no video of it has {' or '.join(_PASSES)}; expected Ego4D's narration.json"
        )
    return videos


class _Doubled:
    """A JSON object in which a name occurs twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self._pairs = pairs

    def items(self) -> list[tuple[str, Any]]:
        return self._pairs


def _read_pass(uid: str, name: str, value: Any, status: Any, alpha_s: float) -> Iterator[ClipRequest | Skipped]:
    narrations = value.get("narrations") if isinstance(value, dict) else None
    number = name[-1]
    if not isinstance(narrations, list):
        error = LineError(FIELD_WRONG, f"{name}.narrations is a {type(narrations).__name__}, expected a list")
        yield skipped_line(error, source=f"{uid}.mp4 {name}", key=make_key(uid, f"p{number}"))
        return
    times_s = [time_s for narration in narrations if (time_s := _time_s(narration)) is not None]
    beta_s = mean_gap_s(times_s, alpha_s)
    seen: set[tuple[float, str]] = set()
    for index, narration in enumerate(narrations):
        key = make_key(uid, f"p{number}", f"{index:05d}")
        try:
            if status != "complete":
                raise LineError(PASS_INCOMPLETE, f"status is {shown(status)}")
            if not isinstance(narration, dict):
                raise LineError(FIELD_WRONG, f"a narration is a {type(narration).__name__}, expected an object")
            time_s = checked_time(narration.get("timestamp_sec"), "timestamp_sec")
            if time_s < 0:
                raise LineError(TIME_NEGATIVE, f"timestamp_sec is {time_s:g}")
            text = checked_narration(narration.get("narration_text"))
            if (time_s, text) in seen:
                raise LineError(ID_DUPLICATE, f"the same narration at {time_s:g} s was there before")
            seen.add((time_s, text))
        except LineError as error:
            yield skipped_line(error, source=f"{uid}.mp4 {name} narration {index}", key=key)
            continue
        start_s, end_s = span_of(time_s, beta_s, alpha_s)
        yield ClipRequest(
            key=key,
            parts=(VideoPart(path=f"{uid}.mp4"),),
            start_s=start_s,
            end_s=end_s,
            narration=text,
            anchor_s=time_s,
            meta={"video_uid": uid, "pass": int(number), "time_s": time_s},
        )


def _time_s(narration: Any) -> float | None:
    """The time of a narration that counts for beta; None if it has none."""
    try:
        time_s = checked_time(narration.get("timestamp_sec"), "timestamp_sec") if isinstance(narration, dict) else -1.0
    except LineError:
        return None
    return time_s if time_s >= 0 else None
