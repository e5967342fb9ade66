"""`egoarm probe`: benchmarks of encoders on the same items, with intervals and paired differences."""

import dataclasses
import difflib
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pretrain.clips.store import open_store
from pretrain.downstream.comparison import check_protocols, compare, load_results, print_table, save_results
from pretrain.downstream.features import Extractor, UnreadableSegments
from pretrain.downstream.four_tasks import BENCHMARK as FOUR_TASKS
from pretrain.downstream.four_tasks_probe import run_four_tasks
from pretrain.downstream.results import BenchmarkResult
from pretrain.downstream.segments import Segment, VideoSource, is_store, open_videos
from pretrain.downstream.subjects import NEEDS_TEXT, Subject, load_subject, unique_names
from pretrain.downstream.synthetic_twin import TwinClips, held_out_clips
from pretrain.downstream.table import BENCHMARKS, SYNTHETIC, Benchmark
from pretrain.downstream.task import Task
from pretrain.egom2p.predict import MODES
from pretrain.provenance import make_provenance

ALL_SYNTHETIC = "all-synthetic"
RESULTS_FILE = "probe.json"
FEATURES_DIRECTORY = "features"
DENSE_DIRECTORY = "dense_features"
# What an encoder of single images is shown when there is no video encoder beside it to follow.
IMAGE_FRAMES = 4
DEVICES = ("auto", "cpu", "cuda", "mps")
_LISTED = 5


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Settings of `egoarm probe`.

    Attributes:
        encoder: what to measure, one or several: the directory of a pretraining run (needed for texts), a model or encoder
            artifact, a name of the zoo, timm/<model>, or random: and any of these, the same network untrained.
        benchmark: rows of BENCHMARKS, or "all-synthetic"; or "four-tasks" alone, what EgoM2P predicts.
        data: a clip store (the benchmark's synthetic twin is made of its held-out clips), or the directory of official
            annotations; null = the store that the first run was trained on.
        videos: with official annotations: a directory of video files, or a clip store that was imported from them.
        out: directory of probe.json and of the features that are kept for the next time.
        baseline: the column that the others are paired with; null = the last encoder.
        names: headers of the columns, in the order of `encoder`; empty = from the paths.
        results: probe.json of earlier runs, whose columns are put beside; of another protocol they are refused.
        clips: most clips of a twin; 0 = all.
        unseen: only clips that show a combination of verb and object which was not trained on.
        allow_train: also clips that an encoder was trained on; for looking at memorisation, not for reporting.
        max_missing: share of the items that may be dropped because of missing or broken videos.
        frames: frames that an encoder of single images is shown, whose features are averaged; null = as many as the video
            encoders of the table take.
        tasks: tasks of Meta-World whose frames the benchmark "spatial" reads too.
        dense_features: also write the features of EgoNLQ's long videos, <out>/dense_features/<encoder>/<video>.npz.
        mode: four-tasks: "exact", "fast" or "glance", see pretrain/egom2p/predict.py.
        batch_size, device, threads: of the encoding; threads 0 = torch's default.
    """

    encoder: str | tuple[str, ...]
    benchmark: str | tuple[str, ...] = ALL_SYNTHETIC
    data: str | None = None
    videos: str | None = None
    out: str = "runs/probe"
    baseline: str | None = None
    names: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    clips: int = 300
    unseen: bool = False
    allow_train: bool = False
    max_missing: float = 0.1
    frames: int | None = None
    tasks: tuple[str, ...] = ()
    dense_features: bool = False
    mode: str = MODES[0]
    batch_size: int = 16
    device: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        if not self.encoders or "" in self.encoders or "???" in self.encoders:
            raise ValueError("encoder= is missing: say a run, an artifact or a name, or several as encoder=[a,b]")
        if self.names and len(self.names) != len(self.encoders):
            raise ValueError(f"names: {len(self.names)} given for {len(self.encoders)} encoders")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"names: each must be another one, got {', '.join(self.names)}")
        _ = self.is_four_tasks or self.benchmarks
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode}: expected one of {', '.join(MODES)}")
        for name, least in (("clips", 0), ("batch_size", 1), ("threads", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected {least} or more")
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"frames={self.frames}: expected 1 or more")
        if not 0 <= self.max_missing < 1:
            raise ValueError(f"max_missing={self.max_missing}: expected a share from 0 to below 1")
        if self.device not in DEVICES:
            raise ValueError(f"device={self.device}: expected one of {', '.join(DEVICES)}")
        if not self.out:
            raise ValueError("out= is empty: say where the results go, e.g. out=runs/probe")

    @property
    def encoders(self) -> tuple[str, ...]:
        return _words(self.encoder)

    @property
    def is_four_tasks(self) -> bool:
        """Whether it is EgoM2P's predictions that are asked for, a measurement of its own."""
        words = _words(self.benchmark)
        if FOUR_TASKS in words and len(words) > 1:
            raise ValueError(f"benchmark: {FOUR_TASKS} has other columns than the others: measure it alone")
        return FOUR_TASKS in words

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """Rows of BENCHMARKS, in their order."""
        given = _words(self.benchmark)
        wanted: set[str] = set()
        for name in given:
            if name == ALL_SYNTHETIC:
                wanted |= set(SYNTHETIC)
            elif name in BENCHMARKS:
                wanted.add(name)
            else:
                close = difflib.get_close_matches(name, [ALL_SYNTHETIC, FOUR_TASKS, *BENCHMARKS], n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                known = f"{ALL_SYNTHETIC}, {', '.join(BENCHMARKS)}, and {FOUR_TASKS}"
                raise ValueError(f"benchmark={name}: {hint}Known: {known}")
        if not wanted:
            raise ValueError(f"benchmark= is empty: expected {ALL_SYNTHETIC} or some of {', '.join(BENCHMARKS)}")
        return tuple(name for name in BENCHMARKS if name in wanted)


def _words(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else tuple(value)


def run(config: ProbeConfig) -> None:
    """Measures, prints the table, and writes <out>/probe.json.

    Raises:
        FileNotFoundError, ValueError: an encoder, the data or a setting is not what it should be; the message says what to do.
    """
    began = time.monotonic()
    if config.threads:
        torch.set_num_threads(config.threads)
    earlier = [result for path in config.results for result in load_results(path)]
    names = list(config.names) or unique_names(config.encoders)
    subjects = [load_subject(given, name=name) for given, name in zip(config.encoders, names, strict=True)]
    baseline = _baseline(config, names, earlier)
    if config.is_four_tasks:
        run_four_tasks(config, subjects, baseline=baseline, device=_device(config.device), results_file=RESULTS_FILE)
        return
    results = measure(config, subjects)
    for old in earlier:
        if old.benchmark in config.benchmarks:
            results.append(old)
    check_protocols(results)
    out = Path(config.out)
    provenance = make_provenance(
        seed=0,
        parents={subject.name: subject.sha256 for subject in subjects},
        data={str(result.benchmark): str(result.protocol.get("data_sha256")) for result in results},
        step=0,
        wall_time_s=time.monotonic() - began,
    )
    save_results(out / RESULTS_FILE, results, baseline, provenance)
    columns, rows = compare(results, baseline)
    shown = [row for row in rows if BENCHMARKS[row.benchmark].is_headline(row.metric)]
    print_table(columns, shown, baseline)
    for note in _notes(results):
        print(note)
    if len(shown) < len(rows):
        print(f"{len(rows) - len(shown)} more rows are in the file")
    print(f"probe of {len(subjects)} encoders, {time.monotonic() - began:.0f} s: {out / RESULTS_FILE}")


def measure(config: ProbeConfig, subjects: Sequence[Subject]) -> list[BenchmarkResult]:
    """All benchmarks of all subjects, in the order of the table, on the same items."""
    frames = _frames(config, subjects)
    data = _data(config, subjects)
    cache = Path(config.out) / FEATURES_DIRECTORY
    clips = source = None
    if is_store(data):
        store = open_store(data)
        clips = held_out_clips(
            store, subjects, limit=config.clips, unseen=config.unseen, allow_train=config.allow_train
        )
        clips = dataclasses.replace(clips, tasks=config.tasks, cache=cache)
        source: VideoSource | None = clips.source
    else:
        source = open_videos(_videos(config, data))
    extractors = [
        Extractor(
            subject,
            source,
            frames=frames,
            batch_size=config.batch_size,
            device=_device(config.device),
            cache=cache,
            export=_dense(config, subject) if config.dense_features else None,
        )
        for subject in subjects
    ]
    by_name: dict[str, list[BenchmarkResult]] = {}
    # What needs tokens comes first: it computes the pooled features on the way, which the others then find.
    for name in sorted(config.benchmarks, key=lambda name: not BENCHMARKS[name].needs_tokens):
        row = BENCHMARKS[name]
        task = row.read(Path(data)) if clips is None else row.twin(clips)
        by_name[name] = _measure_one(name, row, task, extractors, clips, config)
    return [result for name in config.benchmarks for result in by_name[name]]


def _measure_one(
    name: str,
    row: Benchmark,
    task: Task,
    extractors: Sequence[Extractor],
    clips: TwinClips | None,
    config: ProbeConfig,
) -> list[BenchmarkResult]:
    source = extractors[0].source
    before = len(task.items) + len(task.fit)
    reasons: dict[Segment, str] = {}
    if clips is None:
        reasons = _unreadable(task, source)
    while True:
        kept = task.without(partial(_is_broken, reasons=reasons))
        _check_missing(name, before, kept, reasons, config.max_missing)
        try:
            outcomes = [
                None if row.needs_text and not extractor.subject.has_text else row.evaluate(extractor, kept)
                for extractor in extractors
            ]
            break
        except UnreadableSegments as error:
            reasons |= error.reasons
    notes = (*kept.notes, *_missing_notes(before, kept, reasons), *(() if clips is None else clips.notes))
    protocol: dict[str, Any] = {
        "kind": "official" if clips is None else "twin",
        "data_sha256": source.sha256,
        "frames": extractors[0].frames,
        "items": len(kept.items),
        "items_sha256": kept.sha256,
        **kept.protocol,
        **({} if clips is None else clips.protocol),
    }
    return [
        BenchmarkResult(
            benchmark=name,
            encoder=extractor.subject.name,
            encoder_sha256=extractor.subject.sha256,
            metrics=() if outcome is None else outcome.metrics,
            protocol=protocol if outcome is None else protocol | dict(outcome.protocol),
            notes=notes if outcome is None else (*notes, *outcome.notes),
            missing={"": NEEDS_TEXT} if outcome is None else outcome.missing,
        )
        for extractor, outcome in zip(extractors, outcomes, strict=True)
    ]


# ------------------------------------------------------------------------------------------------------------ the pieces


def _baseline(config: ProbeConfig, names: Sequence[str], earlier: Sequence[BenchmarkResult]) -> str:
    known = [*names, *dict.fromkeys(result.encoder for result in earlier)]
    if twice := sorted({name for name in known if known.count(name) > 1}):
        raise ValueError(
            f"{twice[0]} is the name of two columns, of this run and of results=: choose others with names="
        )
    if config.baseline is None:
        return known[-1]
    by_path = dict(zip(config.encoders, names, strict=True))
    chosen = by_path.get(config.baseline, config.baseline)
    if chosen not in known:
        raise ValueError(f"baseline={config.baseline}: expected one of {', '.join(known)}")
    return chosen


def _frames(config: ProbeConfig, subjects: Sequence[Subject]) -> int:
    taken = {subject.name: subject.encoder.spec.frames for subject in subjects if subject.encoder.spec.frames > 1}
    if len(set(taken.values())) > 1:
        each = ", ".join(f"{name} {frames}" for name, frames in taken.items())
        raise ValueError(
            f"these encoders take different numbers of frames ({each}), so they would not see the same video: measure them "
            "in tables of their own"
        )
    own = next(iter(taken.values()), None)
    if config.frames is not None and own is not None and own != config.frames:
        raise ValueError(f"frames={config.frames}, but {next(iter(taken))} takes {own}: leave frames= out")
    return own or config.frames or IMAGE_FRAMES


def _data(config: ProbeConfig, subjects: Sequence[Subject]) -> str:
    if config.data is not None:
        if not Path(config.data).is_dir():
            raise FileNotFoundError(
                f"data={config.data}: no such directory; give a clip store or a directory of official annotations"
            )
        return config.data
    for subject in subjects:
        if subject.training is not None and is_store(subject.training.data):
            return subject.training.data
    raise ValueError(
        "data= is missing, and no encoder's own clip store is there: say a clip store, e.g. data=runs/clips"
    )


def _videos(config: ProbeConfig, data: str) -> str:
    if ALL_SYNTHETIC in _words(config.benchmark):
        raise ValueError(f"data={data} is no clip store (no manifest.json there), which {ALL_SYNTHETIC} is made of")
    if config.videos is None:
        raise ValueError(
            f"data={data} is no clip store, so it is read as official annotations: give their videos with videos="
        )
    return config.videos


def _dense(config: ProbeConfig, subject: Subject) -> Path:
    return Path(config.out) / DENSE_DIRECTORY / re.sub(r"[^A-Za-z0-9_.-]+", "_", subject.name)


def _device(device: str) -> str:
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _unreadable(task: Task, source: VideoSource) -> dict[Segment, str]:
    reasons = {}
    for segment in task.segments():
        if not source.has(segment.video):
            reasons[segment] = "no such video"
            continue
        try:
            source.resolve(segment)
        except ValueError as error:
            reasons[segment] = str(error)
    return reasons


def _is_broken(segment: Segment, reasons: dict[Segment, str]) -> bool:
    """Whether the segment, or a part of it that was asked for, cannot be read."""
    if segment in reasons:
        return True
    return any(
        segment.video == broken.video and segment.start_s < broken.end_s and broken.start_s < segment.end_s
        for broken in reasons
    )


def _check_missing(name: str, before: int, kept: Task, reasons: dict[Segment, str], limit: float) -> None:
    left = len(kept.items) + len(kept.fit)
    dropped = before - left
    if not kept.items or dropped > limit * before:
        raise ValueError(
            f"{name}: {dropped} of {before} items have videos that cannot be read, more than max_missing={limit:g} allows: "
            f"{_list(reasons)}"
        )


def _missing_notes(before: int, kept: Task, reasons: dict[Segment, str]) -> tuple[str, ...]:
    dropped = before - len(kept.items) - len(kept.fit)
    return (f"dropped {dropped} of {before} items, whose videos cannot be read: {_list(reasons)}",) if dropped else ()


def _list(reasons: dict[Segment, str]) -> str:
    videos = {segment.video: reason for segment, reason in reasons.items()}
    listed = [f"{video} ({reason})" for video, reason in list(videos.items())[:_LISTED]]
    more = f" and {len(videos) - _LISTED} more" if len(videos) > _LISTED else ""
    return ", ".join(listed) + more


def _notes(results: Sequence[BenchmarkResult]) -> list[str]:
    """Each note once, with the benchmarks it belongs to if not all."""
    benchmarks = list(dict.fromkeys(result.benchmark for result in results))
    owners: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            if result.benchmark not in owners.setdefault(note, []):
                owners[note].append(result.benchmark)
    counts = Counter({note: len(names) for note, names in owners.items()})
    return [note if counts[note] == len(benchmarks) else f"{', '.join(owners[note])}: {note}" for note in owners]
