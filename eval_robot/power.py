"""How large a study must be to see a gain: a model of success rates, the variance of their difference, and power by simulation.

The model is a hierarchical probit. On one task a policy of a row, trained from seed s, solves episode e if

    z + spread u_s + sqrt(rho) v_e + sqrt(1 - rho) w_se > 0,      u, v, w standard normal,

where the difficulty v of an episode is the same for all policies, u is a training seed's luck and z sets the success rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import numpy as np
from jaxtyping import Bool
from scipy.optimize import brentq
from scipy.stats import multivariate_normal, nct, norm, t

from eval_robot.bootstrap import paired_bootstrap
from eval_robot.protocol import SEED_RANGES

# Seeds of one split: no policy can be evaluated on more.
MOST_EPISODES = len(SEED_RANGES["test"])


def both_succeed(first: float, second: float, correlation: float) -> float:
    """The probability that two successes happen together, with `correlation` of the normals behind them (tetrachoric)."""
    limits = [float(norm.ppf(first)), float(norm.ppf(second))]
    covariance = [[1.0, correlation], [correlation, 1.0]]
    return float(multivariate_normal.cdf(limits, mean=[0.0, 0.0], cov=covariance, allow_singular=True))


@dataclass(frozen=True)
class Model:
    """Two rows of a study on `tasks` like tasks, `seeds` training seeds each.

    `base` and `base + gain`: success rates. `seed_sd`: standard deviation between training seeds of a policy's own success rate.
    `correlation`: how alike two policies of equal luck find one episode, 0 to 1, rho above.
    """

    tasks: int
    seeds: int
    base: float
    gain: float
    seed_sd: float
    correlation: float

    def __post_init__(self) -> None:
        if self.tasks < 1 or self.seeds < 1:
            raise ValueError(f"tasks={self.tasks}, seeds={self.seeds}: expected at least one of each")
        if not (0 < self.base < 1 and 0 < self.base + self.gain < 1):
            raise ValueError(
                f"base={self.base}, gain={self.gain}: expected base and base + gain between 0 and 1, both excluded"
            )
        if not 0 <= self.correlation < 1:
            raise ValueError(f"correlation={self.correlation}: expected 0 (each episode a fresh coin) to below 1")
        for rate in self.rates:
            if not 0 <= self.seed_sd < 0.9 * sqrt(rate * (1 - rate)):
                raise ValueError(
                    f"seed_sd={self.seed_sd}: training seeds of mean success rate {rate:g} can hardly differ that much; expected "
                    f"0 to {0.9 * sqrt(rate * (1 - rate)):.2f}"
                )

    @property
    def rates(self) -> tuple[float, float]:
        """Success rates of the two rows, the better one first if the gain is positive."""
        return self.base + self.gain, self.base

    @cached_property
    def spreads(self) -> tuple[float, float]:
        """`spread` of each row: what gives its policies the standard deviation `seed_sd` of success rates."""
        first, second = (_spread(rate, self.seed_sd) for rate in self.rates)
        return first, second

    def draw(
        self, episodes: int, rng: np.random.Generator
    ) -> tuple[list[Bool[np.ndarray, "S E"]], list[Bool[np.ndarray, "S E"]]]:
        """The outcomes of one study: for each row, bool[seeds, episodes] a task."""
        rows: tuple[list, list] = ([], [])
        for _ in range(self.tasks):
            difficulty = sqrt(self.correlation) * rng.standard_normal(episodes)
            for row, rate, spread in zip(rows, self.rates, self.spreads, strict=True):
                luck = spread * rng.standard_normal((self.seeds, 1))
                noise = sqrt(1 - self.correlation) * rng.standard_normal((self.seeds, episodes))
                row.append(norm.ppf(rate) * sqrt(1 + spread**2) + luck + difficulty + noise > 0)
        return rows

    @cached_property
    def discordant(self) -> float:
        """The share of episodes that only one of two policies, one of each row, solves."""
        first, second = self.rates
        return first + second - 2 * both_succeed(first, second, self._shared(*self.spreads))

    def variance(self, episodes: float) -> float:
        """Variance of the difference of the two rows' success rates with `episodes` a policy and task."""
        floor, slope = self._variance_terms
        return floor + slope / episodes

    @cached_property
    def _variance_terms(self) -> tuple[float, float]:
        """(a, b) of the variance a + b / episodes: a is what no number of episodes removes."""
        slope = 0.0
        for rate, spread, residual in zip(self.rates, self.spreads, self._residuals, strict=True):
            slope += residual / self.seeds + both_succeed(rate, rate, self._shared(spread, spread)) - rate**2
        first, second = self.rates
        slope -= 2 * (both_succeed(first, second, self._shared(*self.spreads)) - first * second)
        return 2 * self.seed_sd**2 / (self.seeds * self.tasks), slope / self.tasks

    @cached_property
    def _residuals(self) -> tuple[float, float]:
        """Variance of one outcome of each row beyond what its training seed and its episode explain."""
        first, second = (
            rate - self.seed_sd**2 - both_succeed(rate, rate, self._shared(spread, spread))
            for rate, spread in zip(self.rates, self.spreads, strict=True)
        )
        return first, second

    def _shared(self, first: float, second: float) -> float:
        return self.correlation / sqrt((1 + first**2) * (1 + second**2))

    def _freedom(self, episodes: int) -> float:
        """Satterthwaite's degrees of freedom of the variance that the bootstrap is calibrated to, from its expected mean squares."""
        uncertainty = (self._variance_terms[1] / episodes) ** 2 / (self.tasks * (episodes - 1))
        if self.seeds > 1:
            for residual in self._residuals:
                noise = residual / episodes / (self.seeds * self.tasks)
                by_seed = self.seed_sd**2 / (self.seeds * self.tasks) + noise
                uncertainty += (by_seed**2 + noise**2 / (episodes - 1)) / (self.tasks * (self.seeds - 1))
        return self.variance(episodes) ** 2 / uncertainty

    def power(self, episodes: int, alpha: float = 0.05) -> float:
        """The chance that a two-sided test at `alpha` finds the gain, by the noncentral t distribution.

        Raises:
            ValueError: with fewer than two episodes, which show no variance.
        """
        if episodes < 2:
            raise ValueError(f"episodes={episodes}: expected at least two")
        freedom = self._freedom(episodes)
        return float(nct.sf(t.ppf(1 - alpha / 2, freedom), freedom, abs(self.gain) / sqrt(self.variance(episodes))))

    def episodes_for(self, power: float, alpha: float = 0.05) -> int | None:
        """The least number of episodes a policy and task for `power`, or None if training seeds differ too much for any number."""
        enough = MOST_EPISODES
        if self.power(enough, alpha) < power:
            return None
        few = 1
        while enough - few > 1:
            middle = (few + enough) // 2
            few, enough = (few, middle) if self.power(middle, alpha) >= power else (middle, enough)
        return enough

    def simulated_power(self, episodes: int, *, alpha: float, studies: int, resamples: int, seed: int) -> float:
        """The share of `studies` drawn from the model in which the paired bootstrap finds the first row better or worse, as it is."""
        rng = np.random.default_rng(seed)
        found = 0
        for _ in range(studies):
            estimate = paired_bootstrap(*self.draw(episodes, rng), resamples=resamples, confidence=1 - alpha)
            found += estimate.low > 0 if self.gain > 0 else estimate.high < 0
        return found / studies


def _spread(rate: float, seed_sd: float) -> float:
    """`spread` such that policies' success rates, normal_cdf(z + spread u), have mean `rate` and standard deviation `seed_sd`."""
    if seed_sd == 0:
        return 0.0
    # Two episodes of one policy share its luck alone: their covariance is the variance of its success rate.
    shared = float(brentq(lambda r: both_succeed(rate, rate, r) - rate**2 - seed_sd**2, 0.0, 0.999))
    return sqrt(shared / (1 - shared))
