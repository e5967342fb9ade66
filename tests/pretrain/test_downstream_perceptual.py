"""LPIPS against torchmetrics' with the same random weights, and files that are no weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pretrain.downstream.perceptual import Lpips, load_lpips

SHAPES = ((64, 3, 11, 11), (192, 64, 5, 5), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3))


def random_weights() -> dict[str, torch.Tensor]:
    """Named as the package lpips does."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for place, (shape, number) in enumerate(zip(SHAPES, (0, 3, 6, 8, 10), strict=True)):
        deviation = (2 / np.prod(shape[1:])) ** 0.5
        weights[f"net.slice{place + 1}.{number}.weight"] = deviation * torch.randn(shape, generator=generator)
        weights[f"net.slice{place + 1}.{number}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
        weights[f"lin{place}.model.1.weight"] = torch.rand(1, shape[0], 1, 1, generator=generator)
    return weights


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lpips") / "alex.safetensors"
    save_file(random_weights(), path)
    return path


def videos() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return tuple(random.integers(0, 256, (2, 2, 64, 48, 3), dtype=np.uint8))  # type: ignore[return-value]


def test_distances_are_those_of_torchmetrics(weights_file: Path) -> None:
    import pretrain.zoo.vision_ops  # noqa: F401, I001 - torchvision comes through this door, first
    from torchmetrics.functional.image.lpips import _LPIPS

    theirs = _LPIPS(pretrained=False, net="alex", pnet_rand=True, use_dropout=True, eval_mode=True)
    missing, unexpected = theirs.load_state_dict(random_weights(), strict=False)
    assert not unexpected and all(name.startswith(("lins.", "scaling_layer.")) for name in missing)
    ours = load_lpips(weights_file)
    one, other = (torch.from_numpy(video.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1 for video in videos())
    with torch.no_grad():
        expected = theirs(one, other).flatten()
    torch.testing.assert_close(ours(one, other), expected, rtol=1e-4, atol=1e-6)


def test_a_distance_is_zero_for_equal_videos_and_symmetric(weights_file: Path) -> None:
    lpips = load_lpips(weights_file)
    one, other = videos()
    assert lpips.of_videos(one, one) == 0
    assert lpips.of_videos(one, other) == pytest.approx(lpips.of_videos(other, one)) != 0
    for frame in range(2):
        assert lpips.of_videos(one[frame : frame + 1], other[frame : frame + 1]) > 0
    with pytest.raises(ValueError, match="two uint8 videos of one shape"):
        lpips.of_videos(one, other[:1])
    with pytest.raises(ValueError, match="AlexNet needs 35"):
        lpips.of_videos(one[:, :32], other[:, :32])
    lpips.of_videos(one[:, :35, :35], other[:, :35, :35])


def test_torch_files_are_read_and_nothing_else(tmp_path: Path, weights_file: Path) -> None:
    weights = random_weights()
    torch.save(weights, tmp_path / "alex.pth")
    one, other = videos()
    assert load_lpips(tmp_path / "alex.pth").of_videos(one, other) == load_lpips(weights_file).of_videos(one, other)
    torch.save({"model": Path("x")}, tmp_path / "object.pth")
    (tmp_path / "text.safetensors").write_text("no weights")
    for name in ("object.pth", "text.safetensors"):
        with pytest.raises(ValueError, match="cannot be read as weights"):
            load_lpips(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="package lpips"):
        load_lpips(tmp_path / "none.pth")
    torch.save({**weights, "lin1.model.1.weight": torch.zeros(1, 3, 1, 1)}, tmp_path / "shape.pth")
    with pytest.raises(ValueError, match=r"weights.1 is \[1, 3, 1, 1\]"):
        load_lpips(tmp_path / "shape.pth")
    del weights["net.slice2.3.bias"]
    torch.save(weights, tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"no tensor net.slice2.3.bias"):
        load_lpips(tmp_path / "short.pth")


def test_every_weight_is_in_the_file() -> None:
    assert len(Lpips().state_dict()) == 15
