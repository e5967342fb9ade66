"""Figures of generated video against scikit-image, formulas and Gaussians whose distance is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio

from pretrain.downstream import generation


def video(seed: int, frames: int = 3, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def test_psnr_is_scikit_images() -> None:
    one, other = video(0), video(1)
    expected = np.mean([peak_signal_noise_ratio(t, p, data_range=255) for p, t in zip(one, other, strict=True)])
    assert generation.psnr(one, other) == pytest.approx(expected)
    assert generation.psnr(one, one) == generation.PSNR_CAP
    near = other.copy()
    near[0, 0, 0, 0] ^= 1
    assert generation.psnr(near, other) <= generation.PSNR_CAP
    # By hand: an error of 10 everywhere.
    dark = np.zeros((1, 4, 4, 3), np.uint8)
    assert generation.psnr(dark + np.uint8(10), dark) == pytest.approx(20 * np.log10(25.5))


def test_ssim_is_the_formula_of_wang() -> None:
    one, other = video(2, 1), video(3, 1)
    other = ((one.astype(np.float64) + other) / 2).astype(np.uint8)
    values = []
    for colour in range(3):
        x, y = one[0, ..., colour].astype(np.float64), other[0, ..., colour].astype(np.float64)
        blur = [gaussian_filter(v, 1.5, truncate=3.5) for v in (x, y, x * x, y * y, x * y)]
        mx, my, xx, yy, xy = blur
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        value = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
        value /= (mx**2 + my**2 + c1) * (xx - mx**2 + yy - my**2 + c2)
        values.append(value[5:-5, 5:-5].mean())
    assert generation.ssim(one, other) == pytest.approx(np.mean(values))
    assert generation.ssim(one, one) == pytest.approx(1)
    with pytest.raises(ValueError, match="smaller than its 11 px window"):
        generation.ssim(one[:, :8], one[:, :8])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_frechet_distance_of_gaussians_is_known(seed: int, width: int) -> None:
    """Of covariances that commute: |m1 - m2|^2 + sum (sqrt a - sqrt b)^2 over their common axes."""
    random = np.random.default_rng(seed)
    axes = np.linalg.qr(random.normal(size=(width, width)))[0]
    a, b = random.uniform(0, 3, (2, width))
    a[0] = 0  # a singular one
    m1, m2 = random.normal(size=(2, width))
    expected = ((m1 - m2) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    distance = generation.gaussian_distance(m1, (axes * a) @ axes.T, m2, (axes * b) @ axes.T)
    assert distance == pytest.approx(expected, abs=1e-6)


def test_frechet_distance_of_any_gaussians_is_that_with_a_matrix_square_root() -> None:
    import scipy.linalg

    random = np.random.default_rng(0)
    first, second = random.normal(size=(60, 5)), random.normal(size=(50, 5)) @ random.normal(size=(5, 5)) + 1
    c1, c2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    middle = np.trace(scipy.linalg.sqrtm(c1 @ c2)).real
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * middle
    assert generation.frechet_distance(first, second) == pytest.approx(expected)
    assert generation.frechet_distance(second, first) == pytest.approx(expected)
    assert generation.frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert generation.frechet_distance(first, first + 2) == pytest.approx(5 * 4)
    # More numbers than clips, as with I3D on a small set.
    assert generation.frechet_distance(random.normal(size=(4, 9)), random.normal(size=(4, 9))) > 0


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.zeros((1, 3)), np.zeros((4, 3)), "n of 2 or more"),
        (np.zeros((4, 3)), np.zeros((4, 2)), "width 3 and 2"),
        (np.zeros((4, 3)), np.full((4, 3), np.nan), "second features: expected finite"),
    ],
)
def test_bad_features_are_named(first: np.ndarray, second: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generation.frechet_distance(first, second)


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        (video(0), video(0, 2), "give the same frames and size"),
        (video(0).astype(np.float32), video(0), "predicted video: expected uint8"),
        (video(0)[..., :1], video(0), "predicted video: expected uint8"),
        (video(0), video(0)[:0], "true video: expected uint8"),
    ],
)
def test_bad_videos_are_named(predicted: np.ndarray, true: np.ndarray, message: str) -> None:
    for score in (generation.psnr, generation.ssim):
        with pytest.raises(ValueError, match=message):
            score(predicted, true)


class _Network(torch.nn.Module):
    """Stands for I3D: takes what it is given and asked for."""

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        assert rescale and resize and return_features
        return x.mean(dim=(2, 3, 4))


def test_a_feature_network_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    torch.jit.script(_Network()).save(str(path))
    videos = np.stack([video(0), video(1)])
    features = generation.load_feature_network(path)(videos)
    np.testing.assert_allclose(features, videos.mean(axis=(1, 2, 3)), rtol=1e-5)
    with pytest.raises(FileNotFoundError, match="i3d_torchscript"):
        generation.load_feature_network(tmp_path / "none.pt")
    (tmp_path / "broken.pt").write_bytes(b"no network")
    with pytest.raises(ValueError, match="not a TorchScript network"):
        generation.load_feature_network(tmp_path / "broken.pt")


def test_videos_without_images() -> None:
    true = video(4)
    flat = generation.mean_colour(true)
    assert flat.shape == true.shape and len(np.unique(flat.reshape(-1, 3), axis=0)) == 1
    # No other colour is nearer.
    assert generation.psnr(flat, true) > generation.psnr((flat + np.uint8(9)).astype(np.uint8), true)
    gray = generation.gray_depth(np.array([[[0.0, 0.5, 1.0, 2.0]]]))
    assert gray[0, 0].tolist() == [[0] * 3, [128] * 3, [255] * 3, [255] * 3]
