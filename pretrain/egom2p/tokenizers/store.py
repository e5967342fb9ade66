"""`egoarm tokenize store`: every clip of a store as tokens, one tar stream a modality (see pretrain.egom2p.tokens).

A shard of the clip store's order is one unit of work: its tars and then its sidecar `shard-000000.json` are written whole or
not at all, so a killed run goes on with the shards that have none. The manifest comes last and takes the sidecars' place.
"""

import fcntl
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pretrain.batches import stream_batches
from pretrain.clips.shards import remove_temporary_files, sha256_file, shard_name, sidecar_path, write_json
from pretrain.clips.store import ClipStore, open_store
from pretrain.egom2p.modalities import MODALITIES, ModalityMissing
from pretrain.egom2p.token_shards import write_tar
from pretrain.egom2p.tokenizers.tokenizer import Tokenizer, load_tokenizer
from pretrain.egom2p.tokens import FORMAT, FORMAT_VERSION, MANIFEST_NAME, TokenStore, open_tokens
from pretrain.egom2p.windows import cut_window, read_modalities, window_count
from pretrain.loop import ACCELERATORS

WINDOWS = ("all", "first")


@dataclass(frozen=True, kw_only=True)
class TokenStoreConfig:
    """Settings of `egoarm tokenize store`.

    Attributes:
        data: directory of a clip store; out: of the token store.
        tokenizers: directories of tokenizer artifacts; each gives the modalities it was trained for.
        windows: of a clip that is longer than two seconds: all that fit, side by side, or the first alone.
        clips_per_shard: of the clip store, in a tar; one shard is one unit of work.
        batch_size: clips encoded together.
        accelerator: auto, cpu, cuda or mps.
        threads: CPU threads of the arithmetic; 0 leaves torch's default.
        workers: processes that decode clips; 0 = a thread.
    """

    data: str
    out: str
    tokenizers: tuple[str, ...]
    windows: str = WINDOWS[0]
    clips_per_shard: int = 64
    batch_size: int = 8
    accelerator: str = "auto"
    threads: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("data", "out", "tokenizers"):
            if not getattr(self, name) or getattr(self, name) == "???":
                raise ValueError(f"{name}= is missing; egoarm tokenize store --help says what it is")
        if self.windows not in WINDOWS:
            raise ValueError(f"windows: expected one of {', '.join(WINDOWS)}, got {self.windows!r}")
        if self.accelerator not in ACCELERATORS:
            raise ValueError(f"accelerator: expected one of {', '.join(ACCELERATORS)}, got {self.accelerator!r}")
        for name, least in (("clips_per_shard", 1), ("batch_size", 1), ("threads", 0), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")


def run(config: TokenStoreConfig) -> None:
    """Makes, continues or checks the token store, and says what was made and where.

    Raises:
        FileNotFoundError: no clip store at config.data, or no tokenizer.
        ValueError: tokenizers that do not fit together, config.out holds tokens made in another way, another run writes
            there, or no clip gives any modality.
        KeyboardInterrupt: stopped; the same command goes on.
    """
    clips = open_store(config.data)
    by_modality = load_by_modality(config.tokenizers)
    out = Path(config.out)
    identity = {
        "clips_sha256": clips.manifest_sha256,
        "clips_per_shard": config.clips_per_shard,
        "windows": config.windows,
        "modalities": {
            name: {
                "grid": list(tokenizer.spec.grid.shape),
                "vocabulary": tokenizer.spec.grid.vocabulary,
                "tokenizer": tokenizer.spec.name,
                "tokenizer_sha256": tokenizer.spec.weights_sha256,
            }
            for name, tokenizer in by_modality.items()
        },
    }
    _refuse_foreign(out)
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with _exclusive(out):
        made = _make(config, clips, by_modality, identity)
    _tell(open_tokens(out), made, time.monotonic() - began)


def load_by_modality(directories: Sequence[str]) -> dict[str, Tokenizer]:
    """Modality -> its tokenizer, in the order of MODALITIES.

    Raises:
        FileNotFoundError, ValueError: as `load_tokenizer`; two tokenizers of one modality; one that takes another number of
            frames or samples than a two-second clip has.
    """
    found: dict[str, tuple[str, Tokenizer]] = {}
    for directory in directories:
        tokenizer = load_tokenizer(directory)
        for name in tokenizer.spec.modalities:
            if name in found:
                raise ValueError(f"tokenizers: both {found[name][0]} and {directory} are for {name}; give one of them")
            expected = MODALITIES[name].input_shape(image_size(tokenizer))
            if tokenizer.spec.input_shape != expected:
                raise ValueError(
                    f"tokenizers: {directory} takes {name} as {list(tokenizer.spec.input_shape)}, a two-second clip gives "
                    f"{list(expected)}: train one for it with egoarm tokenize train"
                )
            found[name] = (directory, tokenizer)
    return {name: found[name][1] for name in MODALITIES if name in found}


def image_size(tokenizer: Tokenizer) -> int:
    """S of a video tokenizer; 0 where there are no images."""
    shape = tokenizer.spec.input_shape
    return shape[-1] if len(shape) == 4 else 0


# -------------------------------------------------------------------------------------------------------------- making


class _LoadWindows:
    """Indices of clips (with an unused seed) to the arrays of their windows; picklable for worker processes.

    Gives "windows", a list of (stem, modality -> array, modality -> why it is missing), and "clips", how many were read.
    """

    def __init__(self, store: ClipStore, sizes: Mapping[str, int], windows: str) -> None:
        self.store, self.sizes, self.windows = store, dict(sizes), windows

    def __call__(self, ids: Sequence[tuple[int, int]]) -> dict[str, Any]:
        return {"clips": len(ids), "windows": [window for index, _ in ids for window in self._windows(index)]}

    def _windows(self, index: int) -> Iterator[tuple[str, dict[str, np.ndarray], dict[str, str]]]:
        clip = read_modalities(self.store, index, tuple(self.sizes))
        count = window_count(clip) if self.windows == "all" else 1
        for number in range(count):
            window = cut_window(clip, 2.0 * number)
            arrays, missing = {}, {}
            for name, size in self.sizes.items():
                try:
                    arrays[name] = MODALITIES[name].to_array(window, size)
                except ModalityMissing as error:
                    missing[name] = str(error)
            yield clip.key if count == 1 else f"{clip.key}-{number}", arrays, missing


def _make(
    config: TokenStoreConfig, clips: ClipStore, by_modality: Mapping[str, Tokenizer], identity: dict[str, Any]
) -> int:
    """Makes the shards that are not there and the manifest; returns how many clips were read for it."""
    out = Path(config.out)
    plan = [
        range(start, min(start + config.clips_per_shard, len(clips)))
        for start in range(0, len(clips), config.clips_per_shard)
    ]
    if (out / MANIFEST_NAME).exists():
        stored = json.loads((out / MANIFEST_NAME).read_bytes())
        _check_identity(out, stored, identity)
        done = {shard["index"]: shard for shard in stored["shards"]}
    else:
        done = {}
        for path in sorted(out.glob("shard-*.json")):
            sidecar = json.loads(path.read_bytes())
            _check_identity(out, sidecar, identity)
            done[sidecar["shard"]["index"]] = sidecar["shard"]
    for name in by_modality:
        (out / name).mkdir(exist_ok=True)
        remove_temporary_files(out / name)
    remove_temporary_files(out)
    whole = {index: shard for index, shard in done.items() if index < len(plan) and _is_whole(out, shard)}
    to_do = [index for index in range(len(plan)) if index not in whole]
    if (out / MANIFEST_NAME).exists():
        if not to_do:
            return 0
        # Back to a store in the making: first the sidecars, so that no moment loses the shards.
        for index, shard in whole.items():
            write_json(sidecar_path(out, index), {"shard": shard, **identity})
        (out / MANIFEST_NAME).unlink()
    made = sum(len(plan[index]) for index in to_do)
    for shard in _encode_shards(config, clips, by_modality, {index: plan[index] for index in to_do}):
        whole[shard["index"]] = shard
        write_json(sidecar_path(out, shard["index"]), {"shard": shard, **identity})
    write_json(out / MANIFEST_NAME, _manifest(identity, [whole[index] for index in sorted(whole)], config.data))
    for index in whole:
        sidecar_path(out, index).unlink(missing_ok=True)
    return made


def _encode_shards(
    config: TokenStoreConfig, clips: ClipStore, by_modality: Mapping[str, Tokenizer], plan: Mapping[int, range]
) -> Iterator[dict[str, Any]]:
    """Yields what the manifest says of each shard, once its tars are on disk. No batch spans two shards, so what a shard
    holds does not depend on where a run began."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = _device(config.accelerator)
    for tokenizer in by_modality.values():
        tokenizer.to(device)
    sizes = {name: image_size(tokenizer) for name, tokenizer in by_modality.items()}
    batches = [
        (
            index,
            [(clip, 0) for clip in indices[start : start + config.batch_size]],
            start + config.batch_size >= len(indices),
        )
        for index, indices in plan.items()
        for start in range(0, len(indices), config.batch_size)
    ]
    load = _LoadWindows(clips, sizes, config.windows)
    total, done = len(clips), len(clips) - sum(map(len, plan.values()))
    tokens: dict[str, list[tuple[str, np.ndarray]]] = {name: [] for name in by_modality}
    missing: dict[str, dict[str, str]] = {}
    stems: list[str] = []
    with tqdm(total=total, initial=done, desc="tokenize", unit="clip", disable=None) as bar:
        loaded = stream_batches(load, [ids for _, ids, _ in batches], workers=config.workers, prefetch=2)
        for (index, _, last), batch in zip(batches, loaded, strict=True):
            for stem, _, lacking in batch["windows"]:
                stems.append(stem)
                missing[stem] = lacking
            for name, tokenizer in by_modality.items():
                tokens[name] += _encode(tokenizer, name, batch["windows"], config.batch_size, device)
            bar.update(batch["clips"])
            if last:
                yield _write_shard(Path(config.out), index, stems, tokens, missing)
                tokens, missing, stems = {name: [] for name in by_modality}, {}, []


def _encode(
    tokenizer: Tokenizer, name: str, windows: Sequence[Any], batch_size: int, device: torch.device
) -> list[tuple[str, np.ndarray]]:
    having = [(stem, arrays[name]) for stem, arrays, _ in windows if name in arrays]
    encoded = []
    for start in range(0, len(having), batch_size):
        part = having[start : start + batch_size]
        x = torch.from_numpy(np.stack([array for _, array in part])).to(device)
        ids = tokenizer.encode(x).cpu().numpy().astype(np.int32).reshape(-1, *tokenizer.spec.grid.shape)
        encoded += [(stem, clip) for (stem, _), clip in zip(part, ids, strict=True)]
    return encoded


def _write_shard(
    out: Path,
    index: int,
    stems: Sequence[str],
    tokens: Mapping[str, list[tuple[str, np.ndarray]]],
    missing: Mapping[str, dict[str, str]],
) -> dict[str, Any]:
    """A window that has nothing at all is skipped: it is counted, and in no tar."""
    if len(missing) < len(stems):
        stem = Counter(stems).most_common(1)[0][0]
        raise ValueError(f"two windows would be called {stem!r}: rename the clip of that key, or take windows=first")
    kept = [stem for stem in stems if len(missing[stem]) < len(tokens)]
    skipped: dict[str, list[str]] = {}
    for stem in stems:
        if len(missing[stem]) == len(tokens):
            skipped.setdefault("; ".join(dict.fromkeys(missing[stem].values())), []).append(stem)
    reasons: dict[str, dict[str, list[str]]] = {}
    for stem in kept:
        for name, reason in missing[stem].items():
            reasons.setdefault(name, {}).setdefault(reason, []).append(stem)
    name = shard_name(index)
    tars = {modality: asdict(write_tar(out / modality / name, clips)) for modality, clips in tokens.items()}
    return {"index": index, "name": name, "stems": kept, "tars": tars, "missing": reasons, "skipped": skipped}


def _manifest(identity: Mapping[str, Any], shards: Sequence[Mapping[str, Any]], data: str) -> dict[str, Any]:
    """Holds no times, hosts or paths: the same tokens give the same bytes."""
    modalities = {
        name: {**entry, "clips": sum(shard["tars"][name]["clips"] for shard in shards)}
        for name, entry in identity["modalities"].items()
    }
    missing: dict[str, Counter[str]] = {}
    skipped: Counter[str] = Counter()
    for shard in shards:
        for name, reasons in shard["missing"].items():
            missing.setdefault(name, Counter()).update({reason: len(stems) for reason, stems in reasons.items()})
        skipped.update({reason: len(stems) for reason, stems in shard["skipped"].items()})
    clips = sum(len(shard["stems"]) for shard in shards)
    if not clips:
        why = ", ".join(f"{reason} ({count})" for reason, count in skipped.most_common(3))
        raise ValueError(f"data={data}: no clip gives any of {', '.join(modalities)}: {why}")
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **identity,
        "modalities": modalities,
        "totals": {
            "clips": clips,
            "shards": len(shards),
            "bytes": sum(tar["bytes"] for shard in shards for tar in shard["tars"].values()),
        },
        "missing": {name: dict(sorted(counts.items())) for name, counts in sorted(missing.items())},
        "skipped": dict(sorted(skipped.items())),
        "shards": [dict(shard) for shard in shards],
    }


# ------------------------------------------------------------------------------------------------------- the directory


def _is_whole(out: Path, shard: Mapping[str, Any]) -> bool:
    return all(
        path.is_file() and path.stat().st_size == tar["bytes"] and sha256_file(path) == tar["sha256"]
        for name, tar in shard["tars"].items()
        for path in [out / name / shard["name"]]
    )


def _check_identity(out: Path, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raises ValueError if the tokens there were made in another way. Names and counts are no difference."""
    differing = [
        f"{field} was {stored.get(field)!r:.40}, now {identity[field]!r:.40}"
        for field in ("clips_sha256", "clips_per_shard", "windows")
        if stored.get(field) != identity[field]
    ]
    theirs, ours = stored.get("modalities", {}), identity["modalities"]
    if theirs.keys() != ours.keys():
        differing.append(f"modalities were {', '.join(theirs)}, now {', '.join(ours)}")
    for name in theirs.keys() & ours.keys():
        if (before := theirs[name].get("tokenizer_sha256")) != (now := ours[name]["tokenizer_sha256"]):
            differing.append(f"the tokenizer of {name} was {str(before)[:16]}..., now {now[:16]}...")
    if differing:
        raise ValueError(
            f"out={out} holds tokens made in another way ({'; '.join(differing)}): give the old values, choose another out=, "
            "or delete that directory"
        )


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={out} is a file: choose another out=")
    known = {MANIFEST_NAME, *MODALITIES}
    found = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    foreign = [name for name in found if name not in known and not name.startswith((".", "shard-"))]
    if foreign:
        raise ValueError(f"out={out} holds something else ({foreign[0]}): choose another out=")


@contextmanager
def _exclusive(out: Path) -> Iterator[None]:
    """Lets one run at a time write to a directory. The lock ends with the process, however it ends."""
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"out={out}: another run is writing tokens there; wait for it or choose another out="
            ) from None
        yield
    finally:
        os.close(descriptor)


def _device(accelerator: str) -> torch.device:
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ValueError("accelerator=cuda: no CUDA device is visible; use cpu, or auto")
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(accelerator)


def _tell(store: TokenStore, made: int, elapsed_s: float) -> None:
    totals = store.manifest["totals"]
    speed = (
        f"tokenized {made} clips in {elapsed_s:.1f} s ({made / elapsed_s:.1f} clips/s)" if made else "already complete"
    )
    print(
        f"{speed}: {totals['clips']} clips of two seconds in {totals['shards']} shards, {totals['bytes'] / 1e6:.1f} MB, in "
        f"{store.path}"
    )
    for name, grid in store.grids.items():
        reasons = store.manifest["missing"].get(name, {})
        lacking = "".join(f"; missing in {count}: {reason}" for reason, count in reasons.items())
        shape = "x".join(map(str, grid.shape))
        print(f"  {name}: {store.clips_with(name)} clips of {shape} ids of {grid.vocabulary}{lacking}")
    for reason, count in store.manifest["skipped"].items():
        print(f"  skipped {count}: {reason}")
