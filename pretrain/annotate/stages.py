"""The stages of the pipeline for one clip, and the files in which each leaves what it found.

<out>/work/<stage>/<key>.json (depth: .npz) is written whole or not at all. It carries the hash of everything that decided
it (the settings of its stage and of those before, and the source store), so a file of another run is never taken for ours.
"""

import dataclasses
import hashlib
import io
import json
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.annotate.config import STAGES, AnnotateConfig
from pretrain.annotate.depth import DEPTH_TEACHERS, estimate_depth
from pretrain.annotate.detect import DETECTORS, first_contact, valid_boxes
from pretrain.annotate.records import Captions, Detection, Detections, Scene, StageFailed, Track
from pretrain.annotate.track import TRACKERS, contacts, paint, without_twins
from pretrain.annotate.writers import PROMPTS
from pretrain.artifact import atomic_write_bytes
from pretrain.clips.codec import depth_from_mm, depth_to_mm
from pretrain.clips.schema import LEFT_HAND_ID, RIGHT_HAND_ID, Clip
from pretrain.clips.store import ClipStore, open_store

# Raised when a change of the code changes what a stage finds.
_REVISIONS = {"depth": 1, "detect": 1, "track": 1, "generate": 1}
# The settings that decide what a stage finds, beside its back-end; the caption writers' own are all but these.
_WRITER_LOGISTICS = ("device", "api_key_env", "timeout_s", "retries", "backoff_s")
_SETTINGS = {
    "depth": ("depth_weights", "align_depth"),
    "detect": ("detect_weights", "detections", "detect_threshold", "detect_nms"),
    "track": ("track_weights",),
    "generate": ("seed",),
}


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """What a stage left for one clip: `result` if it is done, else the `reason`, and the captions that were turned down on
    the way to it, by why."""

    result: dict[str, Any] | None
    reason: str | None
    rejected: Mapping[str, int]

    @property
    def done(self) -> bool:
        return self.result is not None


def backend_table(stage: str) -> Mapping[str, Any]:
    """name -> back-end, of a stage."""
    if stage == "generate":
        from pretrain.annotate.generate import CAPTION_WRITERS

        return dict.fromkeys(CAPTION_WRITERS)
    return {"depth": DEPTH_TEACHERS, "detect": DETECTORS, "track": TRACKERS}[stage]


def make_backend(stage: str, config: AnnotateConfig) -> Any:
    """The back-end of a stage, its weights not yet loaded where it has a `load`.

    Raises:
        ValueError: no such back-end, or weights that are not there.
    """
    name, table = config.backend(stage), backend_table(stage)
    if name not in table:
        raise ValueError(f"{stage}={name!r}: no such back-end; there is: {', '.join(table)}")
    if stage == "generate":
        from pretrain.annotate.generate import make_writer

        return make_writer(name, dataclasses.replace(config.writer, device=config.device))
    return table[name](config)


def stage_hash(stage: str, config: AnnotateConfig, manifest_sha256: str) -> str:
    """Names everything that decides what a stage finds."""
    document: dict[str, Any] = {"store": manifest_sha256}
    for before in STAGES[: STAGES.index(stage) + 1]:
        document[before] = {
            "backend": config.backend(before),
            "revision": _REVISIONS[before],
            **{name: getattr(config, name) for name in _SETTINGS[before]},
        }
        if before == "generate":
            writer = dataclasses.asdict(config.writer)
            document["writer"] = {name: value for name, value in writer.items() if name not in _WRITER_LOGISTICS}
            prompt = Path(config.writer.prompt or PROMPTS)
            document["prompt"] = [path.read_text("utf-8") for path in sorted(prompt.glob("*.txt"))]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


class StageRunner:
    """Runs one stage, clip by clip. Picklable; each process makes and loads the back-end for itself at its first clip."""

    def __init__(self, stage: str, config: AnnotateConfig, manifest_sha256: str) -> None:
        self.stage, self.config = stage, config
        self.hashes = {name: stage_hash(name, config, manifest_sha256) for name in STAGES}

    def __call__(self, index: int) -> str | None:
        """Does one clip; returns the reason if the stage could not.

        Raises:
            ValueError: the weights cannot be loaded, the source store is damaged, or the disk is full.
        """
        store, backend = _open_store(self.config.store), self._backend()
        clip = store.read(index)
        try:
            result = self._run(clip, index, backend)
        except StageFailed as error:
            result = {"reason": str(error), "rejected": getattr(error, "rejected", {})}
        except Exception as error:  # any fault of a back-end must cost one clip, not the run
            result = {"reason": f"crashed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"}
            print(f"\n{self.stage}, clip {clip.key}:\n{traceback.format_exc()}", file=sys.stderr)
        write_record(self._path(self.stage, clip.key), self.hashes[self.stage], result)
        return result.get("reason")

    def read(self, stage: str, key: str) -> StageRecord | None:
        """What a stage left for a clip; None if it did not do it yet, or under other settings."""
        return read_record(self._path(stage, key), self.hashes[stage])

    def _path(self, stage: str, key: str) -> Path:
        return work_path(self.config, stage, key)

    def _backend(self) -> Any:
        name = self.hashes[self.stage]
        if name not in _backends:
            _backends.clear()  # the model of the stage before is wanted no more
            backend = make_backend(self.stage, self.config)
            if hasattr(backend, "load"):
                backend.load()
            _backends[name] = backend
        return _backends[name]

    def _run(self, clip: Clip, index: int, backend: Any) -> dict[str, Any]:
        if clip.rgb is None:
            raise StageFailed("the clip has no video")
        return getattr(self, f"_{self.stage}")(clip, index, backend)

    def _depth(self, clip: Clip, index: int, teacher: Any) -> dict[str, Any]:
        depth = estimate_depth(clip, teacher, align=self.config.align_depth)
        return {"metric": teacher.metric, "depth_mm": depth_to_mm(depth)}

    def _detect(self, clip: Clip, index: int, detector: Any) -> dict[str, Any]:
        assert clip.rgb is not None
        frames, height, width = clip.rgb.shape[:3]
        detections, boxes = valid_boxes(detector.detect(clip), height, width, frames)
        first_contact(detections)
        return {"detections": detections_to_json(detections), "boxes": boxes}

    def _track(self, clip: Clip, index: int, tracker: Any) -> dict[str, Any]:
        detections = self._needed("detect", clip.key)
        depth = self.read("depth", clip.key)
        # The tracker sees the depth stage's depth, if there is one.
        clip = clip.replace(depth=depth_from_mm(depth.result["depth_mm"]) if depth and depth.result else None)
        tracks = without_twins(tracker.track(clip, detections_from_json(detections["detections"])))
        return {"tracks": [track.to_json() for track in tracks]}

    def _generate(self, clip: Clip, index: int, writer: Any) -> dict[str, Any]:
        from pretrain.annotate.generate import caption_scene

        found = {stage: self._needed(stage, clip.key) for stage in STAGES[:-1]}
        if not clip.narration.strip():
            raise StageFailed("the narration is empty")
        annotated = with_stages(clip, found)
        metric = bool(found["depth"]["metric"])
        assert annotated.depth is not None
        known = annotated.depth > 0
        scene = Scene(
            clip=annotated,
            detections=detections_from_json(found["detect"]["detections"]),
            tracks=tracks_from_json(found["track"]["tracks"]),
            depth_m=annotated.depth if metric else None,
            depth_inverse=None if metric else np.where(known, 1 / np.where(known, annotated.depth, 1), np.nan),
        )
        captions: Captions = caption_scene(scene, writer, seed=self.config.seed * 1_000_003 + index)
        return {
            "captions": list(captions.captions),
            "facts": list(captions.facts),
            "rejected": dict(captions.rejected),
        }

    def _needed(self, stage: str, key: str) -> dict[str, Any]:
        record = self.read(stage, key)
        if record is None or record.result is None:
            raise StageFailed(f"{stage} failed")
        return record.result


_backends: dict[str, Any] = {}
_stores: dict[str, ClipStore] = {}


def _open_store(path: str) -> ClipStore:
    if path not in _stores:
        _stores[path] = open_store(path)
    return _stores[path]


def with_stages(clip: Clip, found: Mapping[str, Mapping[str, Any] | None]) -> Clip:
    """A clip with what the stages found in place of its own depth, masks, contacts, captions and facts.

    A depth stage that failed gives depth that is nowhere known (0), so that every clip of the store has depth; a failed
    track stage gives neither masks nor contacts; a failed generate stage leaves captions and facts as they were.
    """
    assert clip.rgb is not None
    frames, height, width = clip.rgb.shape[:3]
    depth, detect, track, generate = (found.get(stage) for stage in STAGES)
    changes: dict[str, Any] = {
        "depth": depth_from_mm(depth["depth_mm"]) if depth else np.zeros((frames, height, width), np.float32),
        "segmentation": None,
        "contact": None,
        "labels": {},
    }
    if track and detect:
        tracks = tracks_from_json(track["tracks"])
        changes["segmentation"] = paint(tracks, frames, height, width)
        changes["contact"] = contacts(detections_from_json(detect["detections"]), tracks, frames)
        changes["labels"] = {LEFT_HAND_ID: "left hand", RIGHT_HAND_ID: "right hand"} | {
            one.id: one.label for one in tracks
        }
    if generate:
        changes |= {"captions": tuple(generate["captions"]), "facts": tuple(generate["facts"])}
    return clip.replace(**changes)


def work_path(config: AnnotateConfig, stage: str, key: str) -> Path:
    """Where a stage leaves what it found for a clip."""
    return Path(config.out) / "work" / stage / f"{key}.{'npz' if stage == 'depth' else 'json'}"


def detections_to_json(detections: Detections) -> dict[str, Any]:
    return {str(frame): [one.to_json() for one in found] for frame, found in sorted(detections.items())}


def detections_from_json(document: Mapping[str, Any]) -> Detections:
    return {int(frame): tuple(map(Detection.from_json, found)) for frame, found in document.items()}


def tracks_from_json(document: Any) -> tuple[Track, ...]:
    return tuple(map(Track.from_json, document))


def write_record(path: Path, made_by: str, result: Mapping[str, Any]) -> None:
    """Writes what a stage found, or `{"reason": ...}`: arrays beside the JSON in one npz where the path says so."""
    plain = {name: value for name, value in result.items() if not isinstance(value, np.ndarray)}
    text = json.dumps({"made_by": made_by, **plain}, allow_nan=False)
    if path.suffix != ".npz":
        atomic_write_bytes(path, text.encode())
        return
    arrays = {name: value for name, value in result.items() if isinstance(value, np.ndarray)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, record=np.frombuffer(text.encode(), np.uint8), **arrays)
    atomic_write_bytes(path, buffer.getvalue())


def read_record(path: Path, made_by: str) -> StageRecord | None:
    """Reads what :func:`write_record` wrote; None where there is nothing, or something made in another way."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    arrays: dict[str, np.ndarray] = {}
    if path.suffix == ".npz":
        with np.load(io.BytesIO(data), allow_pickle=False) as members:
            arrays = dict(members)
        data = arrays.pop("record").tobytes()
    document = json.loads(data)
    if document.pop("made_by") != made_by:
        return None
    if "reason" in document:
        return StageRecord(result=None, reason=document["reason"], rejected=document.get("rejected", {}))
    return StageRecord(result={**document, **arrays}, reason=None, rejected=document.get("rejected", {}))
