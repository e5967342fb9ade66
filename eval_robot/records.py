"""The report file: JSON lines, a header and then one episode a row. Every table and plot is made from these."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain.artifact import atomic_write_bytes, atomic_write_text

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
        atomic_write_text(path, self.to_text())

    def to_text(self) -> str:
        lines = [json.dumps(dict(self.header), sort_keys=True)]
        lines += [json.dumps(asdict(episode)) for episode in self.episodes]
        return "\n".join(lines) + "\n"


def save_reports(path: str | Path, reports: Sequence[EvalReport]) -> None:
    """Many reports in one gzip file, atomically: the same reports give the same bytes."""
    text = "".join(report.to_text() for report in reports)
    atomic_write_bytes(path, gzip.compress(text.encode(), mtime=0))


def load_reports(path: str | Path) -> list[EvalReport]:
    """The reports of a file (.jsonl, or .jsonl.gz with many) or of all such files under a directory, in the order of their names.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: as `load_report`.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for ending in ("*.jsonl", "*.jsonl.gz") for file in path.rglob(ending))
        return [report for file in files for report in load_reports(file)]
    if path.name.endswith(".jsonl.gz") and path.is_file():
        try:
            lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"{path}: not a gzip file of reports ({error}); publish the study again") from error
        starts = [index for index, line in enumerate(lines) if '"kind": "egoarm-report"' in line] or [0]
        ends = [*starts[1:], len(lines)]
        return [
            _parse(lines[start:end], f"{path}, report {n}")
            for n, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]
    return [load_report(path)]


def load_report(path: str | Path) -> EvalReport:
    """Read a report.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: naming the line and field, if it is no report, of another format, or cut short.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no report at {path}; `egoarm eval policy=... out={path}` makes one")
    return _parse(path.read_text().splitlines(), str(path))


def _parse(lines: Sequence[str], path: str) -> EvalReport:
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
