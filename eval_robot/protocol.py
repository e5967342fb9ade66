"""What makes two success rates comparable: seed ranges, the checkpoint rule, the success rule, when episodes end.

Every report carries the id of its protocol, and reports of different protocols refuse to be compared.
"""

from __future__ import annotations

from dataclasses import dataclass

from policies.demos.collect import AUDIT_SEEDS, DEMO_SEEDS

# Disjoint ranges of episode seeds. Demonstrations never see a seed that a policy is selected or tested on, and nothing may be
# tuned on the test range; experts are audited on seeds that are none of these.
SEED_RANGES: dict[str, range] = {
    "demos": DEMO_SEEDS,
    "selection": range(100_000, 200_000),
    "test": range(200_000, 300_000),
    "audit": AUDIT_SEEDS,
}


# Which policy of a training run a number speaks of: the one at the end of a fixed budget, or the best of those evaluated.
CHECKPOINTS = ("last", "best-of-evaluated")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """An evaluation protocol.

    `checkpoint` "last": the policy at the end of its fixed budget, chosen before any rollout; "best-of-evaluated": the maximum over
    checkpoints of one run, on the seeds it is chosen on, and so too high. `stop` "fixed": as many episodes as were asked for; any
    other text says by which sequential test they end.
    """

    name: str
    split: str
    checkpoint: str
    success: str
    stop: str = "fixed"

    def __post_init__(self) -> None:
        if self.checkpoint not in CHECKPOINTS:
            raise ValueError(f"checkpoint={self.checkpoint}: expected one of {', '.join(CHECKPOINTS)}")

    @property
    def id(self) -> str:
        rules = f"{self.name}/{self.split}/{self.checkpoint}/{self.success}"
        return rules if self.stop == "fixed" else f"{rules}/{self.stop}"

    def seeds(self, episodes: int, offset: int = 0) -> list[int]:
        """The first `episodes` seeds of the split, from `offset` on: the same for every policy, so episodes are paired."""
        allowed = SEED_RANGES[self.split]
        if episodes < 1 or offset < 0 or offset + episodes > len(allowed):
            raise ValueError(
                f"episodes={episodes} from offset {offset}: the {self.split} range holds {len(allowed)} seeds, at least one is needed"
            )
        return list(allowed[offset : offset + episodes])


# Name -> checkpoint rule. r3m and cortexbench are there to make numbers of the habit of earlier tables and to show its bias: they
# report the best of about 20 checkpoints (R3M's max_success, CortexBench's highest_success) on the seeds it was chosen on. Their
# Meta-World rule, success at the last step, is not theirs here: an episode ends at the first success.
PROTOCOLS: dict[str, str] = {"egoarm-1": "last", "r3m": "best-of-evaluated", "cortexbench": "best-of-evaluated"}


def protocol(split: str, name: str = "egoarm-1", stop: str = "fixed") -> Protocol:
    """A named protocol on one split; an episode succeeds if it does at any step of the horizon.

    Raises:
        ValueError: an unknown name or split, with those there are.
    """
    if split not in ("selection", "test"):
        raise ValueError(f"split={split}: expected selection or test (demonstrations have a range of their own)")
    if name not in PROTOCOLS:
        raise ValueError(f"protocol={name}: expected one of {', '.join(PROTOCOLS)}")
    return Protocol(name=name, split=split, checkpoint=PROTOCOLS[name], success="any-step", stop=stop)


def check_disjoint(demo_seeds: list[int], evaluation_seeds: list[int], demos: str) -> None:
    """Raise ValueError if a seed of the demonstrations a policy learned from is about to be evaluated."""
    shared = sorted(set(demo_seeds) & set(evaluation_seeds))
    if shared:
        raise ValueError(
            f"{demos} holds demonstrations of {len(shared)} evaluation seeds (first: {shared[0]}); collect demos from seeds "
            f"{SEED_RANGES['demos'].start} to {SEED_RANGES['demos'].stop - 1}"
        )
