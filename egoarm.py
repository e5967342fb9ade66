"""The command line: one sub-command a line, each naming the room that owns it.

Hydra composes `configs/<config>.yaml` with the overrides that follow the command; the result becomes the owner's frozen
dataclass here, so that no DictConfig leaves this file.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parent / "configs"


@dataclass(frozen=True)
class Command:
    """A sub-command: its YAML, its config dataclass and its function (both "module:name"), and what it does.

    `positional` names the field that bare words fill; a name ending in "*" takes any number of them.
    """

    config: str
    dataclass: str
    run: str
    help: str
    positional: str = ""


COMMANDS: dict[str, Command] = {
    "demo": Command("demo", "eval_robot.demo:DemoConfig", "eval_robot.demo:run", "the whole chain at a small scale, ending in a success-rate table and report.html"),
    "doctor": Command("doctor", "eval_robot.doctor:DoctorConfig", "eval_robot.doctor:run", "what works on this machine, and the fix for each thing that does not"),
    "clips synth": Command("clips_synth", "pretrain.clips.synth:SynthConfig", "pretrain.clips.synth:run_synth", "make synthetic egocentric clips"),
    "clips info": Command("clips_info", "pretrain.clips.info:InfoConfig", "pretrain.clips.info:run_info", "describe a clip store and draw its contact sheet", "path"),
    "clips import": Command("clips_import", "pretrain.clips.importing:ImportConfig", "pretrain.clips.importing:run_import", "convert a public data set to a clip store"),
    "annotate": Command("annotate", "pretrain.annotate.pipeline:AnnotateConfig", "pretrain.annotate.pipeline:run", "depth, masks, contacts and enriched captions for a clip store"),
    "annotate audit": Command("annotate_audit", "pretrain.annotate.audit:AuditConfig", "pretrain.annotate.audit:run", "each annotation stage against the truth of synthetic clips"),
    "probe": Command("probe", "pretrain.downstream.probe:ProbeConfig", "pretrain.downstream.probe:run", "benchmarks of encoders, with intervals and paired differences"),
    "pretrain": Command("pretrain", "pretrain.egodtm.train:PretrainConfig", "pretrain.egodtm.train:run", "pretrain a video encoder on a clip store"),
    "pretrain arms": Command("pretrain_arms", "pretrain.downstream.arms:ArmsConfig", "pretrain.downstream.arms:run", "EgoDTM and its twins, trained and measured as they learn"),
    "pretrain robots": Command("pretrain_robots", "pretrain.downstream.arms:ArmsConfig", "pretrain.downstream.arms:run", "EgoDTM and its twin without depth on clips of robot arms and furniture, measured"),
    "pretrain ablation": Command("pretrain_ablation", "pretrain.downstream.arms:ArmsConfig", "pretrain.downstream.arms:run", "one change at a time of EgoDTM's recipe, trained and measured"),
    "pretrain egom2p": Command("pretrain_egom2p", "pretrain.egom2p.train:EgoM2PTrainConfig", "pretrain.egom2p.train:run", "pretrain EgoM2P on token stores"),
    "pretrain egom2p-chain": Command("pretrain_egom2p_chain", "pretrain.downstream.egom2p_chain:ChainConfig", "pretrain.downstream.egom2p_chain:run", "clips, tokenizers, EgoM2P and its four tasks, measured and published"),
    "predict": Command("predict", "pretrain.egom2p.predict:PredictConfig", "pretrain.egom2p.predict:run", "any modalities of a clip from any others, by EgoM2P"),
    "tokenize train": Command("tokenize_train", "pretrain.egom2p.tokenizers.train:TokenizerTrainConfig", "pretrain.egom2p.tokenizers.train:run", "train a tokenizer of one of EgoM2P's modalities on a clip store"),
    "tokenize store": Command("tokenize_store", "pretrain.egom2p.tokenizers.store:TokenStoreConfig", "pretrain.egom2p.tokenizers.store:run", "turn a clip store into tokens"),
    "demos": Command("demos", "policies.demos.collect:DemosConfig", "policies.demos.collect:run", "collect demonstrations with a scripted expert"),
    "demos audit": Command("demos_audit", "policies.demos.audit:AuditConfig", "policies.demos.audit:run", "how often each task's expert succeeds, over fresh seeds"),
    "demos ceiling": Command("demos_ceiling", "policies.ceiling:CeilingConfig", "policies.ceiling:run", "an encoder that learned to read the simulator's state, to choose a study's tasks by"),
    "demos import": Command("demos_import", "policies.demos.importing:ImportConfig", "policies.demos.importing:run", "demonstrations of robomimic, MimicGen or R3M as a demonstration file"),
    "demos export": Command("demos_export", "policies.demos.lerobot:ExportConfig", "policies.demos.lerobot:run", "demonstrations as a LeRobot data set"),
    "train": Command("train", "policies.train:TrainConfig", "policies.train:run", "train a policy by imitation on an encoder's features"),
    "rl": Command("rl", "policies.rl.config:RLConfig", "policies.rl.train:run", "train a policy by reinforcement learning (stable-baselines3)"),
    "eval": Command("eval", "eval_robot.rollout:EvalConfig", "eval_robot.rollout:run", "success rate of a policy, with its interval"),
    "eval best-of": Command("eval_best_of", "eval_robot.best_of:BestOfConfig", "eval_robot.best_of:run", "the best of a run's checkpoints, as earlier tables report it, and by how much that is too high", "reports*"),
    "study plan": Command("study_plan", "eval_robot.plan:PlanConfig", "eval_robot.plan:run", "episodes and hours that a study needs to see a gain"),
    "study": Command("study", "eval_robot.study:StudyConfig", "eval_robot.study:run", "encoders x tasks x training seeds under one protocol, resumable"),
    "compare": Command("compare", "eval_robot.compare:CompareConfig", "eval_robot.compare:run", "paired table of several reports, or the tables of a study's directory", "reports*"),
    "report": Command("report", "eval_robot.report:ReportConfig", "eval_robot.report:run", "one HTML page from several reports", "reports*"),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 checked and found wanting, 2 the user's mistake, 130 stopped."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    try:
        name, command, rest = _find(words)
        if any(word in ("-h", "--help") for word in rest):
            print(_describe(name, command))
            return 0
        config = compose(command, rest)
        code = _load(command.run)(config)
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        print("\negoarm: stopped; the same command again goes on from what is done", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("EGOARM_DEBUG"):
            raise
        print(f"egoarm: error: {_explain(error)}", file=sys.stderr)
        return 2


def compose(command: Command, words: Sequence[str]) -> Any:
    """The command's frozen config from its YAML and the user's words; ValueError names the unknown or ill-typed key."""
    import dacite
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    overrides = [word for word in words if "=" in word]
    bare = [word for word in words if "=" not in word]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        defaults = OmegaConf.to_container(hydra_compose(command.config))
        assert isinstance(defaults, dict)
        keys = _flat_keys(defaults)
        if bare and not command.positional:
            raise ValueError(f"'{bare[0]}' is not an override; write key=value, with one of: {', '.join(keys)}")
        try:
            composed = hydra_compose(command.config, overrides)
            values = OmegaConf.to_container(composed, resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(_override_error(keys, overrides, error)) from error
    assert isinstance(values, dict)
    field = command.positional.removesuffix("*")
    if missing := [key for key, value in values.items() if value == "???" and not (bare and key == field)]:
        raise ValueError(
            f"{', '.join(f'{key}=' for key in missing)} must be given; egoarm COMMAND --help says what it is"
        )
    if bare:
        if not command.positional.endswith("*") and len(bare) > 1:
            raise ValueError(f"one {field} expected, {len(bare)} given: {' '.join(bare)}")
        values[field] = bare if command.positional.endswith("*") else bare[0]
    cls = _load(command.dataclass)
    try:
        return dacite.from_dict(cls, _tuples(values), dacite.Config(strict=True, type_hooks={float: _as_float}))
    except dacite.WrongTypeError as error:
        raise ValueError(
            f"{error.field_path}={error.value!r} has the wrong type: expected {error.field_type}, "
            f"got {type(error.value).__name__}"
        ) from error
    except dacite.DaciteError as error:
        raise ValueError(f"{CONFIGS / command.config}.yaml and {command.dataclass} differ: {error}") from error


def _find(words: list[str]) -> tuple[str, Command, list[str]]:
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, COMMANDS[name], words[length:]
    group = [name for name in COMMANDS if name.startswith(words[0] + " ")]
    if group:
        raise ValueError(f"'{' '.join(words[:2])}' is not a command; there is: {', '.join(group)}")
    close = difflib.get_close_matches(words[0], COMMANDS, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise ValueError(f"unknown command '{words[0]}'{hint} Commands: {', '.join(COMMANDS)}")


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _flat_keys(values: dict[Any, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in values.items():
        keys += _flat_keys(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]
    return keys


def _override_error(keys: Sequence[str], overrides: Sequence[str], error: Exception) -> str:
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        if key not in keys and not any(known.startswith(key + ".") for known in keys):
            close = difflib.get_close_matches(key, keys, n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            return f"unknown override '{key}': {hint}This command takes: {', '.join(keys)}"
    hint = "; write several values as key=[a,b]" if any("," in override for override in overrides) else ""
    return f"cannot read the overrides {list(overrides)}: {str(error).splitlines()[0]}{hint}"


def _as_float(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _explain(error: BaseException) -> str:
    import errno

    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = error.filename or "the output directory"
        return f"the disk is full while writing {where}; nothing half-written was kept. Free some space and run the same command again"
    hint = "" if isinstance(error, (ValueError, OSError)) else " (EGOARM_DEBUG=1 shows the traceback)"
    return (str(error) or type(error).__name__) + hint


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["egoarm COMMAND [key=value ...]", "", *lines, "", "egoarm COMMAND --help lists a command's keys and defaults."]
    )


def _describe(name: str, command: Command) -> str:
    positional = f" {command.positional.removesuffix('*').upper()}" if command.positional else ""
    text = (CONFIGS / f"{command.config}.yaml").read_text()
    return f"egoarm {name}{positional} [key=value ...]\n\n{command.help}\n\nKeys and defaults:\n\n{text}"


if __name__ == "__main__":
    raise SystemExit(main())
