"""The whole chain through the command line, on real simulators at the smallest size: clips -> encoder -> policy -> success rate."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from egoarm import main
from eval_robot.records import load_report
from pretrain.artifact import load_artifact


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every command in turn; its outputs under one directory."""
    out = tmp_path_factory.mktemp("chain")
    train = [f"demos={out}/toy.hdf5", f"cache={out}/cache", "epochs=20", "threads=1"]
    evaluate = ["episodes=4", "envs=4", "workers=2", "threads=1", "videos=1"]
    commands = [
        ["clips", "synth", f"out={out}/clips", "n=8", "image_size=64", "clips_per_shard=4", "workers=2"],
        ["pretrain", f"data={out}/clips", f"out={out}/pretrain", "trainer.steps=3", "trainer.batch_size=4", "trainer.threads=1", "val_fraction=0.25"],
        ["demos", "task=toy/reach", f"out={out}/toy.hdf5", "episodes=6", "image_size=64", "workers=2"],
        ["train", *train, f"out={out}/blind", "label=blind"],
        ["train", *train, f"out={out}/seeing", f"encoder={out}/pretrain/encoder", "label=seeing"],
        ["eval", *evaluate, f"policy={out}/blind", f"out={out}/blind.jsonl"],
        ["eval", *evaluate, f"policy={out}/seeing", f"out={out}/seeing.jsonl"],
        ["compare", f"{out}/blind.jsonl", f"{out}/seeing.jsonl"],
        ["report", f"{out}/blind.jsonl", f"{out}/seeing.jsonl", f"out={out}/report.html", f"curves=[{out}/pretrain/metrics.jsonl]"],
    ]  # fmt: skip
    for command in commands:
        assert main(command) == 0, " ".join(command)
    return out


def test_every_number_has_its_chain(chain: Path) -> None:
    """Table cell -> report -> policy -> encoder -> clip manifest, by hash."""
    report = load_report(chain / "seeing.jsonl")
    policy, encoder = load_artifact(chain / "seeing"), load_artifact(chain / "pretrain" / "encoder")
    assert report.header["policy_sha256"] == policy.sha256
    assert report.header["encoder_sha256"] == policy.provenance["parents"]["encoder"] == encoder.sha256
    from pretrain.clips.store import open_store

    assert open_store(chain / "clips").manifest_sha256 in encoder.provenance["data"].values()
    page = (chain / "report.html").read_text()
    assert policy.sha256[:12] in page and encoder.sha256[:12] in page and "data:video/mp4;base64," in page


def test_the_policy_carries_the_encoder_unchanged(chain: Path) -> None:
    inside = load_file(chain / "seeing" / "model.safetensors")
    for name, weights in load_file(chain / "pretrain" / "encoder" / "model.safetensors").items():
        assert (inside[f"backbone.encoder.{name}"] == weights).all(), name


def test_both_policies_met_the_same_episodes(chain: Path) -> None:
    starts = [
        [(e.seed, e.initial_state_hash) for e in load_report(chain / name).episodes]
        for name in ("blind.jsonl", "seeing.jsonl")
    ]
    assert starts[0] == starts[1] and len(set(starts[0])) == 4


def test_evaluation_repeats_episode_by_episode(chain: Path) -> None:
    command = [
        "eval",
        "episodes=4",
        "envs=4",
        "workers=1",
        "threads=1",
        f"policy={chain}/seeing",
        f"out={chain}/again.jsonl",
    ]
    assert main(command) == 0
    assert load_report(chain / "again.jsonl").episodes == load_report(chain / "seeing.jsonl").episodes


def test_an_interrupted_evaluation_goes_on(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from policies.chunking import ActionChunker

    command = [
        "eval",
        "episodes=4",
        "envs=2",
        "workers=1",
        "threads=1",
        f"policy={chain}/blind",
        f"out={chain}/resumed.jsonl",
    ]
    real, begun = ActionChunker.act, []

    def killed_in_the_fourth_episode(self, observation, reset_mask, indices, seeds):
        begun.extend(seed for seed, first in zip(seeds, reset_mask, strict=True) if first)
        if len(begun) == 4:
            raise KeyboardInterrupt
        return real(self, observation, reset_mask, indices, seeds)

    monkeypatch.setattr(ActionChunker, "act", killed_in_the_fourth_episode)
    assert main(command) == 130 and not (chain / "resumed.jsonl").exists()
    assert main(command) == 0
    assert begun[:4] == [200_000, 200_001, 200_002, 200_003] and 2 <= len(begun[4:]) < 4, "what was done is kept"
    assert load_report(chain / "resumed.jsonl").episodes == load_report(chain / "blind.jsonl").episodes


def test_a_policy_of_another_contract_is_refused(chain: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["eval", f"policy={chain}/blind", "task=metaworld/reach", "episodes=2"]) == 2
    error = capsys.readouterr().err
    assert "another environment contract" in error and "horizon_steps" in error


def test_a_full_disk_leaves_nothing_half_written(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import errno

    from pretrain import artifact

    write = artifact.save_tensors

    def on_full_disk(path, tensors):
        write(path, tensors)
        with open(path, "r+b") as file:
            file.truncate(100)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(artifact, "save_tensors", on_full_disk)
    out = tmp_path / "policy"
    assert main(["train", f"demos={chain}/toy.hdf5", f"out={out}", "epochs=1", "threads=1"]) == 2
    assert "full" in capsys.readouterr().err and not out.exists()
    monkeypatch.undo()
    assert main(["train", f"demos={chain}/toy.hdf5", f"out={out}", "epochs=1", "threads=1"]) == 0
