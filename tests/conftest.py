"""Shared fixtures: a small file of real demonstrations on the toy task, made once a test process."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy_demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four demonstrations of toy/reach at 64x64 pixels."""
    from policies.demos.collect import DemosConfig, run

    out = tmp_path_factory.mktemp("demos") / "toy.hdf5"
    run(
        DemosConfig(
            task="toy/reach", level="varied-1", episodes=4, out=str(out), image_size=64, first_seed=0, workers=1
        )
    )
    return out
