"""A compiled scene: sets hands, things and joints by pose, and measures distances between their solid shapes."""

from __future__ import annotations

import numpy as np

from pretrain.clips.sources.synthetic.hands import FINGER_JOINTS, FINGERS, SIDES, arm_poses, joint_places
from pretrain.clips.sources.synthetic.objects import ObjectModel

NOWHERE_Z = -2.0  # below the floor
FAR = 1.0  # distances are cut off here, metres


class World:
    """A MuJoCo model of a scene with two hands and named things "object 0", "object 1", ...

    Attributes:
        model, data: MuJoCo's.
        things: the models of the things, in order.
        support: ids of the solid geoms of the table.
        finger_geoms: per side, per finger, ids of its solid shapes from the knuckle to the tip.
        palm_geoms: per side, ids of the palm's solid shapes.
        thing_geoms: per thing, ids of its solid shapes; `grip_geoms` of its handle, `moving_geoms` of its jointed part.
    """

    def __init__(self, spec, things: list[ObjectModel]) -> None:
        import mujoco

        self._mujoco = mujoco
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)
        self.things = things
        model = self.model
        names = [model.geom(i).name for i in range(model.ngeom)]
        body_names = [model.body(i).name for i in range(model.nbody)]

        def mocap(name: str) -> int:
            return int(model.body_mocapid[body_names.index(name)])

        self._palm = {side: mocap(f"{side}/palm") for side in SIDES}
        self._arm = {side: (mocap(f"{side}/forearm"), mocap(f"{side}/upper arm")) for side in SIDES}
        self._camera = mocap("head")
        self._thing = [mocap(f"object {i}") for i in range(len(things))]
        self._shadow = [mocap(f"shadow {i}") for i in range(len(things))]
        self._fingers = {
            side: np.array([int(model.joint(f"{side}/{joint}").qposadr[0]) for joint in FINGER_JOINTS])
            for side in SIDES
        }
        self._joint = {
            i: int(model.joint(f"object {i}/joint").qposadr[0]) for i, thing in enumerate(things) if thing.joint
        }
        self.limits = {
            side: np.array([model.joint(f"{side}/{joint}").range for joint in FINGER_JOINTS]) for side in SIDES
        }
        self.finger_geoms = {
            side: {
                finger: [names.index(f"{side}/C_{finger.lower()}{part}") for part in ("proximal", "middle", "distal")]
                for finger in FINGERS
            }
            for side in SIDES
        }
        self.palm_geoms = {
            side: [names.index(f"{side}/{shape}") for shape in ("C_palm0", "C_palm1", "C_lfmetacarpal")]
            for side in SIDES
        }
        self.hand_geoms = {
            side: self.palm_geoms[side] + [geom for geoms in self.finger_geoms[side].values() for geom in geoms]
            for side in SIDES
        }
        self.thing_geoms = [
            [g for g, name in enumerate(names) if name.startswith(f"object {i}/solid")] for i in range(len(things))
        ]
        self.grip_geoms = [
            [g for g, name in enumerate(names) if name.startswith(f"object {i}/solid") and name.endswith("grip")]
            for i in range(len(things))
        ]
        self.moving_geoms = [
            [g for g in geoms if body_names[model.geom_bodyid[g]].endswith("/part")] for geoms in self.thing_geoms
        ]
        self.support = [g for g, name in enumerate(names) if name.startswith("support")]
        places = [place for side in SIDES for place in joint_places(side)]
        self._joint_bodies = np.array([body_names.index(body) for body, _ in places])
        self._joint_points = np.array([point for _, point in places])
        self._body_of_geom = model.geom_bodyid
        self._body_names = body_names

    def set_hand(self, side: str, palm: np.ndarray, fingers: np.ndarray, shoulder: np.ndarray | None = None) -> None:
        """Poses a palm and its fingers; with a shoulder position, the arm too."""
        self._set_mocap(self._palm[side], palm)
        self.data.qpos[self._fingers[side]] = fingers
        if shoulder is not None:
            for index, pose in zip(self._arm[side], arm_poses(palm, shoulder, side), strict=True):
                self._set_mocap(index, pose)

    def hand_joints(self) -> np.ndarray:
        """float64[2,21,3]: the joints of the left and the right hand in the world, in the order of HAND_JOINTS."""
        rotations = self.data.xmat[self._joint_bodies].reshape(-1, 3, 3)
        joints = self.data.xpos[self._joint_bodies] + np.einsum("jab,jb->ja", rotations, self._joint_points)
        return joints.reshape(len(SIDES), -1, 3)

    def set_thing(self, index: int, pose: np.ndarray) -> None:
        """Poses a thing; its spot of shadow lies under it while it stands on the table, and nowhere else."""
        self._set_mocap(self._thing[index], pose)
        yaw = np.arctan2(pose[1, 0], pose[0, 0]) / 2
        standing = abs(pose[2, 3]) < 0.002
        self.data.mocap_pos[self._shadow[index]] = [pose[0, 3], pose[1, 3], 0.0 if standing else NOWHERE_Z]
        self.data.mocap_quat[self._shadow[index]] = [np.cos(yaw), 0.0, 0.0, np.sin(yaw)]

    def set_joint(self, index: int, value: float) -> None:
        self.data.qpos[self._joint[index]] = value

    def set_camera(self, world_from_camera: np.ndarray) -> None:
        """Poses the head camera, given in the OpenCV convention."""
        self._set_mocap(self._camera, world_from_camera @ np.diag([1.0, -1.0, -1.0, 1.0]))

    def _set_mocap(self, index: int, pose: np.ndarray) -> None:
        quat = np.empty(4)
        self._mujoco.mju_mat2Quat(quat, np.ascontiguousarray(pose[:3, :3]).ravel())
        self.data.mocap_pos[index] = pose[:3, 3]
        self.data.mocap_quat[index] = quat

    def update(self) -> None:
        """Recomputes where every body and geom is."""
        self._mujoco.mj_kinematics(self.model, self.data)

    def update_for_display(self) -> None:
        self.update()
        self._mujoco.mj_comPos(self.model, self.data)
        self._mujoco.mj_camlight(self.model, self.data)

    def distance(self, first: list[int], second: list[int], limit: float = FAR) -> float:
        """The smallest signed distance between two groups of geoms, at most `limit`; negative = penetration depth."""
        if not first or not second:
            return limit
        centre, radius = self.data.geom_xpos, self.model.geom_rbound
        gaps = np.linalg.norm(centre[first][:, None] - centre[second][None], axis=2)
        least = gaps - radius[first][:, None] - radius[second][None]  # bounding spheres: no pair is nearer than this
        closest = limit
        for place in np.argsort(least, axis=None, kind="stable"):
            a, b = divmod(int(place), len(second))
            if least[a, b] > closest:
                break
            gap = self._mujoco.mj_geomDistance(self.model, self.data, first[a], second[b], closest + 0.01, None)
            closest = min(closest, gap)
        return closest

    def segmentation_ids(self) -> np.ndarray:
        """uint8[ngeom]: what each geom's pixels are called: 1 left hand, 2 right hand, 3 + i thing i, 0 anything else."""
        table = np.zeros(self.model.ngeom, np.uint8)
        for geom, body in enumerate(self._body_of_geom):
            owner = self._body_names[body].split("/")[0]
            if owner in SIDES:
                table[geom] = 1 + SIDES.index(owner)
            elif owner.startswith("object "):
                table[geom] = 3 + int(owner.split()[1])
        return table
