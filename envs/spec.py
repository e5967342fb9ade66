"""What an observation and an action are: shapes, types, units and conventions, with a hash that demos and policies carry.

Observation keys are `images/<camera>` (uint8 [H, W, 3], RGB, upright) and `state/<name>` (float32). Actions are float32 in [-1, 1].
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

_DTYPES = ("uint8", "float32")


@dataclass(frozen=True, kw_only=True)
class FieldSpec:
    """One array of an observation or an action.

    Attributes:
        shape: without batch or time axes.
        dtype: "uint8" or "float32".
        unit: of each element, e.g. "m", "m/s", "1" for a pure number.
        convention: frame, order and direction in words.
        low: lower bound of every element, None where there is none.
        high: upper bound of every element, None where there is none.
    """

    shape: tuple[int, ...]
    dtype: str
    unit: str
    convention: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"field dtype {self.dtype!r}: expected one of {', '.join(_DTYPES)}")
        if any(size < 1 for size in self.shape):
            raise ValueError(f"field shape {self.shape}: every size must be at least 1")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"field bounds: low {self.low} must be below high {self.high}")


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """What a policy must know of an environment.

    The appearance level and the rendering quality are no part of it: a policy may be tried under shifts it was not trained on.

    Attributes:
        task: the row of `envs.tasks.TASKS`.
        control_hz: control steps a second of simulated time.
        horizon_steps: control steps until an episode is truncated.
        observation: field of each observation key.
        action: the action's field.
    """

    task: str
    control_hz: float
    horizon_steps: int
    observation: dict[str, FieldSpec]
    action: FieldSpec

    def __post_init__(self) -> None:
        if self.control_hz <= 0 or self.horizon_steps < 1:
            raise ValueError(
                f"{self.task}: control_hz {self.control_hz} and horizon_steps {self.horizon_steps} must be positive"
            )
        for key, field in self.observation.items():
            expected = {"images": "uint8", "state": "float32"}.get(key.split("/")[0])
            if "/" not in key or field.dtype != expected:
                raise ValueError(
                    f"{self.task}: observation {key!r} of type {field.dtype}; expected images/<camera> of type uint8 or state/<name> of type float32"
                )

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras, in the observation's order."""
        return tuple(key.removeprefix("images/") for key in self.observation if key.startswith("images/"))

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; `from_json` gives an equal spec back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def from_json(document: dict[str, Any]) -> EnvSpec:
        """The spec that `to_json` wrote.

        Raises:
            ValueError: a field is missing, surplus or of a wrong kind.
        """
        try:
            rest = dict(document)
            observation = {key: _field_from_json(field) for key, field in rest.pop("observation").items()}
            action = _field_from_json(rest.pop("action"))
            return EnvSpec(observation=observation, action=action, **rest)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"not an environment spec: {error}; expected the keys {', '.join(field.name for field in dataclasses.fields(EnvSpec))}"
            ) from error

    def schema_hash(self) -> str:
        """Hex sha256 of the spec's canonical JSON (sorted keys, no spaces)."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def difference(self, other: EnvSpec) -> list[str]:
        """One line for each entry in which `other` differs, "name: own value, other's value"; empty when they are equal."""
        own, others = _flatten(self.to_json()), _flatten(other.to_json())
        names = list(dict.fromkeys([*own, *others]))
        absent = "absent"
        return [
            f"{name}: {own.get(name, absent)} != {others.get(name, absent)}"
            for name in names
            if own.get(name, absent) != others.get(name, absent)
        ]


def _field_from_json(document: dict[str, Any]) -> FieldSpec:
    return FieldSpec(**{**document, "shape": tuple(document["shape"])})


def _flatten(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        # Camera and state names hold slashes, so that a dot separates the levels.
        name = f"{prefix}.{key}" if prefix else key
        flat.update(_flatten(value, name) if isinstance(value, dict) else {name: value})
    return flat


def image_field(image_size: int) -> FieldSpec:
    """The field of one camera's image."""
    return FieldSpec(
        shape=(image_size, image_size, 3),
        dtype="uint8",
        unit="1",
        convention="RGB, rows from top to bottom, upright",
        low=0,
        high=255,
    )
