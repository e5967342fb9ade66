"""Drawing tokens without sorting the vocabulary gives what sorting it gives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.egom2p_plain import plain_draw
from pretrain.egom2p import sampling
from pretrain.egom2p.sampling import ClipRandom, Filter, draw_tokens, least_doubtful


@pytest.fixture(params=[(64, 1024, 8192), (2, 5, 17)], ids=["published", "short"])
def heads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    monkeypatch.setattr(sampling, "HEADS", request.param)
    return request.param


# Spread of the logits: flat (everything may be kept), as of a trained model, and peaked.
@pytest.mark.parametrize("spread", [0.0, 0.01, 0.5, 4.0, 30.0])
@pytest.mark.parametrize("temperature", [1e-9, 0.01, 0.3, 1.0])
def test_equals_the_full_sort(heads: tuple[int, ...], spread: float, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(16, 1200, generator=generator)
    uniforms = torch.rand(16, generator=generator, dtype=torch.float64)
    for top_p in (0.0, 0.05, 0.8):
        for top_k in (0, 1, 40):
            # In float64, for the authors' float32 sums decide the edge of top-p by their rounding.
            expected, odds, _ = plain_draw(logits.double(), uniforms, temperature, top_k, top_p)
            drawn, doubt = draw_tokens(
                logits, uniforms, Filter(temperature=temperature, top_p=top_p, top_k=top_k), with_doubt=True
            )
            assert torch.equal(drawn, expected)
            torch.testing.assert_close(doubt, odds, rtol=1e-12, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.0, 0.25, 1.0, 2.0, 5.0]), min_size=2, max_size=40),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    st.sampled_from([0.0, 0.1, 0.3, 0.8, 0.95, 1.0]),
    st.integers(0, 12),
)
def test_ties_go_to_the_lower_id(
    values: list[float], uniform: float, temperature: float, top_p: float, top_k: int
) -> None:
    """Logits of few values tie everywhere: within the head, at its end, at the k-th, at the edge of top-p."""
    logits, uniforms = torch.tensor([values]), torch.tensor([uniform], dtype=torch.float64)
    expected, odds, _ = plain_draw(logits.double(), uniforms, temperature, top_k, top_p)
    before = sampling.HEADS
    try:
        for heads in ((), (1,), (4,), (2, 7)):
            sampling.HEADS = heads
            drawn, doubt = draw_tokens(
                logits, uniforms, Filter(temperature=temperature, top_p=top_p, top_k=top_k), with_doubt=True
            )
            assert torch.equal(drawn, expected)
            torch.testing.assert_close(doubt, odds, rtol=1e-12, atol=0)
            assert torch.equal(
                draw_tokens(logits, uniforms, Filter(temperature=temperature, top_p=top_p, top_k=top_k))[0], expected
            )
    finally:
        sampling.HEADS = before


def test_sorts_hardly_ever_at_the_published_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temperature 0.01, top-p 0.8: a head of 64 decides, even where top-p keeps tens of thousands of tokens."""
    sizes: list[tuple[int, int]] = []
    head = sampling._head
    monkeypatch.setattr(
        sampling, "_head", lambda logits, size: (sizes.append((size, len(logits))), head(logits, size))[1]
    )
    for spread in (1.0, 5.0):
        sizes.clear()
        logits = spread * torch.randn(128, 64000, generator=torch.Generator().manual_seed(1))
        draw_tokens(logits, torch.rand(128, dtype=torch.float64), Filter(temperature=0.01, top_p=0.8))
        assert sizes[0] == (64, 128) and sum(count for _, count in sizes[1:]) <= 1


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -3.0, 0.5]])
    uniforms = torch.rand(40000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn, _ = draw_tokens(logits.expand(40000, -1), uniforms, Filter(temperature=0.7, top_p=0.9))
    # Of the softmax at temperature 1, tokens 2, 1, 4 sum to 0.90 and are kept at 0.9 or above; 0 is what passes the edge.
    mass = torch.softmax(logits[0], 0)
    kept = [2, 1, 4, 0] if float(mass[[2, 1, 4]].sum()) <= 0.9 else [2, 1, 4]
    expected = torch.zeros(5)
    expected[kept] = torch.softmax(logits[0, kept] / 0.7, 0)
    found = torch.bincount(drawn, minlength=5) / len(drawn)
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert found[3] == 0


def test_top_p_keeps_at_least_one() -> None:
    logits = torch.tensor([[3.0, 0.0, 0.0]])
    assert int(draw_tokens(logits, torch.tensor([0.999]).double(), Filter(temperature=5.0, top_p=0.01))[0]) == 0


def test_greedy() -> None:
    logits = torch.tensor([[1.0, 4.0, 4.0], [2.0, -1.0, 0.0]])
    ids, doubt = draw_tokens(logits, torch.tensor([0.9, 0.9]).double(), Filter(temperature=0.0), with_doubt=True)
    assert ids.tolist() == [1, 0] and doubt.tolist() == [0.0, -2.0]


def test_doubt_tells_apart_what_rounds_to_one() -> None:
    logits = torch.tensor([[1.0, 0.3, 0.0], [1.0, 0.2, 0.0], [1.0, 0.5, 0.0]])
    _, doubt = draw_tokens(logits, torch.full((3,), 0.5).double(), Filter(temperature=0.01), with_doubt=True)
    assert (1 / (1 + doubt)).tolist() == [1.0, 1.0, 1.0]
    assert least_doubtful(doubt[None], 2).tolist() == [[1, 0]]


def test_equally_doubtful_tokens_keep_their_order() -> None:
    assert least_doubtful(torch.tensor([[0.0, 1.0, 0.0, 0.0]]).double(), 2).tolist() == [[0, 2]]


def test_bfloat16_logits_are_drawn_in_float32() -> None:
    logits = torch.randn(8, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    uniforms, rule = torch.rand(8, dtype=torch.float64), Filter(temperature=1.0, top_p=0.8)
    assert torch.equal(draw_tokens(logits, uniforms, rule)[0], draw_tokens(logits.float(), uniforms, rule)[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 0.01])
def test_diverged_weights(bad: float, temperature: float) -> None:
    logits = torch.zeros(2, 9)
    logits[1, 3] = bad
    with pytest.raises(ValueError, match="logits are not finite"):
        draw_tokens(logits, torch.zeros(2).double(), Filter(temperature=temperature))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p"),
        ({"temperature": 1.0, "top_k": -1}, "top_k"),
    ],
)
def test_bad_filters(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}: expected"):
        Filter(**fields)


def test_random_numbers_belong_to_the_clip() -> None:
    both, alone = ClipRandom([3, 8]), ClipRandom([8])
    assert torch.equal(both.order(50)[1:], alone.order(50))
    assert torch.equal(both.uniforms(50)[1:], alone.uniforms(50))
    order = ClipRandom([0, 1]).order(50)
    assert torch.equal(order.sort(1).values, torch.arange(50).expand(2, -1)) and not torch.equal(order[0], order[1])
