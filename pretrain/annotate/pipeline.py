"""``egoarm annotate``: Detect-Track-Generate and depth over a clip store, stage after stage, resumable clip by clip."""

import importlib.metadata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pretrain.annotate.config import PRESETS, STAGES, AnnotateConfig
from pretrain.annotate.stages import StageRunner, make_backend, with_stages
from pretrain.clips.build import BuildResult, build_store
from pretrain.clips.schema import Clip
from pretrain.clips.shards import MANIFEST_NAME
from pretrain.clips.store import ClipStore, open_store
from pretrain.launch import Launcher, launcher

__all__ = ["PRESETS", "AnnotateConfig", "run"]

KIND = "annotated"
# The packages whose version decides what a stage finds.
_PACKAGES = ("numpy", "opencv-python", "pycocotools", "torch", "transformers")


def run(config: AnnotateConfig) -> None:
    """Annotates the store, or goes on with it, and says what was done and where it is.

    A clip whose stage fails keeps its own text; the reason is in its meta["annotation"], and the counts by reason are in
    the manifest and in the table that is printed.

    Raises:
        ValueError: a wrong setting, weights or a package that are not there, or a disk that is full; before any work where
            that can be told before.
        FileNotFoundError: there is no such store.
        RuntimeError: a worker process died.
    """
    store = open_store(config.store)
    out = Path(config.out)
    if out.resolve() == store.path.resolve():
        raise ValueError(f"out={config.out} is the store itself: choose another directory")
    if config.clips > len(store):
        raise ValueError(f"clips={config.clips}: {config.store} has {len(store)}")
    for stage in STAGES:
        make_backend(stage, config)
    keys = store.keys[: config.clips or len(store)]
    with launcher(config) as run_units:
        counts = {stage: _run_stage(stage, config, store, keys, run_units) for stage in STAGES}
    result = _build(config, store, len(keys), counts)
    _print_summary(config, counts, result, out)


def _run_stage(
    stage: str, config: AnnotateConfig, store: ClipStore, keys: Sequence[str], run_units: Launcher
) -> Counter[str]:
    """Does a stage for all clips that lack it. Returns how many ended how: "done", or a reason."""
    runner = StageRunner(stage, config, store.manifest_sha256)
    missing: list[int] = []
    outcomes: Counter[str] = Counter()
    for index, key in enumerate(keys):
        record = runner.read(stage, key)
        if record is None or (record.reason is not None and config.retry_failed):
            missing.append(index)
        else:
            outcomes[record.reason or "done"] += 1
    name = f"{stage} ({config.backend(stage)})"
    with tqdm(total=len(keys), initial=len(keys) - len(missing), unit="clip", desc=name, disable=None) as progress:
        for _, reason in run_units(runner, missing):
            outcomes[reason or "done"] += 1
            progress.update()
    return outcomes


@dataclass(frozen=True, kw_only=True)
class _Assemble:
    """Makes the finished clip of an index from the source and what the stages left. Picklable."""

    config: AnnotateConfig
    store: ClipStore

    def __call__(self, index: int) -> Clip:
        clip = self.store.read(index)
        runner = StageRunner(STAGES[-1], self.config, self.store.manifest_sha256)
        found: dict[str, dict[str, Any] | None] = {}
        status: dict[str, str] = {}
        rejected: Mapping[str, int] = {}
        for stage in STAGES:
            record = runner.read(stage, clip.key)
            assert record is not None, f"{stage} of clip {clip.key} is missing"
            found[stage], status[stage], rejected = record.result, record.reason or "done", record.rejected
        if clip.rgb is None:
            return clip.replace(meta={**clip.meta, "annotation": {"stages": status}})
        depth, detect, track, _ = (found[stage] for stage in STAGES)
        annotation = {
            "backends": {stage: self.config.backend(stage) for stage in STAGES},
            "stages": status,
            "depth_is_relative": bool(depth and not depth["metric"]),
            "boxes": detect["boxes"] if detect else {},
            "detections": detect["detections"] if detect else {},
            "tracks": [{"id": one["id"], "label": one["label"], "scores": one["scores"]} for one in track["tracks"]]
            if track
            else [],
            "rejected": dict(rejected),
        }
        return with_stages(clip, found).replace(meta={**clip.meta, "annotation": annotation})


def _build(config: AnnotateConfig, store: ClipStore, clips: int, counts: dict[str, Counter[str]]) -> BuildResult:
    out = Path(config.out)
    if config.retry_failed:
        # The finished store is made from <out>/work alone; what it said of failed clips may have changed.
        for path in (out / MANIFEST_NAME, *out.glob("shard-*.tar"), *out.glob("shard-*.json")):
            path.unlink(missing_ok=True)
    runner = StageRunner(STAGES[-1], config, store.manifest_sha256)
    settings = {
        "source": {"kind": store.manifest.get("kind"), "manifest_sha256": store.manifest_sha256},
        "backends": {stage: config.backend(stage) for stage in STAGES},
        "stage_hashes": runner.hashes,
        "outcomes": {stage: dict(sorted(counts[stage].items())) for stage in STAGES},
    }
    return build_store(
        out,
        _Assemble(config=config, store=store),
        kind=KIND,
        seed=config.seed,
        settings=settings,
        versions={name: _version(name) for name in _PACKAGES},
        n_clips=clips,
        clips_per_shard=config.clips_per_shard,
        # On a cluster this machine only packs what the others made.
        workers=config.workers if config.launcher == "local" else 1,
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _print_summary(config: AnnotateConfig, counts: dict[str, Counter[str]], result: BuildResult, out: Path) -> None:
    table = Table("stage", "back-end", "done", "skipped", "reasons")
    for stage in STAGES:
        reasons = sorted((-count, reason) for reason, count in counts[stage].items() if reason != "done")
        table.add_row(
            stage,
            config.backend(stage),
            str(counts[stage]["done"]),
            str(-sum(count for count, _ in reasons)),
            "\n".join(f"{reason} ({-count})" for count, reason in reasons),
        )
    console = Console()
    console.print(table)
    console.print(
        f"{result.clips} clips in {result.shards} shards, {result.bytes / 1e6:.1f} MB, in {out}\n"
        f"masks as COCO run lengths: {out / 'work' / 'track'}\nlook at them: egoarm clips info {out}",
        soft_wrap=True,
    )
