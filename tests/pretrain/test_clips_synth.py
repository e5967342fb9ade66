"""`egoarm clips synth` with the real generator, at its smallest."""

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from pretrain.clips.info import InfoConfig, run_info
from pretrain.clips.store import open_store
from pretrain.clips.synth import SynthConfig, run_synth

pytest.importorskip("mujoco")
ROOT = Path(__file__).resolve().parents[2]
SMALL = {"image_size": 32, "frames": 4, "rgb_fps": 2.0, "actions": ("reach", "pick up"), "clips_per_shard": 1}


@pytest.fixture(scope="module")
def store_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("synth") / "store"
    run_synth(SynthConfig(out=str(path), n=2, seed=3, workers=2, **SMALL))
    return path


def manifest(path: Path) -> bytes:
    return (path / "manifest.json").read_bytes()


def test_the_same_command_gives_the_same_manifest(store_path, tmp_path, capsys):
    run_synth(SynthConfig(out=str(tmp_path / "b"), n=2, seed=3, workers=1, **SMALL))
    assert manifest(tmp_path / "b") == manifest(store_path)
    assert "made 2: 2 clips in 2 shards" in capsys.readouterr().out
    start = time.monotonic()
    run_synth(SynthConfig(out=str(tmp_path / "b"), n=2, seed=3, workers=1, **SMALL))
    assert "already complete: 2 clips" in capsys.readouterr().out
    assert time.monotonic() - start < 1
    assert manifest(tmp_path / "b") == manifest(store_path)


def test_a_deleted_shard_comes_back(store_path, tmp_path, capsys):
    copy = Path(shutil.copytree(store_path, tmp_path / "copy"))
    (copy / "shard-000001.tar").unlink()
    with pytest.raises(
        ValueError, match=r"shard-000001\.tar: this shard of the manifest is missing; delete that shard"
    ):
        open_store(copy)
    run_synth(SynthConfig(out=str(copy), n=2, seed=3, workers=1, **SMALL))
    assert "made 1, kept 1: 2 clips" in capsys.readouterr().out
    assert manifest(copy) == manifest(store_path)
    open_store(copy).verify()


def test_another_setting_is_refused(store_path):
    with pytest.raises(ValueError, match=r"config\.image_size was 32, now 48"):
        run_synth(SynthConfig(out=str(store_path), n=2, seed=3, **{**SMALL, "image_size": 48}))


def test_the_clips_are_whole(store_path):
    store = open_store(store_path)
    assert len(set(store.keys)) == 2
    for index in range(2):
        clip = store.read(index)
        assert clip.rgb is not None and clip.rgb.shape == (4, 32, 32, 3) and clip.rgb.std() > 5
        assert clip.depth is not None and (clip.depth > 0).mean() > 0.5
        assert clip.segmentation is not None and clip.segmentation.max() >= 3
        assert clip.gaze is not None and len(clip.gaze) == 60
        assert clip.world_from_camera is not None and len(clip.world_from_camera) == 60
        assert clip.narration.startswith("#C C ") and clip.captions
        assert clip.meta["action"] in SMALL["actions"]
    assert not np.array_equal(store.read(0).rgb, store.read(1).rgb)


def test_info_describes_it(store_path, tmp_path, capsys):
    run_info(InfoConfig(path=str(store_path), contact_sheet=str(tmp_path / "sheet.png"), clips=2))
    said = capsys.readouterr().out
    assert "2 synthetic clips, 4.0 s, 2 shards" in said and "reach" in said
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


def test_killed_and_run_again(store_path, tmp_path):
    words = [f"{name}={_word(value)}" for name, value in SMALL.items()]
    command = [
        sys.executable,
        str(ROOT / "egoarm.py"),
        "clips",
        "synth",
        f"out={tmp_path / 'a'}",
        "n=2",
        "seed=3",
        "workers=1",
    ]
    process = subprocess.Popen([*command, *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "a").glob("shard-*.tar")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "a" / "manifest.json").exists()
    subprocess.run([*command, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert manifest(tmp_path / "a") == manifest(store_path)
    assert sorted(os.listdir(tmp_path / "a")) == ["manifest.json", *(f"shard-00000{i}.tar" for i in range(2))]


def _word(value) -> str:
    return f"[{','.join(value)}]" if isinstance(value, tuple) else str(value)


def test_the_yaml_holds_the_defaults():
    values = yaml.safe_load((ROOT / "configs" / "clips_synth.yaml").read_text())
    assert values.pop("out") == "???"
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    assert values == {name: value for name, value in dataclasses.asdict(SynthConfig(out="x")).items() if name != "out"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "n=0: expected 1 or more"),
        ({"seed": -1}, "seed=-1"),
        ({"out": ""}, "out= is empty"),
        ({"frames": 2}, "frames"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        SynthConfig(**{"out": "x", **changes})


def test_pretrain_clips_needs_no_simulator():
    code = (
        "import sys; sys.modules.update(mujoco=None, gymnasium=None, robosuite=None, gymnasium_robotics=None)\n"
        "import pretrain.clips.synth, pretrain.clips.info, pretrain.clips.dataset\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
