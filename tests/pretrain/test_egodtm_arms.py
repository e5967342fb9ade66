"""Arms: one recipe, a change each, trained and measured by one command; and the snapshots they are measured at."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from egoarm import COMMANDS, compose
from pretrain.artifact import load_artifact
from pretrain.clips.synth import SynthConfig
from pretrain.downstream.arms import ArmsConfig, run, ship
from pretrain.downstream.comparison import save_results
from pretrain.downstream.results import BenchmarkResult, Metric
from pretrain.egodtm.train import PretrainConfig
from pretrain.egodtm.train import run as pretrain
from pretrain.encoder import load_encoder
from pretrain.loop import TrainerConfig

TRAINER = TrainerConfig(batch_size=8, steps=1, warmup_steps=1, checkpoint_every=2, threads=1)


def arms_config(out: Path, **changes: Any) -> ArmsConfig:
    made = ArmsConfig(
        out=str(out),
        results=str(out / "results"),
        title="Trial",
        arms={"first": {}, "no-depth": {"depth_weight": 0.0}, "slow": {"trainer.learning_rate": 1e-4, "times": 2}},
        samples=48,
        snapshots=(16, 64),
        benchmarks=("depth", "spatial"),
        tasks=(),
        clips=SynthConfig(out=str(out / "clips"), n=26, seed=1, image_size=48, workers=1),
        heldout=SynthConfig(out=str(out / "heldout"), n=16, seed=2, image_size=48, workers=1),
        pretrain=PretrainConfig(data="-", out="-", size="nano", frames=1, trainer=TRAINER),
    )
    return dataclasses.replace(made, **changes)


def test_an_arm_is_the_recipe_with_its_change(tmp_path: Path) -> None:
    config = arms_config(tmp_path)
    first, no_depth, slow = (config.pretrain_of(arm) for arm in config.arms)
    assert no_depth == dataclasses.replace(first, depth_weight=0.0, out=no_depth.out)
    assert first.trainer.steps == 6 and slow.trainer.steps == 12
    assert slow.trainer.learning_rate == 1e-4
    assert first.snapshots == (16,) and slow.snapshots == (16, 64), "the end of a run is no snapshot"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {}}, "arms: name at least one"),
        ({"arms": {"random": {}}}, "the untrained network"),
        ({"arms": {"a": {"depth_wieght": 0}}}, "arms.a: .*depth_wieght"),
        ({"only": ("b",)}, "only: unknown 'b'; expected some of first"),
        ({"samples": 7}, "less than one batch of 8"),
        ({"heldout": SynthConfig(out="x", seed=1)}, "choose another"),
    ],
)
def test_wrong_arms_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arms_config(tmp_path, **changes)


@pytest.mark.parametrize("name", ["pretrain arms", "pretrain robots", "pretrain ablation"])
def test_published_tables_are_valid(name: str) -> None:
    config = compose(COMMANDS[name], [])
    runs = [config.pretrain_of(arm) for arm in config.arms]
    assert len({run.out for run in runs}) == len(runs)
    assert all(run.data == config.clips.out for run in runs)


def test_egodtm_keeps_snapshots(square_store: Path, tmp_path: Path) -> None:
    config = PretrainConfig(
        data=str(square_store), out=str(tmp_path / "run"), size="nano", frames=1, snapshots=(16, 24),
        trainer=dataclasses.replace(TRAINER, steps=4),
    )  # fmt: skip
    pretrain(config)
    steps = [load_artifact(tmp_path / "run" / "snapshots" / str(n) / "encoder").provenance["step"] for n in (16, 24)]
    assert steps == [2, 3] and load_artifact(tmp_path / "run" / "encoder").provenance["step"] == 4
    validation = json.loads((tmp_path / "run" / "snapshots" / "16" / "validation.json").read_text())
    assert validation["clips"] == 3 and validation["depth_mse"] > 0


def test_egodtm_ships_an_encoder_in_half_precision(square_store: Path, tmp_path: Path) -> None:
    place = tmp_path / "shipped" / "first"
    config = arms_config(tmp_path, ship="first", ship_to=str(place))
    first = config.pretrain_of("first")
    pretrain(dataclasses.replace(first, data=str(square_store), snapshots=()))
    metric = Metric(name="inter accuracy", value=0.5, low=0.4, high=0.6, higher_is_better=True)
    result = BenchmarkResult(benchmark="egomcq", encoder="first", encoder_sha256="-", metrics=(metric,), protocol={})
    save_results(tmp_path / "probe.json", [result], "first", {})
    ship(config, "first", tmp_path / "probe.json")
    whole, half = (load_encoder(path) for path in (tmp_path / "first/encoder", place))
    video = torch.randint(0, 256, (2, 1, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        one, other = (encoder(encoder.preprocess(video)).tokens for encoder in (whole, half))
    torch.testing.assert_close(one, other, atol=2e-2, rtol=0)
    sizes = [(path / "model.safetensors").stat().st_size for path in (tmp_path / "first/encoder", place)]
    assert sizes[1] < 0.55 * sizes[0]
    card = (place / "MODEL_CARD.md").read_text()
    assert "48 clips seen" in card and "26 synthetic" in card
    assert "encoder=random:" in card and "0.5 [0.4, 0.6]" in card
    with pytest.raises(ValueError, match="ship=first, ship_to=None: give the arm and the directory"):
        arms_config(tmp_path, ship="first")
    with pytest.raises(ValueError, match="ship: unknown arm 'b'"):
        arms_config(tmp_path, ship="b")


def test_measuring_alone_needs_something_trained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of the arms first, no-depth, slow is trained; leave out train=false"):
        run(arms_config(tmp_path, train=False))


@pytest.mark.slow
def test_the_command_trains_measures_and_publishes(tmp_path: Path) -> None:
    config = arms_config(tmp_path, only=("first", "no-depth"))
    run(config)
    results = tmp_path / "results"
    curves = json.loads((results / "curves.json").read_text())
    measured = {(entry["arm"], entry["clips"]) for entry in curves if "spatial" in entry}
    assert measured == {("first", 16), ("first", 48), ("no-depth", 16), ("no-depth", 48), ("random", 0)}
    page = (results / "README.md").read_text()
    assert "# Trial" in page and "| chance | first | no-depth | random | pixels-16x16 |" in page
    assert (results / "curves.png").stat().st_size > 10_000
    for file in (tmp_path / "clips").iterdir():
        file.unlink()
    (results / "curves.json").unlink()
    run(dataclasses.replace(config, train=False))
    assert (results / "curves.json").is_file() and not list((tmp_path / "clips").iterdir()), (
        "what is trained needs no clips"
    )
    run(dataclasses.replace(config, only=()))
    assert "| first | no-depth | slow | random |" in (results / "README.md").read_text(), "a later arm joins the table"
