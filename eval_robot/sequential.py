"""A test that may be looked at after every episode, and stopped by what it shows.

The test martingale of Bernoulli trials against a rate p, mixed uniformly over the alternatives (Ville 1939; Robbins 1970,
"Statistical methods related to the law of the iterated logarithm"; Howard et al. 2021, "Time-uniform, nonparametric, nonasymptotic
confidence sequences"):

    M_n(p) = integral_0^1 q^k (1-q)^(n-k) dq / (p^k (1-p)^(n-k)) = 1 / ((n+1) C(n,k) p^k (1-p)^(n-k))

with k successes in n trials. At the true rate it starts at 1 and is a martingale, so it ever reaches 1/alpha with probability at
most alpha (Ville's inequality), however often it is looked at. The rates that it has not reached form a confidence sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln, xlog1py, xlogy


def log_martingale(successes: int, trials: int, rate: float) -> float:
    """log M_n(rate), as above; infinite where `rate` makes what was seen impossible."""
    failures = trials - successes
    return float(betaln(successes + 1, failures + 1) - xlogy(successes, rate) - xlog1py(failures, -rate))


def confidence_sequence(successes: int, trials: int, alpha: float) -> tuple[float, float]:
    """The rates with M_n < 1/alpha, an interval in [0, 1]: over all n at once it holds the true rate with probability 1 - alpha."""
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials: expected 0 <= successes <= trials")
    best = successes / trials if trials else 0.5
    beyond = lambda rate: log_martingale(successes, trials, rate) + np.log(alpha)  # noqa: E731
    # log M falls up to the observed rate and rises from there. Next to 0 and 1 it is large unless the ends are what was observed.
    edge = 1e-12
    low = 0.0 if successes == 0 or beyond(edge) < 0 else float(brentq(beyond, edge, best))
    high = 1.0 if successes == trials or beyond(1 - edge) < 0 else float(brentq(beyond, best, 1 - edge))
    return low, high


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a sequential test ended with.

    `verdict`: "above" or "below" the threshold, or "undecided" where no outcome of the episodes left could decide; `episodes` looked
    at, of which `trials` counted (a pair in which both rows did alike is no trial), with `successes`; `low` and `high`: the
    confidence sequence of the rate of successes among trials.
    """

    verdict: str
    episodes: int
    trials: int
    successes: int
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class SequentialTest:
    """Is a success rate above or below `threshold`? The wrong answer has probability at most `alpha`, whenever it stops.

    For two policies on the same seeds a trial is a seed that only one of them solved, a success if the first did, and the threshold
    1/2: the sequential form of McNemar's test.
    """

    threshold: float
    alpha: float
    episodes: int

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold={self.threshold}: expected a success rate between 0 and 1, both excluded")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha={self.alpha}: expected a probability between 0 and 1, say 0.05")
        if self.episodes < 1 or not (self._crossed(self.episodes, self.episodes) or self._crossed(0, self.episodes)):
            raise ValueError(
                f"episodes={self.episodes}: not even {max(self.episodes, 0)} equal outcomes decide about {self.threshold} at "
                f"alpha={self.alpha}; allow more episodes"
            )

    def decide(self, outcomes: Sequence[bool | None]) -> Decision | None:
        """The decision at the first episode that allows one, or None: go on. Outcomes in the order of seeds, None for no trial.

        What comes after that episode changes nothing, so a test that is looked at late decides as one that never slept.
        """
        successes = trials = 0
        for index, outcome in enumerate([None, *outcomes[: self.episodes]]):
            if outcome is not None:
                trials, successes = trials + 1, successes + bool(outcome)
            if self._crossed(successes, trials):
                verdict = "above" if successes > self.threshold * trials else "below"
                return self._decision(verdict, index, trials, successes)
            left = self.episodes - index
            # Successes alone bring M furthest on one side, failures alone on the other.
            if not self._crossed(successes + left, trials + left) and not self._crossed(successes, trials + left):
                return self._decision("undecided", index, trials, successes)
        return None

    def _crossed(self, successes: int, trials: int) -> bool:
        return log_martingale(successes, trials, self.threshold) >= -np.log(self.alpha)

    def _decision(self, verdict: str, episodes: int, trials: int, successes: int) -> Decision:
        low, high = confidence_sequence(successes, trials, self.alpha)
        return Decision(
            verdict=verdict, episodes=episodes, trials=trials, successes=successes, low=low, high=high
        )  # fmt: skip


def paired_trials(first: Sequence[bool], second: Sequence[bool]) -> list[bool | None]:
    """Outcomes of `first` against `second` on the same seeds, for `SequentialTest(threshold=0.5)`: None where both did alike."""
    return [None if bool(a) == bool(b) else bool(a) for a, b in zip(first, second, strict=True)]
