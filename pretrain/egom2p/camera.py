"""The camera trajectory as numbers a tokenizer can learn: nine a pose, relative to the clip's first pose.

Six for the rotation, its first two columns (Zhou et al. 2019, arXiv 1812.07035: no jump anywhere, unlike angles and
quaternions), three for the position in metres. Poses are `world_from_camera` in OpenCV's axes; a clip's world is the camera
of its first sample, so a trajectory says how the head moved and nothing of where the room's origin is.

Axes: B batch (any leading axes), P samples of the trajectory.
"""

import torch
from jaxtyping import Float
from torch import Tensor

CAMERA_CHANNELS = 9

# Per-channel statistics of the published tokenizer's training set.
PUBLISHED_CAMERA_MEAN = (0.93305040, 0.00441131, -0.00474551, -0.00403111, 0.96702217, 0.01229744,
                         0.00253670, -0.00253452, 0.03687088)  # fmt: skip
PUBLISHED_CAMERA_STD = (0.22410283, 0.15409595, 0.23538763, 0.15159239, 0.09890855, 0.17871061,
                        0.16229750, 0.11305995, 0.22450156)  # fmt: skip

# Entries of R^T R - 1 beyond this are no rounding: the matrix is not a rotation.
_ORTHONORMAL_TOLERANCE = 1e-3


def relative_to_first(world_from_camera: Float[Tensor, "*B P 4 4"]) -> Float[Tensor, "*B P 4 4"]:
    """T_i' = T_0^-1 T_i: poses in the first camera's frame.

    Raises:
        ValueError: a pose that is not a finite rigid motion.
    """
    check_poses(world_from_camera)
    rotation, position = world_from_camera[..., :3, :3], world_from_camera[..., :3, 3]
    first = rotation[..., :1, :, :].transpose(-1, -2)
    relative = torch.zeros_like(world_from_camera)
    relative[..., :3, :3] = first @ rotation
    relative[..., :3, 3] = (first @ (position - position[..., :1, :]).unsqueeze(-1)).squeeze(-1)
    relative[..., 3, 3] = 1
    return relative


def check_poses(world_from_camera: Float[Tensor, "*B P 4 4"]) -> None:
    """Raises ValueError unless every pose is a finite rotation with a position."""
    if world_from_camera.shape[-2:] != (4, 4):
        raise ValueError(f"camera poses: expected [..., 4, 4], got {list(world_from_camera.shape)}")
    rotation = world_from_camera[..., :3, :3].double()
    error = (rotation.transpose(-1, -2) @ rotation - torch.eye(3, dtype=torch.float64, device=rotation.device)).abs()
    worst = error.flatten(-2).amax(-1)
    # "not <=" so that NaN is found too.
    bad = ~(worst <= _ORTHONORMAL_TOLERANCE) | ~(torch.linalg.det(rotation) > 0)
    bad |= ~world_from_camera[..., :3, 3].isfinite().all(-1)
    if bad.any():
        first = int(bad.flatten().nonzero()[0])
        raise ValueError(
            f"camera poses: {int(bad.sum())} of {bad.numel()} are no rigid motions (first: number {first}, orthonormal to "
            f"{float(worst.flatten()[first]):.2g}): expected world_from_camera with a rotation matrix and metres"
        )


def poses_to_9d(poses: Float[Tensor, "*B P 4 4"]) -> Float[Tensor, "*B P 9"]:
    """[first column of R, second column of R, t] of each pose."""
    return torch.cat([poses[..., :3, 0], poses[..., :3, 1], poses[..., :3, 3]], dim=-1)


def poses_from_9d(code: Float[Tensor, "*B P 9"]) -> Float[Tensor, "*B P 4 4"]:
    """Poses from nine numbers each, whose six of rotation need not be orthonormal: Gram-Schmidt makes them so.

    b1 = a1 / |a1|, b2 = (a2 - (b1 . a2) b1) / |...|, b3 = b1 x b2, as columns (Zhou et al. 2019, equation 15). Where a
    column is (almost) zero or both point the same way any rotation would be as good: an axis takes its place.
    """
    a1, a2, position = code.split(3, dim=-1)
    b1 = _unit(a1, torch.tensor([1.0, 0.0, 0.0], dtype=code.dtype, device=code.device))
    rest = a2 - (b1 * a2).sum(-1, keepdim=True) * b1
    # The coordinate axis that b1 is farthest from, made perpendicular to it.
    axis = torch.nn.functional.one_hot(b1.abs().argmin(-1), 3).to(code.dtype)
    spare = axis - (b1 * axis).sum(-1, keepdim=True) * b1
    b2 = _unit(rest, spare / spare.norm(dim=-1, keepdim=True))
    b3 = torch.linalg.cross(b1, b2)
    poses = torch.zeros(*code.shape[:-1], 4, 4, dtype=code.dtype, device=code.device)
    poses[..., :3, :3] = torch.stack([b1, b2, b3], dim=-1)
    poses[..., :3, 3] = position
    poses[..., 3, 3] = 1
    return poses


def _unit(vector: Float[Tensor, "*B 3"], otherwise: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3"]:
    length = vector.norm(dim=-1, keepdim=True)
    tiny = length < 1e-6
    return torch.where(tiny, otherwise, vector / torch.where(tiny, 1.0, length))
