"""The spec: hash, round trip, difference."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.spec import EnvSpec, FieldSpec
from envs.tasks import TASKS, make_env

STATE_FIELDS = st.builds(
    FieldSpec,
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    dtype=st.just("float32"),
    unit=st.sampled_from(["m", "rad", "1"]),
    convention=st.text(max_size=20),
    low=st.none() | st.floats(-10, -1),
    high=st.none() | st.floats(1, 10),
)
SPECS = st.builds(
    EnvSpec,
    task=st.text(min_size=1, max_size=10),
    control_hz=st.floats(0.5, 500),
    horizon_steps=st.integers(1, 1000),
    observation=st.dictionaries(
        st.text("abc_", min_size=1).map(lambda name: f"state/{name}"), STATE_FIELDS, max_size=4
    ),
    action=STATE_FIELDS,
)


@settings(deadline=None)
@given(SPECS)
def test_json_round_trip(spec):
    again = EnvSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec and again.schema_hash() == spec.schema_hash()


@settings(deadline=None)
@given(SPECS, SPECS)
def test_equal_hash_equal_spec_no_difference(one, two):
    assert (one == two) == (one.schema_hash() == two.schema_hash()) == (not one.difference(two))
    assert len(one.difference(two)) == len(two.difference(one))


def test_hash_does_not_depend_on_the_order_of_observations():
    fields = {"state/a": field(), "state/b": field(unit="rad")}
    one, two = (make_spec(observation=dict(items)) for items in (fields.items(), reversed(fields.items())))
    assert one.schema_hash() == two.schema_hash()


def test_hash_and_difference_tell_what_changed():
    base = make_env("toy/reach")
    changed = {
        "image size": (make_env("toy/reach", image_size=64).env_spec, "observation.images/front.shape"),
        "cameras": (make_env("toy/reach", cameras=()).env_spec, "observation.images/front"),
        "state": (make_env("toy/reach", privileged=True).env_spec, "observation.state/full"),
        "horizon": (dataclasses.replace(base.env_spec, horizon_steps=7), "horizon_steps: 60 != 7"),
        "task": (dataclasses.replace(base.env_spec, task="toy/other"), "task: toy/reach != toy/other"),
    }
    hashes = {base.env_spec.schema_hash()}
    for spec, text in changed.values():
        hashes.add(spec.schema_hash())
        assert any(text in line for line in base.env_spec.difference(spec)), base.env_spec.difference(spec)
    assert len(hashes) == 1 + len(changed)


def test_tasks_have_different_hashes():
    # drawer-open and drawer-close are the same furniture and the same fields.
    tasks = [task for task in TASKS if "drawer" in task]
    hashes = {make_env(task, cameras=()).env_spec.schema_hash() for task in tasks}
    assert len(hashes) == len(tasks) >= 2


def test_appearance_and_quality_are_no_part_of_the_spec():
    one, two = make_env("toy/reach"), make_env("toy/reach", level="varied-2", quality="full")
    assert one.env_spec == two.env_spec


def field(**changes) -> FieldSpec:
    return FieldSpec(**{"shape": (2,), "dtype": "float32", "unit": "m", "convention": "x, y", **changes})


def make_spec(**changes) -> EnvSpec:
    return EnvSpec(
        **{
            "task": "t",
            "control_hz": 20.0,
            "horizon_steps": 5,
            "observation": {"state/a": field()},
            "action": field(),
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: field(dtype="float64"), "float64.*uint8, float32"),
        (lambda: field(shape=(0,)), "shape"),
        (lambda: field(low=1.0, high=0.0), "low 1.0"),
        (lambda: make_spec(horizon_steps=0), "horizon_steps 0"),
        (lambda: make_spec(observation={"pixels": field()}), "'pixels'"),
        (lambda: make_spec(observation={"images/a": field()}), "'images/a' of type float32"),
        (lambda: EnvSpec.from_json({"task": "t"}), "expected the keys task, control_hz"),
        (lambda: EnvSpec.from_json({**make_spec().to_json(), "speed": 1}), "speed"),
    ],
)
def test_mistakes_are_named(make, text):
    with pytest.raises(ValueError, match=text):
        make()
