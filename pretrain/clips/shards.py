"""Writing shards: whole or not at all, and the same bytes for the same clips.

A store is a directory of ``shard-000000.tar``, ... and a ``manifest.json`` that is written last, so a directory with a
manifest is a finished store. Clips that could not be made are counted in the manifest by reason and listed in
``skipped.jsonl``; a shard of which no clip could be made has no tar and is not in the manifest's list. While it is being made, each finished shard has a sidecar ``shard-000000.json`` that says
which generator, settings and package versions made it; the manifest then takes its place.
"""

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pretrain.clips.codec import (
    DEPTH_MEMBER,
    JPEG_QUALITY,
    MAX_DEPTH_M,
    MOTION_MEMBER,
    RGB_MEMBER,
    SEGMENTATION_MEMBER,
    encode_clip,
)
from pretrain.clips.schema import Clip
from pretrain.clips.skipping import Skipped, count_reasons, dump_skipped

FORMAT = "egoarm-clips"
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
# pretrain.artifact has atomic writes too, but brings in torch, which would cost each worker process seconds and memory.
_TEMPORARY_PREFIX = ".egoarm-tmp-"


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """What the manifest says of one shard.

    ``duration_s`` adds up the clips whose frame times are known. ``dropped`` counts clips that lack a modality which others of their
    data set have, by "modality: reason", as their ``meta["dropped"]`` says.
    """

    name: str
    sha256: str
    bytes: int
    clips: int
    duration_s: float
    dropped: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Its fields; of ``dropped`` nothing where nothing is, as in stores that know no such thing."""
        fields = asdict(self)
        if not self.dropped:
            del fields["dropped"]
        return fields


def shard_name(index: int) -> str:
    return f"shard-{index:06d}.tar"


def sidecar_path(directory: Path, index: int) -> Path:
    return directory / f"shard-{index:06d}.json"


class ShardWriter:
    """Writes clips into one tar and gives it its name only when it is whole and on disk.

    Use as a context manager; when the block raises, nothing is left. After the block ``entry`` describes the shard.
    The tar holds no times, users or host names, so equal clips give equal bytes.

    Raises:
        ValueError: a clip whose content is wrong, or a key that the shard already has.
        OSError: the disk is full, or the like.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entry: ShardEntry | None = None
        self._keys: set[str] = set()
        self._duration_s = 0.0
        self._dropped: Counter[str] = Counter()

    def __enter__(self) -> "ShardWriter":
        self._context = atomic_file(self.path)
        self._file = self._context.__enter__()
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        return self

    def write(self, clip: Clip) -> None:
        if clip.key in self._keys:
            raise ValueError(f"clip key {clip.key!r} occurs twice in {self.path.name}; keys must be unique in a store")
        self._keys.add(clip.key)
        self._duration_s += clip.duration_s or 0.0
        self._dropped.update(f"{modality}: {reason}" for modality, reason in clip.meta.get("dropped", {}).items())
        for name, data in encode_clip(clip).items():
            member = tarfile.TarInfo(f"{clip.key}.{name}")
            member.size = len(data)
            member.mode = 0o644
            self._tar.addfile(member, io.BytesIO(data))

    def __exit__(self, error_type: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if error is None:
            try:
                self._tar.close()
                self._file.flush()
                self.entry = ShardEntry(
                    name=self.path.name,
                    sha256=sha256_file(Path(self._file.name)),
                    bytes=os.path.getsize(self._file.name),
                    clips=len(self._keys),
                    duration_s=round(self._duration_s, 6),
                    dropped=dict(sorted(self._dropped.items())),
                )
            except BaseException as closing_error:
                self._context.__exit__(type(closing_error), closing_error, closing_error.__traceback__)
                raise
        self._context.__exit__(error_type, error, traceback)


def make_manifest(
    *, identity: dict[str, Any], entries: list[ShardEntry], first_clip: Clip, skipped: dict[int, Skipped] | None = None
) -> dict[str, Any]:
    """The manifest of a finished store. Holds no times, host or paths: the same store gives the same bytes.

    Args:
        identity: what decides the content: kind, seed, clips_per_shard, generator settings and package versions.
        entries: the shards in order.
        first_clip: a whole clip, for the shapes that ``modalities`` lists; other clips may differ in length, and lack what their
            ``meta["dropped"]`` names.
        skipped: by index, the clips that could not be made; the manifest gets their number by reason, and the sha256 of
            the ``skipped.jsonl`` that lists them. Without any, it says nothing of them.
    """
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **identity,
        "modalities": describe_modalities(first_clip),
        "totals": {
            "clips": sum(entry.clips for entry in entries),
            "shards": len(entries),
            "bytes": sum(entry.bytes for entry in entries),
            "duration_s": round(sum(entry.duration_s for entry in entries), 6),
        },
        "shards": [entry.to_json() for entry in entries],
    }
    if dropped := count_dropped(entries):
        manifest["dropped"] = dropped
    if skipped:
        manifest["skipped"] = count_reasons(skipped.values())
        manifest["skipped_sha256"] = hashlib.sha256(dump_skipped(skipped)).hexdigest()
    return manifest


def count_dropped(entries: Iterable[ShardEntry]) -> dict[str, int]:
    """How many clips lack a modality and why, over some shards, the commonest first."""
    counts: Counter[str] = Counter()
    for entry in entries:
        counts.update(entry.dropped)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def describe_modalities(clip: Clip) -> dict[str, dict[str, Any]]:
    """Shape, dtype, unit and storage of each modality that a clip has."""
    notes: dict[str, dict[str, Any]] = {
        "rgb": {"unit": "RGB", "member": RGB_MEMBER, "codec": f"JPEG quality {JPEG_QUALITY} 4:4:4"},
        "rgb_times_s": {"unit": "s", "member": MOTION_MEMBER},
        "depth": {
            "unit": "m along the optical axis, 0 = not known",
            "member": DEPTH_MEMBER,
            "codec": "deflated differences of uint16 millimetres",
            "max_error_m": 0.0005,
            "max_m": MAX_DEPTH_M,
        },
        "segmentation": {"unit": "id, see labels", "member": SEGMENTATION_MEMBER},
        "contact": {"unit": "id touched by the left and the right hand, 0 = none", "member": MOTION_MEMBER},
        "intrinsics": {"unit": "px", "member": MOTION_MEMBER},
        "world_from_camera": {"unit": "m, OpenCV axes", "member": MOTION_MEMBER, "hz": float(clip.camera_hz)},
        "gaze": {"unit": "px of rgb, NaN = gap", "member": MOTION_MEMBER, "hz": float(clip.gaze_hz)},
        "hands": {
            "unit": "m in the world, left then right, NaN = not known",
            "member": MOTION_MEMBER,
            "hz": float(clip.hands_hz),
        },
    }
    described: dict[str, dict[str, Any]] = {}
    for name, note in notes.items():
        array = getattr(clip, name)
        if array is not None:
            described[name] = {"shape": list(array.shape), "dtype": str(array.dtype), **note}
    return described


def dump_json(value: dict[str, Any]) -> bytes:
    """Readable JSON with a fixed layout."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file beside ``path`` and renames it to ``path`` when the block ends well; else removes it.

    The data is on disk before the rename, so after a crash ``path`` is either whole or not there (or the older one).
    """
    temporary = path.with_name(f"{_TEMPORARY_PREFIX}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_json(path: Path, value: dict[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write(dump_json(value))


def sync_directory(directory: Path) -> None:
    """Makes renames in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporary_files(directory: Path) -> int:
    """Removes what a killed run left. Returns how many files. Only when no run is writing there."""
    left = sorted(directory.glob(f"{_TEMPORARY_PREFIX}*"))
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
