"""`egoarm demos ceiling`: an encoder that was shown the simulator's state, to see whether vision is what a task is limited by.

A small conv net learns to read the privileged state from demonstrations of other seeds, and is then frozen like any other encoder. Where its
policy stays far below the state's, the demonstrations or the head are the limit and the task says nothing of encoders. It has seen the task's
labels, so it is a bound and not an encoder under test.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from policies.demos.hdf5 import DemoFile
from policies.train import PRIVILEGED_KEY
from pretrain.encoder import VideoEncoder, load_encoder, save_encoder
from pretrain.provenance import make_provenance
from pretrain.zoo.conv_small import ConvSmallEncoder, random_encoder

LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
SHIFT_PIXELS = 2  # of the images, at random: moves no label by more than a few millimetres
LEAST_DEVIATION = 1e-4  # of a label's column in its own unit (m, rad, quaternion); below it does not vary


@dataclass(frozen=True, kw_only=True)
class CeilingConfig:
    """Attributes:
    demos: demonstrations with `state/full` (`egoarm demos privileged=true`), of seeds that no policy is trained on.
    steps, batch_size: of training; the step's size follows one cycle.
    threads: torch's; 0 = one a core.
    """

    demos: str
    out: str
    steps: int = 800
    batch_size: int = 64
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or self.threads < 0:
            raise ValueError(
                f"steps={self.steps}, batch_size={self.batch_size}, threads={self.threads}: expected at least 1, 1 and 0"
            )


def run(config: CeilingConfig) -> Path:
    """Train and save the encoder; one that is there already is kept.

    Raises:
        ValueError: the demonstrations hold no images or no privileged state.
    """
    out = Path(config.out)
    with DemoFile(config.demos) as demos:
        if out.exists():
            made = load_encoder(out)
            if isinstance(made, ConvSmallEncoder) and made.spec.name == _name(demos):
                print(f"ceiling: {out} is there already")
                return out
            raise FileExistsError(f"{out} holds something else; name another out= or delete it")
        torch.set_num_threads(config.threads or os.cpu_count() or 1)
        images, labels = _labelled_frames(demos)
        start = time.monotonic()
        encoder, explained = _fit(config, images, labels)
        save_encoder(
            out,
            encoder,
            name=_name(demos),
            provenance=make_provenance(
                seed=config.seed,
                parents={},
                data={"demos": demos.sha256},
                step=config.steps,
                wall_time_s=time.monotonic() - start,
            ),
            training={**asdict(config), "explained": explained},
        )
    print(
        f"ceiling: {len(images)} frames of {demos.env_spec.task}, {labels.shape[1]} varying numbers of its state, "
        f"{100 * explained:.0f} % of their variance read on held-out demonstrations -> {out}"
    )
    return out


def _name(demos: DemoFile) -> str:
    return f"ceiling/{demos.env_spec.task}"


def _labelled_frames(demos: DemoFile) -> tuple[UInt8[np.ndarray, "N H W 3"], Float[np.ndarray, "N C"]]:
    """Every frame of every camera beside the standardized columns of the state that vary, in the order of the demonstrations."""
    spec = demos.env_spec
    if not spec.cameras or PRIVILEGED_KEY not in spec.observation:
        raise ValueError(
            f"{demos.path} has no {'images' if not spec.cameras else PRIVILEGED_KEY}; "
            "collect it with `egoarm demos privileged=true` and the task's cameras"
        )
    images, states = [], []
    for demo in range(len(demos)):
        state = demos.array(demo, f"obs/{PRIVILEGED_KEY}")
        for camera in spec.cameras:
            images.append(demos.frames(demo, camera, range(len(state))))
            states.append(state)
    labels = np.concatenate(states).astype(np.float32)
    deviation = labels.std(axis=0)
    varies = deviation > LEAST_DEVIATION
    return np.concatenate(images), (labels[:, varies] - labels[:, varies].mean(axis=0)) / deviation[varies]


def _fit(
    config: CeilingConfig, images: UInt8[np.ndarray, "N H W 3"], labels: Float[np.ndarray, "N C"]
) -> tuple[VideoEncoder, float]:
    """The trained encoder, and the share of the labels' variance that it reads on the last tenth of the frames, which it did not learn from."""
    encoder = random_encoder(seed=config.seed).train()
    spec = encoder.spec
    learned = max(1, len(images) * 9 // 10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(spec.tokens * spec.embed_dim, labels.shape[1]))
        parameters = [*encoder.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=config.steps)
        for _ in tqdm(range(config.steps), desc="ceiling", unit="step", disable=None):
            rows = torch.randint(learned, (min(config.batch_size, learned),)).numpy()
            shift = torch.randint(-SHIFT_PIXELS, SHIFT_PIXELS + 1, (2,)).tolist()
            batch = torch.roll(torch.from_numpy(images[rows]), shift, dims=(1, 2))
            loss = F.mse_loss(_read(encoder, head, batch), torch.from_numpy(labels[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    encoder.eval()
    head.eval()
    held_out = slice(learned, None) if learned < len(images) else slice(None)
    with torch.inference_mode():
        parts = torch.from_numpy(images[held_out]).split(config.batch_size)
        read = torch.cat([_read(encoder, head, part) for part in parts]).numpy()
    error = np.square(read - labels[held_out]).mean()
    return encoder, float(1 - error / np.square(labels[held_out] - labels[:learned].mean(axis=0)).mean())


def _read(encoder: VideoEncoder, head: nn.Module, images: UInt8[torch.Tensor, "B H W 3"]) -> Float[torch.Tensor, "B C"]:
    return head(encoder(encoder.preprocess(images[:, None])).tokens)
