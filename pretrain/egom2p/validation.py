"""What a model knows of held-out clips' tokens: its cross-entropy, that of the tokens' frequencies, and how much of it is due to
what the model is given.

A low cross-entropy does not show that a model reads its input: knowing how often each id stands at each place lowers it too.
So every clip's tokens are also asked for with the tokens of another clip given at the same places; what is gained by the
clip's own is what the model reads.

Axes: B batch, N input tokens, Q queries.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pretrain.batches import SampleId
from pretrain.egom2p.data import LoadTokens, unpack
from pretrain.egom2p.model import EgoM2P, TokenSet

# Clips that the token frequencies, the chance level of the loss, are counted on.
_FREQUENCY_CLIPS = 512
_Z95 = 1.96


@torch.inference_mode()
def validate(
    model: EgoM2P, load: LoadTokens, *, train: Sequence[int], held_out: Sequence[int], batch_size: int
) -> dict[str, dict[str, float]]:
    """Cross-entropy of held-out clips' tokens, masked as in training by seeds of their own, beside that of each modality's
    token frequencies among training clips: what is known without seeing anything of a clip.

    Returns:
        modality -> "loss" and "chance" in nats a token, "accuracy", "tokens"; and, where at least two clips have a partner,
        "gain": cross-entropy given another clip's tokens at the same places, minus given its own, nats a token, with the
        ends "gain_low" and "gain_high" of its 95 % interval over clips.
    """
    was_training = model.training
    model.eval()
    config, device = model.config, model.mask_token.device
    log_frequency = _log_frequencies(load, train[:: max(1, len(train) // _FREQUENCY_CLIPS)])
    partners = _partners(load, held_out)
    # A row a clip and modality: tokens, cross-entropy, chance, right, and gain with NaN where there is no partner.
    rows: dict[str, list[np.ndarray]] = {name: [] for name in config.names}
    for start in range(0, len(held_out), batch_size):
        ids: list[SampleId] = [(index, index) for index in held_out[start : start + batch_size]]
        others = [partners[index] for index, _ in ids]
        batch = {name: value.to(device) for name, value in load(ids).items()}
        swapped = {name: value.to(device) for name, value in load.given_of(ids, others).items()}
        targets = unpack(batch, "target")
        own, right = token_losses(model, unpack(batch, "input"), targets)
        other, _ = token_losses(model, unpack(swapped, "input"), targets)
        no_partner = torch.tensor([index == partner for (index, _), partner in zip(ids, others, strict=True)])
        gain = (other - own).masked_fill(no_partner[:, None].to(device), math.nan)
        for number, name in enumerate(config.names):
            asked = batch["target_valid"] & (batch["target_modality"] == number)
            chance = -log_frequency[name].to(device)[batch["target_ids"].where(asked, 0)]
            parts = (torch.ones_like(own), own, chance, right, gain)
            sums = torch.stack([part.double().where(asked, 0.0).sum(1) for part in parts], 1)
            rows[name].append(sums[asked.any(1)].cpu().numpy())
    model.train(was_training)
    tables = {name: np.concatenate(parts) for name, parts in rows.items() if parts}
    return {name: _figures(table) for name, table in tables.items() if len(table)}


def token_losses(
    model: EgoM2P, inputs: TokenSet, targets: TokenSet
) -> tuple[Float[Tensor, "B Q"], Float[Tensor, "B Q"]]:
    """Cross-entropy of each token asked for, and 1 where the likeliest id is the right one; padding has zeros."""
    hidden = model.decode(targets, model.encode(inputs))
    losses, right = (torch.zeros(targets.ids.shape, device=hidden.device) for _ in range(2))
    for number, name in enumerate(model.config.names):
        chosen = targets.modality == number
        if targets.valid is not None:
            chosen = chosen & targets.valid
        if chosen.any():
            logits, ids = model.logits(hidden[chosen], name).float(), targets.ids[chosen]
            losses[chosen] = F.cross_entropy(logits, ids, reduction="none")
            right[chosen] = (logits.argmax(-1) == ids).float()
    return losses, right


def _figures(table: np.ndarray) -> dict[str, float]:
    tokens, loss, chance, right, _ = table.sum(0)
    figures = {"loss": loss / tokens, "chance": chance / tokens, "accuracy": right / tokens, "tokens": int(tokens)}
    paired = table[~np.isnan(table[:, 4])]
    if len(paired) < 2:
        return figures
    count, total = paired[:, 0], paired[:, 4]
    gain = total.sum() / count.sum()
    # Of a ratio of sums over clips, which are drawn independently (Cochran 1977, eq. 6.13, without the finite population).
    error = math.sqrt(np.square(total - gain * count).sum() * len(paired) / (len(paired) - 1)) / count.sum()
    return figures | {"gain": gain, "gain_low": gain - _Z95 * error, "gain_high": gain + _Z95 * error}


def _partners(load: LoadTokens, clips: Sequence[int]) -> dict[int, int]:
    """Clip -> the next of `clips` that has all its modalities; itself where there is none."""
    has = {index: load.read(index).keys() for index in clips}
    partners = {}
    for place, index in enumerate(clips):
        following = (*clips[place + 1 :], *clips[:place])
        partners[index] = next((other for other in following if has[other] >= has[index]), index)
    return partners


def _log_frequencies(load: LoadTokens, clips: Sequence[int]) -> dict[str, Tensor]:
    """log p(id) of each modality with one added to every count."""
    counts = {name: np.ones(grid.vocabulary) for name, grid in load.config.grids.items()}
    for index in clips:
        for name, ids in load.read(index).items():
            counts[name] += np.bincount(ids, minlength=len(counts[name]))
    return {name: torch.from_numpy(np.log(c) - math.log(c.sum())) for name, c in counts.items()}
