"""The rows of Meta-World's tasks: all fifty of its third version, and two with wider placements.

Horizons are about 1.3 times the longest successful episode of the expert; the package's own 500 would triple the cost of every failed episode.
"""

from __future__ import annotations

from envs.task import Task

# Placements of our own, low and high corner of what the task's reset draws: `name-wide` is the task `name` with these.
# drawer-open: the drawer (x, y, z). assembly: the ring (x, y, z), then the peg's top.
WIDE: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "drawer-open": ((-0.2, 0.82, 0.0), (0.2, 0.95, 0.0)),
    "assembly": ((-0.1, 0.55, 0.02, -0.1, 0.75, 0.1), (0.1, 0.65, 0.02, 0.1, 0.85, 0.1)),
}


def _metaworld(name: str, horizon_steps: int, success_rule: str, notes: str, *, goal_marker: bool = False) -> Task:
    return Task(
        suite="metaworld",
        name=name,
        cameras=("corner4",),
        horizon_steps=horizon_steps,
        success_rule=success_rule,
        expert="metaworld",
        goal_marker=goal_marker,
        notes=notes,
    )


# Steps are those of the expert; without a remark it succeeded on each seed tried.
_ROWS = [
    _metaworld(
        "assembly",
        130,
        "ring around the peg: its centre within 2 cm of the peg in x, y and not above the peg's top",
        "the peg moves (x, y), the ring does not (assembly-wide moves both); the expert needs 83 to 99 steps",
    ),
    _metaworld(
        "basketball",
        200,
        "ball within 8 cm of the hoop's target, its height counting twice",
        "ball (x, y) and hoop (x, y) move; the expert needs 78 to 154 steps by a script of our own and fails on about 2 % of the seeds; the package's policy is late on 5 %",
    ),
    _metaworld(
        "bin-picking",
        360,
        "cube within 5 cm of the second bin's centre",
        "the cube moves (x, y); the expert needs 82 to 185 steps by a script of our own, mostly 90. The package's policy loses grasps and tries "
        "again (89 to 276 steps); the horizon was set for it and stays, as files depend on it",
    ),
    _metaworld(
        "box-close",
        140,
        "lid within 8 cm of its place on the box",
        "lid (x, y, where it falls) and box (x, y) move; the expert needs up to 107 steps by a script of our own; the package's policy fails on 14 % of the seeds",
    ),
    _metaworld(
        "button-press",
        85,
        "button within 2 cm, in y, of fully pressed",
        "the button moves (x, y); the expert needs 57 to 63 steps",
    ),
    _metaworld(
        "button-press-topdown",
        100,
        "button within 2.4 cm of fully pressed",
        "the button moves (x, y); the expert needs 58 to 75 steps",
    ),
    _metaworld(
        "button-press-topdown-wall",
        85,
        "button within 2.4 cm of fully pressed",
        "the button moves (x, y), a wall before it does not; the expert needs 51 to 64 steps",
    ),
    _metaworld(
        "button-press-wall",
        160,
        "button within 3 cm, in y, of fully pressed",
        "the button moves (x, y), a wall before it with it in x; the expert needs 59 to 70 steps, on one seed of 70 it needs 123 and on one it fails",
    ),
    _metaworld(
        "coffee-button",
        55,
        "the machine's button within 2 cm, in y, of fully pressed",
        "the machine moves (x, y); the expert needs 28 to 42 steps",
    ),
    _metaworld(
        "coffee-pull",
        115,
        "mug within 7 cm of the marker",
        "the machine with the mug (x, y) and the marker (x, y) move; the expert needs 68 to 87 steps",
        goal_marker=True,
    ),
    _metaworld(
        "coffee-push",
        80,
        "mug within 7 cm of its place under the machine",
        "mug (x, y) and machine (x, y) move; the expert needs 50 to 59 steps",
    ),
    _metaworld(
        "dial-turn",
        105,
        "the dial's mark within 7 cm of its target, to which it comes by a turn",
        "the dial moves (x, y); the expert needs 64 to 81 steps",
    ),
    _metaworld(
        "disassemble",
        270,
        "ring lifted by 15 cm, off the peg",
        "ring and peg move together (x, y); the expert needs 84 steps mostly and up to 209 by a script of our own and fails on about 2 % of the seeds; the package's policy fails on 8 % of the seeds",
    ),
    _metaworld(
        "door-close",
        100,
        "handle within 8 cm of closed",
        "the door moves (x, y); the expert needs 52 to 76 steps",
    ),
    _metaworld(
        "door-lock",
        170,
        "the lock's end within 2 cm, in z, of locked",
        "the door moves (x, y); the expert needs 56 to 131 steps",
    ),
    _metaworld(
        "door-open",
        160,
        "handle within 8 cm, in x, of 30 cm to the left of its place",
        "the door moves (x, y); the expert needs up to 129 steps by a script of our own; the package's policy fails on about 4 % of the seeds",
    ),
    _metaworld(
        "door-unlock",
        105,
        "the lock's end within 2 cm, in x, of unlocked",
        "the door moves (x, y); the expert needs 36 to 82 steps",
    ),
    _metaworld(
        "drawer-close",
        105,
        "handle within 6.5 cm of closed",
        "the drawer moves (x); the expert needs 78 or 79 steps",
    ),
    _metaworld(
        "drawer-open",
        125,
        "handle within 3 cm of 20 cm open",
        "the drawer moves (x; drawer-open-wide also moves it in y); the expert needs 86 to 92 steps. The marker would give the drawer's place away",
    ),
    _metaworld(
        "faucet-close",
        90,
        "the handle's end within 7 cm of closed",
        "the faucet moves (x, y); the expert needs 62 to 69 steps",
    ),
    _metaworld(
        "faucet-open",
        85,
        "the handle's end within 7 cm of open",
        "the faucet moves (x, y); the expert needs 55 to 65 steps",
    ),
    _metaworld(
        "hammer",
        105,
        "nail driven in by more than 9 cm",
        "the hammer moves (x, y), the block does not; the expert needs 59 to 79 steps",
    ),
    _metaworld(
        "hand-insert",
        95,
        "cube within 5 cm of the marker, which is in the hole",
        "cube (x, y) and marker (x, y, by 4 cm about the hole's centre) move; the expert needs 49 to 72 steps",
        goal_marker=True,
    ),
    _metaworld(
        "handle-press",
        65,
        "handle within 2 cm, in z, of pressed down",
        "the box with the handle moves (x, y); the expert needs 19 to 48 steps",
    ),
    _metaworld(
        "handle-press-side",
        70,
        "handle within 2 cm, in z, of pressed down",
        "the box with the handle moves (x, y); the expert needs 28 to 53 steps",
    ),
    _metaworld(
        "handle-pull",
        165,
        "handle within 5 cm, in z, of pulled up",
        "the box with the handle moves (x, y); the expert needs 90 to 127 steps",
    ),
    _metaworld(
        "handle-pull-side",
        150,
        "handle within 8 cm of pulled up",
        "the box with the handle moves (x, y); the expert needs 66 to 114 steps",
    ),
    _metaworld(
        "lever-pull",
        150,
        "lever turned up by 90 degrees, within 7.5 degrees",
        "the lever moves (x, y); the expert needs 63 to 117 steps",
    ),
    _metaworld(
        "peg-insert-side",
        140,
        "peg's head within 7 cm of the hole's inside, errors in y and z counting twice",
        "peg (x, y) and box (x, y) move; the expert needs up to 105 steps by a script of our own; the package's policy fails on 8 % of the seeds",
    ),
    _metaworld(
        "peg-unplug-side",
        225,
        "peg's end within 7 cm of pulled out",
        "the box with the peg moves (x, y); the expert needs 73 to 170 steps and fails on 2 of 50 seeds",
    ),
    _metaworld(
        "pick-out-of-hole",
        165,
        "puck within 7 cm of the marker",
        "the marker moves (x, y, z), the hole with the puck does not; the expert needs 105 to 126 steps",
        goal_marker=True,
    ),
    _metaworld(
        "pick-place",
        85,
        "puck within 7 cm of the marker",
        "puck (x, y) and marker (x, y, z) move; the expert needs 44 to 62 steps",
        goal_marker=True,
    ),
    _metaworld(
        "pick-place-wall",
        185,
        "puck within 7 cm of the marker",
        "puck (x, y) and marker (x, y, z) move, the wall between them does not; the expert needs 72 to 142 steps",
        goal_marker=True,
    ),
    _metaworld(
        "plate-slide",
        70,
        "puck within 7 cm of the net's middle",
        "the net moves (x, y), the puck does not; the expert needs 47 to 54 steps",
    ),
    _metaworld(
        "plate-slide-back",
        110,
        "puck within 7 cm of the marker",
        "the marker moves (x); the expert needs 42 to 85 steps",
        goal_marker=True,
    ),
    _metaworld(
        "plate-slide-back-side",
        75,
        "puck within 7 cm of the marker",
        "the marker moves (x); the expert needs 36 to 56 steps",
        goal_marker=True,
    ),
    _metaworld(
        "plate-slide-side",
        70,
        "puck within 7 cm of the net's middle",
        "the net moves (x, y), the puck does not; the expert needs 44 to 53 steps",
    ),
    _metaworld(
        "push",
        100,
        "puck within 5 cm of the marker",
        "puck and marker move (x, y); the expert needs 46 to 75 steps, on one seed of 200 it needs 211",
        goal_marker=True,
    ),
    _metaworld(
        "push-back",
        180,
        "puck within 7 cm of the marker",
        "puck and marker move (x, y); the expert needs 78 to 137 steps by a script of our own; the package's policy fails on 6 % of the seeds",
        goal_marker=True,
    ),
    _metaworld(
        "push-wall",
        120,
        "puck within 7 cm of the marker",
        "puck and marker move (x, y), the wall between them does not; the expert needs 62 to 91 steps",
        goal_marker=True,
    ),
    _metaworld(
        "reach",
        115,
        "fingers' centre within 5 cm of the marker",
        "marker (x, y, z) and an unused puck move; the expert needs 32 to 89 steps",
        goal_marker=True,
    ),
    _metaworld(
        "reach-wall",
        95,
        "fingers' centre within 5 cm of the marker",
        "marker (x, y, z) and an unused puck move, a wall before the marker does not; the expert needs 35 to 72 steps",
        goal_marker=True,
    ),
    _metaworld(
        "shelf-place",
        165,
        "block within 7 cm of the shelf's middle",
        "block (x, y) and shelf (x, y) move; the expert needs up to 126 steps by a script of our own; the package's policy fails on 4 % of the seeds",
    ),
    _metaworld(
        "soccer",
        165,
        "ball within 7 cm of the goal's middle, errors in x counting three times",
        "ball (x, y) and goal (x, y) move; the expert needs 62 to 125 steps by a script of our own and fails on about 4 % of the seeds, the package's policy on 12 %",
    ),
    _metaworld(
        "stick-pull",
        195,
        "stick through the thermos's ring, and the ring within 12 cm of the marker",
        "stick (x, y) and marker (x, y) move, the thermos does not; the expert needs 116 to 149 steps by a script of our own and fails on about 2 % of the seeds, the package's policy fails on 14 %",
        goal_marker=True,
    ),
    _metaworld(
        "stick-push",
        110,
        "thermos within 12 cm of the marker while the stick is held",
        "stick (x, y) and marker (y) move, the thermos does not; the expert needs 66 to 82 steps",
        goal_marker=True,
    ),
    _metaworld(
        "sweep",
        145,
        "cube within 5 cm of its place at the table's right edge, straight across from where it lay",
        "the cube moves (x, y) and its place with it (y); the expert needs 69 to 111 steps",
    ),
    _metaworld(
        "sweep-into",
        80,
        "cube within 5 cm of the hole",
        "the cube moves (x, y), the hole does not; the expert needs up to 62 steps by a script of our own; the package's policy fails on 8 % of the seeds",
    ),
    _metaworld(
        "window-close",
        115,
        "handle within 5 cm of closed",
        "the window moves (y); the expert needs 76 to 88 steps",
    ),
    _metaworld(
        "window-open",
        125,
        "handle within 5 cm of open",
        "the window moves (x, y); the expert needs 77 to 96 steps",
    ),
    _metaworld(
        "assembly-wide",
        195,
        "as assembly: ring around the peg",
        "placements of our own: the ring moves too (x by 20 cm, y by 10 cm), the peg as in assembly; the expert needs 78 to 150 steps and fails on one seed of 70",
    ),
    _metaworld(
        "drawer-open-wide",
        130,
        "handle within 3 cm of 20 cm open",
        "placements of our own: the drawer moves by 40 cm in x and 13 cm in y, in drawer-open by 20 cm in x only; the expert needs 61 to 99 steps",
    ),
]

TASKS: dict[str, Task] = {f"metaworld/{row.name}": row for row in _ROWS}
