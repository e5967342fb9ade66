"""Clips that could not be made: none is dropped without a word, and a run in which most fail stops.

Beside the manifest of a store, ``skipped.jsonl`` has a line for each: its index, key, source, reason and detail.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

SKIPPED_NAME = "skipped.jsonl"

# The share of skipped clips says nothing before this many.
_CLIPS_BEFORE_SHARE = 100


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A clip that could not be made, and why.

    Attributes:
        key: the clip's key, or what it would have been; empty where not even that could be read.
        source: where it comes from: a video or a place in an annotation file.
        reason: a few words, the same for all clips with this fault; they are counted.
        detail: what was found, in a line.
    """

    key: str
    source: str
    reason: str
    detail: str = ""


def count_reasons(skipped: Iterable[Skipped]) -> dict[str, int]:
    """How many clips were skipped for each reason, the commonest first."""
    counts = Counter(one.reason for one in skipped)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def dump_skipped(skipped: dict[int, Skipped]) -> bytes:
    """One JSON object a line, by index of the clip."""
    lines = [json.dumps({"index": index, **asdict(one)}, ensure_ascii=False) for index, one in sorted(skipped.items())]
    return "".join(f"{line}\n" for line in lines).encode()


def parse_skipped(data: bytes) -> dict[int, Skipped]:
    """The inverse of :func:`dump_skipped`."""
    rows = [json.loads(line) for line in data.splitlines()]
    return {row.pop("index"): Skipped(**row) for row in rows}


def read_skipped(directory: Path, manifest: dict[str, Any]) -> dict[int, Skipped]:
    """What was skipped in a finished store. If its list is lost or altered, the shards concerned are made again."""
    if "skipped" not in manifest:
        return {}
    try:
        data = (directory / SKIPPED_NAME).read_bytes()
    except FileNotFoundError:
        return {}
    return parse_skipped(data) if hashlib.sha256(data).hexdigest() == manifest["skipped_sha256"] else {}


class SkipTally:
    """Counts the clips that are done, on the screen and against the share that may be skipped.

    Args:
        directory: of the store, for the message.
        n_clips: all that will be tried.
        tried: those that were done before, and of them ``skipped``.
        max_skipped_share: see :func:`pretrain.clips.build.build_store`.

    Raises:
        ValueError: when called, and too many clips are skipped; shows the three commonest reasons.
    """

    def __init__(
        self, directory: Path, n_clips: int, tried: int, skipped: Iterable[Skipped], max_skipped_share: float
    ) -> None:
        self._directory, self._max_share = directory, max_skipped_share
        self._tried = tried
        self._reasons = Counter(count_reasons(skipped))
        self._bar = tqdm(
            total=n_clips, initial=self._tried, unit="clip", desc="clips", disable=None, smoothing=0.1
        )  # fmt: skip

    def __enter__(self) -> "SkipTally":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, reason: str) -> None:
        self._tried += 1
        self._bar.update()
        if not reason:
            return
        self._reasons[reason] += 1
        n_skipped = self._reasons.total()
        self._bar.set_postfix_str(f"{n_skipped} skipped", refresh=False)
        if self._tried >= _CLIPS_BEFORE_SHARE and n_skipped > self._max_share * self._tried:
            raise ValueError(
                f"{self._directory}: {n_skipped} of the first {self._tried} clips were skipped, more than "
                f"max_skipped_share={self._max_share:g} allows: {commonest(self._reasons)}; mend that, or "
                "allow more; finished shards are kept and the same command goes on from there"
            )


def commonest(reasons: Counter[str] | dict[str, int]) -> str:
    return ", ".join(f"{reason} ({count})" for reason, count in Counter(reasons).most_common(3))
