"""The token store: what the tokenizers made of a clip store, read back at random.

    <root>/<modality>/shard-000000.tar      see pretrain.egom2p.token_shards
    <root>/manifest.json                    written last: which tokenizers (by hash), grids, shards, and which clips lack what

A clip that lacks a modality has no member in that modality's tars, and the manifest says so; any other gap is damage. The
authors' own shards, <root>/<modality>/<data set>/shard-000000.tar without a manifest, are read too, a store a data set.

The first opening checks every tar and packs the ids into <root>/.packed (or, where that cannot be written, under
~/.cache/egoarm); after that opening takes milliseconds and reading a clip some ten microseconds.

Axes: N tokens of a clip.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from pretrain.egom2p.modalities import TokenGrid, require_modalities
from pretrain.egom2p.token_shards import REMEDY, Packed, ShardGroup, open_packed, pack

if TYPE_CHECKING:
    from pretrain.egom2p.tokenizers.tokenizer import Tokenizer, TokenizerSpec

FORMAT = "egoarm-tokens"
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
PACKED_DIRECTORY = ".packed"
_AUTHORS_REMEDY = "get it again, or leave that modality out of the data set's"
# Folders of the authors that have another name than the modality.
_AUTHORS_FOLDERS = {"camera": ("camera", "cam")}


def open_tokens(path: str | os.PathLike[str]) -> "TokenStore":
    """Opens a directory that `egoarm tokenize store` made.

    Raises:
        FileNotFoundError: no such directory, or no manifest in it.
        ValueError: a manifest that is damaged or of another format version, or a tar that is missing, truncated or damaged,
            has other stems than it should or ids outside the vocabulary: one line with file and remedy.
    """
    root = Path(path)
    manifest, sha256 = _read_manifest(root)
    try:
        grids = {
            name: TokenGrid(shape=tuple(entry["grid"]), vocabulary=entry["vocabulary"])
            for name, entry in manifest["modalities"].items()
        }
        require_modalities(grids, "modalities")
        tokenizers = {name: str(entry["tokenizer_sha256"]) for name, entry in manifest["modalities"].items()}
        groups = [_group(root, grids, shard) for shard in manifest["shards"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{root / MANIFEST_NAME}: damaged ({type(error).__name__}: {error}); make the store again in a new directory"
        ) from None
    packed = _packed(root, "tokens", sha256, groups, grids, REMEDY)
    return TokenStore(
        path=root,
        name=root.name,
        grids=grids,
        tokenizers=tokenizers,
        only_input=(),
        manifest=manifest,
        manifest_sha256=sha256,
        packed=packed,
    )


@dataclass(frozen=True, kw_only=True)
class AuthorsDataSet:
    """One data set of the authors' layout.

    Attributes:
        name: its folder under each modality's.
        modalities: which of them it has.
        only_input: of these, the ones that are given to the model but never asked of it, as the gray rgb of HOT3D's Quest.
    """

    name: str
    modalities: tuple[str, ...]
    only_input: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.modalities:
            raise ValueError(f"data set {self.name!r}: expected at least one modality")
        require_modalities(self.modalities, f"data set {self.name!r}")
        if surplus := [name for name in self.only_input if name not in self.modalities]:
            raise ValueError(
                f"data set {self.name!r}: only_input has {surplus[0]!r}, which is not among its modalities"
            )


def open_authors_tokens(
    root: str | os.PathLike[str], data_sets: Sequence[AuthorsDataSet], grids: Mapping[str, TokenGrid]
) -> "tuple[TokenStore, ...]":
    """Opens <root>/<modality>/<data set>/[token/]shard-*.tar, a store a data set; camera's folder may be called cam.

    Taken together, each clip as likely as any other, they are the published mixture, whose weights are the data sets' shares
    of clips.

    Raises:
        FileNotFoundError: a folder without shards.
        ValueError: as `open_tokens`; or the modalities of a data set differ in shards or stems.
    """
    return tuple(_open_authors(Path(root), data_set, grids) for data_set in data_sets)


class TokenStore:
    """The tokens of many clips at random. Picklable; each process maps the files for itself.

    Attributes:
        path: its directory; name: of the store, or of the data set in it.
        grids: modality -> geometry and vocabulary; tokenizers: modality -> sha256 of the weights that made its ids (empty for
            the authors' shards, which do not say).
        only_input: modalities that are not to be asked of the model.
        manifest: the parsed manifest.json; empty for the authors'.
        manifest_sha256: names the data: sha256 of the manifest, or of the tars where there is none.
    """

    def __init__(
        self,
        *,
        path: Path,
        name: str,
        grids: dict[str, TokenGrid],
        tokenizers: dict[str, str],
        only_input: tuple[str, ...],
        manifest: dict[str, Any],
        manifest_sha256: str,
        packed: "tuple[Path, Packed]",
    ) -> None:
        self.path, self.name = path, name
        self.grids, self.tokenizers, self.only_input = grids, tokenizers, only_input
        self.manifest, self.manifest_sha256 = manifest, manifest_sha256
        self._packed_path = packed[0]
        self._packed: Packed | None = packed[1]
        self._length = len(packed[1].stems)

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"TokenStore({str(self.path)!r}, {self.name!r}, {len(self)} clips, {', '.join(self.grids)})"

    def read(self, index: int, modalities: Sequence[str] | None = None) -> dict[str, Int64[np.ndarray, " N"]]:
        """Ids of one clip, flat, row by row of the grid; a modality that the clip lacks is absent.

        Args:
            index: 0 to len - 1.
            modalities: which; None = all that the clip has.

        Raises:
            IndexError: no such clip.
            ValueError: a modality that the store does not have.
        """
        packed = self._opened(index)
        names = self.grids if modalities is None else modalities
        for name in names:
            if name not in self.grids:
                raise ValueError(f"{self.path}: no tokens of {name!r}; it has {', '.join(self.grids)}")
        found = ((name, packed.row(name, index)) for name in names)
        return {name: ids for name, ids in found if ids is not None}

    def key(self, index: int) -> str:
        """The clip's stem: the key of the clip it was made of, with -0, -1, ... where that gave several."""
        return self._opened(index).stems[index]

    def has(self, index: int) -> tuple[str, ...]:
        """The modalities that a clip has."""
        packed = self._opened(index)
        return tuple(name for name in self.grids if packed.rows[name][index] >= 0)

    def clips_with(self, modality: str) -> int:
        """How many clips have it."""
        return int((self._opened(0).rows[modality] >= 0).sum()) if len(self) else 0

    def _opened(self, index: int) -> Packed:
        if not 0 <= index < max(1, self._length):
            raise IndexError(f"clip {index} of {self.path}: it has clips 0 to {self._length - 1}")
        if self._packed is None:
            self._packed = open_packed(self._packed_path, self.grids)
            if self._packed is None:
                raise ValueError(
                    f"{self._packed_path}: the packed tokens of {self.path} are gone; open the store again"
                )
        return self._packed

    def __getstate__(self) -> dict[str, Any]:
        # A pickled map would carry the tokens themselves.
        return {**self.__dict__, "_packed": None}


def require_tokenizers(store: TokenStore, tokenizers: "Iterable[Tokenizer]") -> None:
    """Checks that the store's ids of each modality that these tokenizers are for were made by them.

    A modality that only one side has is not looked at. The authors' shards do not say which tokenizer made them: of these
    the geometry alone is compared.

    Raises:
        ValueError: the ids have another geometry or were made by other weights, or two tokenizers are for one modality.
    """
    seen: set[str] = set()
    for spec in (tokenizer.spec for tokenizer in tokenizers):
        for name in spec.modalities:
            if name in seen:
                raise ValueError(f"tokenizers: two of them are for {name} (one is {spec.name!r}); give one a modality")
            seen.add(name)
            if name in store.grids:
                _require(store, name, spec)


def _require(store: TokenStore, name: str, spec: "TokenizerSpec") -> None:
    theirs = store.grids[name]
    if spec.grid != theirs:
        raise ValueError(
            f"{store.path}: {name} has a grid of {theirs.shape} ids of {theirs.vocabulary}, tokenizer {spec.name!r} gives "
            f"{spec.grid.shape} of {spec.grid.vocabulary}: take the tokenizer that made the store"
        )
    sha256 = store.tokenizers.get(name)
    if sha256 is not None and sha256 != spec.weights_sha256:
        raise ValueError(
            f"{store.path}: the {name} tokens were made by the tokenizer with sha256 {sha256[:16]}..., tokenizer "
            f"{spec.name!r} has {spec.weights_sha256[:16]}...: take that one, or make the store again with this one"
        )


# ------------------------------------------------------------------------------------------------------------- opening


def _read_manifest(root: Path) -> tuple[dict[str, Any], str]:
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such token store; make one with: egoarm tokenize store out={root}")
    path = root / MANIFEST_NAME
    if not path.is_file():
        unfinished = next(root.glob("*/shard-*.tar"), None) is not None
        state = f"shards but no {MANIFEST_NAME}: it was not finished" if unfinished else f"no {MANIFEST_NAME}"
        raise FileNotFoundError(f"{root}: {state}; run the egoarm tokenize store command that makes it (again)")
    data = path.read_bytes()
    remedy = "restore it, or make the store again in a new directory"
    try:
        manifest = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); {remedy}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: not the manifest of a token store (no format {FORMAT!r}); {remedy}")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version is {manifest.get('format_version')!r}, this EgoArm reads {FORMAT_VERSION}; read it "
            "with the EgoArm that made it, or make the store again in a new directory"
        )
    return manifest, hashlib.sha256(data).hexdigest()


def _group(root: Path, grids: Mapping[str, TokenGrid], shard: Mapping[str, Any]) -> ShardGroup:
    """One shard of the manifest. Sizes are compared here, so that a cut file is found at each opening."""
    tars, sha256 = {}, {}
    for name in grids:
        path, entry = root / name / Path(shard["name"]).name, shard["tars"][name]
        if not path.is_file():
            raise ValueError(f"{path}: this shard of the manifest is missing; {REMEDY}")
        size = path.stat().st_size
        if size != entry["bytes"]:
            state = "truncated" if size < entry["bytes"] else "too long"
            raise ValueError(f"{path}: {state}: {size} bytes, the manifest says {entry['bytes']}; {REMEDY}")
        tars[name], sha256[name] = path, entry["sha256"]
    missing = {
        name: frozenset(stem for stems in reasons.values() for stem in stems)
        for name, reasons in shard["missing"].items()
    }
    return ShardGroup(tars=tars, stems=tuple(shard["stems"]), missing=missing, sha256=sha256)


def _open_authors(root: Path, data_set: AuthorsDataSet, grids: Mapping[str, TokenGrid]) -> TokenStore:
    if lacking := [name for name in data_set.modalities if name not in grids]:
        raise ValueError(f"data set {data_set.name!r}: no grid given for {lacking[0]!r}; give one for each modality")
    found = {name: _authors_tars(root, name, data_set.name) for name in data_set.modalities}
    first, *others = data_set.modalities
    names = [path.name for path in found[first]]
    for other in others:
        if (theirs := [path.name for path in found[other]]) != names:
            odd = sorted(set(names) ^ set(theirs))[0]
            raise ValueError(
                f"{found[other][0].parent}: {len(theirs)} shards, {found[first][0].parent} has {len(names)} (differing in "
                f"{odd}): the modalities of a data set need the same shards; {_AUTHORS_REMEDY}"
            )
    groups = [
        ShardGroup(tars=dict(zip(found, paths, strict=True)), stems=None, missing={}, sha256={})
        for paths in zip(*found.values(), strict=True)
    ]
    chosen = {name: grids[name] for name in data_set.modalities}
    described = [
        [str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns]
        for paths in found.values()
        for path in paths
    ]
    vocabularies = {name: grid.vocabulary for name, grid in chosen.items()}
    key = hashlib.sha256(json.dumps([described, vocabularies]).encode()).hexdigest()
    packed = _packed(root, data_set.name, key, groups, chosen, _AUTHORS_REMEDY)
    return TokenStore(
        path=root,
        name=data_set.name,
        grids=chosen,
        tokenizers={},
        only_input=data_set.only_input,
        manifest={},
        manifest_sha256=packed[1].content_sha256,
        packed=packed,
    )


def _authors_tars(root: Path, modality: str, data_set: str) -> list[Path]:
    for folder in _AUTHORS_FOLDERS.get(modality, (modality,)):
        for place in (root / folder / data_set, root / folder / data_set / "token"):
            if found := sorted(place.glob("shard-*.tar")):
                return found
    raise FileNotFoundError(
        f"{root / modality / data_set}: no shard-*.tar there: expected <root>/<modality>/<data set>/shard-000000.tar; get it, "
        f"or leave {modality} out of this data set's modalities"
    )


def _packed(
    root: Path, name: str, key: str, groups: Sequence[ShardGroup], grids: Mapping[str, TokenGrid], remedy: str
) -> tuple[Path, Packed]:
    """The packed ids of these tars, made now unless they are there."""
    place = root / PACKED_DIRECTORY
    if not os.access(root, os.W_OK):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        place = cache / "egoarm" / "tokens" / hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    directory = place / f"{name}-{key[:16]}"
    if (packed := open_packed(directory, grids)) is not None:
        return directory, packed
    place.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place, os.O_RDONLY)
    try:
        # Processes that open a store together wait for the one that packs it.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if (packed := open_packed(directory, grids)) is None:
            pack(directory, groups, grids, remedy=remedy)
            packed = open_packed(directory, grids)
            for old in place.glob(f"{name}-{'?' * 16}"):
                if old != directory:
                    shutil.rmtree(old, ignore_errors=True)
    finally:
        os.close(descriptor)
    assert packed is not None, f"{directory} was packed just now"
    return directory, packed
