"""How many tokens a step of generation writes, and at what temperature it draws them.

The published model is a fork of 4M (arXiv 2312.06647), and so are its schedules, restated here.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np

MIN_TEMPERATURE = 1e-9


def cosine_counts(tokens: int, steps: int) -> tuple[int, ...]:
    """Few tokens first, many in the middle: round(N (s_i - s_i+1)) with s_i = (1 + cos(pi i / S)) / 2, the rest in the last step.

    Raises:
        ValueError: rounding up has used more tokens than there are, which happens with few tokens a step.
    """
    share = [0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]
    counts = [round(tokens * (a - b)) for a, b in itertools.pairwise(share)]
    rest = tokens - sum(counts)
    if rest < 0:
        raise ValueError(
            f"steps: a cosine schedule of {tokens} tokens in {steps} steps rounds to {sum(counts)} tokens before the last: "
            "take fewer steps, or schedule=linear"
        )
    return (*counts, rest)


def linear_counts(tokens: int, steps: int) -> tuple[int, ...]:
    """Equal steps; where they do not divide the tokens, the longer ones first."""
    return tuple(sorted(np.diff(np.linspace(0, tokens, steps + 1, dtype=int)).tolist(), reverse=True))


SCHEDULES: dict[str, Callable[[int, int], tuple[int, ...]]] = {"cosine": cosine_counts, "linear": linear_counts}


def step_counts(schedule: str, tokens: int, steps: int) -> tuple[int, ...]:
    """Tokens written in each step; they sum to `tokens`. A cosine schedule may have steps that write none.

    Raises:
        ValueError: an unknown schedule, fewer than one step, more steps than tokens.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if not 1 <= steps <= tokens:
        raise ValueError(f"steps: expected 1 to {tokens}, the number of tokens, got {steps}")
    return SCHEDULES[schedule](tokens, steps)


def step_temperatures(temperature: float, schedule: str, counts: tuple[int, ...]) -> tuple[float, ...]:
    """The temperature of each step.

    Args:
        temperature: of the first step, or of all.
        schedule: "constant"; "linear": falls with the share of tokens still to be written; "onex:MIN:POWER": the i-th step
            has MIN + (temperature - MIN) (1 - share written after it) y_i, where y_i is 1 / x^POWER at the i-th of N places
            from x = 1 to 100, shifted and scaled to run from 1 to 0.

    Raises:
        ValueError: an unknown schedule, or one that cannot be read.
    """
    if schedule == "constant":
        return (temperature,) * len(counts)
    tokens = sum(counts)
    written = np.cumsum(counts)
    if schedule == "linear":
        left = np.concatenate([[tokens], tokens - written[:-1]]) / tokens
        return tuple(np.maximum(temperature * left, MIN_TEMPERATURE).tolist())
    least, power = parse_onex(schedule)
    fall = 1 / np.linspace(1, 100, tokens) ** power
    fall = fall - fall.min()
    fall = fall / fall.max() if fall.max() > 0 else fall
    steps = least + (temperature - least) * (1 - written / tokens) * fall[: len(counts)]
    return tuple(np.maximum(steps, MIN_TEMPERATURE).tolist())


def parse_onex(schedule: str) -> tuple[float, float]:
    """(least temperature, power) of "onex:MIN:POWER".

    Raises:
        ValueError: it is not of this form.
    """
    words = schedule.split(":")
    try:
        name, least, power = words[0], float(words[1]), float(words[2])
    except (IndexError, ValueError):
        name, least, power = "", math.nan, math.nan
    if len(words) != 3 or name != "onex" or not (least >= 0 and power > 0 and math.isfinite(least + power)):
        raise ValueError(
            f"temperature_schedule: expected constant, linear or onex:MIN:POWER (as onex:0.1:0.5), got {schedule!r}"
        )
    return least, power
