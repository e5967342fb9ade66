"""The four tasks on a small store: what each figure is made of, its baselines, missing truth, the table and the file."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from scipy.spatial.transform import Rotation

from pretrain.clips.build import build_store
from pretrain.clips.schema import Clip
from pretrain.clips.store import ClipStore, open_store
from pretrain.downstream.comparison import compare, load_results
from pretrain.downstream.depth_errors import aligned_errors
from pretrain.downstream.four_tasks import FourTasksConfig, Prediction, measure, outcome, report
from pretrain.downstream.four_tasks_truth import FIGURES, TASKS, Truth, truth_of
from pretrain.downstream.results import BenchmarkResult, Metric
from pretrain.downstream.trajectory import FIRST_FRAME, still_camera, trajectory_errors

CLIPS, HEIGHT, WIDTH, FRAMES, SAMPLES = 8, 36, 48, 16, 60
SIDE = HEIGHT
# Clips that lack something.
WITHOUT_DEPTH, WITHOUT_GAZE = 6, 7


def make_clip(index: int) -> Clip:
    random = np.random.default_rng(index)
    rgb = np.repeat(random.integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8), FRAMES, axis=0)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    depth = np.stack([1.0 + 0.3 * np.sin(x / 9 + frame / 5) * np.cos(y / 7) for frame in range(FRAMES)])
    depth[:, :3] = 0  # not known
    poses = still_camera(SAMPLES)
    poses[:, :3, :3] = Rotation.from_rotvec(np.cumsum(random.normal(size=(SAMPLES, 3)) * 0.01, axis=0)).as_matrix()
    poses[:, :3, 3] = 3 + np.cumsum(random.normal(size=(SAMPLES, 3)) * 0.01, axis=0)
    gaze = np.array([WIDTH / 2 + 4, HEIGHT / 2 - 3]) + np.cumsum(random.normal(size=(SAMPLES, 2)) * 0.5, axis=0)
    gaze[10:15] = np.nan
    gaze[20] = (-300, 5)  # far outside
    return Clip(
        key=f"clip-{index}",
        rgb=rgb,
        rgb_times_s=np.arange(FRAMES) / 8,
        depth=None if index == WITHOUT_DEPTH else depth.astype(np.float32),
        intrinsics=np.array([[40.0, 0, WIDTH / 2], [0, 40.0, HEIGHT / 2], [0, 0, 1]]),
        world_from_camera=poses,
        gaze=None if index == WITHOUT_GAZE else gaze.astype(np.float32),
        meta={"recording": f"video-{index // 2}"},
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    directory = tmp_path_factory.mktemp("clips")
    build_store(
        directory, make_clip, kind="tests", seed=0, settings={}, versions={}, n_clips=CLIPS, clips_per_shard=4, workers=1,
    )  # fmt: skip
    return open_store(directory)


class NearlyRight:
    """Predicts the truth with some noise, of its own size where that is allowed."""

    def __init__(self, name: str = "model", noise: float = 0.1) -> None:
        self.name, self.sha256, self._noise = name, "0" * 64, noise

    def predict(self, clips: Sequence[Clip]) -> Prediction:
        random = np.random.default_rng(0)
        truths = [truth_of(clip) for clip in clips]

        def depth(truth: Truth) -> np.ndarray | None:
            inverse = truth.inverse_depth
            return None if inverse is None else 5 * inverse[:, ::2, ::2] + self._noise * random.random((16, 18, 18)) - 2

        def gaze(truth: Truth) -> np.ndarray | None:
            if truth.gaze_px is None:
                return None
            return np.nan_to_num(truth.gaze_px, nan=0.0) + self._noise

        return Prediction(
            gaze=[gaze(truth) for truth in truths],
            camera=np.stack([truth.camera for truth in truths if truth.camera is not None]),
            depth=[depth(truth) for truth in truths],
            rgb=[None if truth.rgb is None else truth.rgb ^ np.uint8(10 * self._noise) for truth in truths],
            seconds={"camera": 0.5 * len(clips)},
        )


def metric(results: Sequence[BenchmarkResult], task: str, method: str, name: str) -> Metric:
    (result,) = [each for each in results if each.benchmark == f"four-tasks {task}" and each.encoder == method]
    (found,) = [each for each in result.metrics if each.name == name]
    return found


@pytest.fixture(scope="module")
def results(store: ClipStore) -> list[BenchmarkResult]:
    indices, fit = [1, 2, 3, 6, 7], [0, 4, 5]
    return measure([NearlyRight()], store, indices, fit_indices=fit, config=FourTasksConfig(batch_size=2))


def test_truth_is_of_the_central_square_at_the_models_times(store: ClipStore) -> None:
    clip = store.read(0)
    truth = truth_of(clip)
    assert clip.rgb is not None and clip.depth is not None and clip.gaze is not None
    assert truth.window == (0, 6, SIDE) and truth.group == "video-0"
    np.testing.assert_array_equal(truth.rgb, clip.rgb[:, :, 6:-6])
    np.testing.assert_array_equal(truth.metres, clip.depth[:, :, 6:-6])
    assert truth.known is not None and not truth.known[:, :3].any() and truth.known[:, 3:].all()
    assert truth.gaze_px is not None and np.isnan(truth.gaze_px[[10, 20]]).all()
    np.testing.assert_allclose(truth.gaze_px[:10], clip.gaze[:10], atol=1e-4)
    assert truth.camera is not None and clip.world_from_camera is not None
    np.testing.assert_allclose(truth.camera[0], np.eye(4), atol=1e-6)
    errors = trajectory_errors(truth.camera, clip.world_from_camera, FIRST_FRAME)
    assert errors.ate_m < 1e-5 and errors.rre_degrees < 1e-3
    small = truth_of(clip, 18)
    assert small.rgb is not None and small.metres is not None and small.rgb.shape == (16, 18, 18, 3)
    np.testing.assert_allclose(small.square_intrinsics, [[20, 0, 9], [0, 20, 9], [0, 0, 1]])
    lacking = truth_of(store.read(WITHOUT_DEPTH))
    assert lacking.missing == {"depth": "no depth"} and not lacking.has("depth") and lacking.has("rgb")
    with pytest.raises(ValueError, match="has no rgb"):
        truth_of(clip.replace(rgb=None, rgb_times_s=None, depth=None))


def test_every_method_has_every_figure_of_its_task(results: list[BenchmarkResult]) -> None:
    methods = {
        "gaze": ["model", "image centre", "mean gaze", "previous fixation"],
        "camera": ["model", "still camera", "mean motion", "visual odometry"],
        "depth": ["model", "best constant", "best plane"],
        "rgb": ["model", "mean colour", "depth as gray"],
    }
    assert list(methods) == list(TASKS)
    for task, names in methods.items():
        own = [result for result in results if result.benchmark == f"four-tasks {task}"]
        assert [result.encoder for result in own] == names
        for result in own:
            figures = {each.name for each in result.metrics}
            assert figures | set(result.missing) >= set(FIGURES[task])
            for each in result.metrics:
                assert each.low <= each.value <= each.high and len(each.items) == 5
                assert list(each.groups) == ["video-0", "video-1", "video-1", "video-3", "video-3"]
            assert result.protocol == results[0].protocol
    assert results[0].protocol["items"] == 5 and results[0].protocol["groups"] == 3


def test_a_model_that_is_nearly_right_beats_all_baselines_of_its_task(results: list[BenchmarkResult]) -> None:
    for task, name in (("gaze", "MSE"), ("gaze", "angle"), ("camera", "ATE first-frame"), ("depth", "AbsRel aligned")):
        encoders, rows = compare([each for each in results if each.benchmark == f"four-tasks {task}"], "model")
        (row,) = [row for row in rows if row.metric == name]
        for method, difference in zip(encoders, row.differences, strict=True):
            if method != "model" and (name, method) != ("MSE", "previous fixation"):
                assert difference is not None and difference.value > 0 and difference.low > 0, (task, method)
    for method in ("mean colour", "depth as gray"):
        assert metric(results, "rgb", "model", "PSNR").value > metric(results, "rgb", method, "PSNR").value


def test_figures_by_hand(results: list[BenchmarkResult], store: ClipStore) -> None:
    # A prediction 0.1 px off in both directions, in a window of 36 px.
    assert metric(results, "gaze", "model", "MSE").value == pytest.approx((0.1 / SIDE) ** 2, rel=1e-3)
    truth = truth_of(store.read(1))
    assert truth.camera is not None and truth.metres is not None and truth.known is not None
    still = metric(results, "camera", "still camera", "ATE first-frame").items
    expected = trajectory_errors(still_camera(SAMPLES), truth.camera, FIRST_FRAME).ate_m
    assert still is not None and still[0] == pytest.approx(expected)
    assert metric(results, "camera", "model", "ATE first-frame").value == pytest.approx(0, abs=1e-6)
    metres = truth.metres[truth.known]
    constant = metric(results, "depth", "best constant", "AbsRel aligned")
    assert constant.items is not None
    assert constant.items[0] == pytest.approx(aligned_errors(np.ones(len(metres)), metres)[0])
    # Chance is the first baseline's figure.
    assert metric(results, "depth", "model", "AbsRel aligned").chance == pytest.approx(constant.value)
    assert metric(results, "depth", "model", "delta1 aligned").chance == pytest.approx(
        metric(results, "depth", "best constant", "delta1 aligned").value
    )
    assert metric(results, "depth", "best plane", "AbsRel aligned").value <= constant.value + 1e-9
    assert metric(results, "camera", "model", "seconds a clip").value == pytest.approx(0.5)
    assert metric(results, "camera", "visual odometry", "seconds a clip").value > 0


def test_clips_without_truth_are_left_out_and_counted(results: list[BenchmarkResult]) -> None:
    for task, place in (("depth", 3), ("gaze", 4)):
        own = [result for result in results if result.benchmark == f"four-tasks {task}"]
        for result in own:
            for each in result.metrics:
                assert each.items is not None and np.flatnonzero(np.isnan(each.items)).tolist() == [place]
        assert any(note == f"skipped 1: a clip, no {task}" for note in own[0].notes)
    # The video of depth needs the depth.
    gray = metric(results, "rgb", "depth as gray", "PSNR").items
    assert gray is not None and np.isnan(gray[3])


def test_what_is_absent_says_why(results: list[BenchmarkResult]) -> None:
    model = outcome(results, "model")
    assert "package lpips" in model.missing["rgb LPIPS"] and "StyleGAN-V" in model.missing["rgb FVD"]
    assert model.missing["gaze seconds a clip"] == "not timed"
    assert {"gaze MSE", "camera RRE Sim(3)", "depth delta1 aligned", "rgb SSIM"} <= {
        each.name for each in model.metrics
    }
    assert any("visual odometry" in note for note in model.notes)
    blind = outcome(results, "image centre")
    assert {each.name.split()[0] for each in blind.metrics} == {"gaze"}


def test_table_and_file(results: list[BenchmarkResult], tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    path = tmp_path / "four-tasks.json"
    report(results, "model", path=path, console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for word in (
        "four-tasks gaze",
        "previous fixation",
        "ATE first-frame m ↓",
        "best plane",
        "Δ",
        "visual odometry, 5 clips",
    ):
        assert word in text
    again = load_results(path)
    assert [result.encoder for result in again] == [result.encoder for result in results]
    for one, other in zip(again, results, strict=True):
        assert one.missing == other.missing and len(one.metrics) == len(other.metrics)
    with pytest.raises(ValueError, match="baseline=nobody"):
        report(results, "nobody", console=console)


def test_networks_that_are_given_are_used(store: ClipStore, tmp_path: Path) -> None:
    class Features(torch.nn.Module):
        def forward(
            self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
        ) -> torch.Tensor:
            return x.mean(dim=(2, 3, 4))

    torch.jit.script(Features()).save(str(tmp_path / "features.pt"))
    channels = (3, 64, 192, 384, 256, 256)
    kernels, numbers = (11, 5, 3, 3, 3), (0, 3, 6, 8, 10)
    weights = {}
    for place, (kernel, number) in enumerate(zip(kernels, numbers, strict=True)):
        shape = (channels[place + 1], channels[place], kernel, kernel)
        weights[f"net.slice{place + 1}.{number}.weight"] = torch.randn(shape) / kernel
        weights[f"net.slice{place + 1}.{number}.bias"] = torch.zeros(shape[0])
        weights[f"lin{place}.model.1.weight"] = torch.ones(1, shape[0], 1, 1)
    save_file(weights, tmp_path / "alex.safetensors")
    config = FourTasksConfig(
        tasks=("rgb",), lpips=str(tmp_path / "alex.safetensors"), fvd=str(tmp_path / "features.pt")
    )
    results = measure([NearlyRight()], store, [0, 1, 2], config=config)
    assert metric(results, "rgb", "model", "LPIPS").value < metric(results, "rgb", "mean colour", "LPIPS").value
    fvd = metric(results, "rgb", "model", "FVD")
    assert fvd.value < metric(results, "rgb", "depth as gray", "FVD").value and np.isnan(fvd.low) and fvd.items is None
    # A mean alone tells the mean colour from the truth as little as it should.
    assert metric(results, "rgb", "mean colour", "FVD").value < 1
    report(results, "model", path=tmp_path / "out.json", console=Console(file=io.StringIO()))


def test_without_clips_to_fit_there_are_no_means_and_odometry_has_no_metres(store: ClipStore) -> None:
    config = FourTasksConfig(tasks=("gaze", "camera"))
    results = measure([NearlyRight()], store, [0, 1], config=config)
    for method in ("mean gaze", "mean motion"):
        (result,) = [each for each in results if each.encoder == method]
        assert not result.metrics and "no clips given" in result.missing[""]
    assert any("arbitrary units" in note for note in results[-1].notes)


def test_relative_depth_has_no_metres(store: ClipStore) -> None:
    class Annotated:
        manifest_sha256 = store.manifest_sha256

        def read(self, index: int) -> Clip:
            return store.read(index).replace(meta={"annotation": {"depth_is_relative": True}})

    results = measure([NearlyRight()], Annotated(), [0, 1], config=FourTasksConfig(tasks=("depth",)))  # type: ignore[arg-type]
    assert results[0].missing["RMSE aligned"] == "the clips' depth is in no unit"
    assert "AbsRel aligned" in {each.name for each in results[0].metrics}


class Broken(NearlyRight):
    def __init__(self, **changes: object) -> None:
        super().__init__()
        self._changes = changes

    def predict(self, clips: Sequence[Clip]) -> Prediction:
        return Prediction(**self._changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gaze": np.zeros((1, 60, 2))}, "model: predicted gaze of 1 clips where 2 were given"),
        ({"gaze": np.zeros((2, 30, 2))}, "clip 'clip-0': gaze: 30 predicted samples for 60"),
        ({"gaze": np.full((2, 60, 2), np.nan)}, "clip 'clip-0': predicted gaze"),
        ({"camera": np.zeros((2, 60, 4, 4))}, "clip 'clip-0': estimated trajectory: pose 0"),
        ({"depth": np.zeros((2, 16, 36, 48))}, r"clip 'clip-0': predicted depth: expected \[16, S, S\]"),
        ({"depth": np.full((2, 16, 36, 36), np.nan)}, "clip 'clip-0': predicted inverse depth"),
        ({"rgb": np.zeros((2, 16, 36, 36, 3))}, "clip 'clip-0': predicted video: expected uint8"),
        ({"rgb": np.zeros((2, 8, 36, 36, 3), np.uint8)}, "clip 'clip-0': video: predicted"),
    ],
)
def test_predictions_that_are_not_what_they_should_be_are_named(store: ClipStore, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure([Broken(**changes)], store, [0, 1], config=FourTasksConfig(tasks=tuple(changes)))


def test_a_predictor_need_not_do_all_tasks(store: ClipStore) -> None:
    results = measure([Broken()], store, [0, 1], config=FourTasksConfig(tasks=("gaze", "rgb")))
    assert outcome(results, "model").metrics == ()
    assert outcome(results, "model").missing["gaze MSE"] == "not predicted"


def test_bad_settings_are_named(store: ClipStore) -> None:
    for settings, message in (
        ({"tasks": ("gaze", "hands")}, "tasks=hands"),
        ({"tasks": ()}, "tasks= is empty"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"image_size": 8}, "image_size=8"),
    ):
        with pytest.raises(ValueError, match=message):
            FourTasksConfig(**settings)
    with pytest.raises(ValueError, match="no clips"):
        measure([], store, [])
    with pytest.raises(ValueError, match="both scored and fitted"):
        measure([], store, [0, 1], fit_indices=[1])
    with pytest.raises(ValueError, match="'still camera' is the name of two methods"):
        measure([NearlyRight("still camera")], store, [0, 1])
    with pytest.raises(FileNotFoundError, match="package lpips"):
        measure([], store, [0], config=FourTasksConfig(lpips="nowhere.pth"))
