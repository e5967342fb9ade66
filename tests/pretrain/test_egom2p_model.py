"""EgoM2P's model: published size, what attends what, padding and missing modalities, learning."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from pretrain.egom2p.modalities import TokenGrid
from pretrain.egom2p.model import (
    SIZES,
    EgoM2P,
    EgoM2PConfig,
    TokenSet,
    concatenate,
    egom2p_loss,
    parameter_count,
    published_grids,
    sincos_positions,
    within_modality,
)

GRIDS = {
    "rgb": TokenGrid(shape=(2, 3, 3), vocabulary=50),
    "depth": TokenGrid(shape=(2, 3, 3), vocabulary=40),
    "gaze": TokenGrid(shape=(5,), vocabulary=16),
    "camera": TokenGrid(shape=(5,), vocabulary=16),
}


@pytest.fixture(scope="module")
def model() -> EgoM2P:
    torch.manual_seed(0)
    return EgoM2P(EgoM2PConfig.of_size("nano", GRIDS)).eval()


def whole_clip(batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(grid.vocabulary, (batch, grid.tokens), generator=generator) for name, grid in GRIDS.items()
    }


def given(model: EgoM2P, clip: Mapping[str, Tensor], *names: str) -> TokenSet:
    return TokenSet.whole(model.config, {name: clip[name] for name in names})


def padded(tokens: TokenSet, extra: int) -> TokenSet:
    """The same tokens with padding of nonsense behind them."""
    valid = torch.ones_like(tokens.ids, dtype=torch.bool)
    filler = torch.full((len(tokens), extra), 3)
    zero = torch.zeros_like(filler)
    return concatenate(
        [TokenSet(tokens.ids, tokens.modality, tokens.position, valid), TokenSet(filler, zero, zero, zero.bool())]
    )


def test_base_has_the_published_number_of_parameters() -> None:
    config = EgoM2PConfig.of_size("base", published_grids())
    with torch.device("meta"):
        base = EgoM2P(config)
    # 12 + 12 blocks of 768, four video tables of 64,000 tokens and four of 256: "400M including embeddings".
    assert sum(p.numel() for p in base.parameters()) == parameter_count(config) == 396_226_560


@pytest.mark.parametrize("size", SIZES)
def test_counted_parameters_are_those_of_the_model(size: str) -> None:
    config = EgoM2PConfig.of_size(size, GRIDS)
    with torch.device("meta"):
        assert sum(p.numel() for p in EgoM2P(config).parameters()) == parameter_count(config)


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    model = EgoM2P(EgoM2PConfig.of_size("nano", GRIDS))
    clip = whole_clip()
    out = model(given(model, clip, "rgb", "gaze"), given(model, clip, "depth", "camera"))
    loss, _ = egom2p_loss(out, {"depth": 36, "camera": 10}, 4)
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_padding_changes_nothing(model: EgoM2P) -> None:
    clip = whole_clip()
    inputs, targets = given(model, clip, "rgb", "gaze"), given(model, clip, "depth")
    plain = model.decode(targets, model.encode(inputs))
    more = model.decode(padded(targets, 4), model.encode(padded(inputs, 7)))
    torch.testing.assert_close(more[:, : targets.count], plain, atol=1e-5, rtol=1e-5)


def test_the_order_of_the_tokens_changes_nothing(model: EgoM2P) -> None:
    clip = whole_clip()
    inputs, targets = given(model, clip, "rgb", "gaze"), given(model, clip, "depth")
    order = torch.randperm(inputs.count, generator=torch.Generator().manual_seed(1))
    mixed = TokenSet(inputs.ids[:, order], inputs.modality[:, order], inputs.position[:, order])
    torch.testing.assert_close(
        model.decode(targets, model.encode(mixed)), model.decode(targets, model.encode(inputs)), atol=1e-5, rtol=1e-5
    )


def test_queries_of_one_modality_do_not_see_those_of_another(model: EgoM2P) -> None:
    clip = whole_clip()
    context = model.encode(given(model, clip, "rgb"))
    depth, camera = given(model, clip, "depth"), given(model, clip, "camera")
    alone = model.decode(depth, context)
    beside = model.decode(concatenate([camera, depth]), context)[:, camera.count :]
    torch.testing.assert_close(beside, alone, atol=1e-5, rtol=1e-5)
    fewer = TokenSet(depth.ids[:, :9], depth.modality[:, :9], depth.position[:, :9])
    assert not torch.allclose(model.decode(fewer, context), alone[:, :9], atol=1e-4), "queries of one modality do"


def test_a_missing_modality_changes_nothing_of_the_others_loss(model: EgoM2P) -> None:
    """A clip with depth beside one without: the second's camera loss is what it is alone."""
    clip = whole_clip()
    rich = concatenate([given(model, clip, "depth"), given(model, clip, "camera")])
    poor = given(model, clip, "camera")
    batch = TokenSet(
        torch.stack([rich.ids[0], padded(poor, 18).ids[1]]),
        torch.stack([rich.modality[0], padded(poor, 18).modality[1]]),
        torch.stack([rich.position[0], padded(poor, 18).position[1]]),
        torch.stack([torch.ones(rich.count, dtype=torch.bool), padded(poor, 18).valid[1]]),  # pyright: ignore
    )
    inputs = given(model, clip, "rgb")
    hidden = model.decode(batch, model.encode(inputs))
    alone = model.decode(poor, model.encode(inputs))
    torch.testing.assert_close(hidden[1, : poor.count], alone[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(hidden[0, 18:], alone[0], atol=1e-5, rtol=1e-5)


def test_ids_of_queries_are_not_read(model: EgoM2P) -> None:
    clip, other = whole_clip(), whole_clip(seed=5)
    context = model.encode(given(model, clip, "rgb"))
    one, two = given(model, clip, "depth"), given(model, other, "depth")
    torch.testing.assert_close(model.decode(one, context), model.decode(two, context), atol=0, rtol=0)


def test_an_empty_condition_is_allowed(model: EgoM2P) -> None:
    targets = given(model, whole_clip(), "camera")
    hidden = model.decode(targets, model.encode(TokenSet.empty(2)))
    assert hidden.shape == (2, 5, model.config.width) and hidden.isfinite().all()


def test_no_mask_where_none_is_needed(model: EgoM2P) -> None:
    clip = whole_clip()
    assert within_modality(given(model, clip, "depth")) is None
    mask = within_modality(given(model, clip, "gaze", "camera"))
    assert mask is not None and mask.sum() == 2 * (5 * 5 + 5 * 5)


def test_one_batch_is_learned_by_heart() -> None:
    torch.manual_seed(0)
    model = EgoM2P(EgoM2PConfig.of_size("nano", GRIDS))
    clip = whole_clip()
    inputs, targets = given(model, clip, "rgb", "gaze"), given(model, clip, "depth", "camera")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    counts = {"depth": 36, "camera": 10}
    for _ in range(120):
        loss, scalars = egom2p_loss(model(inputs, targets), counts, 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert scalars["depth_accuracy"] > 0.95 and scalars["camera_accuracy"] > 0.95
    assert float(scalars["loss"]) < 0.2


def test_the_loss_is_the_mean_over_modalities() -> None:
    losses = {"rgb": (torch.tensor(4.0), torch.tensor(1)), "gaze": (torch.tensor(2.0), torch.tensor(3))}
    total, scalars = egom2p_loss(losses, {"rgb": 10, "gaze": 4}, 4)
    assert float(total) == 1.5
    assert float(scalars["gaze_accuracy"]) == 0.75 and float(scalars["rgb"]) == 4


def test_positions_differ_everywhere() -> None:
    for grid in (*GRIDS.values(), TokenGrid(shape=(5, 8, 8), vocabulary=2), TokenGrid(shape=(30,), vocabulary=2)):
        table = sincos_positions(grid, 192)
        assert table.shape == (grid.tokens, 192) and table.abs().max() <= 1
        assert torch.cdist(table, table).fill_diagonal_(1).min() > 0.1


def test_config_travels_as_json() -> None:
    config = EgoM2PConfig.of_size("tiny", GRIDS)
    assert EgoM2PConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 25, "heads": 5}, "multiple of 6"),
        ({"heads": 5}, "multiple of heads"),
        ({"encoder_layers": 0}, "encoder_layers"),
    ],
)
def test_wrong_sizes_are_named(change: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EgoM2PConfig.of_size("nano", GRIDS, **change)


def test_wrong_tokens_are_named(model: EgoM2P) -> None:
    clip = whole_clip()
    with pytest.raises(ValueError, match="hands"):
        TokenSet.whole(model.config, {"hands": clip["gaze"]})
    with pytest.raises(ValueError, match=r"expected \[B, 5\]"):
        TokenSet.whole(model.config, {"gaze": clip["gaze"][:, :4]})
    with pytest.raises(ValueError, match="another tokenizer"):
        TokenSet.whole(model.config, {"gaze": clip["gaze"] + 16})
