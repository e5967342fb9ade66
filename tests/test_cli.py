"""The command line as its users meet it: help, mistakes, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

from egoarm import COMMANDS, compose, main

REQUIRED = {
    "demos": [],
    "demos audit": ["suite=toy"],
    "demos ceiling": ["demos=x", "out=y"],
    "demos import": ["file=x", "task=toy/reach", "out=y"],
    "demos export": ["demos=x", "out=y"],
    "train": ["demos=x", "out=y"],
    "rl": ["task=toy/reach", "out=y"],
    "eval": ["policy=x"],
    "eval best-of": ["a", "b"],
    "clips synth": ["out=x"],
    "clips info": ["x"],
    "clips import": ["source=ego4d", "annotations=a", "videos=v", "out=o"],
    "annotate": ["store=x", "out=y"],
    "annotate audit": ["store=x", "out=y"],
    "probe": ["encoder=x"],
    "pretrain": ["data=x", "out=y"],
    "pretrain egom2p": ["tokens=[a]", "tokenizers=[b]", "out=y"],
    "predict": ["checkpoint=x", "clip=y"],
    "tokenize train": ["modality=[gaze]", "data=x", "out=y"],
    "tokenize store": ["data=x", "tokenizers=[a]", "out=y"],
    "compare": ["a", "b"],
    "report": ["a"],
}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_defaults_make_the_dataclass(name: str) -> None:
    config = compose(COMMANDS[name], REQUIRED.get(name, []))
    assert type(config).__name__ == COMMANDS[name].dataclass.split(":")[1]


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_lists_the_keys(name: str, capsys: pytest.CaptureFixture) -> None:
    assert main([*name.split(), "--help"]) == 0
    assert COMMANDS[name].help in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["evl"], "did you mean 'eval'?"),
        (["clips", "sinth"], "clips synth, clips info"),
        (["eval", "policy=x", "epsiodes=3"], "unknown override 'epsiodes': did you mean 'episodes'?"),
        (["eval", "policy=x", "episodes=many"], "episodes='many' has the wrong type"),
        (["eval"], "policy= must be given"),
        (["eval", "policy=/none", "task=metaworld/drawer-opne"], "did you mean metaworld/drawer-open"),
        (["eval", "policy=/none"], "no artifact at /none"),
        (["eval", "here"], "'here' is not an override"),
        (["demos", "level=varid-1"], "varied-1"),
        (["train", "demos=/none.hdf5", "out=/none"], "no demonstration file at /none.hdf5"),
        (["train", "demos=/none.hdf5", "out=/none", "encoder=egodtm-tini"], "did you mean egodtm-tiny"),
        (["compare"], "no reports given"),
        (["clips", "info", "/none"], "/none"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], expected: str, capsys: pytest.CaptureFixture) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("egoarm: error: ") and expected in captured.err, captured.err
    assert "Traceback" not in captured.err


def test_the_installed_command_runs() -> None:
    command = Path(sys.executable).with_name("egoarm")
    done = subprocess.run([str(command)], capture_output=True, text=True)
    assert done.returncode == 0 and "doctor" in done.stdout
