"""Artifacts are whole or not there, verified on load, and wrong ones are named."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from pretrain import provenance
from pretrain.artifact import (
    atomic_directory,
    atomic_write_text,
    load_artifact,
    load_tensors,
    save_artifact,
    sha256_file,
    tensors_sha256,
)
from pretrain.provenance import make_provenance

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.int64)}


def save(path: Path, **changes) -> str:
    arguments = {
        "kind": "thing",
        "name": "a-thing",
        "tensors": TENSORS,
        "config": {"size": (1, 2), "nested": {"x": None}},
        "spec": {"grid": (1, 2, 3)},
        "provenance": make_provenance(seed=3, parents={}, data={"clips": "abc"}, step=5, wall_time_s=1.0),
    }
    return save_artifact(path, **(arguments | changes))


def test_round_trip(tmp_path: Path) -> None:
    sha256 = save(tmp_path / "x")
    loaded = load_artifact(tmp_path / "x")
    assert sha256 == loaded.sha256 == sha256_file(tmp_path / "x/model.safetensors") == tensors_sha256(TENSORS)
    assert (loaded.kind, loaded.name) == ("thing", "a-thing")
    assert loaded.config == {"size": [1, 2], "nested": {"x": None}}
    assert loaded.spec == {"grid": [1, 2, 3]}
    assert loaded.provenance["data"] == {"clips": "abc"} and loaded.provenance["step"] == 5
    assert loaded.provenance["packages"]["torch"] == torch.__version__
    for name, tensor in TENSORS.items():
        assert torch.equal(loaded.tensors[name], tensor)


def test_saving_again_replaces_the_whole(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "notes.json").write_text("{}")
    save(tmp_path / "x", train_state=state)
    assert (tmp_path / "x/train_state/notes.json").is_file()
    save(tmp_path / "x", tensors={"c": torch.zeros(1)})
    assert set(load_artifact(tmp_path / "x").tensors) == {"c"}
    assert not (tmp_path / "x/train_state").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state", "x"]


def test_an_error_leaves_the_old_one_and_no_litter(tmp_path: Path) -> None:
    save(tmp_path / "x")
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "x") as directory:
        (directory / "half").write_text("half")
        raise RuntimeError
    load_artifact(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_litter_of_a_killed_writer_is_swept(tmp_path: Path) -> None:
    import socket

    dead = tmp_path / f".x.tmp-{socket.gethostname()}-{2**22 + 1}"  # beyond the largest process id there is
    other_machine = tmp_path / ".x.tmp-elsewhere-12"
    for path in (dead, other_machine):
        path.mkdir()
    save(tmp_path / "x")
    assert not dead.exists() and other_machine.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(self: Path, data: bytes) -> int:
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(ValueError, match=rf"cannot write {tmp_path / 'x'}: .*out=; nothing half-written was left"):
        save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_atomic_write_text(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "deep/er/file.txt", "é")
    assert (tmp_path / "deep/er/file.txt").read_bytes() == "é".encode()
    assert sha256_file(tmp_path / "deep/er/file.txt") == hashlib.sha256("é".encode()).hexdigest()


def test_what_is_no_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no artifact at"):
        load_artifact(tmp_path / "x")
    save(tmp_path / "run/encoder")
    with pytest.raises(ValueError, match=r"not an artifact: .* missing; did you mean .*run/encoder\?"):
        load_artifact(tmp_path / "run")
    with pytest.raises(ValueError, match="is a file; an artifact is a directory"):
        load_artifact(tmp_path / "run/encoder/spec.json")


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "x")
    weights = tmp_path / "x/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match="changed or damaged"):
        load_artifact(tmp_path / "x")


def test_other_format_and_broken_json_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "x")
    spec = tmp_path / "x/spec.json"
    spec.write_text(json.dumps(json.loads(spec.read_text()) | {"format_version": 99}))
    with pytest.raises(ValueError, match="format version 99, this version of EgoArm reads 1"):
        load_artifact(tmp_path / "x")
    spec.write_text("{")
    with pytest.raises(ValueError, match=r"spec\.json is not valid JSON"):
        load_artifact(tmp_path / "x")


def test_torn_weights_file(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_tensors(tmp_path / "x.safetensors")


def test_the_commit_is_named_outside_git_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's image has no checkout: what EGOARM_GIT_SHA says, else nothing."""
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "pretrain" / "provenance.py"))
    made = [provenance.make_provenance(seed=0, parents={}, data={}, step=0, wall_time_s=0.0)]
    monkeypatch.setenv("EGOARM_GIT_SHA", "abc123")
    made.append(provenance.make_provenance(seed=0, parents={}, data={}, step=0, wall_time_s=0.0))
    assert [(record["git_sha"], record["git_dirty"]) for record in made] == [(None, None), ("abc123", None)]
