"""What a benchmark asks, whether it was read from official annotations or made from a clip store."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pretrain.downstream.results import Metric
from pretrain.downstream.segments import Segment


class Item(Protocol):
    """One question. Each benchmark has its own frozen dataclass of this shape.

    Attributes:
        group: items of one group (video, participant's session) are not independent.
    """

    @property
    def segments(self) -> Sequence[Segment]: ...

    @property
    def group(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """All questions of a benchmark.

    Attributes:
        items: what is scored.
        fit: what heads may be trained on; empty = by cross-fitting among `items`.
        options: what else its evaluation needs (relevancies, class texts), by name.
        protocol: the settings that decide the figures, plain JSON.
        notes: for the reader, e.g. what was skipped and why.
    """

    items: tuple[Any, ...]
    fit: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def segments(self) -> list[Segment]:
        return list(dict.fromkeys(segment for item in (*self.items, *self.fit) for segment in item.segments))

    def without(self, dropped: Callable[[Segment], bool]) -> "Task":
        """The task less every item with a segment that is dropped."""

        def kept(items: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(item for item in items if not any(dropped(segment) for segment in item.segments))

        return dataclasses.replace(self, items=kept(self.items), fit=kept(self.fit))

    def noted(self, note: str) -> "Task":
        return dataclasses.replace(self, notes=(*self.notes, note))

    @property
    def sha256(self) -> str:
        """Of the questions: results on other questions are not comparable."""
        text = [[repr(item) for item in items] for items in (self.items, self.fit)]
        return hashlib.sha256(json.dumps(text).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Figures of one encoder; `missing`: metric (or "" for all) -> why there is none; `protocol`: what the evaluation adds to
    the task's."""

    metrics: tuple[Metric, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)


def counted(reasons: Mapping[str, int]) -> tuple[str, ...]:
    """What was skipped, one note a reason."""
    return tuple(f"skipped {count}: {reason}" for reason, count in reasons.items() if count)
