"""Token shards: one tar stream a modality, the same stems in each, as the EgoM2P authors store theirs.

    <root>/<modality>/shard-000000.tar      members <stem>.npz, whose "arr_0" holds the ids in the shape of the grid

and, for reading at the pace of training, the same ids packed: one flat file a modality, a clip a row, mapped into memory
(a row of 5120 ids is there in some ten microseconds; opening an npz in a tar takes twenty times as long).

Axes: N tokens of a clip.
"""

import hashlib
import io
import json
import os
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64, Integer
from tqdm import tqdm

from pretrain.artifact import atomic_directory
from pretrain.clips.shards import atomic_file, sha256_file
from pretrain.egom2p.modalities import TokenGrid

ARRAY = "arr_0"
REMEDY = "delete that shard and run egoarm tokenize store again (it remakes only what is missing)"
_INDEX_FILE = "index.json"
_PACKED_VERSION = 1


# ------------------------------------------------------------------------------------------------------------ members


def dump_member(ids: Integer[np.ndarray, "..."]) -> bytes:
    """The npz of one clip's ids, which have the shape of their grid. Equal ids give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{ARRAY: ids.astype(np.int32)})
    return buffer.getvalue()


def parse_member(data: bytes, grid: TokenGrid) -> Integer[np.ndarray, " N"]:
    """Ids of one clip, flat.

    Raises:
        ValueError: not an npz with integers of the grid's shape (also flat, or with leading axes of 1), or ids outside the
            vocabulary; the text lacks the file, which the caller knows.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            ids = arrays[ARRAY]
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"is no npz with {ARRAY!r} ({type(error).__name__}: {error})") from None
    shape = ids.shape
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    if shape not in (grid.shape, (grid.tokens,)) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"is {ids.dtype}{list(ids.shape)}, expected whole numbers {list(grid.shape)}")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= grid.vocabulary:
        raise ValueError(
            f"holds id {low if low < 0 else high}, outside the vocabulary 0 to {grid.vocabulary - 1}: it was made by "
            "another tokenizer than its manifest (or the grid given) says"
        )
    return ids.reshape(-1)


# --------------------------------------------------------------------------------------------------------------- tars


@dataclass(frozen=True, kw_only=True)
class TarEntry:
    """What the manifest says of one modality's tar of a shard."""

    sha256: str
    bytes: int
    clips: int


def write_tar(path: Path, tokens: Iterable[tuple[str, Int32[np.ndarray, "..."]]]) -> TarEntry:
    """Writes (stem, ids in grid shape) pairs to a tar, whole or not at all; equal tokens give equal bytes."""
    clips = 0
    with atomic_file(path) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for stem, ids in tokens:
                data = dump_member(ids)
                member = tarfile.TarInfo(f"{stem}.npz")
                member.size, member.mode = len(data), 0o644
                tar.addfile(member, io.BytesIO(data))
                clips += 1
        file.flush()
        written = Path(file.name)
        entry = TarEntry(sha256=sha256_file(written), bytes=written.stat().st_size, clips=clips)
    return entry


def read_tar(path: Path, remedy: str) -> Iterator[tuple[str, bytes]]:
    """(stem, bytes) of each npz in a tar, in order. The stem is the name without folders and without ".npz".

    Raises:
        ValueError: a truncated or damaged tar, a member of another kind, or a stem that occurs twice.
    """
    seen: set[str] = set()
    try:
        with tarfile.open(path, mode="r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                stem = member.name.rpartition("/")[2].removesuffix(".npz")
                file = tar.extractfile(member)
                if file is None or not member.name.endswith(".npz") or stem in seen:
                    problem = "occurs twice" if stem in seen else "is not a file STEM.npz"
                    raise ValueError(f"{path}: member {member.name!r} {problem}; {remedy}")
                seen.add(stem)
                data = file.read()
                if len(data) != member.size:
                    raise tarfile.ReadError(f"member {member.name} ends early")
                yield stem, data
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{path}: truncated or damaged ({error}); {remedy}") from None


# ------------------------------------------------------------------------------------------------------------- packed


@dataclass(frozen=True, kw_only=True)
class ShardGroup:
    """The tars of one shard, one a modality.

    Attributes:
        tars: modality -> its tar.
        stems: the clips in order; None where there is no manifest, and every modality must have the same.
        missing: modality -> stems that have no member in its tar.
        sha256: modality -> of its tar; empty where there is no manifest.
    """

    tars: Mapping[str, Path]
    stems: tuple[str, ...] | None
    missing: Mapping[str, frozenset[str]]
    sha256: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A directory of packed tokens, opened.

    Attributes:
        stems: all clips, in order.
        rows: modality -> int32 [clips], the clip's row in `ids`, or -1.
        ids: modality -> [rows, N], mapped.
        content_sha256: over the sha256 of all tars.
    """

    stems: tuple[str, ...]
    rows: dict[str, Int32[np.ndarray, " clips"]]
    ids: dict[str, Integer[np.ndarray, "rows N"]]
    content_sha256: str

    def row(self, modality: str, index: int) -> Int64[np.ndarray, " N"] | None:
        """A clip's ids, or None."""
        row = self.rows[modality][index]
        return None if row < 0 else self.ids[modality][row].astype(np.int64)


def open_packed(directory: Path, grids: Mapping[str, TokenGrid]) -> Packed | None:
    """What `pack` made, or None where there is nothing whole of these grids."""
    try:
        index = json.loads((directory / _INDEX_FILE).read_bytes())
        if index["version"] != _PACKED_VERSION or index["tokens"] != {
            name: grid.tokens for name, grid in grids.items()
        }:
            return None
        stems = tuple(index["stems"])
        rows = {name: np.fromfile(directory / f"{name}.rows", "<i4") for name in grids}
        ids = {name: _map(directory / f"{name}.ids", grid) for name, grid in grids.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    for name in grids:
        if len(rows[name]) != len(stems) or int((rows[name] >= 0).sum()) != len(ids[name]):
            return None
    return Packed(stems=stems, rows=rows, ids=ids, content_sha256=index["content_sha256"])


def _map(path: Path, grid: TokenGrid) -> Integer[np.ndarray, "rows N"]:
    dtype = _packed_dtype(grid)
    count, rest = divmod(os.path.getsize(path), dtype.itemsize * grid.tokens)
    if rest:
        raise ValueError(f"{path}: not a whole number of rows")
    if not count:
        return np.zeros((0, grid.tokens), dtype)
    # A plain array over the map: indexing np.memmap itself costs more than the copy of a row.
    return np.asarray(np.memmap(path, dtype, mode="r", shape=(count, grid.tokens)))


def _packed_dtype(grid: TokenGrid) -> np.dtype:
    return np.dtype("<u2" if grid.vocabulary <= 1 << 16 else "<i4")


def pack(
    directory: Path, groups: Sequence[ShardGroup], grids: Mapping[str, TokenGrid], *, remedy: str = REMEDY
) -> None:
    """Reads every tar once, checks it, and writes its ids to `directory`, whole or not at all.

    Raises:
        ValueError: a damaged tar, stems that are not those of the other modalities (or of the manifest), a modality that is
            missing without being declared so, or ids outside the vocabulary; one line naming file and remedy.
    """
    stems: list[str] = []
    rows: dict[str, list[int]] = {name: [] for name in grids}
    content = hashlib.sha256()
    with atomic_directory(directory) as made:
        files = {name: (made / f"{name}.ids").open("wb") for name in grids}
        counts = dict.fromkeys(grids, 0)
        try:
            for group in tqdm(groups, desc="token shards", unit="shard", disable=None, leave=False):
                order = group.stems
                for name, path in group.tars.items():
                    members = dict(read_tar(path, remedy))
                    order = _agreed(group, name, order, tuple(members), remedy)
                    digest = sha256_file(path)
                    if group.sha256.get(name, digest) != digest:
                        raise ValueError(f"{path}: damaged: its sha256 is not the manifest's; {remedy}")
                    content.update(bytes.fromhex(digest))
                    for stem in order:
                        rows[name].append(counts[name] if stem in members else -1)
                        if stem in members:
                            files[name].write(_checked(path, stem, members[stem], grids[name], remedy))
                            counts[name] += 1
                stems.extend(order or ())
        finally:
            for file in files.values():
                file.close()
        for name, numbers in rows.items():
            np.asarray(numbers, "<i4").tofile(made / f"{name}.rows")
        stem, times = Counter(stems).most_common(1)[0] if stems else ("", 0)
        if times > 1:
            raise ValueError(
                f"{next(iter(groups[0].tars.values())).parent}: stem {stem!r} is in {times} shards; {remedy}"
            )
        index = {
            "version": _PACKED_VERSION,
            "tokens": {name: grid.tokens for name, grid in grids.items()},
            "content_sha256": content.hexdigest(),
            "stems": stems,
        }
        (made / _INDEX_FILE).write_text(json.dumps(index))


def _checked(path: Path, stem: str, data: bytes, grid: TokenGrid, remedy: str) -> bytes:
    try:
        return parse_member(data, grid).astype(_packed_dtype(grid)).tobytes()
    except ValueError as error:
        raise ValueError(f"{path}: member {stem}.npz {error}; {remedy}") from None


def _agreed(
    group: ShardGroup, name: str, order: tuple[str, ...] | None, found: tuple[str, ...], remedy: str
) -> tuple[str, ...]:
    """The shard's stems, if this tar has those that it should. Without a manifest the first tar says which."""
    path = group.tars[name]
    if order is None:
        return found
    expected = tuple(stem for stem in order if stem not in group.missing.get(name, ()))
    if found == expected:
        return order
    other = "the manifest" if group.stems is not None else str(next(iter(group.tars.values())))
    lacking, surplus = (
        [stem for stem in expected if stem not in found],
        [stem for stem in found if stem not in expected],
    )
    if lacking and not surplus and group.stems is not None:
        raise ValueError(
            f"{path}: {name} of {lacking[0]!r} is missing ({len(lacking)} in all), and {other} does not declare it so; "
            f"{remedy}"
        )
    if lacking or surplus:
        what = f"{lacking[0]!r} is not here" if lacking else f"{surplus[0]!r} is only here"
    else:
        what = "they come in another order"
    raise ValueError(f"{path}: its stems disagree with those of {other}: {what}; {remedy}")
