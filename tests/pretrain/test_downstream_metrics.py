"""The figures of the benchmarks against independent implementations and hand-worked cases."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score, ndcg_score, top_k_accuracy_score

from pretrain.downstream import depth, depth_errors, ek100_mir, nlq
from pretrain.downstream.egomcq import choose
from pretrain.downstream.ek100 import Action
from pretrain.downstream.ek100_cls import folds_of, in_top, marginal
from pretrain.downstream.features import DenseGrid
from pretrain.downstream.segments import Segment


@pytest.fixture
def retrieval() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    relevancy = random.choice([0, 0, 0.25, 0.5, 1.0], (30, 40), p=[0.4, 0.3, 0.1, 0.1, 0.1])
    relevancy[:, 0] = 1.0
    return random.normal(size=(30, 40)), relevancy


def test_average_precision_is_scikit_learns(retrieval: tuple[np.ndarray, np.ndarray]) -> None:
    similarity, relevancy = retrieval
    ours = ek100_mir.average_precision(similarity, relevancy)
    theirs = [average_precision_score(row == 1, score) for row, score in zip(relevancy, similarity, strict=True)]
    np.testing.assert_allclose(ours, theirs)


def test_ndcg_is_scikit_learns(retrieval: tuple[np.ndarray, np.ndarray]) -> None:
    similarity, relevancy = retrieval
    ours = ek100_mir.ndcg(similarity, relevancy)
    theirs = [
        ndcg_score(row[None], score[None], k=int((row > 0).sum()))
        for row, score in zip(relevancy, similarity, strict=True)
    ]
    np.testing.assert_allclose(ours, theirs)


@pytest.mark.slow  # ranx compiles for minutes
def test_ndcg_and_map_are_those_of_ranx(retrieval: tuple[np.ndarray, np.ndarray]) -> None:
    from ranx import Qrels, Run, evaluate

    similarity, relevancy = retrieval
    for query in range(3):
        score, relevant = similarity[query], relevancy[query]
        # ranx takes whole grades and gains equal to the grade.
        grades = {f"d{i}": int(4 * grade) for i, grade in enumerate(relevant) if grade > 0}
        run = Run({"q": {f"d{i}": float(value) for i, value in enumerate(score)}})
        ours = ek100_mir.ndcg(score[None], relevant[None])[0]
        assert ours == pytest.approx(float(evaluate(Qrels({"q": grades}), run, f"ndcg@{len(grades)}")))
        exact = Qrels({"q": {f"d{i}": 1 for i, grade in enumerate(relevant) if grade == 1}})
        mean = float(evaluate(exact, run, "map"))
        assert ek100_mir.average_precision(score[None], relevant[None])[0] == pytest.approx(mean)


def test_ndcg_by_hand() -> None:
    # Three relevant, so the first three places count: order d1 (0), d2 (0.5), d0 (1), d3 (0.25).
    relevancy = np.array([[1.0, 0.0, 0.5, 0.25]])
    similarity = np.array([[0.2, 0.9, 0.5, 0.1]])
    gain = 0.5 / np.log2(3) + 1 / np.log2(4)
    ideal = 1 + 0.5 / np.log2(3) + 0.25 / np.log2(4)
    assert ek100_mir.ndcg(similarity, relevancy)[0] == pytest.approx(gain / ideal)
    assert ek100_mir.average_precision(similarity, relevancy)[0] == pytest.approx(1 / 3)
    assert np.isnan(ek100_mir.average_precision(similarity, relevancy / 2)[0])
    assert np.isnan(ek100_mir.ndcg(similarity, 0 * relevancy)[0])


def test_chance_is_the_mean_over_random_orders(retrieval: tuple[np.ndarray, np.ndarray]) -> None:
    _, relevancy = retrieval
    random = np.random.default_rng(1)
    orders = [random.random(relevancy.shape) for _ in range(600)]
    for score, expected in (
        (ek100_mir.average_precision, ek100_mir.expected_average_precision),
        (ek100_mir.ndcg, ek100_mir.expected_ndcg),
    ):
        simulated = np.mean([score(order, relevancy).mean() for order in orders])
        assert expected(relevancy).mean() == pytest.approx(simulated, rel=0.01)


def action(name: str, verb: str, noun: str, nouns: set[str]) -> Action:
    segment = Segment("v", 0, 1)
    return Action(
        narration_id=name, segment=segment, text=name, verb=verb, noun=noun, nouns=frozenset(nouns), group="v"
    )


def test_relevancy_from_classes_by_hand() -> None:
    take = action("a", "take", "cup", {"cup"})
    pour = action("b", "pour", "milk", {"milk", "cup"})
    wash = action("c", "wash", "pan", {"pan"})
    expected = [[1, (0 + 1 / 2) / 2, 0], [1 / 4, 1, 0], [0, 0, 1]]
    np.testing.assert_allclose(ek100_mir.class_relevancy([take, pour, wash], [take, pour, wash]), expected)


def test_top_k_is_scikit_learns_and_ties_are_no_help() -> None:
    random = np.random.default_rng(2)
    probabilities, truth = random.dirichlet(np.ones(7), 50), random.integers(0, 7, 50)
    names = [str(number) for number in range(7)]
    for top in (1, 5):
        ours = in_top(probabilities, names, [str(number) for number in truth], top).mean()
        assert ours == pytest.approx(top_k_accuracy_score(truth, probabilities, k=top, labels=range(7)))
    assert in_top(np.full((1, 7), 1 / 7), names, ["0"], 5)[0] == 0
    assert choose(np.array([[0.1, 0.4, 0.2], [0.3, 0.3, 0.3]])).tolist() == [1, -1]


def test_actions_are_summed_to_verbs_and_nouns() -> None:
    names = ["cut:onion", "cut:bread", "take:bread"]
    probabilities = np.array([[0.4, 0.1, 0.5]])
    verbs, by_verb = marginal(probabilities, names, "verb")
    nouns, by_noun = marginal(probabilities, names, "noun")
    assert verbs == ["cut", "take"] and nouns == ["bread", "onion"]
    np.testing.assert_allclose(by_verb, [[0.5, 0.5]])
    np.testing.assert_allclose(by_noun, [[0.6, 0.4]])


def test_folds_keep_groups_together() -> None:
    groups = [f"v{number % 12}" for number in range(40)]
    fold = folds_of(groups, 5)
    assert len({(group, part) for group, part in zip(groups, fold, strict=True)}) == 12
    assert set(fold.tolist()) == set(range(5))
    with pytest.raises(ValueError, match="cannot be cross-fitted"):
        folds_of(["a", "b"], 5)


# ----------------------------------------------------------------------------------------------------------------- depth


def test_depth_errors_are_those_of_torchmetrics_and_by_hand() -> None:
    from torchmetrics.functional import mean_absolute_percentage_error, mean_squared_error

    random = np.random.default_rng(3)
    target, predicted = random.uniform(0.3, 3, 500), random.uniform(0.3, 3, 500)
    absolute, rmse, within = depth_errors.depth_errors(predicted, target)
    p, t = torch.from_numpy(predicted), torch.from_numpy(target)
    assert absolute == pytest.approx(float(mean_absolute_percentage_error(p, t)))
    assert rmse == pytest.approx(float(mean_squared_error(p, t, squared=False)))
    assert within == pytest.approx(float((torch.maximum(p / t, t / p) < 1.25).double().mean()))
    assert depth_errors.depth_errors(np.array([2.0, 1.0, -1.0]), np.array([1.0, 1.0, 1.0])) == pytest.approx(
        (1.0, np.sqrt(5 / 3), 1 / 3)
    )


def test_alignment_is_least_squares() -> None:
    random = np.random.default_rng(4)
    predicted, target = random.random(200), random.random(200)
    slope, shift = np.polyfit(predicted, target, 1)
    np.testing.assert_allclose(depth_errors.align(predicted, target), slope * predicted + shift)
    np.testing.assert_allclose(depth_errors.align(2 + 5 * target, target), target)
    np.testing.assert_allclose(depth_errors.align(np.ones(200), target), target.mean())


def test_the_linear_head_finds_a_linear_depth_and_else_the_mean_map() -> None:
    random = np.random.default_rng(5)
    clips, grid, size = 40, (2, 3, 3), 12
    tokens = random.normal(size=(clips, 18, 6)).astype(np.float16)
    weights = random.normal(size=(6, 16))
    cells = torch.from_numpy(tokens.astype(np.float64) @ weights)
    target = depth._maps(cells, grid, 4, size) + random.normal(size=(1, 2, size, size))
    valid = np.ones(target.shape, bool)
    folds = folds_of([str(clip) for clip in range(clips)], depth.FOLDS)
    predicted, mean = depth.linear_maps(tokens, grid, target, valid, folds)
    assert np.abs(predicted - target).mean() < 0.02 < 1 < np.abs(mean - target).mean()
    # Unknown pixels have no say.
    holes = valid.copy()
    holes[:, :, :4] = False
    spoilt = np.where(holes, target, 1e3)
    again, _ = depth.linear_maps(tokens, grid, spoilt, holes, folds)
    assert np.abs(again - target)[holes].mean() < 0.05
    # Tokens that know nothing: the mean map of the clips that are not predicted.
    noise = random.normal(size=tokens.shape).astype(np.float16)
    blind, mean = depth.linear_maps(noise, grid, target, valid, folds)
    assert np.abs(blind - mean).mean() < 0.15
    held = target[folds != 0].mean(axis=0)
    np.testing.assert_allclose(mean[folds == 0][0], held, atol=1e-5)


def test_the_ridge_is_scikit_learns() -> None:
    random = np.random.default_rng(6)
    x, y = random.normal(size=(50, 1, 4)), random.normal(size=(50, 1, 3))
    tensors = [torch.from_numpy(value).float() for value in (x, y, np.ones_like(y))]
    ours = depth._Ridge(*tensors).predict(tensors[0], 7.0)
    theirs = Ridge(alpha=7.0).fit(x[:, 0], y[:, 0]).predict(x[:, 0])
    np.testing.assert_allclose(ours[:, 0].numpy(), theirs, atol=1e-5)


def test_cells_and_maps_are_inverse() -> None:
    random = np.random.default_rng(7)
    maps = random.random((3, 2, 12, 12))
    cells, _ = depth._cells(maps, np.ones(maps.shape, bool), (2, 3, 3), 4)
    np.testing.assert_allclose(depth._maps(cells, (2, 3, 3), 4, 12), maps, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------------- nlq


def test_span_iou_by_hand() -> None:
    spans = np.array([[0, 4], [2, 3], [5, 6], [0.0, 2.0]])
    np.testing.assert_allclose(nlq.span_iou(spans, np.array([[1.0, 3.0]])), [0.5, 0.5, 0, 1 / 3])


def test_slots_cover_a_video_and_stay_inside() -> None:
    grid = DenseGrid(rate_hz=2.0, window_s=1.0)
    windows = grid.segments("v", 10.0, 12.6)
    assert len(windows) == 6
    assert windows[0] == Segment("v", 10.0, 11.0) and windows[2] == Segment("v", 10.75, 11.75)
    assert windows[-1] == Segment("v", 11.6, 12.6)
    assert grid.segments("v", 0.0, 0.3) == [Segment("v", 0.0, 0.3)]


def test_the_head_finds_what_the_similarity_shows_and_only_that() -> None:
    random = torch.Generator().manual_seed(8)

    def batch(queries: int) -> nlq.SpanBatch:
        span = torch.randint(0, 7, (queries, 1), generator=random)
        span = torch.cat([span, span + 1], dim=1)
        place = torch.arange(8)
        similarity = 0.1 * ((place >= span[:, :1]) & (place <= span[:, 1:])).float()
        return nlq.SpanBatch(
            video=torch.randn(queries, 8, 4, generator=random),
            similarity=similarity,
            valid=torch.ones(queries, 8, dtype=torch.bool),
            text=torch.randn(queries, 4, generator=random),
            span=span,
        )

    train, test = batch(120), batch(60)
    config = nlq.HeadConfig(steps=100, width=32, learning_rate=3e-3)
    spans = nlq.predict_spans(nlq.train_head(train, config), test, top=5)
    assert spans.shape == (60, 5, 2) and bool((spans[..., 0] <= spans[..., 1]).all())
    assert (spans[:, 0] == test.span).all(dim=1).float().mean() > 0.9
    blind = nlq.predict_spans(nlq.train_head(train.blinded(), config), test.blinded(), top=1)
    assert (blind[:, 0] == test.span).all(dim=1).float().mean() < 0.4
