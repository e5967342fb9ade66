"""Ridge regression on features of any width, by the kernel trick: cross-fitted and tuned without splitting a scene.

Axes:  n rows, P features, C columns of labels, K folds. A group is the scene that a row belongs to.

The dual form needs only the n x n matrix of inner products, so that 37,632 features of 1,000 rows cost what 1,000 features do.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64
from scipy.linalg import eigh
from sklearn.decomposition import PCA
from sklearn.model_selection import KFold

# In units of the mean variance of a row: features are standardised and the Gram matrix divided by their number.
LAMBDAS = np.logspace(-4, 4, 17)

LEAST_DEVIATION = 0.1
_COLUMNS_AT_ONCE = 8192
_PCA_ROWS = 40_000


def fold_of_groups(groups: int, folds: int, seed: int) -> Int64[np.ndarray, " groups"]:
    """Which fold holds each group out; depends on nothing else, so that all encoders are tested alike.

    Raises:
        ValueError: fewer groups than folds.
    """
    if not 2 <= folds <= groups:
        raise ValueError(f"folds={folds}: expected at least 2 and at most the number of scenes, {groups}")
    fold = np.empty(groups, np.int64)
    for number, (_, held_out) in enumerate(KFold(folds, shuffle=True, random_state=seed).split(np.arange(groups))):
        fold[held_out] = number
    return fold


def standardised_gram(features: Float[np.ndarray, "n P"], train: Bool[np.ndarray, " n"]) -> Float64[np.ndarray, "n n"]:
    """Inner products of all rows, features centred and scaled by the training rows' means and deviations, over P.

    A deviation counts as at least LEAST_DEVIATION of the features' median one: a place that is black in all but a few scenes
    would else speak louder than all others in a scene where it is not.
    """
    rows, width = features.shape
    gram = np.zeros((rows, rows))
    mean, deviation = np.empty(width, np.float32), np.empty(width, np.float32)
    blocks = [slice(first, first + _COLUMNS_AT_ONCE) for first in range(0, width, _COLUMNS_AT_ONCE)]
    for block in blocks:
        seen = features[train, block].astype(np.float32)
        mean[block], deviation[block] = seen.mean(axis=0), seen.std(axis=0)
    scale = np.maximum(deviation, max(LEAST_DEVIATION * float(np.median(deviation)), 1e-12))
    for block in blocks:
        scaled = (features[:, block].astype(np.float32) - mean[block]) / scale[block]
        gram += scaled @ scaled.T
    return gram / width


def reduce_channels(
    tokens: Float[np.ndarray, "n N D"], train: Bool[np.ndarray, " n"], channels: int, seed: int
) -> Float[np.ndarray, "n Nc"]:
    """Each token's `channels` principal components, side by side; the components are those of the training rows' tokens.

    It stands for the linear layer shared by all places that a policy's grid readout learns.
    """
    rows, places, width = tokens.shape
    if width <= channels:
        return tokens.reshape(rows, places * width)
    sample = tokens[train].reshape(-1, width)
    if len(sample) > _PCA_ROWS:
        sample = sample[np.random.default_rng(seed).choice(len(sample), _PCA_ROWS, replace=False)]
    pca = PCA(channels, svd_solver="covariance_eigh").fit(sample.astype(np.float32))
    return pca.transform(tokens.reshape(-1, width).astype(np.float32)).reshape(rows, places * channels)


def ridge(
    gram_train: Float64[np.ndarray, "n n"],
    gram_test: Float64[np.ndarray, "m n"],
    labels: Float64[np.ndarray, "n C"],
    groups: Int[np.ndarray, " n"],
    lambdas: Float64[np.ndarray, " L"] = LAMBDAS,
) -> tuple[Float64[np.ndarray, "m C"], Int64[np.ndarray, " C"]]:
    """Predictions for the test rows, and which of `lambdas` each column took.

    Minimises ||y - b - X w||^2 + lambda ||w||^2 with a free intercept b, as scikit-learn's Ridge. Each column takes the lambda of
    the least squared error on left-out groups. Those errors are exact without a refit: deleting the rows g of a
    penalised least-squares fit with smoother H leaves the residuals (I - H_gg)^-1 r_g at them.
    """
    rows = len(labels)
    mean = gram_train.mean(axis=0)
    centred = gram_train - mean - mean[:, None] + mean.mean()
    offset = labels.mean(axis=0)
    values, vectors = eigh(centred, driver="evd")
    values = values.clip(min=0)
    projected = vectors.T @ (labels - offset)

    errors = np.empty((len(lambdas), labels.shape[1]))
    blocks = _equal_groups(groups)
    for number, lambda_ in enumerate(lambdas):
        residuals = labels - offset - vectors @ (projected * (values / (values + lambda_))[:, None])
        errors[number] = sum(
            _left_out_squares(vectors[block], values / (values + lambda_), residuals[block], rows) for block in blocks
        )
    best = errors.argmin(axis=0)
    weights = vectors @ (projected / (values[:, None] + lambdas[best]))
    centred_test = gram_test - mean - gram_test.mean(axis=1, keepdims=True) + mean.mean()
    return centred_test @ weights + offset, best


def _equal_groups(groups: Int[np.ndarray, " n"]) -> list[Int64[np.ndarray, "g m"]]:
    """The rows of each group, groups of one size together."""
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    return [
        np.stack([rows for rows in members if len(rows) == size]) for size in sorted({len(rows) for rows in members})
    ]


def _left_out_squares(
    vectors: Float64[np.ndarray, "g m n"],
    shrink: Float64[np.ndarray, " n"],
    residuals: Float64[np.ndarray, "g m C"],
    rows: int,
) -> Float64[np.ndarray, " C"]:
    """Squared errors on groups of m rows, each predicted without itself, summed."""
    smoother = (vectors * shrink) @ vectors.transpose(0, 2, 1) + 1 / rows
    left_out = np.linalg.solve(np.eye(vectors.shape[1]) - smoother, residuals)
    return (left_out**2).sum(axis=(0, 1))


def cross_fit(
    gram_of_fold: Callable[[Bool[np.ndarray, " n"]], Float64[np.ndarray, "n n"]],
    labels: Float64[np.ndarray, "n C"],
    groups: Int[np.ndarray, " n"],
    fold: Int[np.ndarray, " n"],
) -> tuple[Float64[np.ndarray, "n C"], Float64[np.ndarray, "n C"]]:
    """Predictions of each row by a ridge that has seen no row of its scene, and the mean label of the rows it has seen.

    Args:
        gram_of_fold: training rows -> inner products of all rows; whatever it learns, it learns from the training rows.
        labels: NaN = not known; such rows neither train nor are predicted, column by column.
        fold: the fold that holds each row out; a group lies in one fold.
    """
    predicted, mean = np.full_like(labels, np.nan), np.full_like(labels, np.nan)
    known = np.isfinite(labels)
    # Columns known on the same rows share an eigendecomposition.
    patterns, pattern_of = np.unique(known, axis=1, return_inverse=True)
    for number in np.unique(fold):
        train, test = fold != number, fold == number
        gram = gram_of_fold(train)
        for pattern in range(patterns.shape[1]):
            columns = np.flatnonzero(pattern_of.reshape(-1) == pattern)
            rows, asked = (np.flatnonzero(part & patterns[:, pattern]) for part in (train, test))
            if len(np.unique(groups[rows])) < 2 or len(asked) == 0:
                continue
            seen = labels[np.ix_(rows, columns)]
            predicted[np.ix_(asked, columns)], _ = ridge(
                gram[np.ix_(rows, rows)], gram[np.ix_(asked, rows)], seen, groups[rows]
            )
            mean[np.ix_(asked, columns)] = seen.mean(axis=0)
    return predicted, mean


def check_folds(groups: Sequence[int] | np.ndarray, fold: np.ndarray) -> None:
    """Asserts that no group lies in two folds."""
    for group in np.unique(groups):
        assert len(np.unique(fold[np.asarray(groups) == group])) == 1, f"scene {group} lies in several folds"
