"""The spatial probe: its regression against scikit-learn, its split, its figures on features that are known, and whole."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from pretrain.clips.build import build_store
from pretrain.clips.schema import Clip
from pretrain.clips.store import open_store
from pretrain.downstream import spatial
from pretrain.downstream.robot_frames import ROBOT_TARGETS, RobotFramesConfig, robot_source
from pretrain.downstream.spatial import SpatialData, encode, spatial_probe
from pretrain.downstream.spatial_ceiling import conv_ceiling
from pretrain.downstream.spatial_ridge import (
    cross_fit,
    fold_of_groups,
    reduce_channels,
    ridge,
    standardised_gram,
)
from pretrain.downstream.spatial_scores import (
    SUMMARY,
    compare_spatial,
    contact_metrics,
    scene_errors,
    scene_weights,
    summary_metric,
    target_metrics,
)
from pretrain.downstream.spatial_targets import (
    CLIP_TARGETS,
    CONTACT,
    POSITION,
    SpatialSource,
    clip_source,
    gap,
    locate,
    number_targets,
    visible_points,
)
from pretrain.egodtm.encoder import EgoDTMEncoder
from pretrain.egodtm.video_vit import VideoViTConfig
from pretrain.encoder import load_encoder, save_encoder
from pretrain.provenance import make_provenance

ROWS, WIDTH = 48, 70


@pytest.fixture
def regression() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    features = random.normal(size=(ROWS, WIDTH)) * random.uniform(0.1, 10, WIDTH) + random.normal(size=WIDTH)
    labels = features[:, :3] / features[:, :3].std(axis=0) + random.normal(size=(ROWS, 3)) + 5
    return features, labels, np.repeat(np.arange(16), 3)


# ------------------------------------------------------------------------------------------------------------ regression


@pytest.mark.parametrize("lambda_", [1e-3, 1.0, 30.0])
def test_ridge_is_that_of_scikit_learn(regression, lambda_):
    features, labels, groups = regression
    train, test = np.arange(36), np.arange(36, ROWS)
    gram = features @ features.T
    predicted, _ = ridge(
        gram[np.ix_(train, train)], gram[np.ix_(test, train)], labels[train], groups[train], np.array([lambda_])
    )
    expected = Ridge(alpha=lambda_, solver="svd").fit(features[train], labels[train]).predict(features[test])
    np.testing.assert_allclose(predicted, expected, rtol=1e-7, atol=1e-8)


def test_lambda_is_that_of_refits_without_each_group(regression):
    features, labels, groups = regression
    groups = np.where(groups == 3, 2, groups)  # groups of several sizes
    lambdas = np.logspace(-1, 4, 8)
    gram = features @ features.T
    _, best = ridge(gram, gram, labels, groups, lambdas)
    errors = np.zeros((len(lambdas), labels.shape[1]))
    for number, lambda_ in enumerate(lambdas):
        for group in np.unique(groups):
            out = groups == group
            model = Ridge(alpha=lambda_, solver="svd").fit(features[~out], labels[~out])
            errors[number] += ((model.predict(features[out]) - labels[out]) ** 2).sum(axis=0)
    np.testing.assert_array_equal(best, errors.argmin(axis=0))


def test_gram_is_of_features_standardised_on_the_training_rows(regression, monkeypatch):
    features, _, _ = regression
    monkeypatch.setattr("pretrain.downstream.spatial_ridge._COLUMNS_AT_ONCE", 16)
    features = np.concatenate([features, np.full((ROWS, 1), 7.0)], axis=1)
    features[-1, -1] = 8.0  # constant but for a test row
    train = np.arange(ROWS) < 30
    deviation = features[train].std(axis=0)
    deviation = np.maximum(deviation, 0.1 * np.median(deviation))
    scaled = (features - features[train].mean(axis=0)) / deviation
    expected = scaled @ scaled.T / (WIDTH + 1)
    np.testing.assert_allclose(standardised_gram(features, train), expected, rtol=1e-4, atol=1e-4)


def test_channels_are_reduced_by_the_training_tokens_alone():
    random = np.random.default_rng(0)
    tokens = random.normal(size=(20, 9, 24)).astype(np.float16)
    train = np.arange(20) < 12
    changed = tokens.copy()
    changed[15] = 100.0
    first, second = (reduce_channels(part, train, 4, 0) for part in (tokens, changed))
    assert first.shape == (20, 36)
    np.testing.assert_array_equal(first[train], second[train])
    assert reduce_channels(tokens, train, 24, 0).shape == (20, 216)  # nothing to reduce


@settings(max_examples=40, deadline=None)
@given(groups=st.integers(4, 60), folds=st.integers(2, 4), seed=st.integers(0, 2**31 - 1), rows=st.integers(1, 5))
def test_no_scene_is_on_both_sides(groups, folds, seed, rows):
    scene_of = np.repeat(np.arange(groups), rows)
    fold = fold_of_groups(groups, folds, seed)[scene_of]
    assert set(fold) == set(range(folds))
    for number in range(folds):
        assert not set(scene_of[fold == number]) & set(scene_of[fold != number])
    assert np.ptp(np.bincount(fold[::rows])) <= 1


def test_too_many_folds_are_refused():
    with pytest.raises(ValueError, match="number of scenes, 3"):
        fold_of_groups(3, 4, 0)


def test_unknown_labels_neither_train_nor_are_predicted(regression):
    features, labels, groups = regression
    fold = fold_of_groups(16, 4, 0)[groups]
    missing = labels.copy()
    missing[groups == 5, 1] = np.nan

    def gram(train):
        return standardised_gram(features, train)

    predicted, mean = cross_fit(gram, missing, groups, fold)
    np.testing.assert_array_equal(np.isnan(predicted), np.isnan(missing))
    whole, _ = cross_fit(gram, labels, groups, fold)
    np.testing.assert_allclose(predicted[:, 0], whole[:, 0])  # other columns are what they were
    seen = (fold != fold[0]) & (groups != 5)
    np.testing.assert_allclose(mean[0, 1], labels[seen, 1].mean())


# --------------------------------------------------------------------------------------------------------------- figures

TARGETS = number_targets([("place", "mm", 1000.0, 2, POSITION), ("touch", "", 1.0, 1, CONTACT)])


def made_up_source(scenes: int, seed: int, rows: int = 4) -> SpatialSource:
    """Places vary from scene to scene and within a scene; a third of the rows touch."""
    random = np.random.default_rng(seed)
    scene_of = np.repeat(np.arange(scenes), rows)
    place = random.normal(size=(scenes, 2))[scene_of] + 0.5 * random.normal(size=(scenes * rows, 2))
    touch = (place[:, :1] > 0.5).astype(float)
    return SpatialSource(
        name="made-up",
        fps=8.0,
        scenes=tuple(f"s{number}" for number in range(scenes)),
        load=lambda scene: np.zeros((rows, 4, 4, 3), np.uint8),
        scene_of=scene_of,
        frame_of=np.tile(np.arange(rows), scenes),
        values=np.concatenate([place, touch], axis=1),
        targets=TARGETS,
        identity={"kind": "made-up", "seed": seed},
    )


def probe_features(source: SpatialSource, features: np.ndarray) -> dict[str, float]:
    fold = fold_of_groups(len(source.scenes), 4, 0)[source.scene_of]
    predicted, mean = cross_fit(lambda train: standardised_gram(features, train), source.values, source.scene_of, fold)
    weights = scene_weights(len(source.scenes), 500, 0)
    metrics = target_metrics("m", "p", scene_errors(source, TARGETS, predicted, mean), weights)
    metrics += contact_metrics(source, TARGETS, "p", predicted - mean, weights)
    for metric in metrics:
        assert metric.low <= metric.value <= metric.high
    return {metric.name.split()[-1]: metric.value for metric in metrics}


def test_features_that_hold_the_target_read_it_and_noise_does_not():
    source = made_up_source(60, 0)
    noise = np.random.default_rng(1).normal(size=(240, 300))
    informed = probe_features(source, np.concatenate([10 * source.values[:, :2], 0.01 * noise[:, :3]], axis=1))
    assert informed["R2"] > 0.999
    assert informed["AUROC"] > 0.95
    ignorant = probe_features(source, noise)
    assert abs(ignorant["R2"]) < 0.1
    assert abs(ignorant["AUROC"] - 0.5) < 0.15
    assert ignorant["RMSE"] == pytest.approx(1000 * source.values[:, :2].std() * np.sqrt(2), rel=0.1)


def test_auroc_is_that_of_scikit_learn():
    source = made_up_source(30, 3)
    scores = np.round(source.values + np.random.default_rng(0).normal(size=source.values.shape), 1)  # with ties
    metric = contact_metrics(source, TARGETS, "p", scores, scene_weights(30, 50, 0))[0]
    assert metric.value == pytest.approx(roc_auc_score(source.values[:, 2], scores[:, 2]))


def test_items_have_the_figures_as_their_mean_and_their_spread_as_its_error():
    source = made_up_source(300, 5)
    random = np.random.default_rng(0)
    predicted = source.values + 0.7 * random.normal(size=(300, 3))[source.scene_of] + random.normal(size=(1200, 3))
    predicted[::7, :2] = np.nan  # scenes of unequal weight
    weights = scene_weights(300, 2000, 0)
    errors = scene_errors(source, TARGETS, predicted, np.zeros_like(predicted))
    metrics = target_metrics("m", "p", errors, weights) + contact_metrics(source, TARGETS, "p", predicted, weights)
    metrics.append(summary_metric("m", "p", {"m": errors}, {"m": weights}))
    assert len(metrics) == 4
    for metric in metrics[1:]:
        assert metric.items is not None and metric.items.shape == (300,)
        assert metric.items.mean() == pytest.approx(metric.value)
        deviation = metric.items.std() / np.sqrt(300)
        assert metric.high - metric.low == pytest.approx(2 * 1.96 * deviation, rel=0.12)


def test_intervals_cover():
    """The error over scenes of a predictor of known quality, with errors that are alike within a scene."""
    covered = []
    truth = 0.5  # error variance over label variance
    for seed in range(200):
        source = made_up_source(40, seed)
        random = np.random.default_rng([7, seed])
        variance = 1 + 0.5**2
        shared, own = random.normal(size=(40, 3))[source.scene_of], random.normal(size=(160, 3))
        predicted = source.values + np.sqrt(truth * variance / 2) * (shared + own)
        errors = scene_errors(source, TARGETS, predicted, np.zeros_like(predicted))
        metric = target_metrics("m", "p", errors, scene_weights(40, 400, seed))[0]
        covered.append(metric.low <= 1 - truth <= metric.high)
    assert 0.88 <= np.mean(covered) <= 0.99


# ------------------------------------------------------------------------------------------------------------------ clips


def make_hand_clip(index: int, frames: int = 8, size: int = 32) -> Clip:
    """A right hand (bright) and a box (green) on a noisy ground; the hand moves to the box and touches it at the end."""
    random = np.random.default_rng([3, index])
    rgb = random.integers(40, 60, (frames, size, size, 3)).astype(np.uint8)
    segmentation = np.zeros((frames, size, size), np.uint8)
    depth = np.full((frames, size, size), 1.0, np.float32)
    contact = np.zeros((frames, 2), np.uint8)
    box, start = random.integers(2, 22, 2), random.integers(2, 22, 2)
    z = np.round(random.uniform(0.4, 0.8), 3)
    for frame in range(frames):
        share = min(1.0, frame / (frames - 3))
        hand = np.round(start + share * (box + 3 - start)).astype(int)  # covers a quarter of it
        for place, id_, colour in ((box, 3, (20, 220, 30)), (hand, 2, (250, 200, 180))):
            region = (frame, slice(place[1], place[1] + 6), slice(place[0], place[0] + 6))
            rgb[region], segmentation[region], depth[region] = colour, id_, z
        contact[frame, 1] = 3 * (share == 1.0)
    return Clip(
        key=f"hand-{index:04d}",
        rgb=rgb,
        rgb_times_s=np.arange(frames) / 8.0,
        depth=depth,
        segmentation=segmentation,
        labels={1: "left hand", 2: "right hand", 3: "green box"},
        contact=contact,
        intrinsics=np.array([[20.0, 0, 16], [0, 20.0, 16], [0, 0, 1]]),
        narration="#C C touches the box",
    )


@pytest.fixture(scope="module")
def hand_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hands")
    build_store(
        directory, make_hand_clip, kind="hands", seed=0, settings={}, versions={}, n_clips=48, clips_per_shard=16,
        workers=1,
    )  # fmt: skip
    return directory


def test_places_by_hand():
    segmentation = np.zeros((10, 10), np.uint8)
    segmentation[2:4, 6:8] = 5
    segmentation[8, 1] = 6
    depth = np.full((10, 10), 3.0, np.float32)
    depth[2:4, 6:8] = [[2.0, 2.0], [2.0, 2.0]]
    intrinsics = np.array([[4.0, 0, 5], [0, 4.0, 5], [0, 0, 1]])
    thing, dot = (visible_points(segmentation, depth, intrinsics, id_) for id_ in (5, 6))
    np.testing.assert_allclose(locate(thing, intrinsics), [7, 3, 2, 1, -1, 2])
    np.testing.assert_allclose(dot, [[1.5, 8.5, -3.5 / 4 * 3, 3.5 / 4 * 3, 3]])
    nearest = np.array([(6.5 - 5) / 4 * 2, (3.5 - 5) / 4 * 2, 2])
    assert gap(thing, dot) == pytest.approx(np.linalg.norm(nearest - dot[0, 2:]))
    depth[2, 6] = 2.5
    farthest = visible_points(segmentation, depth, intrinsics, 5)
    np.testing.assert_allclose(locate(farthest, intrinsics, far_share=0.25)[:3], [6.5, 2.5, 2.5])
    depth[2:4, 6:8] = 0
    hidden = visible_points(segmentation, depth, intrinsics, 5)
    assert len(hidden) == 0 and np.isnan(locate(hidden, intrinsics)).all() and np.isnan(gap(hidden, dot))
    assert len(visible_points(segmentation, depth, intrinsics, 0)) == 0


def test_clip_source_asks_the_same_frames_of_every_encoder(hand_store):
    source = clip_source(open_store(hand_store), indices=range(2, 8), queries=4)
    few = clip_source(open_store(hand_store), queries=1)
    assert few.values.shape[0] == 48 and set(few.frame_of) == {1, 3, 5, 7}
    assert source.fps == 8.0
    assert source.values.shape == (24, sum(len(target.columns) for target in CLIP_TARGETS))
    np.testing.assert_array_equal(source.frame_of[:4], [1, 3, 5, 7])
    clip = make_hand_clip(2)
    one, four = source.windows(0, 1, 0.0), source.windows(0, 4, 4.0)
    stored = open_store(hand_store).read(2, ("rgb",)).rgb
    np.testing.assert_array_equal(one[:, 0], stored[[1, 3, 5, 7]])
    np.testing.assert_array_equal(four[3], stored[[1, 3, 5, 7]])  # half the stored rate
    np.testing.assert_array_equal(four[0], stored[[0, 0, 0, 1]])
    columns = {target.name: target.columns for target in CLIP_TARGETS}
    rows = np.argwhere(clip.segmentation[3] == 3)
    np.testing.assert_allclose(source.values[1, columns["object 2D"]], rows.mean(axis=0)[::-1] + 0.5)
    assert source.values[3, columns["hand-object distance"]].item() < 0.1
    assert (
        source.values[3, columns["hand-object distance"]].item()
        < source.values[0, columns["hand-object distance"]].item()
    )
    assert np.isnan(source.values[:, columns["left hand 2D"]]).all()
    assert np.isnan(source.values[:, columns["left contact"]]).all()
    assert source.values[3, columns["right contact"]] == 1


def test_a_store_without_masks_is_refused(square_store):
    with pytest.raises(ValueError, match="needs segmentation, contact, intrinsics"):
        clip_source(open_store(square_store))


def test_clips_beyond_the_store_are_refused(hand_store):
    with pytest.raises(ValueError, match="holds clips 0 to 47"):
        clip_source(open_store(hand_store), indices=[3, 48])
    with pytest.raises(ValueError, match="queries=5"):
        clip_source(open_store(hand_store), queries=5)


@pytest.fixture(scope="module")
def nano() -> EgoDTMEncoder:
    torch.manual_seed(0)
    config = VideoViTConfig(frames=2, image_size=32, patch_size=8, width=32, layers=2, heads=2)
    return EgoDTMEncoder(config, name="nano").renamed("nano").eval()


def test_the_probe_end_to_end(hand_store, nano):
    data = SpatialData(sources=(clip_source(open_store(hand_store), queries=4),))
    result = spatial_probe(nano, data=data, resamples=200)
    again = spatial_probe(nano, data=data, resamples=200)
    assert [metric.value for metric in result.metrics] == [metric.value for metric in again.metrics]
    assert result.encoder == "nano" and result.encoder_sha256 == nano.spec.weights_sha256
    by_name = {metric.name: metric for metric in result.metrics}
    assert len(by_name) == len(result.metrics)
    summary = by_name[f"clips: {SUMMARY} (grid)"]
    assert summary.items is not None and summary.items.shape == (48,)
    assert summary.items.mean() == pytest.approx(summary.value)
    assert summary.low < summary.value < summary.high < 1.0  # a random network's patches say where a bright square is
    assert by_name["clips: right hand 2D (grid) R2"].value > 0.5
    r2 = by_name["clips: right hand 2D (grid) R2"]
    assert r2.items is not None and r2.items.mean() == pytest.approx(r2.value)
    assert not any("left" in name for name in by_name)  # never visible
    assert any("left hand" in note for note in result.notes)

    pixels = spatial_probe(load_encoder("pixels-16x16"), data=data, resamples=200)
    ratios = {row.name: row for row in compare_spatial(result, pixels, resamples=200)}
    for pooling in spatial.POOLINGS:
        expected = summary_of(result, pooling) / summary_of(pixels, pooling)
        row = ratios[f"clips ({pooling})"]
        assert row.ratio == pytest.approx(expected)
        assert row.low <= row.ratio <= row.high
    # Pairing is worth it: the interval of an encoder against itself has no width.
    assert all(row.low == row.high == 1.0 for row in compare_spatial(result, again, resamples=50))
    with pytest.raises(ValueError, match="different protocols"):
        compare_spatial(result, spatial_probe(nano, data=data, resamples=200, seed=1))


def summary_of(result, pooling: str) -> float:
    return next(metric.value for metric in result.metrics if metric.name == f"clips: {SUMMARY} ({pooling})")


def test_a_net_trained_on_the_labels_reads_them(hand_store):
    data = SpatialData(sources=(clip_source(open_store(hand_store), queries=4),))
    trained = conv_ceiling(data, steps=40, side=32, folds=2, resamples=50)
    assert summary_of(trained, "grid") < 0.9
    pixels = spatial_probe(load_encoder("pixels-16x16"), data=data, folds=2, resamples=50)
    assert len(compare_spatial(trained, pixels, resamples=50)) == len(spatial.POOLINGS)


def test_probing_on_the_training_clips_is_said(hand_store, nano, tmp_path):
    store = open_store(hand_store)
    data = SpatialData(sources=(clip_source(store, indices=range(4)),))
    for name, sha256 in (("same", store.manifest_sha256), ("other", "0" * 64)):
        provenance = make_provenance(seed=0, parents={}, data={"clips": sha256}, step=1, wall_time_s=0.0)
        save_encoder(tmp_path / name / "encoder", nano, provenance=provenance)
    same = spatial.find_encoder(str(tmp_path / "same"))
    assert "not of held-out scenes" in spatial.training_note(same, data)
    for silent in (f"random:{same}", spatial.find_encoder(str(tmp_path / "other")), "pixels-16x16"):
        assert spatial.training_note(silent, data) == ""


def test_features_come_in_the_order_of_the_rows(hand_store, nano):
    source = clip_source(open_store(hand_store), indices=range(5), queries=2)
    many, few = encode(nano, source, batch=64), encode(nano, source, batch=1)
    np.testing.assert_allclose(many.pooled, few.pooled, atol=1e-5)
    video = torch.from_numpy(source.windows(4, 2, 8.0))
    with torch.inference_mode():
        output = nano(nano.preprocess(video))
    np.testing.assert_allclose(many.tokens[-2:], output.tokens.numpy(), atol=2e-3)
    assert many.newest == 16


def test_features_that_are_not_finite_are_refused(hand_store, nano):
    broken = EgoDTMEncoder.from_config(nano.config, dataclasses.replace(nano.spec, name="broken"))
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"'broken'.*not finite"):
        encode(broken, clip_source(open_store(hand_store), indices=range(4)))


# ------------------------------------------------------------------------------------------------------------------ robot


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "toy/reach"}, "expected a task of Meta-World"),
        ({"first_seed": 99_990}, "seeds within 0 to 99999"),
        ({"first_seed": 200_000}, "kept for selecting and testing"),
        ({"queries": 0}, "queries=0"),
        ({"noise": 1.0}, "noise=1.0"),
    ],
)
def test_wrong_robot_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RobotFramesConfig(**({"task": "metaworld/drawer-open"} | changes))


@pytest.mark.slow
def test_robot_frames(tmp_path):
    pytest.importorskip("metaworld")
    config = RobotFramesConfig(task="metaworld/button-press-topdown", episodes=4, queries=3, image_size=48)
    drawn = robot_source(config, tmp_path)
    path = config.cache_path(tmp_path)
    written = path.stat().st_mtime_ns
    cached = robot_source(config, tmp_path)
    assert path.stat().st_mtime_ns == written
    np.testing.assert_array_equal(drawn.values, cached.values)
    np.testing.assert_array_equal(drawn.load(2), cached.load(2))
    assert drawn.fps == 16.0 and drawn.values.shape == (12, sum(len(target.columns) for target in ROBOT_TARGETS))
    assert len({drawn.load(scene)[0].tobytes() for scene in range(4)}) == 4
    hand, place, distance = drawn.values[:, :3], drawn.values[:, 3:6], drawn.values[:, 6]
    np.testing.assert_allclose(np.linalg.norm(hand - place, axis=1), distance)
    assert (np.abs(np.diff(hand.reshape(4, 3, 3), axis=1)).max(axis=(1, 2)) > 0.02).all()  # the hand moves

    data = SpatialData(sources=(drawn,))
    result = spatial_probe(load_encoder("pixels-16x16"), data=data, folds=2, resamples=50)
    assert {metric.name for metric in result.metrics} >= {"button-press-topdown: object position (flat) RMSE"}

    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="delete it to draw them again"):
        robot_source(config, tmp_path)
