"""Best of several checkpoints: marked as such, kept from comparison, and its bias."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from egoarm import main
from eval_robot.best_of import best_of, bias_of
from eval_robot.compare import compare
from eval_robot.protocol import PROTOCOLS, Protocol, protocol
from eval_robot.records import EpisodeRecord, EvalReport, load_report
from eval_robot.stats import wilson_interval


def report(sha: str, outcomes: list[bool], first_seed: int = 100_000, **header: object) -> EvalReport:
    episodes = tuple(
        EpisodeRecord(
            seed=first_seed + i, initial_state_hash=f"{first_seed + i:x}", success=bool(ok), success_step=1 if ok else None,
            episode_return=0.0, length_steps=1, end="success" if ok else "horizon",
        )
        for i, ok in enumerate(outcomes)
    )  # fmt: skip
    fields = {
        "kind": "egoarm-report", "format": 1, "protocol": protocol("selection", "r3m").id, "label": "R3M", "task": "t", "level": "varied-1",
        "episodes": len(outcomes), "env_hash": "e", "policy_sha256": sha, "encoder_sha256": None, "demos_sha256": "d", "versions": {},
        "policy_provenance": {"git_sha": None, "git_dirty": None},
    }  # fmt: skip
    return EvalReport(header=fields | header, episodes=episodes)


def test_every_protocol_has_an_id_of_its_own() -> None:
    ids = {protocol(split, name).id for name in PROTOCOLS for split in ("selection", "test")}
    assert len(ids) == 2 * len(PROTOCOLS)
    assert protocol("test").id == "egoarm-1/test/last/any-step", "reports of earlier versions stay comparable"
    assert protocol("test", "r3m").id == "r3m/test/best-of-evaluated/any-step"
    assert protocol("test", stop="sequential-at-0.5-alpha-0.05").id.startswith(protocol("test").id + "/sequential")
    with pytest.raises(ValueError, match="last, best-of-evaluated"):
        Protocol(name="x", split="test", checkpoint="first", success="any-step")


def test_the_best_is_marked_and_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = {"a": [True] * 4 + [False] * 6, "b": [True] * 7 + [False] * 3, "c": [False] * 3 + [True] * 7}
    for sha, oks in outcomes.items():
        report(sha, oks).save(tmp_path / f"{sha}.jsonl")
    report("b", [True] * 11 + [False] * 9, first_seed=200_000).save(tmp_path / "held-out.jsonl")
    paths = [str(tmp_path / f"{sha}.jsonl") for sha in outcomes]
    out = tmp_path / "best.jsonl"
    assert main(["eval", "best-of", *paths, f"held_out={tmp_path / 'held-out.jsonl'}", f"out={out}"]) == 0
    said = capsys.readouterr().out
    assert "7/10 (70 %)" in said and "too high by +15 points" in said and "55 %" in said
    best = load_report(out)
    assert best.header["policy_sha256"] == "b" and best.label == "R3M, best of 3 checkpoints"
    assert best.header["protocol"] == "r3m/selection/best-of-evaluated/any-step"
    assert [candidate["successes"] for candidate in best.header["candidates"]] == [4, 7, 7]
    plain = report("z", outcomes["a"], protocol=protocol("selection").id, label="z")
    with pytest.raises(ValueError, match="their protocol differs"):
        compare([best, plain])


def test_the_bias_is_that_of_the_maximum() -> None:
    """Twenty checkpoints alike at 50 %, 50 episodes each, chosen on and evaluated again: 13 points too high."""
    rng = np.random.default_rng(0)
    biases = []
    for _ in range(60):
        best = best_of([report(str(i), list(rng.random(50) < 0.5)) for i in range(20)], "r3m")
        bias = bias_of(best, report(best.header["policy_sha256"], list(rng.random(50) < 0.5), first_seed=200_000))
        biases.append(bias.value)
    assert np.mean(biases) == pytest.approx(0.131, abs=0.03)


def test_the_interval_of_the_bias_is_newcombes() -> None:
    best = best_of([report("a", [True] * 3 + [False] * 7), report("b", [True] * 8 + [False] * 2)], "r3m")
    bias = bias_of(best, report("b", [True] * 12 + [False] * 13, first_seed=200_000))
    (l1, u1), (l2, u2) = wilson_interval(8, 10), wilson_interval(12, 25)
    d = 0.8 - 0.48
    assert bias.value == pytest.approx(d)
    assert bias.low == pytest.approx(d - ((0.8 - l1) ** 2 + (u2 - 0.48) ** 2) ** 0.5)
    assert bias.high == pytest.approx(d + ((u1 - 0.8) ** 2 + (0.48 - l2) ** 2) ** 0.5)


def test_what_is_no_choice_among_checkpoints_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = report("a", [True, False]), report("b", [True, True])
    with pytest.raises(ValueError, match="one task, these have t and u"):
        best_of([first, report("b", [True, True], task="u")], "r3m")
    with pytest.raises(ValueError, match="same checkpoint"):
        best_of([first, first], "r3m")
    with pytest.raises(ValueError, match="did not meet the same episodes"):
        best_of([first, report("b", [True, True], first_seed=100_001)], "r3m")
    best = best_of([first, second], "cortexbench")
    with pytest.raises(ValueError, match="shares 2 seeds"):
        bias_of(best, second)
    with pytest.raises(ValueError, match="held_out is of policy_sha256 a"):
        bias_of(best, report("a", [True], first_seed=200_000))
    assert main(["eval", "best-of", "a.jsonl"]) == 2 and "several checkpoints" in capsys.readouterr().err
    assert main(["eval", "best-of", "a.jsonl", "b.jsonl", "protocol=egoarm-1"]) == 2
    assert "r3m, cortexbench" in capsys.readouterr().err
