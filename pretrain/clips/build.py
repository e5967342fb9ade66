"""Making a store: in parallel over shards, resumable, and the same bytes on every run.

One shard is one unit of work. A run that is stopped at any moment leaves whole shards, each with its sidecar, and
temporary files that the next run removes; the same call then goes on with the shards that are not there. A shard that
was filled only in part because the store ended in it is made anew when the store grows.

A clip that cannot be made (a damaged video, a bad line of annotation) is skipped with a reason, and never silently: the
manifest counts the reasons, ``skipped.jsonl`` lists the clips, and a run in which too many are skipped stops.
"""

import errno
import fcntl
import json
import multiprocessing
import multiprocessing.connection
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.clips.schema import Clip
from pretrain.clips.shards import (
    MANIFEST_NAME,
    ShardEntry,
    ShardWriter,
    atomic_file,
    count_dropped,
    make_manifest,
    remove_temporary_files,
    sha256_file,
    shard_name,
    sidecar_path,
    sync_directory,
    write_json,
)
from pretrain.clips.skipping import (
    SKIPPED_NAME,
    Skipped,
    SkipTally,
    commonest,
    count_reasons,
    dump_skipped,
    parse_skipped,
    read_skipped,
)
from pretrain.clips.store import read_manifest, read_typical
from pretrain.workers import start_worker

# (index of the clip in the store) -> the clip, or why there is none. Must be picklable: it runs in spawned processes.
GenerateClip = Callable[[int], Clip | Skipped]
# Told of each clip that is done: the reason why it was skipped, or "" if it was made.
Report = Callable[[str], None]


_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space, or write to another disk with out=",
    errno.EDQUOT: "the disk quota is used up; free some space, or write to another disk with out=",
    errno.EACCES: "permission denied; choose another place with out=",
    errno.EROFS: "the file system is read-only; choose another place with out=",
}


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What a build did: clips in the store, how many of them were there before, how many were skipped, and how many lack a
    modality, by reason."""

    clips: int
    kept_clips: int
    shards: int
    bytes: int
    skipped: dict[str, int]
    dropped: dict[str, int]


@dataclass(frozen=True)
class _Done:
    """A shard that is finished: its entry (with 0 clips if it has no tar) and what was skipped in it, by index."""

    entry: ShardEntry
    skipped: dict[int, Skipped]

    @property
    def tried(self) -> int:
        return self.entry.clips + len(self.skipped)


def build_store(
    directory: Path,
    generate: GenerateClip,
    *,
    kind: str,
    seed: int,
    settings: dict[str, Any],
    versions: dict[str, str | None],
    n_clips: int,
    clips_per_shard: int,
    workers: int = 0,
    max_skipped_share: float = 1.0,
    retry_skipped: bool = False,
) -> BuildResult:
    """Makes, continues or checks a store of ``n_clips`` clips, less those that are skipped.

    Args:
        directory: where; made if need be.
        generate: makes the clip of an index, or says why there is none; a pure function of the index (it may be called
            again for the same one).
        kind: what makes the clips, e.g. "synthetic".
        seed: what ``generate`` was given, for the manifest.
        settings: what else decides the content of the clips; plain JSON. A finished shard is kept only if they are equal.
        versions: versions of the packages that decide the content.
        n_clips: clips to try; as many as are in the finished store if none is skipped.
        clips_per_shard: clips tried for each shard but the last.
        workers: processes; 0 = one a core; 1 = none but this one.
        max_skipped_share: the run stops when more than this share of the clips tried is skipped, looked at from the
            100th clip on.
        retry_skipped: make those finished shards again in which clips were skipped.

    Raises:
        ValueError: the directory holds a store made with other settings or more clips, another run writes to it, the disk
            is full, a clip is wrong, or too many clips (or all) are skipped; what was finished is kept.
        RuntimeError: a worker process died.
    """
    identity = {
        "kind": kind,
        "seed": seed,
        "clips_per_shard": clips_per_shard,
        "config": settings,
        "versions": versions,
    }
    plan = [min(clips_per_shard, n_clips - start) for start in range(0, n_clips, clips_per_shard)]
    with _explained_disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with _exclusive(directory):
            remove_temporary_files(directory)
            found = _find_done(directory, identity)
            _check_growth(directory, found, plan, n_clips)
            kept = {
                index: done
                for index, done in found.items()
                if _is_whole(directory, done, plan[index]) and not (retry_skipped and done.skipped)
            }
            kept_clips = sum(done.entry.clips for done in kept.values())
            if (directory / MANIFEST_NAME).exists():
                if len(kept) == len(plan):
                    return _result(kept, kept_clips)
                _reopen(directory, kept, identity)
            missing = [
                _Unit(directory, i, i * clips_per_shard, plan[i], identity) for i in range(len(plan)) if i not in kept
            ]
            tried = sum(done.tried for done in kept.values())
            tally = SkipTally(directory, n_clips, tried, _all_skipped(kept).values(), max_skipped_share)
            made = _make_shards(missing, generate, workers, tally)
            finished = dict(sorted({**kept, **made}.items()))
            _finish(directory, finished, identity)
    return _result(finished, kept_clips)


def _finish(directory: Path, finished: dict[int, _Done], identity: dict[str, Any]) -> None:
    """Writes the manifest, and before it the list of the skipped clips."""
    entries = [done.entry for done in finished.values() if done.entry.clips]
    skipped = _all_skipped(finished)
    if not entries:
        raise ValueError(
            f"{directory}: all {len(skipped)} clips were skipped, so there is no store: {commonest(count_reasons(skipped.values()))}"
        )
    if skipped:
        with atomic_file(directory / SKIPPED_NAME) as file:
            file.write(dump_skipped(skipped))
    else:
        (directory / SKIPPED_NAME).unlink(missing_ok=True)
    first_clip = read_typical(directory, entries)
    write_json(
        directory / MANIFEST_NAME,
        make_manifest(identity=identity, entries=entries, first_clip=first_clip, skipped=skipped),
    )
    for index in finished:
        sidecar_path(directory, index).unlink(missing_ok=True)


def _all_skipped(done: dict[int, _Done]) -> dict[int, Skipped]:
    return {index: one for shard in done.values() for index, one in shard.skipped.items()}


@dataclass(frozen=True)
class _Unit:
    """One shard to make."""

    directory: Path
    index: int
    first_clip: int
    clips: int
    identity: dict[str, Any]


def _make_shard(unit: _Unit, generate: GenerateClip, report: Report) -> _Done:
    skipped: dict[int, Skipped] = {}
    path = unit.directory / shard_name(unit.index)
    with ShardWriter(path) as writer:
        for index in range(unit.first_clip, unit.first_clip + unit.clips):
            clip = generate(index)
            if isinstance(clip, Skipped):
                skipped[index] = clip
                report(clip.reason)
            else:
                writer.write(clip)
                report("")
    assert writer.entry is not None
    done = _Done(writer.entry, skipped)
    if not done.entry.clips:
        done = _Done(_no_tar(unit.index), skipped)
        path.unlink()
    _write_sidecar(unit.directory, unit.index, done, unit.identity)
    return done


def _write_sidecar(directory: Path, index: int, done: _Done, identity: dict[str, Any]) -> None:
    lines = dump_skipped(done.skipped).decode()
    write_json(sidecar_path(directory, index), {"shard": done.entry.to_json(), "skipped": lines, **identity})


def _make_shards(units: list[_Unit], generate: GenerateClip, workers: int, tally: SkipTally) -> dict[int, _Done]:
    workers = min(workers or len(os.sched_getaffinity(0)), len(units))
    with tally:
        if workers <= 1:
            return {unit.index: _make_shard(unit, generate, tally) for unit in units}
        return _make_shards_in_processes(units, generate, workers, tally)


def _make_shards_in_processes(
    units: list[_Unit], generate: GenerateClip, workers: int, tally: SkipTally
) -> dict[int, _Done]:
    # Spawned and not forked: a GL context or a thread pool of this process would not survive a fork.
    context = multiprocessing.get_context("spawn")
    reports = context.SimpleQueue()
    before = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(workers, context, _start_worker, (generate, reports))
    try:
        units_of = {executor.submit(_work, unit): unit for unit in units}
        made: dict[int, _Done] = {}
        waiting: set[Future[_Done]] = set(units_of)
        while waiting:
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            while not reports.empty():
                tally(reports.get())
            for future in done:
                made[units_of[future].index] = future.result()
        while not reports.empty():
            tally(reports.get())
        executor.shutdown()
        return made
    except BrokenProcessPool:
        raise RuntimeError(
            f"a worker process died while making {units[0].directory} (killed, or out of memory?); finished shards are "
            "kept: run the same command again, with fewer workers if memory is short"
        ) from None
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        # After an error the workers may be in the middle of a clip: nothing of it is wanted.
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
            process.join()
        remove_temporary_files(units[0].directory)


_worker_generate: GenerateClip | None = None
_worker_report: Report | None = None


def _start_worker(generate: GenerateClip, reports: Any) -> None:
    global _worker_generate, _worker_report
    _worker_generate = generate
    _worker_report = reports.put
    start_worker()


def _work(unit: _Unit) -> _Done:
    assert _worker_generate is not None and _worker_report is not None
    return _make_shard(unit, _worker_generate, _worker_report)


def _find_done(directory: Path, identity: dict[str, Any]) -> dict[int, _Done]:
    """The shards that are said to be finished, by index. Raises ValueError if they were made in another way."""
    found: dict[int, _Done] = {}
    if (directory / MANIFEST_NAME).exists():
        manifest, entries, _ = read_manifest(directory)
        _check_identity(directory, manifest, identity)
        found = {_shard_index(entry.name): _Done(entry, {}) for entry in entries}
        for index, one in read_skipped(directory, manifest).items():
            shard = index // identity["clips_per_shard"]
            found.setdefault(shard, _Done(_no_tar(shard), {})).skipped[index] = one
    for path in sorted(directory.glob("shard-*.json")):
        sidecar = json.loads(path.read_bytes())
        _check_identity(directory, sidecar, identity)
        # A sidecar of an older EgoArm says nothing of skipped clips: there were none.
        skipped = parse_skipped(sidecar.get("skipped", "").encode())
        found[_shard_index(path.name)] = _Done(ShardEntry(**sidecar["shard"]), skipped)
    return found


def _shard_index(name: str) -> int:
    return int(Path(name).stem.removeprefix("shard-"))


def _no_tar(index: int) -> ShardEntry:
    return ShardEntry(name=shard_name(index), sha256="", bytes=0, clips=0, duration_s=0.0)


def _check_identity(directory: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    # Through JSON, so that tuples and lists compare equal.
    differences = _differences(old, json.loads(json.dumps(new)), "")
    if differences:
        raise ValueError(
            f"{directory} holds clips made in another way: {'; '.join(differences)}; give the old values, choose another "
            "out=, or delete that directory"
        )


def _differences(old: Any, new: dict[str, Any], prefix: str) -> list[str]:
    lines: list[str] = []
    for name, value in new.items():
        before = old.get(name) if isinstance(old, dict) else None
        if isinstance(value, dict):
            lines += _differences(before, value, f"{prefix}{name}.")
        elif before != value:
            lines.append(f"{prefix}{name} was {before!r}, now {value!r}")
    return lines


def _check_growth(directory: Path, found: dict[int, _Done], plan: list[int], n_clips: int) -> None:
    if any(index >= len(plan) or done.tried > plan[index] for index, done in found.items()):
        clips = sum(done.tried for done in found.values())
        raise ValueError(
            f"{directory} already holds {clips} clips, more than n={n_clips}: a store can grow but not shrink; "
            "give a larger n, choose another out=, or delete that directory"
        )


def _is_whole(directory: Path, done: _Done, clips: int) -> bool:
    entry = done.entry
    path = directory / entry.name
    return done.tried == clips and (
        not entry.clips or (path.is_file() and path.stat().st_size == entry.bytes and sha256_file(path) == entry.sha256)
    )


def _reopen(directory: Path, kept: dict[int, _Done], identity: dict[str, Any]) -> None:
    """Turns a finished store back into one in the making: first the sidecars, so that no moment loses the shards."""
    for index, done in kept.items():
        _write_sidecar(directory, index, done, identity)
    (directory / MANIFEST_NAME).unlink()
    sync_directory(directory)


def _result(done: dict[int, _Done], kept_clips: int) -> BuildResult:
    entries = [one.entry for one in done.values()]
    return BuildResult(
        clips=sum(entry.clips for entry in entries),
        kept_clips=kept_clips,
        shards=sum(entry.clips > 0 for entry in entries),
        bytes=sum(entry.bytes for entry in entries),
        skipped=count_reasons(_all_skipped(done).values()),
        dropped=count_dropped(entries),
    )


@contextmanager
def _exclusive(directory: Path) -> Iterator[None]:
    """Lets one run at a time write to a directory. The lock ends with the process, however it ends."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{directory}: another run is writing clips there; wait for it or choose another out="
            ) from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _explained_disk_errors(directory: Path) -> Iterator[None]:
    """Turns the errors that only the user can mend into one message."""
    try:
        yield
    except FileExistsError as error:
        raise ValueError(
            f"cannot write clips to {directory}: {error.filename} is a file; choose another out="
        ) from None
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise ValueError(
            f"cannot write clips to {directory}: {_DISK_ERRORS[error.errno]}; whole shards are kept and the same "
            "command goes on from there"
        ) from error
