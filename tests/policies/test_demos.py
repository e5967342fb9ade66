"""Demonstrations: layout, content, resume, damage."""

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.experts.toy import ToyReachExpert
from envs.tasks import make_env
from policies.demos import collect
from policies.demos.collect import DemosConfig
from policies.demos.hdf5 import DemoFile
from policies.demos.windows import action_windows, training_rows


def test_robomimic_layout(toy_demos: Path) -> None:
    with h5py.File(toy_demos) as file:
        data = file["data"]
        env_args = json.loads(data.attrs["env_args"])
        assert env_args["env_name"] == "toy/reach" and env_args["env_type"] == 2
        assert data.attrs["total"] == sum(data[name].attrs["num_samples"] for name in data)
        for demo in data.values():
            n = demo.attrs["num_samples"]
            assert (
                demo["actions"].shape[0]
                == demo["rewards"].shape[0]
                == demo["dones"].shape[0]
                == demo["states"].shape[0]
                == n
            )
            assert demo["obs/front_image"].shape == (n, 64, 64, 3) and demo["obs/front_image"].dtype == np.uint8
            assert demo["dones"][-1] == 1 and not demo["dones"][:-1].any()


def test_a_redrawn_appearance_changes_images_alone(tmp_path: Path) -> None:
    fixed = DemosConfig(
        task="toy/reach",
        level="varied-3",
        episodes=2,
        out=str(tmp_path / "fixed.hdf5"),
        image_size=32,
        first_seed=5,
        workers=1,
    )
    redrawn = replace(fixed, redraw_every=2, out=str(tmp_path / "redrawn.hdf5"))
    with DemoFile(collect.run(fixed)) as one, DemoFile(collect.run(redrawn)) as other:
        assert one.seeds == other.seeds and one.meta["config"] | {"redraw_every": 2} == other.meta["config"]
        for index in range(2):
            for name in ("actions", "states"):
                np.testing.assert_array_equal(one.array(index, name), other.array(index, name))
            before, after = (demos.observation(index, ["images/front"])["images/front"] for demos in (one, other))
            same = [np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
            assert same[:2] == [True, True] and not any(same[2:]), (
                "the first two steps show the episode's own appearance"
            )
    again = replace(redrawn, out=str(tmp_path / "again.hdf5"))
    with DemoFile(tmp_path / "redrawn.hdf5") as one, DemoFile(collect.run(again)) as other:
        np.testing.assert_array_equal(*(d.observation(0, ["images/front"])["images/front"] for d in (one, other)))


def test_replaying_the_actions_gives_the_same_observations(toy_demos: Path) -> None:
    with DemoFile(toy_demos) as demos:
        env = make_env("toy/reach", level=demos.level, image_size=64)
        observation, info = env.reset(seed=demos.seeds[1])
        recorded = demos.observation(1, list(demos.env_spec.observation))
        for step, action in enumerate(demos.array(1, "actions")):
            for key, values in recorded.items():
                np.testing.assert_array_equal(observation[key], values[step], err_msg=f"{key} at step {step}")
            observation, _, _, _, info = env.step(action)
        env.close()
        assert info["success"]


def test_resumes_from_the_parts_that_are_done(toy_demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DemosConfig(
        task="toy/reach",
        level="varied-1",
        episodes=4,
        out=str(tmp_path / "d.hdf5"),
        image_size=64,
        first_seed=0,
        workers=1,
    )
    monkeypatch.setattr(collect, "_merge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        collect.run(config)
    assert not (tmp_path / "d.hdf5").exists()
    monkeypatch.undo()
    parts = sorted((tmp_path / "d.hdf5.parts").glob("*.hdf5"))
    stamps = {part: part.stat().st_mtime_ns for part in parts}
    parts[0].unlink()  # as if killed before this one
    remade: list[int] = []
    merge = collect._merge
    monkeypatch.setattr(
        collect, "_merge", lambda *a: (remade.extend(p.stat().st_mtime_ns != stamps[p] for p in parts), merge(*a))
    )
    collect.run(config)
    assert remade == [True, False, False, False]
    with DemoFile(tmp_path / "d.hdf5") as resumed, DemoFile(toy_demos) as whole:
        assert resumed.seeds == whole.seeds
        for demo in range(4):
            np.testing.assert_array_equal(
                resumed.array(demo, "obs/images/front"), whole.array(demo, "obs/images/front")
            )


def test_workers_end_with_a_killed_main_process(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "egoarm",
        "demos",
        "task=toy/reach",
        "episodes=400",
        "workers=2",
        f"out={tmp_path}/d.hdf5",
    ]
    main = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = psutil.Process(main.pid)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("d.hdf5.parts/seed-*.hdf5")):
        assert main.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    workers = process.children(recursive=True)
    main.kill()
    main.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert len(workers) >= 2 and not alive
    assert not (tmp_path / "d.hdf5").exists()


def test_a_finished_file_is_kept_and_another_configuration_refused(
    toy_demos: Path, capsys: pytest.CaptureFixture
) -> None:
    config = DemosConfig(
        task="toy/reach", level="varied-1", episodes=4, out=str(toy_demos), image_size=64, first_seed=0, workers=1
    )
    before = toy_demos.stat().st_mtime_ns
    collect.run(config)
    assert "is there already (4 demonstrations" in capsys.readouterr().out and toy_demos.stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="another configuration"):
        collect.run(replace(config, level="clean"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("task", "toy/rech", "toy/reach"),
        ("level", "varied-9", "varied-"),
        ("first_seed", 99_999, "seeds within"),
        ("image_size", 100_000, "16 to 1024 pixels"),
        ("redraw_every", -1, "redraw_every=-1: expected 0"),
    ],
)
def test_bad_requests(field: str, value: object, message: str) -> None:
    fields = {
        "task": "toy/reach",
        "level": "clean",
        "episodes": 4,
        "out": "x",
        "image_size": 64,
        "first_seed": 0,
        "workers": 1,
    }
    with pytest.raises(ValueError, match=message):
        DemosConfig(**(fields | {field: value}))


def test_damaged_files_are_named(toy_demos: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="egoarm demos"):
        DemoFile(tmp_path / "none.hdf5")
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(toy_demos.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut\.hdf5 is not a whole HDF5 file"):
        DemoFile(cut)
    with h5py.File(tmp_path / "bare.hdf5", "w") as file:
        file.create_group("data")
    with pytest.raises(ValueError, match=r"bare\.hdf5 lacks"):
        DemoFile(tmp_path / "bare.hdf5")


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("obs/tip_pos", None, r"demo_2 has no 'obs/tip_pos', which its spec names; there is: .*obs/front_image"),
        ("obs/front_image", np.zeros((9, 84, 84, 3), np.uint8), r"demo_2: obs/front_image is uint8\[9, 84, 84, 3\], expected uint8\["),
        ("obs/tip_vel", np.zeros((9, 2)), r"obs/tip_vel is float64\[9, 2\], expected float32"),
        ("actions", np.nan, "demo_2: the action of step 2 is not finite"),
        ("actions", 1.5, r"demo_2: the action of step 2 is out of the range -1 to 1: \[1\.5, .*\(1 of"),
        ("rewards", None, "expected 'rewards' with num_samples"),
        ("states", np.zeros((3, 6)), r"expected 'states' with num_samples \d+ rows, found 3 rows"),
    ],
)  # fmt: skip
def test_what_the_spec_promises_is_checked_at_opening(
    toy_demos: Path, tmp_path: Path, key: str, values: np.ndarray | float | None, message: str
) -> None:
    bad = tmp_path / "bad.hdf5"
    shutil.copy(toy_demos, bad)
    with h5py.File(bad, "a") as file:
        demo = file["data/demo_2"]
        if isinstance(values, float):
            demo[key][2, 0] = values
        else:
            del demo[key]
            if values is not None:
                demo[key] = values
    with pytest.raises(ValueError, match=message) as error:
        DemoFile(bad)
    assert str(bad) in str(error.value)


def edit_meta(source: Path, target: Path, **changes: object) -> Path:
    shutil.copy(source, target)
    with h5py.File(target, "a") as file:
        attributes = file["data"].attrs
        attributes["egoarm"] = json.dumps(json.loads(attributes["egoarm"]) | changes)
    return target


def test_demos_of_another_version_are_refused(toy_demos: Path, tmp_path: Path) -> None:
    old = edit_meta(toy_demos, tmp_path / "old.hdf5", versions={"mujoco": "2.3.7"})
    with pytest.raises(ValueError, match=r"was made with mujoco 2\.3\.7 \(installed: "):
        DemoFile(old)
    with DemoFile(old, any_version=True) as demos:
        spec = replace(demos.env_spec, horizon_steps=99)
    changed = edit_meta(toy_demos, tmp_path / "new.hdf5", spec=spec.to_json(), schema_hash=spec.schema_hash())
    with (
        DemoFile(changed) as demos,
        pytest.raises(ValueError, match=r"another version of toy/reach .*horizon_steps: 99 != 60"),
    ):
        demos.check_env()
    with DemoFile(toy_demos) as demos:
        demos.check_env()


def test_images_that_an_encoder_must_enlarge(toy_demos: Path, capsys: pytest.CaptureFixture) -> None:
    with DemoFile(toy_demos) as demos:
        demos.check_image_size("small", 64)
        assert not capsys.readouterr().out
        demos.check_image_size("middle", 112)
        assert "64 pixels are enlarged to the 112 of middle; image_size=112" in capsys.readouterr().out
        with pytest.raises(ValueError, match=r"64 pixels, the encoder large takes 384: .* again with image_size=384"):
            demos.check_image_size("large", 384)


def test_privileged_states_without_images(tmp_path: Path) -> None:
    config = DemosConfig(
        task="toy/reach",
        level="clean",
        episodes=2,
        out=str(tmp_path / "d.hdf5"),
        image_size=64,
        first_seed=7,
        workers=1,
        cameras=(),
        privileged=True,
    )
    with DemoFile(collect.run(config)) as demos:
        assert list(demos.env_spec.observation) == ["state/tip_pos", "state/tip_vel", "state/full"]
        np.testing.assert_allclose(demos.array(0, "obs/state/full"), demos.array(0, "states"), atol=1e-6)
        demos.check_env()


def test_failed_attempts_are_counted_with_their_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act = ToyReachExpert.act

    def sometimes(self: ToyReachExpert, observation: dict) -> np.ndarray:
        if self._simulation.full_state()[4] > 0:
            raise FloatingPointError("the ball is on the right")
        return act(self, observation)

    monkeypatch.setattr(ToyReachExpert, "act", sometimes)
    common = {"task": "toy/reach", "level": "clean", "image_size": 64, "workers": 1, "cameras": ()}
    with DemoFile(collect.run(DemosConfig(episodes=3, out=str(tmp_path / "d.hdf5"), first_seed=0, **common))) as demos:
        failures = demos.meta["failures"]
        assert (
            len(demos) == 3 and failures and set(failures.values()) == {"FloatingPointError: the ball is on the right"}
        )
        assert sorted([*demos.seeds, *map(int, failures)]) == list(range(3 + len(failures)))
    monkeypatch.setattr(ToyReachExpert, "act", lambda self, observation: np.zeros(2, np.float32))
    with pytest.raises(
        RuntimeError, match=r"failed on \d+ of \d+ seeds \(\d+ times: not solved within the horizon\); no demon"
    ):
        collect.run(DemosConfig(episodes=1, out=str(tmp_path / "e.hdf5"), first_seed=0, **common))
    assert not (tmp_path / "e.hdf5").exists()


def test_frames_are_read_one_by_one(toy_demos: Path) -> None:
    with DemoFile(toy_demos) as demos:
        whole = demos.array(2, "obs/images/front")
        np.testing.assert_array_equal(demos.frames(2, "front", [5, 0, 0]), whole[[5, 0, 0]])
        with h5py.File(toy_demos) as file:
            assert file["data/demo_2/obs/front_image"].chunks == (1, 64, 64, 3)


@pytest.mark.skipif(importlib.util.find_spec("robomimic") is None, reason="robomimic is not installed")
@pytest.mark.parametrize("cache", [None, "low_dim", "all"])
def test_robomimic_reads_it(toy_demos: Path, cache: str | None) -> None:
    import pretrain.zoo.vision_ops  # noqa: F401  (torchvision's door)

    dataset = importlib.import_module("robomimic.utils.dataset")
    modalities = {"low_dim": ["tip_pos", "tip_vel"], "rgb": ["front_image"]}
    importlib.import_module("robomimic.utils.obs_utils").initialize_obs_utils_with_obs_specs({"obs": modalities})
    # Before theirs: HDF5 opens a file in one process either plainly or, as robomimic does, for concurrent reading.
    with DemoFile(toy_demos) as demos:
        first, length = demos.lengths[0], sum(demos.lengths)
        actions, images = demos.array(1, "actions"), demos.array(1, "obs/images/front")
    theirs = dataset.SequenceDataset(
        str(toy_demos),
        obs_keys=["tip_pos", "tip_vel", "front_image"],
        dataset_keys=["actions", "rewards", "dones"],
        frame_stack=2,
        seq_length=3,
        hdf5_cache_mode=cache,
        load_next_obs=False,
    )
    item = theirs[first + 2]
    assert len(theirs) == length
    np.testing.assert_array_equal(item["actions"], actions[1:5])
    np.testing.assert_array_equal(item["obs"]["front_image"], images[1:5])
    theirs.close_and_delete_hdf5_handle()


@given(st.integers(1, 12), st.integers(1, 6))
def test_action_windows(length: int, chunk: int) -> None:
    actions = np.arange(2 * length, dtype=np.float32).reshape(length, 2)
    windows, pad = action_windows(actions, chunk)
    for t in range(length):
        for a in range(chunk):
            assert pad[t, a] == (t + a >= length)
            np.testing.assert_array_equal(windows[t, a], actions[min(t + a, length - 1)])


def test_training_rows_keep_the_order_of_demonstrations(toy_demos: Path) -> None:
    with DemoFile(toy_demos) as demos:
        keys = [key for key in demos.env_spec.observation if key.startswith("state/")]
        rows = training_rows(demos, keys, 2)
        start = demos.lengths[0]
        np.testing.assert_array_equal(rows["action"][start, 0].numpy(), demos.array(1, "actions")[0])
        assert rows["action_is_pad"].sum() == len(demos)
