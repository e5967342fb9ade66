"""Reading a store of clips: at random from a directory, or as a stream for many nodes."""

import hashlib
import json
import os
import random
import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, BinaryIO

from pretrain.clips.codec import DamagedMemberError, decode_clip
from pretrain.clips.schema import Clip
from pretrain.clips.shards import FORMAT, FORMAT_VERSION, MANIFEST_NAME, ShardEntry, sha256_file

_REMEDY = "delete that shard and run the command that made the store again (it remakes only what is missing)"
# How many clips are looked at for one that lacks nothing.
_LOOKED_AT, _LOOKED_AT_A_SHARD = 256, 8


@dataclass(frozen=True)
class _ClipIndex:
    """Where the members of one clip are in a tar: name without key -> (offset, bytes)."""

    key: str
    members: dict[str, tuple[int, int]]


def open_store(path: str | os.PathLike[str]) -> "ClipStore":
    """Opens a directory of shards and checks that each shard of its manifest is there with its size.

    The contents are not hashed; :meth:`ClipStore.verify` does that.

    Raises:
        FileNotFoundError: no such directory, or no manifest in it.
        ValueError: not a manifest of this format version; a missing or truncated shard, naming it and the remedy.
    """
    return ClipStore(path)


class ClipStore:
    """Random access to the clips of a store. Picklable; each process opens the shards for itself when it reads.

    Attributes:
        path: the directory.
        manifest: the parsed ``manifest.json``.
        manifest_sha256: hex sha256 of its bytes, which names the data: it covers each shard's sha256.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.manifest, self.shards, self.manifest_sha256 = read_manifest(self.path)
        self._ends = list(accumulate(entry.clips for entry in self.shards))
        self._check_sizes()
        self._indices: dict[int, list[_ClipIndex]] = {}
        self._files: dict[int, BinaryIO] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __repr__(self) -> str:
        return f"ClipStore({str(self.path)!r}, {len(self)} clips, {len(self.shards)} shards)"

    @property
    def keys(self) -> list[str]:
        """The keys of all clips in order. Scans the headers of every shard once."""
        return [clip.key for shard in range(len(self.shards)) for clip in self._index(shard)]

    def read(
        self,
        index: int,
        fields: Sequence[str] | None = None,
        *,
        frames: Sequence[int] | None = None,
        missing_ok: bool = False,
    ) -> Clip:
        """Decodes the asked fields of one clip; the others are None or empty.

        Args:
            index: 0 to len - 1.
            fields: names of Clip fields, or the groups "text" and "camera"; None = all that the clip has.
            frames: which video frames to decode, for rgb, rgb_times_s, depth, segmentation and contact; None = all.
            missing_ok: an asked field that the clip does not have is None, as a clip may lack what others of its store have.

        Raises:
            IndexError: no such clip.
            ValueError: an unknown field, one that the clip does not have, or a damaged shard, naming the member.
        """
        shard, within = self._locate(index)
        clip = self._index(shard)[within]

        def read_member(name: str) -> bytes:
            if name not in clip.members:
                raise DamagedMemberError(f"member {clip.key}.{name} is missing")
            offset, size = clip.members[name]
            data = os.pread(self._file(shard).fileno(), size, offset)
            if len(data) != size:
                raise DamagedMemberError(f"member {clip.key}.{name} ends early: {len(data)} of {size} bytes")
            return data

        try:
            return decode_clip(clip.key, read_member, tuple(clip.members), fields, frames, missing_ok)
        except DamagedMemberError as error:
            raise ValueError(f"{self.path / self.shards[shard].name}: {error}; {_REMEDY}") from None

    def verify(self) -> None:
        """Compares the sha256 of every shard with the manifest.

        Raises:
            ValueError: names each shard that differs, and the remedy.
        """
        self._check_sizes()
        damaged = [entry.name for entry in self.shards if sha256_file(self.path / entry.name) != entry.sha256]
        if damaged:
            raise ValueError(f"{self.path}: {', '.join(damaged)} damaged: the sha256 is not the manifest's; {_REMEDY}")

    def close(self) -> None:
        """Closes the files of this process; reading opens them again."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def _check_sizes(self) -> None:
        for entry in self.shards:
            path = self.path / entry.name
            if not path.is_file():
                raise ValueError(f"{path}: this shard of the manifest is missing; {_REMEDY}")
            size = path.stat().st_size
            if size != entry.bytes:
                state = "truncated" if size < entry.bytes else "too long"
                raise ValueError(f"{path}: {state}: {size} bytes, the manifest says {entry.bytes}; {_REMEDY}")

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {self.path}: it has clips 0 to {len(self) - 1}")
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard] - self.shards[shard].clips)

    def _index(self, shard: int) -> list[_ClipIndex]:
        if shard not in self._indices:
            entry = self.shards[shard]
            try:
                index = scan_tar(self.path / entry.name)
            except (tarfile.TarError, ValueError, OSError) as error:
                raise ValueError(f"{self.path / entry.name}: not a readable tar ({error}); {_REMEDY}") from None
            if len(index) != entry.clips:
                raise ValueError(
                    f"{self.path / entry.name}: holds {len(index)} clips, the manifest says {entry.clips}; {_REMEDY}"
                )
            self._indices[shard] = index
        return self._indices[shard]

    def _file(self, shard: int) -> BinaryIO:
        # A forked DataLoader worker inherits the parent's files; pread has no position to share, so this is safe, but
        # the worker's own files keep closing in one process from surprising another.
        if self._process != os.getpid():
            self._files, self._process = {}, os.getpid()
        if shard not in self._files:
            self._files[shard] = (self.path / self.shards[shard].name).open("rb")
        return self._files[shard]


def scan_tar(path: Path) -> list[_ClipIndex]:
    """Reads the headers of a tar, not its data, and groups the members by clip, in order.

    Raises:
        ValueError: a member that is no plain file or has no extension, or a clip whose members are not together.
        tarfile.TarError: not a tar, or one that ends early.
    """
    clips: list[_ClipIndex] = []
    seen: set[str] = set()
    with tarfile.open(path, mode="r:") as tar:
        for member in tar:
            key, dot, name = member.name.partition(".")
            if not member.isfile() or not dot or "/" in key:
                raise ValueError(f"member {member.name!r} is not a plain file KEY.NAME")
            if not clips or clips[-1].key != key:
                if key in seen:
                    raise ValueError(f"members of clip {key!r} are not together")
                seen.add(key)
                clips.append(_ClipIndex(key, {}))
            clips[-1].members[name] = (member.offset_data, member.size)
    return clips


def read_typical(directory: Path, entries: Sequence[ShardEntry]) -> Clip:
    """The first clip of some shards, or where it lacks a modality (its ``meta["dropped"]`` says so) the first that lacks none; if
    each that is looked at lacks something, the one that has most."""
    best: Clip | None = None
    for clip in islice(_first_clips(directory, entries), _LOOKED_AT):
        lacks = len(clip.meta.get("dropped", {}))
        if best is None or lacks < len(best.meta["dropped"]):
            best = clip
        if not lacks:
            break
    assert best is not None
    return best


def _first_clips(directory: Path, entries: Sequence[ShardEntry]) -> Iterator[Clip]:
    """The first clips of each shard, in order."""
    for entry in entries:
        path = directory / entry.name
        for found in scan_tar(path)[:_LOOKED_AT_A_SHARD]:
            with path.open("rb") as file:
                members = {
                    name: os.pread(file.fileno(), size, offset) for name, (offset, size) in found.members.items()
                }
            yield decode_clip(found.key, members.__getitem__, tuple(members))


def stream(
    source: str | os.PathLike[str] | Sequence[str],
    *,
    fields: Sequence[str] | None = None,
    shuffle_shards: int | None = None,
    shuffle_clips: int = 0,
) -> Iterator[Clip]:
    """Reads clips in sequence, for training on many nodes or from object storage.

    Each node (torch.distributed rank) and each DataLoader worker gets its own shards, so a store needs at least as many
    shards as there are readers. Nothing is verified against a manifest.

    Args:
        source: a store's directory; or shard urls, as WebDataset takes them (also a brace pattern, or "pipe:...").
        fields: as for :meth:`ClipStore.read`.
        shuffle_shards: seed for the order of the shards (and of the clips, if mixed); None = in order.
        shuffle_clips: size of the buffer that mixes neighbouring clips; 0 = in order.

    Raises:
        ValueError: a damaged member, naming its shard; a directory that is no store.
    """
    # Imported here because it brings in torch.distributed, which plain reading does not need.
    import webdataset

    if isinstance(source, os.PathLike) or (isinstance(source, str) and os.path.isdir(source)):
        store = open_store(source)
        urls = [str(store.path / entry.name) for entry in store.shards]
    elif isinstance(source, str):
        urls = webdataset.shardlists.expand_urls(source)
    else:
        urls = list(source)
    if shuffle_shards is not None:
        # Every reader must see the same order, since each takes its own part of the list.
        random.Random(shuffle_shards).shuffle(urls)
    pipeline = webdataset.WebDataset(
        urls,
        shardshuffle=False,
        nodesplitter=webdataset.split_by_node,
        workersplitter=webdataset.split_by_worker,
        handler=webdataset.reraise_exception,
    )
    if shuffle_clips:
        pipeline = pipeline.shuffle(shuffle_clips, rng=random.Random(shuffle_shards))
    return (_decode_sample(sample, fields) for sample in pipeline)


def _decode_sample(sample: dict[str, Any], fields: Sequence[str] | None) -> Clip:
    members = {name: data for name, data in sample.items() if not name.startswith("__")}
    try:
        return decode_clip(sample["__key__"], members.__getitem__, tuple(members), fields)
    except DamagedMemberError as error:
        raise ValueError(f"{sample['__url__']}: {error}; {_REMEDY}") from None


def read_manifest(path: Path) -> tuple[dict[str, Any], list[ShardEntry], str]:
    """The manifest of a store, its shards, and the sha256 of its bytes.

    Raises:
        FileNotFoundError: no such directory, or no manifest in it.
        ValueError: not a manifest, a damaged one, or one of another format version.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such clip store; make one with: egoarm clips synth out={path}")
    manifest_path = path / MANIFEST_NAME
    if not manifest_path.is_file():
        n_shards = len(list(path.glob("shard-*.tar")))
        state = f"{n_shards} shards but no {MANIFEST_NAME}: it was not finished" if n_shards else f"no {MANIFEST_NAME}"
        raise FileNotFoundError(f"{path}: {state}; run the egoarm clips command that makes it (again)")
    data = manifest_path.read_bytes()
    manifest, shards = _parse_manifest(manifest_path, data)
    return manifest, shards, hashlib.sha256(data).hexdigest()


def _parse_manifest(manifest_path: Path, data: bytes) -> tuple[dict[str, Any], list[ShardEntry]]:
    remedy = "restore it, or make the store again in a new directory"
    try:
        manifest = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{manifest_path}: not JSON ({error}); {remedy}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{manifest_path}: not the manifest of a clip store (no format {FORMAT!r}); {remedy}")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{manifest_path}: format_version is {version!r}, this EgoArm reads {FORMAT_VERSION}; "
            "read it with the EgoArm that made it, or make the store again in a new directory"
        )
    try:
        shards = [ShardEntry(**entry) for entry in manifest["shards"]]
        for entry in shards:
            if Path(entry.name).name != entry.name or not isinstance(entry.bytes, int) or not entry.clips > 0:
                raise ValueError(f"bad entry {entry}")
        totals = sum(entry.clips for entry in shards)
        if totals != manifest["totals"]["clips"]:
            raise ValueError(f"the shards hold {totals} clips, totals says {manifest['totals']['clips']}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{manifest_path}: damaged ({type(error).__name__}: {error}); {remedy}") from None
    return manifest, shards
