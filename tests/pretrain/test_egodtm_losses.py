"""The two objectives against plain arithmetic."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.egodtm.depth_losses import masked_depth_loss
from pretrain.egodtm.losses import info_nce


def unit_rows(seed: int, rows: int, dim: int = 6) -> torch.Tensor:
    values = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(values, dim=-1)


def info_nce_in_numpy(video: np.ndarray, text: np.ndarray, scale: float) -> float:
    logits = scale * video @ text.T
    loss = 0.0
    for matrix in (logits, logits.T):
        for row in range(len(matrix)):
            loss += np.log(np.exp(matrix[row]).sum()) - matrix[row, row]
    return loss / (2 * len(logits))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10_000), st.floats(0.5, 20))
def test_info_nce_is_the_plain_formula_and_symmetric(rows: int, seed: int, scale: float) -> None:
    video, text = unit_rows(seed, rows), unit_rows(seed + 1, rows)
    loss, accuracy = info_nce(video, text, scale)
    assert float(loss) == pytest.approx(info_nce_in_numpy(video.numpy(), text.numpy(), scale), rel=1e-9, abs=1e-9)
    assert float(info_nce(text, video, scale)[0]) == pytest.approx(float(loss), rel=1e-9, abs=1e-9)
    order = torch.randperm(rows)
    assert float(info_nce(video[order], text[order], scale)[0]) == pytest.approx(float(loss), rel=1e-9, abs=1e-9)
    assert 0 <= float(accuracy) <= 1


def test_info_nce_at_chance_and_when_right() -> None:
    same = torch.ones(8, 4) / 2
    assert float(info_nce(same, same, 14.3)[0]) == pytest.approx(np.log(8))
    loss, accuracy = info_nce(torch.eye(8), torch.eye(8), 100.0)
    assert float(loss) < 1e-6 and accuracy == 1


def test_equal_texts_are_no_negatives() -> None:
    video, text = unit_rows(0, 4), unit_rows(1, 4)
    text[2] = text[0]
    ids = torch.tensor([[1, 2], [3, 4], [1, 2], [5, 6]])
    loss = float(info_nce(video, text, 5.0, ids)[0])
    logits = 5.0 * (video @ text.T).numpy()
    logits[0, 2] = logits[2, 0] = -np.inf
    expected = np.mean([np.log(np.exp(m[i]).sum()) - m[i, i] for m in (logits, logits.T) for i in range(4)])
    assert loss == pytest.approx(expected)
    assert loss < float(info_nce(video, text, 5.0)[0])


def test_gradients_are_right() -> None:
    torch.manual_seed(0)
    video, text = (unit_rows(seed, 4).requires_grad_() for seed in (0, 1))
    ids = torch.tensor([[1], [2], [1], [3]])
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, 7.0, ids)[0], (video, text))
    stages = torch.rand(2, 2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    valid = torch.rand(2, 3, 4, 4) > 0.3
    for error in ("l1", "mse"):
        for deep in (True, False):
            assert torch.autograd.gradcheck(
                lambda s, error=error, deep=deep: masked_depth_loss(
                    s, target, valid, error=error, deep_supervision=deep
                )[0],
                (stages,),
            )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["l1", "mse"]))
def test_depth_loss_sees_only_valid_pixels(seed: int, error: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    stages = torch.rand(3, 2, 2, 4, 4, generator=generator)
    target = torch.rand(2, 2, 4, 4, generator=generator)
    valid = torch.rand(2, 2, 4, 4, generator=generator) > 0.5
    loss, last = masked_depth_loss(stages, target, valid, error=error, deep_supervision=True)
    difference = (stages - target)[:, valid].numpy()
    per_stage = (np.abs(difference) if error == "l1" else difference**2).sum(axis=1) / max(1, int(valid.sum()))
    assert float(loss) == pytest.approx(float(per_stage.mean()), rel=1e-5)
    assert float(last) == pytest.approx(float(per_stage[-1]), rel=1e-5)
    garbage = torch.where(valid, target, torch.full_like(target, 77.0))
    assert float(masked_depth_loss(stages, garbage, valid, error=error, deep_supervision=True)[0]) == float(loss)
    only_last, _ = masked_depth_loss(stages, target, valid, error=error, deep_supervision=False)
    assert float(only_last) == pytest.approx(float(last))


def test_clips_without_depth_cost_nothing() -> None:
    stages = torch.rand(1, 2, 1, 4, 4, requires_grad=True)
    loss, last = masked_depth_loss(
        stages, torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.bool), error="l1", deep_supervision=True
    )
    loss.backward()
    assert loss.item() == last.item() == 0
    assert not stages.grad.any()


def test_unknown_depth_error() -> None:
    x = torch.zeros(1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="expected one of l1, mse, silog, ssi, ssi_trimmed, got 'l3'"):
        masked_depth_loss(x, x[0], x[0] > 0, error="l3", deep_supervision=True)
