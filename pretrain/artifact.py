"""Artifacts: directories that hold weights and everything needed to use them, written whole or not at all.

An artifact is a directory, never a pickle:

    model.safetensors   the tensors
    config.yaml         the resolved configuration that made it
    spec.json           kind, registry name, format version, and the contract its owner defines (EncoderSpec, PolicySpec)
    provenance.json     format version, sha256 of model.safetensors, commit, command line, seed, package versions, device,
                        data and parent hashes, step, wall time
    train_state/        optional, whatever the trainer wants to keep

Everything is written into a temporary sibling directory, flushed to the disk and renamed into place, so a reader sees
the old artifact or the new one and nothing between.
"""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

FORMAT_VERSION = 1
MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
SPEC_FILE = "spec.json"
PROVENANCE_FILE = "provenance.json"
TRAIN_STATE_DIRECTORY = "train_state"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A loaded artifact. `sha256` is that of model.safetensors, verified against provenance on load."""

    path: Path
    kind: str
    name: str
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    spec: dict[str, Any]
    provenance: dict[str, Any]
    sha256: str


# --------------------------------------------------------------------------------------------- files, whole or not at all


def sha256_file(path: str | Path) -> str:
    """sha256 of a file's bytes, hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of the tensors' safetensors serialization: equal to that of the model.safetensors they would be saved as."""
    return hashlib.sha256(save(_contiguous(tensors))).hexdigest()


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Writes `data` to `path` through a temporary sibling file, fsync and rename; parents are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{_writer()}")
    with _explained_write_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _fsync_directory(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def atomic_write_text(path: str | Path, text: str) -> None:
    """`atomic_write_bytes` of UTF-8 text."""
    atomic_write_bytes(path, text.encode())


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yields an empty temporary sibling of `path`; on success it becomes `path`, replacing what was there.

    On an error the temporary directory is removed and `path` stays as it was. Left-overs of writers that were killed are
    removed on the next write. Raises ValueError naming `path` when the disk is full or the place is not writable.
    """
    path = Path(path)
    with _explained_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        temporary = path.with_name(f".{path.name}.tmp-{_writer()}")
        temporary.mkdir()
        try:
            yield temporary
            _fsync_tree(temporary)
            _move_into_place(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextlib.contextmanager
def _explained_write_errors(path: Path) -> Iterator[None]:
    """Turns the errors that only the user can mend into one clear ValueError."""
    remedies = {
        errno.ENOSPC: "the disk is full: free some space, or write to another disk with out=",
        errno.EDQUOT: "the disk quota is used up: free some space, or write to another disk with out=",
        errno.EACCES: "permission denied: choose another place with out=",
        errno.EROFS: "the file system is read-only: choose another place with out=",
    }
    try:
        yield
    except OSError as error:
        if error.errno not in remedies:
            raise
        raise ValueError(f"cannot write {path}: {remedies[error.errno]}; nothing half-written was left") from error


def _writer() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def _remove_leftovers(path: Path) -> None:
    """Removes temporary siblings of `path` whose writer, a process of this machine, is dead or is this one."""
    prefix = f".{path.name}.tmp-{socket.gethostname()}-"
    for leftover in path.parent.glob(f".{path.name}.tmp-*"):
        process = leftover.name.removeprefix(prefix)
        if not process.isdigit():
            continue
        if int(process) != os.getpid():
            with contextlib.suppress(PermissionError):
                try:
                    os.kill(int(process), 0)
                except ProcessLookupError:
                    shutil.rmtree(leftover, ignore_errors=True)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _move_into_place(temporary: Path, path: Path) -> None:
    """Renames `temporary` to `path`. An existing directory is swapped with it in one system call where Linux allows."""
    if not path.exists():
        os.rename(temporary, path)
    elif _exchange(temporary, path):
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        # Without an atomic swap there is a moment at which only the old one, under its temporary name, exists.
        old = path.with_name(f".{path.name}.old-{_writer()}")
        os.rename(path, old)
        os.rename(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    _fsync_directory(path.parent)


def _exchange(a: Path, b: Path) -> bool:
    """renameat2(RENAME_EXCHANGE); False where the C library or the file system does not have it."""
    at_current_directory, rename_exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return renameat2(at_current_directory, os.fsencode(a), at_current_directory, os.fsencode(b), rename_exchange) == 0


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_tree(path: Path) -> None:
    for directory, _, files in os.walk(path):
        for name in files:
            with open(Path(directory) / name, "rb") as file:
                os.fsync(file.fileno())
        _fsync_directory(Path(directory))


# ----------------------------------------------------------------------------------------------------- save and load


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file (not atomic by itself: use inside `atomic_directory`)."""
    # Serialized here and written by us: safetensors' own writer makes files that only their owner may read, and hides the
    # errno of a full disk in its message.
    Path(path).write_bytes(save(_contiguous(tensors)))


def save_artifact(
    path: str | Path,
    *,
    kind: str,
    name: str,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    spec: Mapping[str, Any],
    provenance: Mapping[str, Any],
    train_state: Path | None = None,
) -> str:
    """Saves an artifact directory atomically and returns the sha256 of its model.safetensors.

    Args:
        kind: what it is ("encoder", "policy", "egodtm"); `name`: the registry key that builds it.
        config: the resolved configuration, of YAML types only.
        spec: the owner's contract as JSON types.
        provenance: see `pretrain.provenance.make_provenance`; the weights' sha256 is added here.
        train_state: a directory that is copied in as train_state/.

    Raises:
        ValueError: the disk is full or the place not writable.
    """
    with atomic_directory(path) as directory:
        save_tensors(directory / MODEL_FILE, tensors)
        sha256 = sha256_file(directory / MODEL_FILE)
        (directory / CONFIG_FILE).write_text(yaml.safe_dump(_plain(config), sort_keys=False))
        _write_json(
            directory / SPEC_FILE, {"format_version": FORMAT_VERSION, "kind": kind, "name": name, "spec": dict(spec)}
        )
        _write_json(
            directory / PROVENANCE_FILE,
            {"format_version": FORMAT_VERSION, "model_sha256": sha256} | dict(provenance),
        )
        if train_state is not None:
            shutil.copytree(train_state, directory / TRAIN_STATE_DIRECTORY)
    return sha256


def load_artifact(path: str | Path) -> Artifact:
    """Loads an artifact directory and verifies it.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is not an artifact, a file is missing or torn, the format version is another one, or the weights
            are not those that were saved.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no artifact at {path}: no such directory")
    if not path.is_dir():
        raise ValueError(f"{path} is a file; an artifact is a directory with {MODEL_FILE} and {SPEC_FILE}")
    missing = [name for name in (MODEL_FILE, CONFIG_FILE, SPEC_FILE, PROVENANCE_FILE) if not (path / name).is_file()]
    if missing:
        inside = sorted(str(found.parent) for found in path.glob(f"*/{SPEC_FILE}"))
        hint = f"; did you mean {inside[0]}?" if inside else ""
        raise ValueError(f"{path} is not an artifact: {', '.join(missing)} missing{hint}")
    header = _read_json(path / SPEC_FILE)
    provenance = _read_json(path / PROVENANCE_FILE)
    for source, document in ((SPEC_FILE, header), (PROVENANCE_FILE, provenance)):
        if document.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{path / source}: format version {document.get('format_version')!r}, this version of EgoArm reads "
                f"{FORMAT_VERSION}: make the artifact again, or use the version that wrote it"
            )
    for source, document, keys in (
        (SPEC_FILE, header, ("kind", "name", "spec")),
        (PROVENANCE_FILE, provenance, ("model_sha256",)),
    ):
        for key in keys:
            if key not in document:
                raise ValueError(f"{path / source}: field {key!r} is missing")
    sha256 = sha256_file(path / MODEL_FILE)
    if sha256 != provenance["model_sha256"]:
        raise ValueError(
            f"{path / MODEL_FILE} has sha256 {sha256[:16]}..., {PROVENANCE_FILE} says "
            f"{provenance['model_sha256'][:16]}...: the weights were changed or damaged; make the artifact again"
        )
    try:
        config = yaml.safe_load((path / CONFIG_FILE).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path / CONFIG_FILE} is not valid YAML: {error}") from error
    return Artifact(
        path=path,
        kind=header["kind"],
        name=header["name"],
        tensors=load_tensors(path / MODEL_FILE),
        config=config,
        spec=header["spec"],
        provenance=provenance,
        sha256=sha256,
    )


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Reads a safetensors file. Raises FileNotFoundError or ValueError naming it."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}: no such file")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def load_tensors_strict(module: nn.Module, tensors: Mapping[str, Tensor], where: str, *, assign: bool = False) -> None:
    """Copies `tensors` into `module`, which must have exactly these names and shapes.

    Args:
        assign: the module takes the tensors themselves, which stay mapped from their file until they are needed: for large
            models that are only used.

    Raises:
        ValueError: names every missing, surplus and mis-shaped tensor; `where` says where the tensors came from.
    """
    expected = module.state_dict()
    problems = []
    if missing := sorted(expected.keys() - tensors.keys()):
        problems.append(f"missing tensors: {', '.join(missing)}")
    if surplus := sorted(tensors.keys() - expected.keys()):
        problems.append(f"surplus tensors: {', '.join(surplus)}")
    misshaped = [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    if misshaped:
        problems.append(f"wrong shapes: {', '.join(misshaped)}")
    if problems:
        raise ValueError(
            f"{where} does not fit {type(module).__name__}: {'; '.join(problems)}. "
            "The weights belong to another architecture or size than the configuration beside them"
        )
    module.load_state_dict(dict(tensors), strict=True, assign=assign)


def _plain(value: Any) -> Any:
    """Tuples and paths to what YAML writes plainly."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(_plain(document), indent=2) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(document).__name__}")
    return document
