"""The encoder that was shown the state: it reads held-out demonstrations, trains policies like any encoder, and says what it lacks."""

from pathlib import Path

import pytest

from policies.ceiling import CeilingConfig, run
from policies.demos.collect import DemosConfig
from policies.demos.collect import run as collect
from pretrain.artifact import load_artifact
from pretrain.encoder import load_encoder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("labelled") / "toy.hdf5"
    return collect(
        DemosConfig(
            task="toy/reach", level="clean", episodes=60, out=str(out), image_size=64, first_seed=50_000, workers=1, privileged=True
        )
    )  # fmt: skip


def test_it_reads_the_state_of_demonstrations_it_did_not_learn_from(labelled: Path, tmp_path: Path) -> None:
    config = CeilingConfig(demos=str(labelled), out=str(tmp_path / "encoder"), steps=60, batch_size=32, threads=1)
    out = run(config)
    first = load_artifact(out)
    assert first.config["training"]["explained"] > 0.2
    encoder = load_encoder(out)
    assert encoder.spec.name == "ceiling/toy/reach"
    assert encoder.spec.grid == load_encoder("conv-small").spec.grid
    run(config)  # kept
    assert load_artifact(out).sha256 == first.sha256
    again = run(CeilingConfig(demos=str(labelled), out=str(tmp_path / "again"), steps=60, batch_size=32, threads=1))
    assert load_artifact(again).sha256 == first.sha256


def test_demonstrations_without_the_state_are_refused(toy_demos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"toy.hdf5 has no state/full; collect it with `egoarm demos privileged=true`"):
        run(CeilingConfig(demos=str(toy_demos), out=str(tmp_path / "encoder"), steps=1))


def test_another_artifact_is_not_overwritten(labelled: Path, tmp_path: Path) -> None:
    from pretrain.encoder import save_encoder

    save_encoder(tmp_path / "encoder", load_encoder("random:conv-small"))
    with pytest.raises(FileExistsError, match="holds something else"):
        run(CeilingConfig(demos=str(labelled), out=str(tmp_path / "encoder"), steps=1))
