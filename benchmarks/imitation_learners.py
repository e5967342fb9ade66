"""Whether the learners are right: BC, ACT and diffusion from 50 demonstrations of robosuite/lift with state observations.

python -m benchmarks.imitation_learners --check                                # exits 1 when one is below 90 % over 50 held-out seeds
python -m benchmarks.imitation_learners --split selection --out /tmp/tuning    # while settings are chosen

Before an encoder is judged by a policy, the policy must solve a task whose whole state it sees. Each stage is the `egoarm` command printed, and
what is done is kept, so a run that is stopped goes on; on the test seeds a policy is evaluated once, as it stands after its fixed budget.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from egoarm import main as egoarm
from eval_robot.compare import compare, markdown
from eval_robot.records import load_report
from pretrain.artifact import atomic_write_text, load_artifact

TASK = "robosuite/lift"
REQUIRED_RATE = 0.9
# What differs from each policy's own recipe (POLICIES in policies/policy.py): networks and budgets that one core trains in minutes.
SETTINGS: dict[str, list[str]] = {
    "bc": [],
    "act": ["act.width=64", "act.feedforward=128", "chunk_steps=8", "epochs=100", "lr=0.001"],
    "diffusion": ["epochs=200", "batch_size=128", "lr=0.001", "execute_steps=4"],
}


def main() -> int:
    """Run what is not there yet; the exit status."""
    arguments = _parse()
    demos = arguments.work / "lift.hdf5"
    arguments.work.mkdir(parents=True, exist_ok=True)
    commands = [
        ["demos", f"task={TASK}", "episodes=50", "level=clean", "cameras=[]", "privileged=true", f"out={demos}"]
    ]
    reports = {}
    for policy in arguments.policies:
        path = arguments.work / policy
        commands.append(
            ["train", f"policy={policy}", f"demos={demos}", "state_keys=[state/full]", f"label={policy}", f"out={path}", *SETTINGS[policy]]
        )  # fmt: skip
        reports[policy] = arguments.out / f"lift-{policy}.jsonl"
        commands.append(
            ["eval", f"policy={path}", f"split={arguments.split}", f"episodes={arguments.episodes}", f"out={reports[policy]}"]
        )  # fmt: skip
    for words in commands:
        if words[0] == "eval" and _evaluated(Path(words[-1].removeprefix("out=")), words[1].removeprefix("policy=")):
            continue
        print(f"$ egoarm {shlex.join(words)}", flush=True)
        if code := egoarm(words):
            return code
    loaded = {policy: load_report(path) for policy, path in reports.items()}
    table = markdown(compare(list(loaded.values())))
    atomic_write_text(arguments.out / "README.md", _page(arguments, commands, table))
    print(table + f"written: {arguments.out / 'README.md'}")
    rates = {policy: report.successes / len(report.episodes) for policy, report in loaded.items()}
    print(f"{TASK} from 50 demonstrations: " + ", ".join(f"{policy} {rate:.0%}" for policy, rate in rates.items()))
    return int(arguments.check and min(rates.values()) < REQUIRED_RATE)


def _evaluated(report: Path, policy: str) -> bool:
    """Whether the report there is of this policy: test seeds are met once."""
    return report.is_file() and load_report(report).header["policy_sha256"] == load_artifact(policy).sha256


def _page(arguments: argparse.Namespace, commands: list[list[str]], table: str) -> str:
    lines = [
        f"# The learners on {TASK}, from its whole state",
        "",
        f"50 expert demonstrations, `state/full` as the only observation, one training seed, {arguments.episodes} episodes of the {arguments.split} "
        "seeds, each policy as it stands after its fixed budget. Made by `python -m benchmarks.imitation_learners`.",
        "",
        table,
        "| policy | steps | seconds of training | actions at once | run before asking again | temporal ensembling |",
        "|---|---|---|---|---|---|",
    ]
    for policy in arguments.policies:
        artifact = load_artifact(arguments.work / policy)
        spec, provenance = artifact.spec, artifact.provenance
        decay = spec["ensemble_decay"]
        lines.append(
            f"| {policy} | {provenance['step']} | {provenance['wall_time_s']:.0f} | {spec['chunk_steps']} | {spec['execute_steps']} | "
            f"{'no' if decay is None else f'm = {decay:g}'} |"
        )
    lines += ["", "```", *(f"egoarm {shlex.join(words)}" for words in commands), "```", ""]
    return "\n".join(lines)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--policies", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), help="which ones")
    parser.add_argument("--work", type=Path, default=Path("runs/policies"), help="demonstrations and policies")
    parser.add_argument("--out", type=Path, default=Path("results/policies"), help="reports and the table")
    parser.add_argument("--split", default="test", choices=["test", "selection"], help="of the evaluation's seeds")
    parser.add_argument("--episodes", type=int, default=50, help="of each policy")
    parser.add_argument("--check", action="store_true", help=f"exit 1 when one is below {REQUIRED_RATE:.0%}")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
