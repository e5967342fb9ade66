"""The audit of experts: counts, resume, the asked rates."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from envs.experts import toy as toy_expert
from eval_robot.protocol import SEED_RANGES
from policies.demos import attempts, audit
from policies.demos.attempts import attempt
from policies.demos.audit import AuditConfig, audit_episode, run, summarize
from policies.demos.collect import AUDIT_SEEDS

CONFIG = AuditConfig(suite="toy", task=None, seeds=4, first_seed=300_000, out="", check=True, workers=1)


def config(tmp_path: Path, **changes: object) -> AuditConfig:
    return replace(CONFIG, out=str(tmp_path / "audit.json"), **changes)


def test_the_toy_expert_passes_and_is_not_audited_twice(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(config(tmp_path)) == 0
    text = capsys.readouterr().out
    assert "4/4" in text and "51 to 100 %" in text and "every asked rate is reached" in text
    document = json.loads((tmp_path / "audit.json").read_text())
    row = document["summary"][0]
    assert row["starts"] == 4 and row["steps_max"] < row["horizon_steps"] == 60
    assert [record["seed"] for record in document["episodes"]] == [300_000, 300_001, 300_002, 300_003]
    stamp = (tmp_path / "audit.json").stat().st_mtime_ns
    assert run(config(tmp_path)) == 0 and (tmp_path / "audit.json").stat().st_mtime_ns == stamp
    assert not (tmp_path / "audit.json.partial").exists()


def test_seeds_are_nobody_elses() -> None:
    assert not any(set(AUDIT_SEEDS) & set(others) for name, others in SEED_RANGES.items() if name != "audit")


def test_goes_on_from_the_episodes_that_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = audit.atomic_write_text

    def killed(path: Path, text: str) -> None:
        if Path(path).suffix == ".json":
            raise KeyboardInterrupt
        finish(path, text)

    monkeypatch.setattr(audit, "atomic_write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path))
    log = tmp_path / "audit.json.partial"
    lines = log.read_text().splitlines()
    marked = json.loads(lines[2]) | {"steps": 59}
    log.write_text("\n".join([*lines[:2], json.dumps(marked), lines[3][:10]]))  # the kill cut the third episode short
    monkeypatch.undo()
    run(config(tmp_path))
    episodes = json.loads((tmp_path / "audit.json").read_text())["episodes"]
    assert len(episodes) == 4 and [record["steps"] == 59 for record in episodes] == [False, True, False, False]


def test_another_version_of_the_code_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config(tmp_path))
    monkeypatch.setattr(audit, "_code_sha256", lambda: "changed")
    run(config(tmp_path))
    assert json.loads((tmp_path / "audit.json").read_text())["code"] == "changed"


class IdleExpert(toy_expert.ToyReachExpert):
    def act(self, observation: dict) -> object:
        return super().act(observation) * 0


class BrokenExpert(toy_expert.ToyReachExpert):
    def act(self, observation: dict) -> object:
        raise FloatingPointError("no inverse kinematics")


@pytest.mark.parametrize(
    ("expert", "error", "steps"), [(IdleExpert, "", 60), (BrokenExpert, "FloatingPointError: no inverse kinematics", 0)]
)
def test_failures_are_counted_and_named(expert: type, error: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "_HELD", {})
    monkeypatch.setattr(toy_expert, "ToyReachExpert", expert)
    records = [audit_episode("toy/reach", 300_000 + i) for i in range(2)]
    assert [(record["success"], record["steps"], record["error"]) for record in records] == [(False, steps, error)] * 2
    row = summarize("toy/reach", records)
    assert not row["passed"] and row["failed_seeds"] == [300_000, 300_001] and row["steps_median"] is None
    assert row["interval"][0] == 0 and row["error"] == error


def test_exit_code_where_a_rate_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(audit.ASKED_RATES, "toy", 1.01)
    assert run(config(tmp_path)) == 1
    assert run(config(tmp_path, check=False)) == 0
    monkeypatch.delitem(audit.ASKED_RATES, "toy")
    assert run(config(tmp_path)) == 0


def test_a_failed_attempt_has_its_reason() -> None:
    from envs.tasks import make_env

    env = make_env("toy/reach", cameras=())
    solved = attempt(env, toy_expert.ToyReachExpert(env), 1)
    idle = attempt(env, IdleExpert(env), 1)
    assert solved.success and not solved.reason and solved.initial_state_hash == idle.initial_state_hash
    assert not idle.success and idle.reason == "not solved within the horizon"
    assert idle.episode is not None and len(idle.episode.actions) == 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": "tiy"}, "expected one of toy, metaworld"),
        ({"suite": None}, "must be given"),
        ({"task": "metaworld/reach"}, "not of suite=toy"),
        ({"first_seed": 0}, "no demonstration and no evaluation uses"),
        ({"seeds": 0}, "at least one seed"),
    ],
)
def test_bad_requests(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)
