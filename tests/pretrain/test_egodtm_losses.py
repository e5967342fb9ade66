"""The objectives against plain slow versions, their gradients, and what must not matter to them."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pretrain.egodtm.depth_losses import (
    DEPTH_ERRORS,
    DEPTH_LOSSES,
    EDGE_DISTANCES,
    depth_divisor,
    edge_error,
    masked_depth_loss,
    silog,
)
from pretrain.egodtm.losses import CONTRASTIVE, contrastive_loss, info_nce

SEEDS = st.integers(0, 10_000)


def unit_rows(seed: int, rows: int, dim: int = 6) -> torch.Tensor:
    values = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(values, dim=-1)


# --------------------------------------------------------------------------------------------------------- contrastive


def info_nce_slowly(video, text, scale: float, bias: float, same) -> float:
    rows = range(len(video))
    loss = 0.0
    for first, second in ((video, text), (text, video)):
        for i in rows:
            others = [scale * first[i] @ second[j] for j in rows if j == i or not same(i, j)]
            loss += math.log(sum(math.exp(other) for other in others)) - scale * first[i] @ second[i]
    return loss / (2 * len(video))


def siglip_slowly(video, text, scale: float, bias: float, same) -> float:
    rows = range(len(video))
    loss = 0.0
    for i in rows:
        for j in rows:
            if i == j or not same(i, j):
                logit = scale * video[i] @ text[j] + bias
                loss += math.log(1 + math.exp(-logit if i == j else logit))
    return loss / len(video)


SLOW = {"infonce": info_nce_slowly, "siglip": siglip_slowly}


@pytest.mark.parametrize("kind", CONTRASTIVE)
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 9), seed=SEEDS, scale=st.floats(0.5, 20), bias=st.floats(-10, 3), texts=st.integers(1, 9))
def test_contrastive_losses_are_their_plain_formulas(kind, rows, seed, scale, bias, texts) -> None:
    video, text = unit_rows(seed, rows), unit_rows(seed + 1, rows)
    ids = torch.randint(0, texts, (rows, 2), generator=torch.Generator().manual_seed(seed))
    shift = torch.tensor(bias, dtype=torch.float64)
    for tokens in (None, ids):
        loss, accuracy = contrastive_loss(kind, video, text, scale, shift, tokens)
        same = (lambda i, j: False) if tokens is None else (lambda i, j: bool((ids[i] == ids[j]).all()))
        expected = SLOW[kind](video.numpy(), text.numpy(), scale, bias, same)
        assert float(loss) == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert 0 <= float(accuracy) <= 1
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        shuffled = contrastive_loss(
            kind, video[order], text[order], scale, shift, None if tokens is None else tokens[order]
        )
        assert float(shuffled[0]) == pytest.approx(float(loss), rel=1e-9, abs=1e-9)
        swapped = contrastive_loss(kind, text, video, scale, shift, tokens)[0]
        assert float(swapped) == pytest.approx(float(loss), rel=1e-9, abs=1e-9)


def test_info_nce_at_chance_and_when_right() -> None:
    same = torch.ones(8, 4) / 2
    assert float(info_nce(same, same, 14.3)[0]) == pytest.approx(np.log(8))
    loss, accuracy = info_nce(torch.eye(8), torch.eye(8), 100.0)
    assert float(loss) < 1e-6 and accuracy == 1


def test_equal_texts_are_no_negatives() -> None:
    video, text = unit_rows(0, 4), unit_rows(1, 4)
    text[2] = text[0]
    ids = torch.tensor([[1, 2], [3, 4], [1, 2], [5, 6]])
    for kind in CONTRASTIVE:
        bias = torch.tensor(-1.0, dtype=torch.float64)
        assert (
            contrastive_loss(kind, video, text, 5.0, bias, ids)[0] < contrastive_loss(kind, video, text, 5.0, bias)[0]
        )


@pytest.mark.parametrize("kind", CONTRASTIVE)
def test_contrastive_gradients_are_right(kind: str) -> None:
    video, text = (unit_rows(seed, 4).requires_grad_() for seed in (0, 1))
    scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (7.0, -3.0))
    ids = torch.tensor([[1], [2], [1], [3]])
    leaves = (video, text, scale) + ((bias,) if kind == "siglip" else ())
    assert torch.autograd.gradcheck(lambda v, t, s, b=None: contrastive_loss(kind, v, t, s, b, ids)[0], leaves)


# --------------------------------------------------------------------------------------------------------------- depth


def l1_slowly(p: list[float], t: list[float]) -> float:
    return sum(abs(a - b) for a, b in zip(p, t, strict=True)) / len(p)


def mse_slowly(p: list[float], t: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(p, t, strict=True)) / len(p)


def silog_slowly(p: list[float], t: list[float]) -> float:
    d = [math.log(a + 0.01) - math.log(b + 0.01) for a, b in zip(p, t, strict=True)]
    return sum(x * x for x in d) / len(d) - 0.85 * (sum(d) / len(d)) ** 2


# Below it a map names no scale, as in the module under test; two pixels may by chance be so much alike.
FLAT = 1e-8


def ssi_slowly(p: list[float], t: list[float]) -> float:
    if np.var(p) < FLAT:
        return 0.5 * float(np.var(t))
    design = np.stack([p, np.ones(len(p))], axis=1)
    (scale, shift), *_ = np.linalg.lstsq(design, np.array(t), rcond=None)
    return 0.5 * float(np.mean((scale * np.array(p) + shift - np.array(t)) ** 2))


def ssi_trimmed_slowly(p: list[float], t: list[float]) -> float:
    def normalised(x: list[float]) -> list[float]:
        middle = sorted(x)[(len(x) - 1) // 2]  # the lower of two middle values, as torch has it
        deviation = sum(abs(a - middle) for a in x) / len(x)
        return [(a - middle) / deviation if deviation >= FLAT else 0.0 for a in x]

    residuals = sorted(abs(a - b) for a, b in zip(normalised(p), normalised(t), strict=True))
    return 0.5 * sum(residuals[: len(p) - int(0.2 * len(p))]) / len(p)


SLOW_DEPTH = {
    "l1": l1_slowly,
    "mse": mse_slowly,
    "silog": silog_slowly,
    "ssi": ssi_slowly,
    "ssi_trimmed": ssi_trimmed_slowly,
}


def depth_slowly(stages: torch.Tensor, target: torch.Tensor, valid: torch.Tensor, error: str) -> list[float]:
    """Of each stage: frame by frame over lists of valid pixels, weighted with their number."""
    losses = []
    for stage in stages:
        total, pixels = 0.0, 0
        for p, t, v in zip(stage.flatten(0, 1), target.flatten(0, 1), valid.flatten(0, 1), strict=True):
            if v.any():
                total += SLOW_DEPTH[error](p[v].tolist(), t[v].tolist()) * int(v.sum())
                pixels += int(v.sum())
        losses.append(total / max(1, pixels))
    return losses


def made_depth(
    seed: int, *, side: int = 4, valid_share: float = 0.6
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    stages = 0.05 + 0.9 * torch.rand(3, 2, 2, side, side, generator=generator, dtype=torch.float64)
    target = torch.rand(2, 2, side, side, generator=generator, dtype=torch.float64)
    valid = torch.rand(2, 2, side, side, generator=generator) < valid_share
    return stages, target, valid


@pytest.mark.parametrize("error", DEPTH_ERRORS)
@settings(max_examples=15, deadline=None)
@example(seed=113, share=0.15)
@given(seed=SEEDS, share=st.sampled_from([0.15, 0.5, 1.0]))
def test_depth_losses_are_their_plain_formulas(error: str, seed: int, share: float) -> None:
    stages, target, valid = made_depth(seed, valid_share=share)
    valid[0, 1] = False
    expected = depth_slowly(stages, target, valid, error)
    loss, last = masked_depth_loss(stages, target, valid, error=error, deep_supervision=True)
    assert float(loss) == pytest.approx(float(np.mean(expected)), rel=1e-6, abs=1e-9)
    assert float(last) == pytest.approx(expected[-1], rel=1e-6, abs=1e-9)
    only_last, _ = masked_depth_loss(stages, target, valid, error=error, deep_supervision=False)
    assert float(only_last) == pytest.approx(expected[-1], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("error", DEPTH_ERRORS)
@pytest.mark.parametrize("deep", [True, False])
def test_depth_gradients_are_right(error: str, deep: bool) -> None:
    stages, target, valid = made_depth(7, side=3)
    stages.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: masked_depth_loss(s, target, valid, error=error, deep_supervision=deep)[0], (stages,)
    )


@pytest.mark.parametrize("error", DEPTH_ERRORS)
@pytest.mark.parametrize("garbage", [0.5, 77.0, float("nan"), float("inf")])
def test_what_lies_under_the_mask_does_not_matter(error: str, garbage: float) -> None:
    stages, target, valid = made_depth(3)
    results = []
    for fill in (None, garbage):
        p = stages.clone()
        t = target.clone()
        if fill is not None:
            t[~valid] = fill
            p[:, ~valid] = fill if math.isfinite(fill) else 0.9
        p.requires_grad_()
        loss, last = masked_depth_loss(p, t, valid, error=error, deep_supervision=True)
        loss.backward()
        assert p.grad is not None and not p.grad[:, ~valid].any() and p.grad[:, valid].any()
        results.append((loss.detach(), last, p.grad))
    for before, after in zip(*results, strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("error", DEPTH_ERRORS)
def test_a_teachers_nan_is_no_target(error: str) -> None:
    """Also where the mask lets it pass."""
    stages, target, valid = made_depth(4)
    target[0, 0, 0], valid[0, 0, 0] = float("nan"), True
    masked = valid & target.isfinite()
    assert torch.equal(
        masked_depth_loss(stages, target, valid, error=error, deep_supervision=True)[0],
        masked_depth_loss(stages, target, masked, error=error, deep_supervision=True)[0],
    )


@pytest.mark.parametrize("error", DEPTH_ERRORS)
@pytest.mark.parametrize(
    "case", ["nothing valid", "one pixel", "constant target", "constant prediction", "both", "equal"]
)
def test_degenerate_maps_give_finite_losses_and_gradients(error: str, case: str) -> None:
    stages, target, valid = made_depth(5)
    stages, target = stages.float(), target.float()
    if case == "nothing valid":
        valid[:] = False
        target[:] = float("nan")
    if case == "one pixel":
        valid[:] = False
        valid[..., 1, 2] = True
    if case in ("constant target", "both"):
        target[:] = 0.0
    if case in ("constant prediction", "both"):
        stages[:] = 0.5
    if case == "equal":
        stages = target.expand_as(stages).clone()
    stages.requires_grad_()
    loss, last = masked_depth_loss(stages, target, valid, error=error, deep_supervision=True)
    loss.backward()
    assert stages.grad is not None
    assert torch.isfinite(loss) and torch.isfinite(last) and torch.isfinite(stages.grad).all() and loss >= 0
    if case == "nothing valid":
        assert loss == last == 0 and not stages.grad.any()
    if case == "equal":
        assert loss < 1e-6


@pytest.mark.parametrize("error", ["ssi", "ssi_trimmed"])
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, scale=st.floats(0.05, 20), shift=st.floats(-5, 5))
def test_ssi_does_not_see_scale_and_shift(error: str, seed: int, scale: float, shift: float) -> None:
    stages, target, valid = made_depth(seed)
    loss = float(masked_depth_loss(stages, target, valid, error=error, deep_supervision=True)[0])
    moved = float(masked_depth_loss(scale * stages + shift, target, valid, error=error, deep_supervision=True)[0])
    assert moved == pytest.approx(loss, rel=1e-6, abs=1e-9)
    right = (scale * target + shift).expand_as(stages)
    assert masked_depth_loss(right, target, valid, error=error, deep_supervision=True)[0] < 1e-9


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, scale=st.floats(0.05, 20))
def test_silog_at_variance_focus_1_does_not_see_the_scale(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    p, t = (0.1 + torch.rand(1, 3, 20, generator=generator, dtype=torch.float64) for _ in range(2))
    valid = torch.rand(3, 20, generator=generator) > 0.2
    loss = silog(p, t[0], valid, variance_focus=1.0, epsilon=0.0)
    torch.testing.assert_close(silog(scale * p, t[0], valid, variance_focus=1.0, epsilon=0.0), loss)
    inverted = silog(1 / p, 1 / t[0], valid, epsilon=0.0)
    torch.testing.assert_close(inverted, silog(p, t[0], valid, epsilon=0.0))


def test_edges_are_the_plain_sum_over_pairs_of_pixels() -> None:
    stages, target, valid = made_depth(5)
    residual = (stages - target).flatten(1, 2)
    known = valid.flatten(0, 1)
    frames, rows, columns = known.shape
    expected = torch.zeros(len(stages), frames, dtype=stages.dtype)
    for n, y, x, distance in itertools.product(range(frames), range(rows), range(columns), EDGE_DISTANCES):
        for y2, x2 in ((y + distance, x), (y, x + distance)):
            if y2 < rows and x2 < columns and known[n, y, x] and known[n, y2, x2]:
                expected[:, n] += (residual[:, n, y2, x2] - residual[:, n, y, x]).abs()
    found = edge_error(stages.flatten(1, 2), target.flatten(0, 1), known)
    torch.testing.assert_close(found, expected)
    assert torch.equal(
        edge_error(target.flatten(0, 1)[None] + 0.25, target.flatten(0, 1), known).round(decimals=6), 0 * found[:1]
    )
    plain, with_edges = (
        masked_depth_loss(stages, target, valid, error="l1", deep_supervision=True, edges=edges) for edges in (0.0, 0.3)
    )
    torch.testing.assert_close(
        with_edges[0].double(), plain[0].double() + 0.3 * expected.sum(1).mean() / valid.sum(), rtol=1e-5, atol=1e-6
    )
    assert torch.equal(with_edges[1], plain[1])


@pytest.mark.parametrize("edges", [0.0, 0.7])
@pytest.mark.parametrize("error", DEPTH_ERRORS)
def test_parts_of_a_batch_add_up(error: str, edges: float) -> None:
    stages, target, valid = made_depth(11)
    divisor = depth_divisor(target, valid)
    assert divisor == valid.sum()
    whole = masked_depth_loss(stages, target, valid, error=error, deep_supervision=True, edges=edges)
    parts = [
        masked_depth_loss(
            stages[:, i : i + 1],
            target[i : i + 1],
            valid[i : i + 1],
            error=error,
            deep_supervision=True,
            edges=edges,
            divisor=divisor,
        )
        for i in range(2)
    ]
    for place in range(2):
        torch.testing.assert_close(parts[0][place] + parts[1][place], whole[place])


def test_losses_of_half_precision_are_fp32() -> None:
    stages, target, valid = made_depth(2)
    for error in DEPTH_ERRORS:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _ = masked_depth_loss(stages.bfloat16(), target.float(), valid, error=error, deep_supervision=True)
        assert loss.dtype == torch.float32
        exact, _ = masked_depth_loss(
            stages.bfloat16().float(), target.float(), valid, error=error, deep_supervision=True
        )
        assert loss == exact
    video, text = unit_rows(0, 6).float(), unit_rows(1, 6).float()
    for kind in CONTRASTIVE:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _ = contrastive_loss(kind, video, text, 10.0, torch.tensor(-1.0))
        assert loss == contrastive_loss(kind, video, text, 10.0, torch.tensor(-1.0))[0]


def test_unknown_depth_error() -> None:
    x = torch.zeros(1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match=f"expected one of {', '.join(DEPTH_LOSSES)}, got 'l3'"):
        masked_depth_loss(x, x[0], x[0] > 0, error="l3", deep_supervision=True)
