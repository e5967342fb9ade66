"""The benchmark of generation counts what generation does, and tells rounding from error."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.egom2p_generate import SEED, first_differences, operations
from pretrain.egom2p.generate import PUBLISHED_TARGETS, generate
from pretrain.egom2p.modalities import TokenGrid
from pretrain.egom2p.model import EgoM2P, EgoM2PConfig
from pretrain.egom2p.sampling import ClipRandom

VIDEO = TokenGrid(shape=(2, 6, 6), vocabulary=100)
CONFIG = EgoM2PConfig.of_size(
    "nano", {"rgb": VIDEO, "depth": VIDEO, "camera": TokenGrid(shape=(30,), vocabulary=50)}, encoder_layers=3
)


@pytest.mark.parametrize("task", ["camera", "depth"])
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_operations_are_those_done(task: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As one batch, the two passes of a model so small would carry padding.
    monkeypatch.setattr("pretrain.egom2p.generate.SMALL_PASS", 0)
    model, given = EgoM2P(CONFIG), {"rgb": torch.zeros(1, VIDEO.tokens, dtype=torch.int64)}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        generate(model, given, [PUBLISHED_TARGETS[task]], mode=mode)
    assert counter.get_total_flops() == operations(CONFIG, VIDEO.tokens, PUBLISHED_TARGETS[task], mode=mode)


def test_only_the_first_step_that_differs_is_compared() -> None:
    target, plain = PUBLISHED_TARGETS["depth"], [0] * 30
    order = ClipRandom([SEED]).order(30)[0].tolist()
    assert first_differences(target, plain, plain) == []
    ours = list(plain)
    for place in (order[12], order[13], order[25]):
        ours[place] = 1
    assert first_differences(target, plain, ours) == [order[12], order[13]]
