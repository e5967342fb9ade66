"""The model behind `egoarm study plan`: its moments, its power against simulation, the command."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm
from statsmodels.stats.power import TTestPower

from egoarm import COMMANDS, compose, main
from eval_robot.plan import Plan, plan, seconds_per_episode, sentence
from eval_robot.power import Model, both_succeed
from eval_robot.records import EvalReport

MODEL = Model(tasks=2, seeds=3, base=0.5, gain=0.15, seed_sd=0.1, correlation=0.4)


@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.floats(0, 0.95))
@settings(max_examples=20, deadline=None)
def test_both_succeed_is_an_integral_over_what_they_share(first: float, second: float, correlation: float) -> None:
    def given_shared(v: float) -> float:
        z = [(norm.ppf(p) + correlation**0.5 * v) / (1 - correlation) ** 0.5 for p in (first, second)]
        return float(norm.pdf(v) * norm.cdf(z[0]) * norm.cdf(z[1]))

    expected, _ = quad(given_shared, -9, 9, limit=200)
    assert both_succeed(first, second, correlation) == pytest.approx(expected, abs=1e-5)


def test_drawn_studies_have_the_moments_that_the_model_states() -> None:
    rng = np.random.default_rng(0)
    episodes, differences, rates, discordant = 8, [], [], []
    for _ in range(2000):
        first, second = MODEL.draw(episodes, rng)
        differences.append(np.mean([a.mean() - b.mean() for a, b in zip(first, second, strict=True)]))
        rates.append([first[0].mean(), second[0].mean()])
        discordant.append((first[0][0] != second[0][0]).mean())
    assert np.mean(rates, axis=0) == pytest.approx(MODEL.rates, abs=0.01)
    assert np.mean(differences) == pytest.approx(MODEL.gain, abs=0.01)
    assert np.var(differences) == pytest.approx(MODEL.variance(episodes), rel=0.1)
    assert np.mean(discordant) == pytest.approx(MODEL.discordant, abs=0.01)


def test_training_seeds_differ_as_much_as_was_said() -> None:
    first, _ = Model(tasks=1, seeds=3000, base=0.2, gain=0.6, seed_sd=0.12, correlation=0.0).draw(
        400, np.random.default_rng(0)
    )
    by_seed = first[0].mean(axis=1)
    noise = np.mean(by_seed * (1 - by_seed)) / 399
    assert (np.var(by_seed, ddof=1) - noise) ** 0.5 == pytest.approx(0.12, rel=0.05)


def test_without_seeds_and_pairing_it_is_the_textbook_formula() -> None:
    model = Model(tasks=1, seeds=1, base=0.5, gain=0.1, seed_sd=0.0, correlation=0.0)
    expected = TTestPower().solve_power(effect_size=0.1 / (0.25 + 0.24) ** 0.5, power=0.8, alpha=0.05)
    needed = model.episodes_for(0.8)
    assert needed == ceil(expected) == 387
    assert model.power(needed) == pytest.approx(0.8, abs=0.002)


def test_more_of_anything_needs_fewer_episodes() -> None:
    def needed(**changes: float) -> int:
        episodes = Model(
            **{"tasks": 5, "seeds": 3, "base": 0.5, "gain": 0.1, "seed_sd": 0.03, "correlation": 0.3} | changes
        ).episodes_for(0.8)
        assert episodes is not None
        return episodes

    base = needed()
    assert (
        needed(tasks=10) < base
        and needed(seeds=5) < base
        and needed(gain=0.15) < base
        and needed(correlation=0.6) < base
    )
    assert needed(seed_sd=0.05) > base
    assert Model(tasks=1, seeds=1, base=0.5, gain=0.05, seed_sd=0.1, correlation=0.3).episodes_for(0.8) is None


def test_the_formula_is_near_the_bootstraps_own_power() -> None:
    """300 studies of six tasks and four training seeds: within three standard errors (7 points)."""
    model = Model(tasks=6, seeds=4, base=0.5, gain=0.08, seed_sd=0.05, correlation=0.3)
    episodes = model.episodes_for(0.8)
    assert episodes is not None
    simulated = model.simulated_power(episodes, alpha=0.05, studies=300, resamples=400, seed=0)
    print(
        f"{episodes} episodes: power {100 * model.power(episodes):.1f} % by the formula, {100 * simulated:.1f} % simulated"
    )
    assert simulated == pytest.approx(model.power(episodes), abs=0.07)


@pytest.mark.slow
@pytest.mark.parametrize("base", [0.2, 0.5, 0.8])
def test_power_of_several_studies_and_false_alarms(base: float) -> None:
    model = Model(tasks=10, seeds=5, base=base, gain=0.06, seed_sd=0.05, correlation=0.3)
    episodes = model.episodes_for(0.8)
    assert episodes is not None
    simulated = model.simulated_power(episodes, alpha=0.05, studies=1000, resamples=1000, seed=0)
    assert simulated == pytest.approx(0.8, abs=0.05)
    # No gain to see: a gain that is next to nothing is called better in half of alpha.
    nothing = Model(tasks=10, seeds=5, base=base, gain=1e-9, seed_sd=0.05, correlation=0.3)
    assert nothing.simulated_power(episodes, alpha=0.05, studies=1000, resamples=1000, seed=0) <= 0.045


def test_the_command_prints_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "plan", "gain=0.10", "studies=0", "training_seeds=[1,5]"]) == 0
    said = capsys.readouterr().out
    assert "+10 points on 50 % over 10 tasks" in said and "an assumption" in said
    assert said.strip().splitlines()[-1].endswith("for 2 rows here.") and "each of 5 policies" in said
    assert main(["study", "plan", "gain=0.01", "studies=0"]) == 0
    assert "cannot be seen with 1, 3, 5, 10 training seeds" in capsys.readouterr().out


def test_a_plan_of_a_small_study_is_checked_by_simulation() -> None:
    config = compose(COMMANDS["study plan"], ["gain=0.3", "tasks=3", "studies=40", "resamples=200"])
    made = plan(config, 3, 2.0)
    assert made.episodes is not None and made.simulated_power is not None and made.simulated_power >= 0.6
    assert made.hours == pytest.approx(2 * 3 * 3 * made.episodes * 2.0 / 3600)
    assert plan(config, 1, 2.0).simulated_power is None, "one training seed hides how seeds differ"


def test_the_plan_in_words_is_the_cheapest_that_simulation_bears_out() -> None:
    config = compose(COMMANDS["study plan"], ["gain=0.10"])
    few = Plan(training_seeds=3, episodes=13, hours=0.65, simulated_power=0.75)
    some = Plan(training_seeds=5, episodes=8, hours=0.7, simulated_power=0.83)
    many = Plan(training_seeds=10, episodes=4, hours=0.7, simulated_power=0.82)
    assert "8 episodes of each of 5 policies" in sentence(config, [many, few, some])
    assert "13 episodes of each of 3 policies" in sentence(config, [few]), "no other plan is there"


def test_seconds_come_from_reports_that_say_them(tmp_path: Path) -> None:
    header = {"kind": "egoarm-report", "format": 1, "label": "a", "task": "t", "episodes": 0}
    EvalReport(header=header, episodes=()).save(tmp_path / "old.jsonl")
    EvalReport(header={**header, "seconds_per_episode": 1.5}, episodes=()).save(tmp_path / "new.jsonl")
    config = compose(COMMANDS["study plan"], [f"reports=[{tmp_path / 'old.jsonl'},{tmp_path / 'new.jsonl'}]"])
    assert seconds_per_episode(config) == (1.5, "the mean of 1 reports")
    assert seconds_per_episode(compose(COMMANDS["study plan"], []))[0] == config.seconds_per_episode


@pytest.mark.parametrize(
    ("word", "message"),
    [("gain=0", "gain=0.0"), ("gain=0.6", "base + gain"), ("rows=1", "two rows"), ("power=1", "power=1.0"), ("correlation=1", "correlation=1.0"),
     ("seed_sd=0.6", "hardly differ that much"), ("training_seeds=[]", "training_seeds=[]"), ("seconds_per_episode=0", "seconds_per_episode=0.0")],
)  # fmt: skip
def test_bad_words_are_named(word: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "plan", word]) == 2
    assert message in capsys.readouterr().err
