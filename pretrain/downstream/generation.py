"""How near generated video comes to the true one: PSNR, SSIM, and LPIPS and FVD where their networks' weights are given.

PSNR and SSIM (Wang et al. 2004) ask for the same pixels, so they favour a blurred guess; LPIPS (Zhang et al. 2018) compares
features of a network; FVD (Unterthiner et al. 2018) compares the distribution of many clips, not clip with clip. Neither
network can be shipped here: without its file the figure is stated as absent, with where the file comes from.

Axes: T video frames, H W pixels, n clips, D width of a feature.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float, Float64, UInt8
from skimage.metrics import structural_similarity

# Equal frames have no noise at all; a mean over frames needs a number.
PSNR_CAP = 100.0
# Side of the Gaussian window of SSIM.
SSIM_WINDOW = 11
LEAST_FVD_CLIPS = 2
LPIPS_ABSENT = (
    "absent: weights not given; they are the state_dict of lpips.LPIPS(net='alex') of the package lpips, saved with "
    "torch.save or as safetensors"
)
FVD_ABSENT = (
    "absent: no feature network given; the usual one is I3D trained on Kinetics-400 as TorchScript, i3d_torchscript.pt of "
    "StyleGAN-V"
)

# uint8 video -> a feature a clip.
VideoFeatures = Callable[[UInt8[np.ndarray, "n T H W 3"]], Float[np.ndarray, "n D"]]


def psnr(predicted: UInt8[np.ndarray, "T H W 3"], true: UInt8[np.ndarray, "T H W 3"]) -> float:
    """Mean over the frames of 10 log10(255^2 / MSE), dB; at most PSNR_CAP, which is what equal frames get.

    Raises:
        ValueError: not two uint8 videos of one shape.
    """
    _check_videos(predicted, true)
    errors = (predicted.astype(np.float64) - true) ** 2
    mean = errors.reshape(len(true), -1).mean(axis=1)
    with np.errstate(divide="ignore"):
        return float(np.minimum(10 * np.log10(255.0**2 / mean), PSNR_CAP).mean())


def ssim(predicted: UInt8[np.ndarray, "T H W 3"], true: UInt8[np.ndarray, "T H W 3"]) -> float:
    """Mean over the frames of the structural similarity as Wang et al. 2004 define it (a Gaussian window of 1.5 px, 11 px wide;
    the mean over the colours), 1 = equal, by scikit-image.

    Raises:
        ValueError: not two uint8 videos of one shape, or frames smaller than the window.
    """
    _check_videos(predicted, true)
    if min(true.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM: frames of {true.shape[1]} x {true.shape[2]} px are smaller than its {SSIM_WINDOW} px window"
        )
    values = [
        structural_similarity(
            one, other, channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for one, other in zip(predicted, true, strict=True)
    ]
    return float(np.mean(values))


# -------------------------------------------------------------------------------------------------------------------- FVD


def frechet_distance(first: Float[np.ndarray, "n D"], second: Float[np.ndarray, "m D"]) -> float:
    """Squared Frechet distance of two Gaussians fitted to features (Dowson and Landau 1982; Heusel et al. 2017, equation 6):
    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), with C of n - 1.

    It is biased upwards, the more the fewer the features (Chong and Forsyth 2020): only figures of equally many clips compare.

    Raises:
        ValueError: fewer than two features, another width, or one that is not finite.
    """
    for name, features in (("first", first), ("second", second)):
        if features.ndim != 2 or len(features) < LEAST_FVD_CLIPS or not np.isfinite(features).all():
            raise ValueError(
                f"Frechet distance: {name} features: expected finite [n, D] with n of {LEAST_FVD_CLIPS} or more, got "
                f"{features.shape}"
            )
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"Frechet distance: features of width {first.shape[1]} and {second.shape[1]}; use one network")
    first, second = first.astype(np.float64), second.astype(np.float64)
    return gaussian_distance(
        first.mean(axis=0), np.cov(first, rowvar=False).reshape(first.shape[1], -1),
        second.mean(axis=0), np.cov(second, rowvar=False).reshape(first.shape[1], -1),
    )  # fmt: skip


def gaussian_distance(
    mean1: Float64[np.ndarray, " D"],
    covariance1: Float64[np.ndarray, "D D"],
    mean2: Float64[np.ndarray, " D"],
    covariance2: Float64[np.ndarray, "D D"],
) -> float:
    """The distance from means and covariances. tr (C1 C2)^(1/2) is the sum of the singular values of C1^(1/2) C2^(1/2), which
    exists for singular covariances too, where a matrix square root of C1 C2 breaks down."""
    roots = []
    for covariance in (covariance1, covariance2):
        values, vectors = scipy.linalg.eigh(covariance)
        roots.append((vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T)
    shared = scipy.linalg.svdvals(roots[0] @ roots[1]).sum()
    distance = ((mean1 - mean2) ** 2).sum() + np.trace(covariance1) + np.trace(covariance2) - 2 * shared
    return float(max(distance, 0.0))


def load_feature_network(path: str | Path) -> VideoFeatures:
    """The network of FVD from a TorchScript file: float [n, 3, T, H, W] of 0 to 255 -> [n, D], called as StyleGAN-V's I3D is,
    with rescale, resize and return_features. TorchScript is no pickle and runs no Python, but it runs the operators that the
    file holds: take it from its publisher only.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not TorchScript.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; FVD is {FVD_ABSENT}")
    try:
        network = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise ValueError(
            f"{path}: not a TorchScript network ({str(error).splitlines()[0]}); FVD takes {FVD_ABSENT}"
        ) from None

    def features(videos: UInt8[np.ndarray, "n T H W 3"]) -> Float[np.ndarray, "n D"]:
        batch = torch.from_numpy(np.ascontiguousarray(videos.transpose(0, 4, 1, 2, 3))).float()
        with torch.inference_mode():
            return network(batch, rescale=True, resize=True, return_features=True).flatten(1).float().numpy()

    return features


# --------------------------------------------------------------------------------------------------- video without images


def mean_colour(true: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "T H W 3"]:
    """The clip's own mean colour everywhere: the best that a video of one colour can do, for it knows the truth."""
    return np.broadcast_to(true.mean(axis=(0, 1, 2)).round().astype(np.uint8), true.shape).copy()


def gray_depth(inverse_depth: Float[np.ndarray, "T H W"]) -> UInt8[np.ndarray, "T H W 3"]:
    """The depth that the video is made from, itself as a gray video: inverse depth in [0, 1], near = white."""
    gray = (np.clip(inverse_depth, 0, 1) * 255).round().astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)


def _check_videos(predicted: np.ndarray, true: np.ndarray) -> None:
    for name, video in (("predicted", predicted), ("true", true)):
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
            raise ValueError(f"{name} video: expected uint8[T, H, W, 3], got {video.dtype}{video.shape}")
    if predicted.shape != true.shape:
        raise ValueError(f"video: predicted {predicted.shape} for true {true.shape}; give the same frames and size")
