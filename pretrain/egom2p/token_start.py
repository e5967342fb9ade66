"""Where the encoder's token table starts: near the codes that its ids stand for.

A table drawn at random knows nothing of which ids look alike, and one drawn much smaller than the positions that are added to
it is never heard (docs/egom2p.md). So a token starts as its tokenizer's code, standardised over the codebook, times a fixed
random matrix, as a patch embedding would have it; noise keeps equal codes apart. The rows of a modality have the standard
deviation TOKEN_STD, that of the positions.

Axes: V ids, K numbers of a code, D width.
"""

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pretrain.egom2p.model import TOKEN_STD, EgoM2P
from pretrain.egom2p.tokenizers.tokenizer import Tokenizer

TOKEN_STARTS = ("codebook", "normal")
# Of what each id has for itself; an FSQ grid's neighbours differ by about twice as much in the rest.
NOISE_STD = 0.1
# Apart from whatever else is drawn from a run's seed.
_START_STREAM = 5


@torch.no_grad()
def start_tokens(model: EgoM2P, tokenizers: Mapping[str, Tokenizer], *, start: str, seed: int) -> tuple[str, ...]:
    """Sets the encoder's token table of a fresh model; nothing else changes, and no generator but its own is used.

    Args:
        tokenizers: modality -> its tokenizer. A modality without one, or whose tokenizer tells no codes, keeps its random rows.
        start: one of TOKEN_STARTS; "normal" keeps all rows.

    Returns:
        the modalities that start from their codebook.
    """
    if start not in TOKEN_STARTS:
        raise ValueError(f"token_start: expected one of {', '.join(TOKEN_STARTS)}, got {start!r}")
    if start == "normal":
        return ()
    done = []
    for name in model.config.names:
        try:
            codes = tokenizers[name].codebook()
        except (KeyError, ValueError):
            continue
        rows = model.token_rows(name)
        table = embed_codes(codes.float().cpu(), rows.shape[1], seed=seed, name=name)
        assert table.shape == rows.shape, "stores and tokenizers were checked against each other"
        rows.copy_(table)
        done.append(name)
    return tuple(done)


def embed_codes(codes: Float[Tensor, "V K"], width: int, *, seed: int, name: str) -> Float[Tensor, "V D"]:
    """A codebook as embeddings of standard deviation TOKEN_STD; codes that are near each other stay so.

    The matrix is another for each modality, also of one tokenizer: that tells the modalities apart from the first step.
    """
    entropy = np.random.SeedSequence([seed, zlib.crc32(name.encode()), _START_STREAM])
    random = torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)
    centred = codes - codes.mean(0)
    spread = centred.square().mean(0).sqrt()
    standard = torch.where(spread > 0, centred / spread.clamp(min=torch.finfo(spread.dtype).tiny), 0.0)
    table = standard @ torch.randn(codes.shape[1], width, generator=random)
    scale = table.square().mean().sqrt()
    own = torch.randn(table.shape, generator=random)
    if not scale:
        return TOKEN_STD * own
    return (TOKEN_STD**2 - NOISE_STD**2) ** 0.5 * table / scale + NOISE_STD * own
