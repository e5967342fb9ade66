"""The report file: JSON lines, a header and then one episode a row. Every table and plot is made from these."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain.artifact import atomic_write_text

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class EpisodeRecord:
    """One episode. `success_step` is the first successful step, counted from 1, or None; `end` is success, horizon or failure; `reruns` is how
    often it was brought back after its simulator's process had died, which changes nothing else in the record."""

    seed: int
    initial_state_hash: str
    success: bool
    success_step: int | None
    episode_return: float
    length_steps: int
    end: str
    reruns: int = 0


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """Header and episodes of one policy on one task."""

    header: Mapping[str, Any]
    episodes: tuple[EpisodeRecord, ...]

    @property
    def label(self) -> str:
        return self.header["label"]

    @property
    def task(self) -> str:
        return self.header["task"]

    @property
    def successes(self) -> int:
        return sum(episode.success for episode in self.episodes)

    def save(self, path: str | Path) -> None:
        """Write atomically."""
        lines = [json.dumps(dict(self.header), sort_keys=True)]
        lines += [json.dumps(asdict(episode)) for episode in self.episodes]
        atomic_write_text(path, "\n".join(lines) + "\n")


def load_report(path: str | Path) -> EvalReport:
    """Read a report.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: naming the line and field, if it is no report, of another format, or cut short.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no report at {path}; `egoarm eval policy=... out={path}` makes one")
    lines = path.read_text().splitlines()
    try:
        header = json.loads(lines[0])
        if header.get("kind") != "egoarm-report" or header.get("format") != FORMAT:
            raise ValueError(f"kind={header.get('kind')!r}, format={header.get('format')!r}")
    except (IndexError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path}, line 1: expected the header of an egoarm report of format {FORMAT} ({error})"
        ) from error
    episodes = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            episodes.append(EpisodeRecord(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not an episode record ({error}); evaluate again") from error
    if len(episodes) != header["episodes"]:
        raise ValueError(
            f"{path} holds {len(episodes)} episodes, its header promises {header['episodes']}; evaluate again"
        )
    return EvalReport(header=header, episodes=tuple(episodes))
