"""The released video tokenizer's files, played by tiny TorchScript modules with the release's names and outputs."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pretrain.egom2p.tokenizers.cosmos_weights import (
    AUTOENCODER_FILE,
    DECODER_FILE,
    ENCODER_FILE,
    CosmosJitTokenizer,
    import_cosmos,
    load_cosmos,
)
from pretrain.egom2p.tokenizers.fsq_video import FsqVideoConfig, FsqVideoTokenizer
from pretrain.egom2p.tokenizers.tokenizer import load_tokenizer, save_tokenizer

NANO = FsqVideoConfig.of_size("nano", frames=4, channel_multipliers=(1, 2, 2))


class EncoderFile(nn.Module):
    """encoder.jit: video of 1 + 4k frames -> (int32 indices [B, t, h, w], codes, a loss of zero)."""

    def __init__(self, source: FsqVideoTokenizer) -> None:
        super().__init__()
        self.encoder, self.quant_conv, self.quantizer = source.encoder, source.quant_conv, source.quantizer

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes = self.quantizer.quantize(self.quant_conv(self.encoder(video)).permute(0, 1, 3, 4, 2))
        return self.quantizer.codes_to_indices(codes), codes.permute(0, 4, 1, 2, 3), codes.mean() * 0


class DecoderFile(nn.Module):
    """decoder.jit: indices -> video."""

    def __init__(self, source: FsqVideoTokenizer) -> None:
        super().__init__()
        self.inv_quant = nn.ModuleDict({"quantizer": source.quantizer})
        self.post_quant_conv, self.decoder = source.post_quant_conv, source.decoder

    def forward(self, indices: Tensor) -> Tensor:
        codes = self.inv_quant["quantizer"]._indices_to_codes(indices)
        return self.decoder(self.post_quant_conv(codes.permute(0, 1, 4, 2, 3)))


class AutoencoderFile(nn.Module):
    """autoencoder.jit, with names as of the whole."""

    def __init__(self, source: FsqVideoTokenizer) -> None:
        super().__init__()
        self.encoder, self.quant_conv, self.quantizer = source.encoder, source.quant_conv, source.quantizer
        self.post_quant_conv, self.decoder = source.post_quant_conv, source.decoder

    def forward(self, video: Tensor) -> Tensor:
        codes = self.quantizer.quantize(self.quant_conv(self.encoder(video)).permute(0, 1, 3, 4, 2))
        return self.decoder(self.post_quant_conv(codes.permute(0, 1, 4, 2, 3)))


class SmallVideo(nn.Module):
    """A decoder of another release."""

    def forward(self, indices: Tensor) -> Tensor:
        return torch.zeros([indices.shape[0], 3, 5, 8, 8])


def save_traced(module: nn.Module, example: Tensor, path: Path) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of branches on shapes, which stay as they are
        torch.jit.trace(module, example, check_trace=False).save(str(path))


@pytest.fixture(scope="module")
def source() -> FsqVideoTokenizer:
    torch.manual_seed(0)
    return FsqVideoTokenizer(NANO, name="source").eval()


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return torch.rand(2, *NANO.input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def released(source: FsqVideoTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cosmos")
    # A batch of two, so that tracing does not take the batch for a constant of one.
    video = torch.zeros(2, 3, NANO.padded_frames, NANO.image_size, NANO.image_size)
    indices = torch.zeros(2, *NANO.grid.shape, dtype=torch.int32)
    save_traced(EncoderFile(source), video, directory / ENCODER_FILE)
    save_traced(DecoderFile(source), indices, directory / DECODER_FILE)
    return directory


# -------------------------------------------------------------------------------------------------- dict to dict


def synthetic_state(source: FsqVideoTokenizer) -> dict[str, Tensor]:
    """What the release may hold beside the weights that count, in its precision."""
    state = {name: tensor.bfloat16() for name, tensor in source.state_dict().items()}
    channels = NANO.channels * 2
    return state | {
        "encoder.patcher3d.wavelets": torch.full((2,), 0.7071),
        "encoder.patcher3d._arange": torch.arange(2),
        "encoder.patcher3d.patch_size_buffer": torch.tensor([4]),
        "decoder.unpatcher3d.wavelets": torch.full((2,), 0.7071),
        "quantizer._levels": torch.tensor(NANO.levels),
        "quantizer._basis": torch.tensor([1, 5, 25]),
        "quantizer.implicit_codebook": torch.zeros(125, 3),
        # Level 1 of this shape changes neither space nor time, yet the release's class owns convolutions for both.
        "encoder.down.1.downsample.conv1.conv3d.weight": torch.zeros(channels, channels, 1, 3, 3),
        "decoder.up.2.upsample.conv1.conv3d.bias": torch.zeros(channels),
    }


@pytest.mark.parametrize("prefix", ["", "module.", "network."])
def test_released_names_become_ours(source: FsqVideoTokenizer, clips: Tensor, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in synthetic_state(source).items()}
    tensors = import_cosmos(state, NANO, where="test")
    assert tensors.keys() == source.state_dict().keys()
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensors[name], tensor.bfloat16().float())
    other = FsqVideoTokenizer(NANO, name="other")
    other.load_state_dict(import_cosmos(source.state_dict(), NANO, where="test"))
    assert torch.equal(other.encode(clips), source.encode(clips))


def test_tensors_that_do_not_fit_are_named(source: FsqVideoTokenizer) -> None:
    state = synthetic_state(source)
    del state["quant_conv.conv3d.weight"]
    state["decoder.head.weight"] = torch.zeros(1)
    state["encoder.mid.block_1.norm1.norm.bias"] = torch.zeros(3)
    with pytest.raises(ValueError) as error:
        import_cosmos(state, NANO, where="some.jit")
    text = str(error.value)
    assert text.startswith("some.jit does not fit the video tokenizer: missing: quant_conv.conv3d.weight; ")
    assert "no place for: decoder.head.weight;" in text
    assert "encoder.mid.block_1.norm1.norm.bias is (3,), expected (16,)" in text


def test_an_idle_convolution_counts_where_it_is_not_idle(source: FsqVideoTokenizer) -> None:
    state = synthetic_state(source)
    del state["encoder.down.0.downsample.conv1.conv3d.weight"]
    with pytest.raises(ValueError, match=r"missing: encoder\.down\.0\.downsample\.conv1\.conv3d\.weight"):
        import_cosmos(state, NANO, where="test")


def test_other_levels_are_refused(source: FsqVideoTokenizer) -> None:
    state = synthetic_state(source) | {"quantizer._levels": torch.tensor([8, 8, 8])}
    with pytest.raises(ValueError, match=r"levels \[8, 8, 8\], expected \[5, 5, 5\]"):
        import_cosmos(state, NANO, where="test")


def test_a_file_of_something_else_is_not_spelled_out() -> None:
    with pytest.raises(ValueError, match=r"missing: .* \.\.\. \(\d+ in all\); no place for: conv1.weight"):
        import_cosmos({"conv1.weight": torch.zeros(2)}, NANO, where="test")


# ------------------------------------------------------------------------------------------------------------ files


def test_files_into_our_network(released: Path, source: FsqVideoTokenizer, clips: Tensor) -> None:
    tokenizer = load_cosmos(released, NANO, modalities=("rgb",))
    ids = tokenizer.encode(clips)
    assert torch.equal(ids, source.encode(clips))
    assert torch.equal(tokenizer.decode(ids), source.decode(ids))
    assert tokenizer.spec.modalities == ("rgb",) and tokenizer.spec.weights_sha256 and not tokenizer.training


def test_one_file_with_both_halves(source: FsqVideoTokenizer, clips: Tensor, tmp_path: Path) -> None:
    video = torch.zeros(2, 3, NANO.padded_frames, NANO.image_size, NANO.image_size)
    save_traced(AutoencoderFile(source), video, tmp_path / AUTOENCODER_FILE)
    assert torch.equal(load_cosmos(tmp_path, NANO).encode(clips), source.encode(clips))


def test_files_run_as_they_are(released: Path, source: FsqVideoTokenizer, clips: Tensor) -> None:
    tokenizer = CosmosJitTokenizer.from_directory(released, NANO)
    ids = tokenizer.encode(clips)
    assert torch.equal(ids, source.encode(clips)) and ids.dtype == torch.int64
    torch.testing.assert_close(tokenizer.decode(ids), source.decode(ids))
    assert tokenizer.spec.grid == source.spec.grid
    with pytest.raises(ValueError, match="cannot be trained; load_cosmos"):
        tokenizer.loss(clips)


def test_an_artifact_of_the_files_needs_them_no_more(released: Path, clips: Tensor, tmp_path: Path) -> None:
    tokenizer = CosmosJitTokenizer.from_directory(released, NANO)
    sha256 = save_tokenizer(tmp_path / "artifact", tokenizer)
    loaded = load_tokenizer(tmp_path / "artifact")
    assert torch.equal(loaded.encode(clips), tokenizer.encode(clips))
    assert loaded.spec.weights_sha256 == sha256 == tokenizer.spec.weights_sha256


def test_absent_files_say_where_they_come_from(tmp_path: Path, released: Path) -> None:
    for read in (load_cosmos, CosmosJitTokenizer.from_directory):
        with pytest.raises(FileNotFoundError) as error:
            read(tmp_path, NANO)
        text = str(error.value)
        assert str(tmp_path / ENCODER_FILE) in text and "nvidia/Cosmos-0.1-Tokenizer-DV4x8x8" in text
        assert "works without it" in text
    (tmp_path / ENCODER_FILE).write_bytes((released / ENCODER_FILE).read_bytes())
    with pytest.raises(FileNotFoundError, match=DECODER_FILE):
        load_cosmos(tmp_path, NANO)


@pytest.mark.parametrize("content", [b"", b"not a file of TorchScript"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    for name in (ENCODER_FILE, DECODER_FILE):
        (tmp_path / name).write_bytes(content)
    for read in (load_cosmos, CosmosJitTokenizer.from_directory):
        with pytest.raises(ValueError, match="is not a whole TorchScript file"):
            read(tmp_path, NANO)


def test_files_of_another_release_are_noticed(released: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected ids \[B, 2, 2, 2\] below 27: it belongs to another release"):
        CosmosJitTokenizer.from_directory(released, FsqVideoConfig.of_size("nano", frames=4, levels=(3, 3, 3)))
    (tmp_path / ENCODER_FILE).write_bytes((released / ENCODER_FILE).read_bytes())
    torch.jit.script(SmallVideo()).save(str(tmp_path / DECODER_FILE))
    with pytest.raises(ValueError, match=r"decoder\.jit of .* gave \[1, 3, 5, 8, 8\], expected \[B, 3, 5, 16, 16\]"):
        CosmosJitTokenizer.from_directory(tmp_path, NANO)
    (tmp_path / DECODER_FILE).write_bytes((released / ENCODER_FILE).read_bytes())
    with pytest.raises(ValueError, match="do not run on a blank clip"):
        CosmosJitTokenizer.from_directory(tmp_path, NANO)
