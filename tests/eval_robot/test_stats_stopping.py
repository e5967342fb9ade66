"""`stop=sequential`: the decision rests on episodes in the order of their seeds, whatever ends first and whatever is killed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eval_robot.rollout as rollout_module
from egoarm import COMMANDS, compose, main
from eval_robot.compare import compare
from eval_robot.records import EpisodeRecord, EvalReport, load_report
from eval_robot.rollout import evaluated
from eval_robot.sequential import SequentialTest
from eval_robot.stopping import Stopping, make_stopping
from policies.act import ACTConfig
from policies.bc import BCConfig
from policies.diffusion import DiffusionConfig
from policies.diffusion_unet import UNetDenoiserConfig
from policies.train import TrainConfig, run

HORIZON = 60


def record(seed: int, success: bool, steps: int = 10) -> EpisodeRecord:
    return EpisodeRecord(
        seed=seed, initial_state_hash=f"{seed:x}", success=success, success_step=steps if success else None, episode_return=0.0,
        length_steps=steps if success else HORIZON, end="success" if success else "horizon",
    )  # fmt: skip


def run_side_by_side(records: list[EpisodeRecord], envs: int, stopping: Stopping) -> tuple[object, list[EpisodeRecord]]:
    """What `rollout` does with episodes of known lengths: the decision, and the episodes in the order in which they ended."""
    waiting, running, ended = list(records), [], {}
    while waiting or running:
        while waiting and len(running) < envs:
            running.append([waiting[0].length_steps, waiting.pop(0)])
        first = min(left for left, _ in running)
        running = [[left - first, episode] for left, episode in running]
        ended |= {episode.seed: episode for left, episode in running if left == 0}
        running = [pair for pair in running if pair[0]]
        decision = stopping.decide(ended)
        if decision is not None:
            return decision, list(ended.values())
    raise AssertionError("a sequential test always ends")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, HORIZON)), min_size=40, max_size=40),
    st.integers(1, 40),
    st.sampled_from([0.3, 0.5, 0.8]),
)
def test_the_decision_is_that_of_one_episode_at_a_time(
    outcomes: list[tuple[bool, int]], envs: int, threshold: float
) -> None:
    records = [record(seed, success, steps) for seed, (success, steps) in enumerate(outcomes)]
    test = SequentialTest(threshold=threshold, alpha=0.05, episodes=len(records))
    stopping = Stopping(test=test, seeds=tuple(range(len(records))))
    decision, _ = run_side_by_side(records, envs, stopping)
    assert decision == test.decide([success for success, _ in outcomes])


def test_successes_that_end_early_do_not_tip_the_decision() -> None:
    """40 episodes at a time, successes end at step 5, failures at 60, at a rate of exactly the threshold."""
    rng, n = np.random.default_rng(0), 80
    test = SequentialTest(threshold=0.5, alpha=0.05, episodes=n)
    stopping = Stopping(test=test, seeds=tuple(range(n)))
    wrong = wrong_in_order_of_ending = 0
    for _ in range(100):
        records = [record(seed, bool(success), 5) for seed, success in enumerate(rng.random(n) < 0.5)]
        decision, _ = run_side_by_side(records, 40, stopping)
        wrong += decision.verdict != "undecided"
        by_end = sorted(records, key=lambda episode: episode.length_steps)[:40]
        naive = test.decide([episode.success for episode in by_end])
        wrong_in_order_of_ending += naive is not None and naive.verdict == "above"
    assert wrong <= 10, "5 of 100 at most, give or take"
    assert wrong_in_order_of_ending == 100, "the order of ending would always say above"


@pytest.fixture(scope="module")
def policy(toy_demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stopping")
    return run(
        TrainConfig(
            policy="bc",
            encoder="none",
            encoder_seed=0,
            demos=str(toy_demos),
            out=str(out / "bc"),
            label=None,
            bc=BCConfig(hidden=32, layers=2),
            act=ACTConfig(width=16, heads=2, feedforward=32, style_layers=1, encoder_layers=1, style_dim=4),
            diffusion=DiffusionConfig(unet=UNetDenoiserConfig(channels=(16,)), sample_steps=2),
            epochs=150,
            batch_size=32,
            seed=0,
            cache=str(out / "cache"),
            threads=1,
        )
    )


def words(policy: Path, out: Path, *more: str) -> list[str]:
    return ["eval", f"policy={policy}", f"out={out}", "workers=1", "threads=1", *more]


def test_an_evaluation_stops_and_says_what_it_decided(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(policy, tmp_path / "fixed.jsonl", "episodes=60")) == 0
    fixed = load_report(tmp_path / "fixed.jsonl")
    rate = fixed.successes / 60
    threshold = 0.05 if rate > 0.5 else 0.95
    sequential = ["episodes=60", "stop=sequential", f"stop_against={threshold}"]
    assert main(words(policy, tmp_path / "one.jsonl", *sequential, "envs=1")) == 0
    said = capsys.readouterr().out
    report = load_report(tmp_path / "one.jsonl")
    used = report.header["episodes"]
    assert report.header["decision"]["verdict"] == ("above" if rate > 0.5 else "below") and used < 60
    assert f"after {used} of at most 60 episodes, alpha 0.05" in said
    assert report.episodes == fixed.episodes[:used], "the same episodes, fewer of them"
    assert "/sequential-at-" in report.header["protocol"]
    with pytest.raises(ValueError, match="their protocol differs"):
        compare([report, EvalReport(header={**fixed.header, "label": "b"}, episodes=fixed.episodes)])

    again = [*words(policy, tmp_path / "one.jsonl", *sequential, "envs=1")[1:]]
    assert evaluated(compose(COMMANDS["eval"], again)), "there is nothing to do again"
    assert not evaluated(compose(COMMANDS["eval"], [*again, "alpha=0.01"]))

    # Side by side, and killed on the way: the same report.
    assert main(words(policy, tmp_path / "many.jsonl", *sequential, "envs=8")) == 0
    many = load_report(tmp_path / "many.jsonl")
    assert {**many.header, "envs": 1} == dict(report.header) and many.episodes == report.episodes
    real = rollout_module.rollout

    def dies(*args: object, finished, **rest: object) -> list[EpisodeRecord]:
        seen = []

        def stop(kept: EpisodeRecord, film: object) -> None:
            finished(kept, film)
            seen.append(kept)
            if len(seen) == 2:
                raise KeyboardInterrupt

        return real(*args, finished=stop, **rest)

    monkeypatch.setattr(rollout_module, "rollout", dies)
    assert main(words(policy, tmp_path / "killed.jsonl", *sequential, "envs=1")) == 130
    assert (tmp_path / "killed.jsonl.partial").exists() and not (tmp_path / "killed.jsonl").exists()
    monkeypatch.setattr(rollout_module, "rollout", real)
    assert main(words(policy, tmp_path / "killed.jsonl", *sequential, "envs=1")) == 0
    assert (tmp_path / "killed.jsonl").read_text() == (tmp_path / "one.jsonl").read_text()

    # Against a report in which every episode failed, on the same seeds.
    failed = tuple(replace(episode, success=False) for episode in fixed.episodes)
    beaten = EvalReport(header={**fixed.header, "label": "all fail", "policy_sha256": "f" * 64}, episodes=failed)
    beaten.save(tmp_path / "beaten.jsonl")
    against = ["episodes=60", "stop=sequential", f"stop_against={tmp_path / 'beaten.jsonl'}"]
    assert main(words(policy, tmp_path / "paired.jsonl", *against)) == 0
    paired = load_report(tmp_path / "paired.jsonl").header
    assert (
        paired["decision"]["successes"] == paired["decision"]["trials"] and "against-ffffffffffff" in paired["protocol"]
    )
    assert main(words(policy, tmp_path / "longer.jsonl", *against[1:], "episodes=61")) == 2
    assert "set episodes=60" in capsys.readouterr().err


def test_what_cannot_be_paired_is_refused(tmp_path: Path) -> None:
    header = {
        "kind": "egoarm-report", "format": 1, "label": "a", "protocol": "p", "task": "t", "level": "l", "env_hash": "e", "episodes": 10,
        "policy_sha256": "a" * 64,
    }  # fmt: skip
    report = EvalReport(header=header, episodes=tuple(record(seed, False) for seed in range(10)))
    report.save(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="its task is t, here it is other"):
        make_stopping(str(tmp_path / "a.jsonl"), 0.05, range(10), {**header, "task": "other"})
    stopping = make_stopping(str(tmp_path / "a.jsonl"), 0.05, range(10), header)
    with pytest.raises(ValueError, match="seed 1 starts in another state"):
        stopping.decide({0: record(0, True), 1: replace(record(1, True), initial_state_hash="moved")})
    assert json.loads(json.dumps(stopping.header()))["against"]["outcomes"] == "0" * 10


@pytest.mark.parametrize(
    ("word", "message"),
    [("stop=never", "fixed, sequential"), ("stop_against=1.0", "threshold=1.0"), ("alpha=0", "alpha=0"), ("episodes=3", "allow more"),
     ("protocol=r4m", "egoarm-1, r3m, cortexbench")],
)  # fmt: skip
def test_bad_words_are_named(word: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "policy=none", "stop=sequential", word]) == 2
    assert message in capsys.readouterr().err
