"""Where EgoM2P's token table starts, and the guard that shows whether a model reads what it is given."""

import json

import numpy as np
import pytest
import torch

from pretrain.egom2p.data import LoadTokens, target_counts, unpack
from pretrain.egom2p.encoder import EgoM2PEncoder, random_encoder
from pretrain.egom2p.masking import MaskingConfig
from pretrain.egom2p.modalities import TokenGrid
from pretrain.egom2p.model import EMBEDDING_STD, TOKEN_STD, EgoM2P, EgoM2PConfig, TokenSet, egom2p_loss, parameter_count
from pretrain.egom2p.token_start import embed_codes, start_tokens
from pretrain.egom2p.tokenizers.fsq_video import FsqVideoConfig, FsqVideoTokenizer
from pretrain.egom2p.tokenizers.tokenizer import Tokenizer
from pretrain.egom2p.tokenizers.vq_sequence import VqSequenceConfig, VqSequenceTokenizer
from pretrain.egom2p.train import EgoM2PTrainConfig
from pretrain.egom2p.validation import token_losses, validate


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    torch.manual_seed(0)
    video = FsqVideoTokenizer(FsqVideoConfig.of_size("nano", frames=16, image_size=16), name="video")
    gaze = VqSequenceTokenizer(VqSequenceConfig.for_modality("gaze", "nano"), name="gaze", modalities=("gaze",))
    return {"rgb": video, "depth": video, "gaze": gaze}


def fresh(tokenizers: dict[str, Tokenizer], size: str = "tiny") -> EgoM2P:
    torch.manual_seed(3)
    return EgoM2P(EgoM2PConfig.of_size(size, {name: t.spec.grid for name, t in tokenizers.items()}))


def test_a_fresh_table_is_as_loud_as_the_positions(tokenizers: dict[str, Tokenizer]) -> None:
    model = fresh(tokenizers)
    assert float(model.encoder_tokens.detach().std()) == pytest.approx(TOKEN_STD, rel=0.02)
    assert 0.4 < float(model.positions.std(0).mean()) / TOKEN_STD < 2
    for table in (model.decoder_tokens, model.modality_embedding, model.mask_token):
        assert float(table.detach().std()) == pytest.approx(EMBEDDING_STD, rel=0.2)
    twin = random_encoder("tiny", seed=0)
    assert isinstance(twin, EgoM2PEncoder)
    assert float(twin.token_table.detach().std()) == pytest.approx(TOKEN_STD, rel=0.02)
    assert float(twin.modality.detach().std()) == pytest.approx(EMBEDDING_STD, rel=0.2)


def test_tokens_are_not_drowned_at_the_start(tokenizers: dict[str, Tokenizer]) -> None:
    """What differs between tokens is half or more of the encoder's output; twins start with branches as soft."""
    model = fresh(tokenizers)
    start_tokens(model, tokenizers, start="codebook", seed=0)
    ids = {name: torch.randint(t.spec.grid.vocabulary, (4, t.spec.grid.tokens)) for name, t in tokenizers.items()}
    with torch.inference_mode():
        assert float(model.features(TokenSet.whole(model.config, ids)).std(1).mean()) > 0.5
    twin = random_encoder("tiny", seed=0)
    assert isinstance(twin, EgoM2PEncoder)
    for one, two in zip(model.encoder.parameters(), twin.blocks.parameters(), strict=True):
        assert float(one.detach().std()) == pytest.approx(float(two.detach().std()), rel=0.05)


def test_a_table_from_codebooks(tokenizers: dict[str, Tokenizer]) -> None:
    plain, one, two, other = (fresh(tokenizers) for _ in range(4))
    torch.manual_seed(11)
    before = torch.get_rng_state()
    assert start_tokens(one, tokenizers, start="codebook", seed=5) == ("rgb", "depth", "gaze")
    assert torch.equal(torch.get_rng_state(), before), "the run's generator is not touched"
    start_tokens(two, dict(reversed(tokenizers.items())), start="codebook", seed=5)
    start_tokens(other, tokenizers, start="codebook", seed=6)
    assert torch.equal(one.encoder_tokens, two.encoder_tokens)
    assert not torch.equal(one.encoder_tokens, other.encoder_tokens)
    assert not torch.equal(one.token_rows("rgb"), one.token_rows("depth")), "modalities differ, also of one tokenizer"
    for name in tokenizers:
        assert float(one.token_rows(name).detach().std()) == pytest.approx(TOKEN_STD, rel=0.02)
    for (name, a), b in zip(one.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b) == (name != "encoder_tokens"), name
    assert sum(p.numel() for p in one.parameters()) == parameter_count(one.config)


@pytest.mark.parametrize("name", ["rgb", "gaze"])
def test_near_codes_start_nearer_than_far_ones(tokenizers: dict[str, Tokenizer], name: str) -> None:
    codes = tokenizers[name].codebook().float()
    table = embed_codes(codes, 192, seed=0, name=name)
    off = ~torch.eye(len(codes), dtype=torch.bool)
    standard = (codes - codes.mean(0)) / codes.std(0)
    apart, embedded = torch.cdist(standard, standard)[off], torch.cdist(table, table)[off]
    assert np.corrcoef(apart.detach().numpy(), embedded.detach().numpy())[0, 1] > 0.9
    near = apart <= apart.quantile(0.02) if name == "rgb" else apart <= apart.median()
    assert float(embedded[near].mean()) < 0.9 * float(embedded[~near].mean())
    assert float(embedded.min()) > 0


def test_where_there_is_no_codebook_the_rows_stay_random(tokenizers: dict[str, Tokenizer]) -> None:
    class TellsNoCodes(FsqVideoTokenizer):
        def codebook(self) -> torch.Tensor:
            raise ValueError("it takes ids and nothing else")

    plain, model = fresh(tokenizers), fresh(tokenizers)
    mute = TellsNoCodes(FsqVideoConfig.of_size("nano", frames=16, image_size=16), name="mute")
    some = {"rgb": mute, "gaze": tokenizers["gaze"]}
    assert start_tokens(model, some, start="codebook", seed=0) == ("gaze",)
    for name in ("rgb", "depth"):
        assert torch.equal(model.token_rows(name), plain.token_rows(name))
    assert start_tokens(model, tokenizers, start="normal", seed=0) == ()
    with pytest.raises(ValueError, match="codebook, normal"):
        start_tokens(model, tokenizers, start="zeros", seed=0)
    with pytest.raises(ValueError, match="token_start"):
        EgoM2PTrainConfig(tokens=("a",), tokenizers=("b",), out="c", token_start="zeros")


def test_codes_that_do_not_differ_start_as_noise() -> None:
    table = embed_codes(torch.ones(300, 4), 96, seed=0, name="rgb")
    assert float(table.detach().std()) == pytest.approx(TOKEN_STD, rel=0.02) and bool(table.isfinite().all())


# ---------------------------------------------------------------------------------------------------------------- guard

GRIDS = {"rgb": TokenGrid(shape=(2, 3, 3), vocabulary=20), "gaze": TokenGrid(shape=(6,), vocabulary=8)}


class MadeTokens(LoadTokens):
    """Clips whose tokens all follow from one number, so that some tell the others; the last one has no gaze."""

    def __init__(self, clips: int = 24) -> None:
        self.clips, self.config = clips, EgoM2PConfig.of_size("nano", GRIDS)
        self.masking = MaskingConfig(input_tokens=8, target_tokens=8, alphas=(10.0,))

    def __len__(self) -> int:
        return self.clips

    def read(self, index: int) -> dict[str, np.ndarray]:
        clip = {name: (np.arange(g.tokens) + 5 * index) % g.vocabulary for name, g in GRIDS.items()}
        return clip if index < self.clips - 1 else {"rgb": clip["rgb"]}

    def _masking_of(self, index: int) -> MaskingConfig:
        return self.masking


def test_a_swapped_batch_differs_in_what_is_given_alone() -> None:
    load = MadeTokens()
    ids = [(2, 7), (3, 8)]
    own, swapped = load(ids), load.given_of(ids, [5, 3])
    assert own.keys() == swapped.keys()
    assert [name for name in own if not torch.equal(own[name], swapped[name])] == ["input_ids"]
    assert torch.equal(own["input_ids"][1], swapped["input_ids"][1])
    clip = load.read(5)
    kinds, places = own["input_modality"][0], own["input_position"][0]
    expected = [clip[load.config.names[k]][p] for k, p in zip(kinds.tolist(), places.tolist(), strict=True)]
    assert swapped["input_ids"][0].tolist() == expected


def test_a_deaf_model_gains_nothing() -> None:
    load = MadeTokens()
    torch.manual_seed(0)
    model = EgoM2P(load.config)
    torch.nn.init.zeros_(model.encoder_norm.weight)
    report = validate(model, load, train=range(8), held_out=range(8, 24), batch_size=5)
    for figures in report.values():
        assert figures["gain"] == pytest.approx(0, abs=1e-6) and figures["gain_low"] == pytest.approx(0, abs=1e-6)
    assert model.training


def test_a_model_that_reads_gains_and_batches_do_not_matter() -> None:
    load = MadeTokens()
    torch.manual_seed(0)
    model = EgoM2P(load.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(250):
        batch = load([(index, step) for index in range(23)])
        losses = model(unpack(batch, "input"), unpack(batch, "target"))
        loss, _ = egom2p_loss(losses, target_counts(batch, load.config), 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    one, two = (validate(model, load, train=range(24), held_out=range(24), batch_size=n) for n in (24, 7))
    for name, figures in one.items():
        assert figures["gain_low"] > 0.1, name
        assert figures["gain_low"] < figures["gain"] < figures["gain_high"]
        assert two[name] == pytest.approx(figures, abs=1e-4)
    assert json.loads(json.dumps(one)) == one


def test_losses_of_single_tokens_have_the_mean_that_training_sees() -> None:
    load = MadeTokens()
    torch.manual_seed(0)
    model = EgoM2P(load.config)
    batch = load([(index, 0) for index in range(20, 24)])
    inputs, targets = unpack(batch, "input"), unpack(batch, "target")
    losses, right = token_losses(model, inputs, targets)
    for number, name in enumerate(load.config.names):
        chosen = batch["target_valid"] & (batch["target_modality"] == number)
        mean, hits = model(inputs, targets)[name]
        torch.testing.assert_close(losses[chosen].mean(), mean)
        assert int(right[chosen].sum()) == int(hits)
    assert not losses.masked_select(~batch["target_valid"]).any()


def test_a_single_clip_has_no_partner() -> None:
    load = MadeTokens()
    torch.manual_seed(0)
    report = validate(EgoM2P(load.config), load, train=range(8), held_out=[9], batch_size=4)
    assert all("gain" not in figures and figures["loss"] > 0 for figures in report.values())
