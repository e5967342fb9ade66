"""Reports: round trip, what may be compared, the table and the page."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from eval_robot.compare import compare, markdown
from eval_robot.records import EpisodeRecord, EvalReport, load_report
from eval_robot.report import ReportConfig, findings, run


def make_report(label: str, outcomes: list[bool], task: str = "toy/reach", **header: object) -> EvalReport:
    episodes = tuple(
        EpisodeRecord(
            seed=200_000 + i, initial_state_hash=f"{i:04x}", success=ok, success_step=7 if ok else None,
            episode_return=1.0, length_steps=7 if ok else 60, end="success" if ok else "horizon",
        )
        for i, ok in enumerate(outcomes)
    )  # fmt: skip
    fields = {
        "kind": "egoarm-report", "format": 1, "protocol": "egoarm-1/test/last/any-step", "label": label, "task": task,
        "level": "varied-2", "episodes": len(outcomes), "env_hash": "e" * 64, "policy_sha256": "a" * 64, "encoder_sha256": None,
        "demos_sha256": "d" * 64, "versions": {"torch": "2"}, "policy_provenance": {"git_sha": None, "git_dirty": None},
    }  # fmt: skip
    return EvalReport(header=fields | header, episodes=episodes)


def test_round_trip(tmp_path: Path) -> None:
    report = make_report("a", [True, False])
    report.save(tmp_path / "a.jsonl")
    assert load_report(tmp_path / "a.jsonl") == report


def test_counts_and_pairing() -> None:
    comparison = compare([make_report("a", [True] * 6 + [False] * 2), make_report("b", [False] * 6 + [True, False])])
    cell = comparison.cells["a", "toy/reach"]
    assert comparison.reference == "b" and (cell.successes, cell.episodes) == (6, 8)
    assert cell.paired is not None and (cell.paired.wins, cell.paired.losses) == (6, 1)
    assert cell.paired.p_value == pytest.approx(2 * (1 + 7) / 2**7)
    assert "| toy/reach | a | 6/8 | 41 to 93 % | 0.125 |" in markdown(comparison)
    assert findings(comparison) == [
        "a: 6/8 successes against 1/8 of b; on no task is the difference beyond chance (p < 0.05)."
    ]


@pytest.mark.parametrize("field", ["protocol", "level", "env_hash"])
def test_refuses_to_compare_across(field: str) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        compare([make_report("a", [True]), make_report("b", [True], **{field: "another"})])


def test_refuses_other_initial_states() -> None:
    first, second = make_report("a", [True, True]), make_report("b", [True, True])
    moved = replace(second.episodes[1], initial_state_hash="ffff")
    with pytest.raises(ValueError, match="first difference: seed 200001"):
        compare([first, EvalReport(header=second.header, episodes=(second.episodes[0], moved))])


def test_refuses_a_missing_cell_and_a_double_one() -> None:
    with pytest.raises(ValueError, match="has no report of: b"):
        compare([make_report("a", [True]), make_report("b", [True]), make_report("a", [True], task="metaworld/reach")])
    with pytest.raises(ValueError, match="same label and task"):
        compare([make_report("a", [True]), make_report("a", [True])])
    with pytest.raises(ValueError, match="there is: a"):
        compare([make_report("a", [True])], reference="b")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: "", "line 1"),
        (lambda text: text.replace('"format": 1', '"format": 9'), "format 1"),
        (lambda text: "\n".join(text.splitlines()[:-1]), "promises 2"),
        (lambda text: text[:-20], "line 3"),
        (lambda text: text.replace('"seed"', '"sead"'), "line 2"),
    ],
)
def test_damaged_reports_are_named(tmp_path: Path, damage, message: str) -> None:
    path = tmp_path / "a.jsonl"
    make_report("a", [True, False]).save(path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=message) as caught:
        load_report(path)
    assert str(path) in str(caught.value)


def test_page_stands_alone(tmp_path: Path) -> None:
    paths = []
    for label, outcomes in {"<script>": [True, False, True], "b": [False, False, True]}.items():
        path = tmp_path / f"{len(paths)}.jsonl"
        make_report(label, outcomes).save(path)
        paths.append(str(path))
    curve = tmp_path / "run" / "metrics.jsonl"
    curve.parent.mkdir()
    curve.write_text("\n".join(json.dumps({"step": i, "loss": 1.0 / (i + 1)}) for i in range(5)))
    config = ReportConfig(
        reports=tuple(paths),
        reference=None,
        out=str(tmp_path / "report.html"),
        title="t",
        curves=(str(curve),),
        videos=1,
    )
    page = run(config).read_text()
    assert "&lt;script&gt;" in page and "<script>" not in page
    assert (
        page.count("<svg") == 2
        and "2/3" in page
        and "http"
        not in page.replace("http://www.w3.org", "")
        .replace("http://purl.org", "")
        .replace("http://creativecommons.org", "")
        .replace("https://matplotlib.org", "")
    )
