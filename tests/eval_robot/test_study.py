"""The study: its grid, its evidence and tables from made-up reports, and a small one run for real."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import egoarm
from eval_robot import study
from eval_robot.evidence import (
    Condition,
    Design,
    finding,
    gather,
    load_evidence,
    main_table,
    save_evidence,
    tables,
    to_latex,
    to_markdown,
)
from eval_robot.records import EpisodeRecord, EvalReport, load_reports, save_reports
from eval_robot.study import StudyConfig, units
from eval_robot.study_pages import rebuild, render_page, write_plots, write_tables

TASKS = ("toy/reach", "robosuite/lift")


def make_design(**changes: object) -> Design:
    fields = {
        "tasks": TASKS, "rows": ("blind", "random", "ours"), "reference": "random", "pairs": (("ours", "random"),),
        "level": "varied-1", "shifts": ("camera-2",), "readouts": ("grid",), "demonstrations": 50, "counts": (10,), "command": "egoarm study",
    }  # fmt: skip
    return Design(**(fields | changes))  # pyright: ignore[reportArgumentType]


def make_report(
    row: str, task: str, seed: int, outcomes: list[bool], condition: Condition, **header: object
) -> EvalReport:
    episodes = tuple(
        EpisodeRecord(
            seed=200_000 + i, initial_state_hash=f"{task}{i:04x}", success=ok, success_step=7 if ok else None,
            episode_return=1.0, length_steps=7 if ok else 60, end="success" if ok else "horizon",
        )
        for i, ok in enumerate(outcomes)
    )  # fmt: skip
    fields = {
        "kind": "egoarm-report", "format": 1, "protocol": "egoarm-1/test/last/any-step", "label": row, "task": task,
        "level": condition.level, "episodes": len(outcomes), "env_hash": "e" * 64, "policy_sha256": f"{row}{task}{seed}{condition.name}",
        "encoder_sha256": None, "demos_sha256": "d" * 64, "versions": {"torch": "2"},
        "policy_provenance": {"git_sha": None, "git_dirty": None},
        "training": {"seed": seed, "demonstrations": condition.demonstrations, "readout": condition.readout},
    }  # fmt: skip
    return EvalReport(header=fields | header, episodes=episodes)


# Successes of 10 episodes, by row.
CHANCES = {"blind": 1, "random": 4, "ours": 8}


def make_reports(design: Design, seeds: tuple[int, ...] = (0, 1)) -> list[EvalReport]:
    conditions = dict.fromkeys(condition for group in design.conditions.values() for condition in group)
    return [
        make_report(row, task, seed, [(i + seed) % 10 < CHANCES[row] for i in range(10)], condition)
        for condition in conditions
        for task in design.tasks
        for row in design.rows
        for seed in seeds
    ]


def test_tables_say_what_the_reports_say() -> None:
    evidence = gather(make_design(), make_reports(make_design()))
    table = main_table(evidence)
    assert table.heads == ("policy sees", "reach", "lift", "all tasks")
    assert [row[0] for row in table.rows] == ["blind", "random", "ours"]
    assert [row[-1].split(" ")[0] for row in table.rows] == ["10", "40", "80"]
    assert "2 training seeds x 10 episodes" in table.note
    (sentence,) = finding(evidence)
    assert sentence.startswith("ours against random: +40.0 [") and sentence.endswith("better, beyond chance.")
    titles = [table.title for table in tables(evidence)]
    assert (
        len(titles) == 7
        and any("shifts" in title for title in titles)
        and any("demonstrations" in title for title in titles)
    )
    shifted = next(
        t for t in tables(evidence) if t.title == "Held-out shifts: paired differences over all tasks, points"
    )
    assert shifted.heads == ("difference", "varied-1", "varied-1+camera-2")
    assert {row[0]: row[2].split(" ")[0] for row in shifted.rows} == {
        "blind - random": "-30.0",
        "ours - random": "+40.0",
    }
    latex = to_latex(table)
    assert latex.count(r"\\") == 4 and r"\toprule" in latex


def test_published_tables_are_rebuilt_byte_for_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evidence = gather(make_design(), make_reports(make_design()))
    save_evidence(evidence, tmp_path)
    write_tables(evidence, tmp_path)
    write_plots(evidence, tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert {
        "study.json",
        "tables.md",
        "main.tex",
        "success.png",
        "success.svg",
        "shifts.svg",
        "demonstrations.png",
    } <= set(first)
    assert to_markdown(tables(load_evidence(tmp_path))) == first["tables.md"].decode()
    assert egoarm.main(["compare", str(tmp_path)]) == 0 and "byte for byte" in capsys.readouterr().out
    save_evidence(evidence, tmp_path)
    write_plots(evidence, tmp_path)
    assert first == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    (tmp_path / "tables.md").write_text(first["tables.md"].decode().replace("80 [", "90 ["))
    assert not rebuild(tmp_path) and egoarm.main(["compare", str(tmp_path)]) == 1


def test_only_whole_training_seeds_count() -> None:
    design = make_design()
    reports = [
        r
        for r in make_reports(design)
        if not (r.label == "ours" and r.task == TASKS[1] and r.header["training"]["seed"] == 1)
    ]
    evidence = gather(design, reports)
    assert set(evidence.seeds.values()) == {(0,)} and evidence.outcomes[design.main, TASKS[0], "blind"].shape == (1, 10)
    with pytest.raises(FileNotFoundError, match="no training seed"):
        gather(design, [r for r in reports if r.label != "ours" or r.task != TASKS[1]])
    with pytest.raises(FileNotFoundError, match="no report"):
        gather(design, [])
    with pytest.raises(FileNotFoundError, match="reference 'random' has no report"):
        gather(design, [r for r in reports if r.label != "random"])
    with pytest.raises(FileNotFoundError, match="no training seed"):
        gather(design, [r for r in reports if r.header["level"] != "varied-1"])


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("protocol", "another", "different protocols"),
        ("env_hash", "f", "differ in env_hash"),
        ("demos_sha256", "f", "demos_sha256"),
    ],
)
def test_what_cannot_be_compared_is_refused(field: str, value: str, match: str) -> None:
    reports = make_reports(make_design())
    odd = EvalReport(header=dict(reports[3].header) | {field: value}, episodes=reports[3].episodes)
    with pytest.raises(ValueError, match=match):
        gather(make_design(), [*reports[:3], odd, *reports[4:]])


def test_other_episodes_are_refused() -> None:
    reports = make_reports(make_design())
    moved = (replace(reports[3].episodes[0], initial_state_hash="ffff"), *reports[3].episodes[1:])
    with pytest.raises(ValueError, match="first difference: 200000"):
        gather(make_design(), [*reports[:3], EvalReport(header=reports[3].header, episodes=moved), *reports[4:]])


def test_bundles_round_trip_and_broken_ones_are_named(tmp_path: Path) -> None:
    reports = make_reports(make_design())[:5]
    path = tmp_path / "a.jsonl.gz"
    save_reports(path, reports)
    assert load_reports(path) == reports == load_reports(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: not a gzip file"):
        load_reports(path)
    (tmp_path / "study.json").write_text('{"tasks": 3}')
    with pytest.raises(ValueError, match="not a study's design"):
        load_evidence(tmp_path)


def test_the_page_holds_every_table() -> None:
    evidence = gather(make_design(), make_reports(make_design()))
    page = render_page(evidence, [])
    for table in tables(evidence):
        assert table.title in page
    assert "ours against random: +40.0" in page and page.count("<svg") == 3


# ------------------------------------------------------------------------------------------------------------- a real one


def compose(tmp_path: Path, *words: str) -> StudyConfig:
    small = [
        f"out={tmp_path}/study", "tasks=[toy/reach]", "only=[proprioception,16x16 pixels,state]", "reference=16x16 pixels",
        "pairs=[[state,16x16 pixels]]", "seeds=[0]", "shifts=[]", "counts=[2]", "demos.episodes=3", "demos.image_size=32",
        "eval.episodes=2", "train.steps=4", "workers=1", "level=clean",
    ]  # fmt: skip
    return egoarm.compose(egoarm.COMMANDS["study"], [*small, *words])


def test_every_row_sees_the_same_cameras(tmp_path: Path) -> None:
    assert study.demos_config(compose(tmp_path), "robosuite/lift").cameras == ("agentview",)
    assert study.demos_config(compose(tmp_path, "cameras=2"), "robosuite/lift").cameras == (
        "agentview",
        "robot0_eye_in_hand",
    )
    made = study.demos_config(compose(tmp_path), "toy/reach")
    assert (made.cameras, made.level, made.episodes) == (("front",), "clean", 3)


def test_the_grid(tmp_path: Path) -> None:
    config = compose(tmp_path, "seeds=[3,4]", "readouts=[grid,pooled]", "shifts=[camera-1]", "varied_seeds=null")
    found = units(config)
    assert len(found) == len(set(found)) == 2 * (3 + 3 + 1)
    assert [unit.seed for unit in found] == [3] * 7 + [4] * 7
    assert (
        found[0].levels == ("clean", "clean+camera-1")
        and found[3].levels == ("clean",)
        and found[3].demonstrations == 2
    )
    assert found[6].readout == "pooled" and found[6].row == "16x16 pixels"
    found = units(replace(config, varied_seeds=1))
    assert [unit.seed for unit in found] == [3] * 7 + [4] * 3
    assert {unit.levels for unit in found if unit.seed == 4} == {("clean",)}
    found = units(replace(config, varied_rows=("16x16 pixels",)))
    assert [unit.row for unit in found if unit.readout == "pooled" or unit.demonstrations == 2] == ["16x16 pixels"] * 4
    assert {unit.row for unit in found if len(unit.levels) == 2} == {"16x16 pixels"}
    assert len({unit.row for unit in found if unit.levels == ("clean",) and unit.demonstrations == 3}) == 3


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["tasks=[toy/reach,toy/reach]"], "tasks="),
        (["tasks=[toy/reech]"], "toy/reach"),
        (["only=[prop]"], "only= names prop"),
        (["reference=EgoDTM"], "lacks the reference"),
        (["pairs=[[state]]"], "pairs="),
        (["counts=[3]"], "counts="),
        (["readouts=[gird]"], "readouts="),
        (["varied_seeds=0"], "varied_seeds=0"),
        (["varied_rows=[pixels]"], "varied_rows= names pixels"),
        (["launcher=slurm"], "launcher=slurm"),
        (["eval.stop=sequential", "eval.episodes=20"], "eval.stop=sequential"),
        (["shifts=[camera-9]"], "camera-9"),
        (["look_every_s=0"], "look_every_s=0"),
        (["train.chunk_steps=4"], "expected one of them"),
        (["rows_a_look=0"], "rows_a_look=0"),
    ],
)
def test_bad_settings(tmp_path: Path, words: list[str], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        compose(tmp_path, *words)


def test_a_small_study_fails_retries_resumes_and_publishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose(tmp_path, f"publish={tmp_path}/published")
    real, tried = study.run_unit, []

    def breaks(config: StudyConfig, unit: study.Unit) -> None:
        tried.append(unit)
        if unit.row == "state" and unit.demonstrations == 3:
            raise RuntimeError("no more memory")
        real(config, unit)

    monkeypatch.setattr(study, "run_unit", breaks)
    assert study.run(config) == 1
    assert len(tried) == 6 + config.retries
    said = capsys.readouterr().out
    assert "FAILED toy/reach, state, linear, 3 demonstrations, seed 0: RuntimeError: no more memory" in said
    (failure,) = json.loads((tmp_path / "study" / "failures.json").read_text())
    assert failure["row"] == "state" and "no more memory" in failure["trace"]
    monkeypatch.setattr(study, "run_unit", lambda config, unit: (tried.append(unit), real(config, unit)))
    tried.clear()
    assert study.run(config) == 0
    assert [unit.row for unit in tried] == ["state"] and not (tmp_path / "study" / "failures.json").exists()
    assert egoarm.main(["compare", str(tmp_path / "published")]) == 0
    reports = load_reports(tmp_path / "published" / "reports")
    assert len(reports) == 6 and {report.header["training"]["demonstrations"] for report in reports} == {2, 3}
    assert (tmp_path / "study" / "report.html").read_text().startswith("<!doctype html>")
    # A look lasts 0.1 s, at 20 Hz two actions.
    spec = json.loads(next((tmp_path / "study" / "policies").rglob("spec.json")).read_text())["spec"]
    assert (spec["chunk_steps"], spec["execute_steps"]) == (2, 2)
    # A row that is added later costs only that row.
    tried.clear()
    more = replace(
        config, rows={**config.rows, "late": config.rows["proprioception"]}, only=(*(config.only or ()), "late")
    )
    assert study.run(more) == 0 and {unit.row for unit in tried} == {"late"}
