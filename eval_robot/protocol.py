"""What makes two success rates comparable: seed ranges, the checkpoint rule, the success rule.

Every report carries the id of its protocol, and reports of different protocols refuse to be compared.
"""

from __future__ import annotations

from dataclasses import dataclass

from policies.demos.collect import DEMO_SEEDS

# Three disjoint ranges of episode seeds. Demonstrations never see a seed that a policy is selected or tested on, and
# nothing may be tuned on the test range.
SEED_RANGES: dict[str, range] = {
    "demos": DEMO_SEEDS,
    "selection": range(100_000, 200_000),
    "test": range(200_000, 300_000),
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """An evaluation protocol. `checkpoint` "last": the policy at the end of its fixed budget, chosen before any rollout."""

    name: str
    split: str
    checkpoint: str
    success: str

    @property
    def id(self) -> str:
        return f"{self.name}/{self.split}/{self.checkpoint}/{self.success}"

    def seeds(self, episodes: int, offset: int = 0) -> list[int]:
        """The first `episodes` seeds of the split, from `offset` on: the same for every policy, so episodes are paired."""
        allowed = SEED_RANGES[self.split]
        if episodes < 1 or offset < 0 or offset + episodes > len(allowed):
            raise ValueError(
                f"episodes={episodes} from offset {offset}: the {self.split} range holds {len(allowed)} seeds, at least one is needed"
            )
        return list(allowed[offset : offset + episodes])


def protocol(split: str) -> Protocol:
    """EgoArm's protocol on one split: the last checkpoint, an episode succeeds if it does at any step of the horizon."""
    if split not in ("selection", "test"):
        raise ValueError(f"split={split}: expected selection or test (demonstrations have a range of their own)")
    return Protocol(name="egoarm-1", split=split, checkpoint="last", success="any-step")


def check_disjoint(demo_seeds: list[int], evaluation_seeds: list[int], demos: str) -> None:
    """Raise ValueError if a seed of the demonstrations a policy learned from is about to be evaluated."""
    shared = sorted(set(demo_seeds) & set(evaluation_seeds))
    if shared:
        raise ValueError(
            f"{demos} holds demonstrations of {len(shared)} evaluation seeds (first: {shared[0]}); collect demos from seeds "
            f"{SEED_RANGES['demos'].start} to {SEED_RANGES['demos'].stop - 1}"
        )
