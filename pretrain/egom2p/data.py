"""From token stores to EgoM2P's batches: which clips, which of their tokens are given, which are asked for.

Several stores count as one, so that each is drawn from by its share of clips; within a clip the modalities are equally
likely to be favoured (pretrain/egom2p/masking.py). A batch is a pure function of its sample ids.

Axes: B batch, N input tokens of the fullest clip, Q targets of the one with most.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.batches import SampleId
from pretrain.egom2p.masking import MaskingConfig, Positions, draw_masks
from pretrain.egom2p.model import EgoM2PConfig, TokenSet
from pretrain.egom2p.tokens import TokenStore

# Apart from whatever else is drawn from the same sample's seed.
_MASK_STREAM = 2


class LoadTokens:
    """Sample ids to a batch, see `collate`. Picklable for worker processes."""

    def __init__(self, stores: Sequence[TokenStore], config: EgoM2PConfig, masking: MaskingConfig) -> None:
        self.stores, self.config, self.masking = tuple(stores), config, masking
        self._ends = list(accumulate(len(store) for store in self.stores))

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, index: int) -> dict[str, np.ndarray]:
        """All tokens of one clip of the union, int64[n] a modality, those that the model knows."""
        store, within = self._locate(index)
        return store.read(within, [name for name in self.config.names if name in store.grids])

    def _locate(self, index: int) -> tuple[TokenStore, int]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        return self.stores[which], index - (self._ends[which] - len(self.stores[which]))

    def _masking_of(self, index: int) -> MaskingConfig:
        """A store may forbid to ask for some of its modalities (the gray rgb of a data set)."""
        forbidden = self._locate(index)[0].only_input
        if not forbidden:
            return self.masking
        return dataclasses.replace(self.masking, only_input=(*self.masking.only_input, *forbidden))

    def __call__(self, ids: Sequence[SampleId]) -> dict[str, Any]:
        return self.given_of(ids, [index for index, _ in ids])

    def given_of(self, ids: Sequence[SampleId], others: Sequence[int]) -> dict[str, Any]:
        """The batch of `ids` with the same places given and asked for, but what is given are the tokens of other clips, which
        must have the modalities of those that they stand in for."""
        inputs, targets = [], []
        for (index, seed), other in zip(ids, others, strict=True):
            clip = self.read(index)
            sizes = {name: len(tokens) for name, tokens in clip.items()}
            seen, asked = draw_masks(sizes, self._masking_of(index), np.random.default_rng([seed, index, _MASK_STREAM]))
            inputs.append((clip if other == index else self.read(other), seen))
            targets.append((clip, asked))
        return pack(inputs, self.config, "input") | pack(targets, self.config, "target")


def pack(
    clips: Sequence[tuple[Mapping[str, np.ndarray], Positions]], config: EgoM2PConfig, prefix: str
) -> dict[str, Tensor]:
    """The chosen tokens of each clip as rows, int64[B, N] "<prefix>_ids", "_modality" and "_position", bool[B, N] "_valid";
    short rows are padded with zeros."""
    counts = [sum(map(len, chosen.values())) for _, chosen in clips]
    shape = (len(clips), max(counts, default=0))
    ids, modality, position = (np.zeros(shape, np.int64) for _ in range(3))
    valid = np.arange(shape[1]) < np.array(counts)[:, None]
    for row, (tokens, chosen) in enumerate(clips):
        start = 0
        for name, places in chosen.items():
            part = slice(start, start + len(places))
            ids[row, part] = tokens[name][places]
            modality[row, part] = config.names.index(name)
            position[row, part] = places
            start += len(places)
    arrays = {"ids": ids, "modality": modality, "position": position, "valid": valid}
    return {f"{prefix}_{name}": torch.from_numpy(array) for name, array in arrays.items()}


def unpack(batch: Mapping[str, Tensor], prefix: str) -> TokenSet:
    """A packed half of a batch; without a mask where nothing is padded."""
    valid = batch[f"{prefix}_valid"]
    return TokenSet(
        ids=batch[f"{prefix}_ids"],
        modality=batch[f"{prefix}_modality"],
        position=batch[f"{prefix}_position"],
        valid=None if bool(valid.all()) else valid,
    )


def target_counts(batch: Mapping[str, Tensor], config: EgoM2PConfig) -> dict[str, int]:
    """How many tokens of each modality a batch asks for."""
    asked = batch["target_modality"][batch["target_valid"]]
    counts = torch.bincount(asked, minlength=len(config.names)).tolist()
    return dict(zip(config.names, counts, strict=True))
