"""EPIC-KITCHENS-100's annotation rows, as its action recognition and its retrieval benchmark share them."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.downstream.annotations import find_file, read_csv, reading, seconds
from pretrain.downstream.segments import Segment

COLUMNS = (
    "narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp", "start_frame",
    "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class", "all_nouns", "all_noun_classes",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Action:
    """One narrated action. `verb`, `noun`: classes (EPIC's numbers, or words); `nouns`: all noun classes of the sentence.
    Times come from the timestamps: the frame numbers count at each video's own rate."""

    narration_id: str
    segment: Segment
    text: str
    verb: str
    noun: str
    nouns: frozenset[str]
    group: str

    @property
    def segments(self) -> Sequence[Segment]:
        return (self.segment,)

    @property
    def action(self) -> str:
        """EPIC's action label: "verb:noun"."""
        return f"{self.verb}:{self.noun}"


def read_actions(directory: Path, names: Sequence[str], what: str) -> list[Action]:
    """The rows of an EPIC-KITCHENS-100 csv of 15 columns.

    Raises:
        ValueError: a missing column, a bad row (its line is named), a narration_id that is there twice.
    """
    path = find_file(directory, names, what)
    actions = []
    for line, row in enumerate(read_csv(path, COLUMNS, key="narration_id"), start=2):
        with reading(path, f"line {line} ({row['narration_id']})"):
            start_s, stop_s = seconds(row["start_timestamp"]), seconds(row["stop_timestamp"])
            if stop_s <= start_s:
                raise ValueError(
                    f"it stops at {row['stop_timestamp']}, not after its start at {row['start_timestamp']}"
                )
            nouns = ast.literal_eval(row["all_noun_classes"])
            actions.append(
                Action(
                    narration_id=row["narration_id"],
                    segment=Segment(row["video_id"], start_s, stop_s),
                    text=row["narration"].strip(),
                    verb=str(int(row["verb_class"])),
                    noun=str(int(row["noun_class"])),
                    nouns=frozenset(str(int(noun)) for noun in nouns),
                    group=row["video_id"],
                )
            )
    return actions
