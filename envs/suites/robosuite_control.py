"""The inner loop of robosuite's operational-space controller, in a few array operations.

robosuite's controller objects take the action and set the goal once a control step; between two of them the law below turns goal and state into joint
torques at each physics step. It is the same law (Khatib, "A unified approach for motion and force control of robot manipulators: the operational space
formulation", 1987), at a fraction of the Python calls: these are most of a robosuite step's time.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from scipy.linalg.lapack import dposv

_POSTURE_STIFFNESS = 10.0  # 1/s^2, of the pull towards the first posture in the null space; robosuite's value


class OperationalSpaceLaw:
    """Joint torques of one arm.

    Args:
        model: the MuJoCo model.
        data: its state.
        robot: a robosuite robot with one arm whose part controller "right" is OSC_POSE of fixed impedance.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, robot: Any) -> None:
        self._model = model
        self._data = data
        self._robot = robot
        controller = robot.part_controllers["right"]
        self._site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE.value, controller.ref_name)
        self._dofs = np.array(controller.qvel_index)
        self._joints = np.array(controller.qpos_index)
        self._actuators = np.array(robot._ref_actuators_indexes_dict["right"])
        self._low, self._high = model.actuator_ctrlrange[self._actuators].T
        self._block = np.ix_(self._dofs, self._dofs)
        self._mass = np.empty((model.nv, model.nv))
        self._jacobian = np.empty((6, model.nv))
        self._identity = np.eye(len(self._dofs))

    def begin_control_step(self) -> None:
        """Take over the goal that the controller has just set."""
        controller = self._robot.part_controllers["right"]
        self._goal_pos = controller.origin_pos + controller.origin_ori @ controller.goal_pos
        self._goal_mat = controller.origin_ori @ controller.goal_ori
        self._stiffness, self._damping = controller.kp, controller.kd
        self._posture = controller.initial_joint

    def apply(self) -> None:
        """Write the torques for the present state, after `mj_step1`, to the actuators."""
        data = self._data
        mujoco.mj_fullM(self._model, self._mass, data.qM)
        mujoco.mj_jacSite(self._model, data, self._jacobian[:3], self._jacobian[3:], self._site)
        mass = self._mass[self._block]
        jacobian = self._jacobian[:, self._dofs]
        joint_vel = data.qvel[self._dofs]

        acceleration = np.empty(6)
        acceleration[:3] = self._goal_pos - data.site_xpos[self._site]
        acceleration[3:] = _turn_between(data.site_xmat[self._site].reshape(3, 3), self._goal_mat)
        acceleration *= self._stiffness
        acceleration -= self._damping * (jacobian @ joint_vel)

        response = _solve(mass, jacobian.T)  # joint acceleration per unit of force at the hand, [n, 6]
        mobility = jacobian @ response
        # Position and orientation are decoupled: each sees its own inertia.
        force = np.empty(6)
        force[:3] = _solve(mobility[:3, :3], acceleration[:3])
        force[3:] = _solve(mobility[3:, 3:], acceleration[3:])

        pull = _POSTURE_STIFFNESS * (self._posture - data.qpos[self._joints])
        posture = mass @ (pull - 2 * np.sqrt(_POSTURE_STIFFNESS) * joint_vel)
        # (I - J^T Lambda J M^-1) of the posture's torque: what the hand does not feel.
        felt = _solve(mobility, response.T @ posture)
        torque = jacobian.T @ (force - felt) + posture + data.qfrc_bias[self._dofs]
        data.ctrl[self._actuators] = np.minimum(np.maximum(torque, self._low), self._high)


def _solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """matrix^-1 right for a symmetric positive definite matrix; a third of the time of numpy's general solver at these sizes."""
    _, solution, failed = dposv(matrix, right)
    if failed:  # a straight arm cannot be pushed along itself: leave that direction alone, as robosuite does
        return np.linalg.pinv(matrix) @ right
    return solution


def _turn_between(current: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Half the sum of the cross products of the frames' axes: for small turns the rotation vector, world frame."""
    turn = goal @ current.T  # its skew part holds sin(angle) * axis
    return 0.5 * np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
