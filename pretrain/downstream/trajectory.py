"""Errors of an estimated camera trajectory: ATE, RTE and RRE after an alignment, whose name every figure carries.

What a figure says depends on what the alignment forgives, and papers seldom say which they took:

- "first-frame": the estimate is moved so that its first pose is the true one. Nothing else is forgiven: scale must be metric,
  a wrong rotation at the start turns all that follows. This is what a user of the trajectory meets.
- "SE(3)": the rotation and translation that bring all positions nearest (Umeyama 1991 without scale).
- "Sim(3)": also one scale (Umeyama 1991): what monocular odometry, which cannot know metres, is compared by. A scale of almost
  0 is allowed, so every estimate is at least as good as a camera that stands still; and where the true camera stands still
  the ATE is 0 whatever was estimated.

An alignment multiplies from the left, so it leaves relative motions alone: RRE is the same after all three, RTE differs by
the scale only. ATE is Sturm et al. 2012 (IROS, equation 2), RTE and RRE its relative pose error over one step (equation 1);
all are root mean squares over the poses of a clip, as `evo` prints them first.

Axes: n poses of a trajectory, m trajectories.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64
from scipy.spatial.transform import Rotation, Slerp

FIRST_FRAME, SE3, SIM3 = "first-frame", "SE(3)", "Sim(3)"
ALIGNMENTS = (FIRST_FRAME, SE3, SIM3)

# R'R - 1 of poses that went through float32 stays far below; a matrix beyond is no rotation.
_ORTHONORMAL = 1e-3
_LEAST_POSES = 2


@dataclass(frozen=True, kw_only=True)
class TrajectoryErrors:
    """Errors of one clip's trajectory.

    Attributes:
        alignment: one of ALIGNMENTS.
        ate_m: root mean square distance of the positions, metres.
        rte_m: root mean square error of the translation of a step, metres.
        rre_degrees: root mean square angle of the error of a step's rotation, degrees.
        scale: what the estimate was multiplied by.
    """

    alignment: str
    ate_m: float
    rte_m: float
    rre_degrees: float
    scale: float


def trajectory_errors(
    estimated: Float[np.ndarray, "n 4 4"], true: Float[np.ndarray, "n 4 4"], alignment: str, *, step: int = 1
) -> TrajectoryErrors:
    """Errors of world_from_camera poses at the same times, after one alignment.

    With Q the true and P the aligned poses: ATE = rms |trans(P_i) - trans(Q_i)|, and of
    E_i = (Q_i^-1 Q_{i+step})^-1 (P_i^-1 P_{i+step}) RTE = rms |trans(E_i)| and RRE = rms angle(E_i).

    Args:
        step: poses that a relative motion spans.

    Raises:
        ValueError: not the same number of rigid motions, fewer than `step` + 1, or an unknown alignment.
    """
    estimated, true = check_trajectory("estimated", estimated), check_trajectory("true", true)
    if len(estimated) != len(true):
        raise ValueError(f"trajectory: {len(estimated)} estimated poses for {len(true)} true ones; give the same times")
    if not 1 <= step < len(true):
        raise ValueError(f"trajectory: step={step} of {len(true)} poses: expected 1 to {len(true) - 1}")
    if alignment not in _ALIGN:
        raise ValueError(f"trajectory: alignment={alignment!r}: expected one of {', '.join(ALIGNMENTS)}")
    aligned, scale = _ALIGN[alignment](estimated, true)
    distance = np.linalg.norm(aligned[:, :3, 3] - true[:, :3, 3], axis=1)
    error = inverse(_steps(true, step)) @ _steps(aligned, step)
    return TrajectoryErrors(
        alignment=alignment,
        ate_m=_rms(distance),
        rte_m=_rms(np.linalg.norm(error[:, :3, 3], axis=1)),
        rre_degrees=_rms(rotation_angle_degrees(error[:, :3, :3])),
        scale=scale,
    )


# ------------------------------------------------------------------------------------------------------------ alignment


def align_first_frame(
    estimated: Float64[np.ndarray, "n 4 4"], true: Float64[np.ndarray, "n 4 4"]
) -> tuple[Float64[np.ndarray, "n 4 4"], float]:
    """(the estimate moved so that its first pose is the true one, scale 1)."""
    return true[0] @ inverse(estimated[:1])[0] @ estimated, 1.0


def align_se3(
    estimated: Float64[np.ndarray, "n 4 4"], true: Float64[np.ndarray, "n 4 4"]
) -> tuple[Float64[np.ndarray, "n 4 4"], float]:
    """(the estimate moved so that all positions are nearest in least squares, scale 1)."""
    return _apply(estimated, *umeyama(estimated[:, :3, 3], true[:, :3, 3], with_scale=False))


def align_sim3(
    estimated: Float64[np.ndarray, "n 4 4"], true: Float64[np.ndarray, "n 4 4"]
) -> tuple[Float64[np.ndarray, "n 4 4"], float]:
    """(the estimate moved and scaled so that all positions are nearest in least squares, the scale)."""
    return _apply(estimated, *umeyama(estimated[:, :3, 3], true[:, :3, 3], with_scale=True))


def umeyama(
    source: Float64[np.ndarray, "n 3"], target: Float64[np.ndarray, "n 3"], *, with_scale: bool
) -> tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, " 3"], float]:
    """(R, t, c) that minimise sum |target - (c R source + t)|^2 (Umeyama 1991, equations 40 to 43; c = 1 without scale).

    Where the points lie on a line or in one place many rotations are as good; one of them is given, which changes neither the
    distances nor, through c, any relative motion. Points all in one place get c = 1.
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    from_source, from_target = source - source_mean, target - target_mean
    u, spread, v = np.linalg.svd(from_target.T @ from_source / len(source))
    sign = np.ones(3)
    if np.linalg.det(u) * np.linalg.det(v) < 0:
        sign[2] = -1  # a rotation, not a reflection
    rotation = (u * sign) @ v
    variance = float((from_source**2).sum() / len(source))
    # Below this all that is left of the source's motion is rounding.
    still = variance <= (1e-12 * max(1.0, float(np.abs(source).max()))) ** 2
    scale = float(spread @ sign) / variance if with_scale and not still else 1.0
    return rotation, target_mean - scale * rotation @ source_mean, scale


def _apply(
    poses: Float64[np.ndarray, "n 4 4"],
    rotation: Float64[np.ndarray, "3 3"],
    translation: Float64[np.ndarray, " 3"],
    scale: float,
) -> tuple[Float64[np.ndarray, "n 4 4"], float]:
    moved = poses.copy()
    moved[:, :3, :3] = rotation @ poses[:, :3, :3]
    moved[:, :3, 3] = scale * poses[:, :3, 3] @ rotation.T + translation
    return moved, scale


_Align = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, float]]
_ALIGN: dict[str, _Align] = {FIRST_FRAME: align_first_frame, SE3: align_se3, SIM3: align_sim3}


# ----------------------------------------------------------------------------------------------- trajectories without images


def still_camera(poses: int) -> Float64[np.ndarray, "n 4 4"]:
    """A camera that does not move."""
    return np.broadcast_to(np.eye(4), (poses, 4, 4)).copy()


def mean_motion(trajectories: Float[np.ndarray, "m n 4 4"]) -> Float64[np.ndarray, "n 4 4"]:
    """At each time the mean of some trajectories' poses relative to their own first one: positions by the plain mean, rotations
    by the chordal mean (the rotation nearest to the mean matrix; Hartley et al. 2013, IJCV, section 5.3).

    Raises:
        ValueError: no trajectory, or one that is no list of rigid motions.
    """
    if len(trajectories) == 0:
        raise ValueError("mean motion: no trajectory to take the mean of")
    relative = np.stack([relative_to_first(check_trajectory("given", each)) for each in trajectories])
    mean = relative.mean(axis=0)
    u, _, v = np.linalg.svd(mean[:, :3, :3])
    u[:, :, 2] *= np.linalg.det(u @ v)[:, None]
    mean[:, :3, :3] = u @ v
    return mean


def path_length(poses: Float64[np.ndarray, "n 4 4"]) -> float:
    """Metres from pose to pose, summed."""
    return float(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum())


def interpolate_poses(
    poses: Float64[np.ndarray, "n 4 4"], times_s: Float64[np.ndarray, " n"], wanted_s: Float64[np.ndarray, " k"]
) -> Float64[np.ndarray, "k 4 4"]:
    """Poses at other times: positions linearly, rotations along the shortest arc. Before the first and after the last pose
    the motion of the nearest step goes on, for at most one step's time.

    Raises:
        ValueError: times that do not increase, or that are more than a step away.
    """
    poses, times_s = check_trajectory("given", poses), np.asarray(times_s, np.float64)
    if times_s.shape != (len(poses),) or not (np.diff(times_s) > 0).all():
        raise ValueError(f"poses: expected {len(poses)} increasing times, got {times_s.tolist()}")
    first_step, last_step = times_s[1] - times_s[0], times_s[-1] - times_s[-2]
    if (wanted_s < times_s[0] - first_step - 1e-9).any() or (wanted_s > times_s[-1] + last_step + 1e-9).any():
        raise ValueError(
            f"poses from {times_s[0]:g} to {times_s[-1]:g} s cannot say where the camera was at {wanted_s.min():g} to "
            f"{wanted_s.max():g} s"
        )
    before = poses[0] @ inverse(poses[1:2])[0] @ poses[0]
    after = poses[-1] @ inverse(poses[-2:-1])[0] @ poses[-1]
    poses = np.concatenate([before[None], poses, after[None]])
    times_s = np.concatenate([[times_s[0] - first_step], times_s, [times_s[-1] + last_step]])
    wanted_s = np.clip(wanted_s, times_s[0], times_s[-1])
    result = still_camera(len(wanted_s))
    result[:, :3, :3] = Slerp(times_s, Rotation.from_matrix(poses[:, :3, :3]))(wanted_s).as_matrix()
    for axis in range(3):
        result[:, axis, 3] = np.interp(wanted_s, times_s, poses[:, axis, 3])
    return result


# --------------------------------------------------------------------------------------------------------- rigid motions


def check_trajectory(name: str, poses: Float[np.ndarray, "n 4 4"]) -> Float64[np.ndarray, "n 4 4"]:
    """The poses as float64.

    Raises:
        ValueError: not [n, 4, 4] with n of at least 2, or a pose that is not a finite rotation and translation.
    """
    poses = np.asarray(poses, np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or len(poses) < _LEAST_POSES:
        raise ValueError(f"{name} trajectory: expected [n, 4, 4] with n of {_LEAST_POSES} or more, got {poses.shape}")
    rotation = poses[:, :3, :3]
    error = np.abs(rotation.transpose(0, 2, 1) @ rotation - np.eye(3)).max(axis=(1, 2))
    # "not <=" finds NaN too.
    with np.errstate(invalid="ignore"):
        mirrored = ~(np.linalg.det(rotation) > 0)
    bad = ~(error <= _ORTHONORMAL) | mirrored | ~np.isfinite(poses).all(axis=(1, 2))
    bad |= np.abs(poses[:, 3] - (0, 0, 0, 1)).max(axis=1) > _ORTHONORMAL
    if bad.any():
        raise ValueError(
            f"{name} trajectory: pose {int(np.flatnonzero(bad)[0])} ({int(bad.sum())} of {len(poses)}) is no rigid motion: "
            "expected world_from_camera with a rotation, a finite translation in metres and last row 0 0 0 1"
        )
    return poses


def inverse(poses: Float64[np.ndarray, "n 4 4"]) -> Float64[np.ndarray, "n 4 4"]:
    """Of rigid motions."""
    result = np.zeros_like(poses)
    turned = poses[:, :3, :3].transpose(0, 2, 1)
    result[:, :3, :3] = turned
    result[:, :3, 3] = -(turned @ poses[:, :3, 3:])[:, :, 0]
    result[:, 3, 3] = 1
    return result


def relative_to_first(poses: Float64[np.ndarray, "n 4 4"]) -> Float64[np.ndarray, "n 4 4"]:
    """T_0^-1 T_i."""
    return inverse(poses[:1])[0] @ poses


def rotation_angle_degrees(rotation: Float64[np.ndarray, "n 3 3"]) -> Float64[np.ndarray, " n"]:
    """0 to 180. By the tangent of sine over cosine: arccos alone loses half the digits near 0."""
    skew = rotation - rotation.transpose(0, 2, 1)
    sine = 0.5 * np.linalg.norm(skew[:, (2, 0, 1), (1, 2, 0)], axis=1)
    cosine = 0.5 * (np.trace(rotation, axis1=1, axis2=2) - 1)
    return np.degrees(np.arctan2(sine, cosine))


def _steps(poses: Float64[np.ndarray, "n 4 4"], step: int) -> Float64[np.ndarray, "k 4 4"]:
    return inverse(poses[:-step]) @ poses[step:]


def _rms(values: Float64[np.ndarray, " n"]) -> float:
    return float(np.sqrt(np.mean(values**2)))
