"""The tokenizer contract, over the table: saving and loading, batching, and errors that say what is wrong."""

import json
from pathlib import Path

import pytest
import torch

from pretrain.artifact import save_artifact
from pretrain.egom2p.modalities import TokenGrid
from pretrain.egom2p.tokenizers.fsq_video import FsqVideoConfig, FsqVideoTokenizer
from pretrain.egom2p.tokenizers.tokenizer import (
    TOKENIZERS,
    Tokenizer,
    TokenizerSpec,
    code_usage,
    load_tokenizer,
    save_tokenizer,
)
from pretrain.egom2p.tokenizers.vq_sequence import VqSequenceConfig, VqSequenceTokenizer


def _fsq_video() -> Tokenizer:
    return FsqVideoTokenizer(FsqVideoConfig.of_size("nano"), name="nano-video", modalities=("rgb",))


def _vq_sequence() -> Tokenizer:
    tokenizer = VqSequenceTokenizer(VqSequenceConfig.for_modality("gaze", "nano"), name="nano", modalities=("gaze",))
    tokenizer.set_statistics([0.1, -0.1], [0.5, 2.0])
    return tokenizer


# The third row, cosmos-jit, runs files: tests/pretrain/test_egom2p_cosmos_weights.py.
BUILD = {"fsq-video": _fsq_video, "vq-sequence": _vq_sequence}


@pytest.fixture(params=BUILD)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    torch.manual_seed(0)
    return BUILD[request.param]()


def clips_for(tokenizer: Tokenizer, batch: int = 3) -> torch.Tensor:
    x = torch.rand(batch, *tokenizer.spec.input_shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return x


def test_every_row_of_the_table_is_tested_somewhere() -> None:
    assert {*BUILD, "cosmos-jit"} == TOKENIZERS.keys()


def test_a_saved_tokenizer_speaks_the_same_language(tokenizer: Tokenizer, tmp_path: Path) -> None:
    x = clips_for(tokenizer)
    tokenizer.train().loss(x)  # what changes in training, such as codes, must be saved too
    ids = tokenizer.encode(x)
    sha256 = save_tokenizer(tmp_path / "tokenizer", tokenizer, training={"steps": 3})
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert torch.equal(loaded.encode(x), ids)
    assert torch.equal(loaded.decode(ids), tokenizer.decode(ids))
    assert not loaded.training and type(loaded) is type(tokenizer)
    assert loaded.spec.weights_sha256 == sha256 == tokenizer.renamed(tokenizer.spec.name).spec.weights_sha256
    assert loaded.spec == tokenizer.spec and loaded.config == tokenizer.config


def test_batches_are_cut_without_a_trace(tokenizer: Tokenizer) -> None:
    x = clips_for(tokenizer, 5)
    ids = tokenizer.encode(x, clips_at_once=5)
    for clips_at_once in (1, 2):
        assert torch.equal(tokenizer.encode(x, clips_at_once=clips_at_once), ids)
        torch.testing.assert_close(tokenizer.decode(ids, clips_at_once=clips_at_once), tokenizer.decode(ids))
    assert not tokenizer.decode(ids).requires_grad


def test_encoding_does_not_depend_on_the_mode(tokenizer: Tokenizer) -> None:
    x = clips_for(tokenizer)
    assert torch.equal(tokenizer.train().encode(x), tokenizer.eval().encode(x))


def test_no_clips_give_no_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(clips_for(tokenizer, 0))
    assert ids.shape == (0, tokenizer.spec.grid.tokens) and ids.dtype == torch.int64
    some = tokenizer.decode(torch.zeros(1, tokenizer.spec.grid.tokens, dtype=torch.int64))
    assert tokenizer.decode(ids).shape == (0, *some.shape[1:])


def test_int32_ids_are_ids(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(clips_for(tokenizer))
    assert torch.equal(tokenizer.decode(ids.int()), tokenizer.decode(ids))


def test_codes_of_ids_decode_as_the_ids(tokenizer: Tokenizer) -> None:
    """All probability on one id is that id."""
    ids = tokenizer.encode(clips_for(tokenizer))
    certain = torch.nn.functional.one_hot(ids, tokenizer.spec.grid.vocabulary).float()
    codes = certain @ tokenizer.codebook()
    assert torch.equal(tokenizer.decode_codes(codes), tokenizer.decode(ids))
    torch.testing.assert_close(tokenizer.decode_codes(codes, clips_at_once=1), tokenizer.decode(ids))
    assert tokenizer.decode_codes(codes[:0]).shape == tokenizer.decode(ids[:0]).shape


def test_codes_of_other_shapes_are_refused(tokenizer: Tokenizer) -> None:
    count, size = tokenizer.spec.grid.tokens, tokenizer.codebook().shape[1]
    assert len(tokenizer.codebook()) == tokenizer.spec.grid.vocabulary
    for wrong in (torch.zeros(1, count, size + 1), torch.zeros(1, count + 1, size), torch.zeros(1, count, size).int()):
        with pytest.raises(ValueError, match="expected float codes"):
            tokenizer.decode_codes(wrong)


def test_other_shapes_are_refused(tokenizer: Tokenizer) -> None:
    x = clips_for(tokenizer)
    for wrong in (x[:, 1:], x[0], x.round().long()):
        with pytest.raises(ValueError, match=f"tokenizer '{tokenizer.spec.name}'.*expected floats"):
            tokenizer.encode(wrong)
        with pytest.raises(ValueError, match="expected floats"):
            tokenizer.loss(wrong)


def test_other_ids_are_refused(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(clips_for(tokenizer))
    for wrong in (ids[:, 1:], ids.float(), ids[None]):
        with pytest.raises(ValueError, match="expected integer ids"):
            tokenizer.decode(wrong)
    for wrong in (ids - tokenizer.spec.grid.vocabulary, ids + tokenizer.spec.grid.vocabulary):
        with pytest.raises(ValueError, match=f"must lie in 0..{tokenizer.spec.grid.vocabulary - 1}"):
            tokenizer.decode(wrong)


# ------------------------------------------------------------------------------------------------------ spec, artifacts


def test_the_spec_survives_json() -> None:
    spec = TokenizerSpec(
        name="a", modalities=("rgb", "depth"), grid=TokenGrid(shape=(5, 8, 8), vocabulary=1000),
        input_shape=(3, 16, 64, 64), weights_sha256="ab",
    )  # fmt: skip
    document = json.loads(json.dumps(spec.to_json()))
    assert TokenizerSpec.from_json(document) == spec
    with pytest.raises(ValueError, match="missing or unknown fields: colour, grid"):
        TokenizerSpec.from_json({name: value for name, value in document.items() if name != "grid"} | {"colour": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": ()}, "at least one modality"),
        ({"modalities": ("smell",)}, "unknown modality 'smell'"),
        ({"input_shape": (60, 0)}, "TokenizerSpec.input_shape"),
    ],
)
def test_bad_specs_are_refused(changes: dict, message: str) -> None:
    good = {"name": "a", "modalities": ("gaze",), "grid": TokenGrid(shape=(30,), vocabulary=8), "input_shape": (60, 3)}
    with pytest.raises(ValueError, match=message):
        TokenizerSpec(**(good | changes))


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no artifact at"):
        load_tokenizer(tmp_path / "nothing")
    torch.manual_seed(0)
    tokenizer = _vq_sequence()
    parts = {
        "name": "x", "tensors": tokenizer.state_dict(), "spec": tokenizer.spec.to_json(), "provenance": {},
        "config": {"architecture": "vq-sequence", "tokenizer": tokenizer.config},
    }  # fmt: skip
    for changes, message in (
        ({"kind": "encoder"}, "kind 'encoder', expected 'tokenizer'"),
        ({"config": {"architecture": "words"}}, "unknown tokenizer 'words'; known: fsq-video, vq-sequence"),
        ({"config": {"architecture": "vq-sequence"}}, "does not describe a tokenizer of 'vq-sequence': 'tokenizer'"),
        ({"config": {"architecture": "vq-sequence", "tokenizer": {"depth": 1}}}, "unexpected keyword argument 'depth'"),
        ({"tensors": {"mean": torch.zeros(3)}}, r"mean is \(3,\), expected \(2,\)"),
    ):
        save_artifact(tmp_path / "artifact", **({"kind": "tokenizer"} | parts | changes))
        with pytest.raises(ValueError, match=message):
            load_tokenizer(tmp_path / "artifact")


def test_code_usage() -> None:
    uniform = code_usage(torch.arange(8).reshape(2, 4), 16)
    assert uniform["codes_used"] == 8 and uniform["perplexity"] == pytest.approx(8)
    assert code_usage(torch.zeros(3, 3, dtype=torch.int64), 16)["perplexity"] == pytest.approx(1)
