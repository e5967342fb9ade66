"""Triangle meshes for the synthetic clips: readers of installed files, mirroring, simplification and procedural shapes.

Every function returns `Mesh(vertices float64[V,3] metres, faces int32[F,3] counter-clockwise from outside,
texcoords float64[V,2] or None)`.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

STL_FACE = np.dtype([("normal", "<f4", (3,)), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def installed_package(name: str) -> Path:
    """The folder of an installed package, without importing it: robosuite takes a second to import and prints warnings.

    Raises:
        FileNotFoundError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the package {name} is not installed; install it with: pip install 'egoarm[robots]'")
    return Path(next(iter(spec.submodule_search_locations)))


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Triangles with shared vertices; `texcoords` has one row a vertex when the mesh carries a texture mapping."""

    vertices: np.ndarray
    faces: np.ndarray
    texcoords: np.ndarray | None = None

    def mirrored_x(self) -> Mesh:
        """The mirror image in the plane x = 0, with the winding turned so that faces still look outwards."""
        return replace(self, vertices=self.vertices * [-1.0, 1.0, 1.0], faces=self.faces[:, [0, 2, 1]])

    def scaled(self, factor: float | np.ndarray) -> Mesh:
        return replace(self, vertices=self.vertices * factor)

    def shifted(self, offset: np.ndarray) -> Mesh:
        return replace(self, vertices=self.vertices + offset)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        return self.vertices.min(axis=0), self.vertices.max(axis=0)


def read_stl(path: Path, *, scale: float = 1.0) -> Mesh:
    """Reads a binary STL and merges equal corners.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a binary STL of the length that its header states.
    """
    data = path.read_bytes()
    n_faces = int.from_bytes(data[80:84], "little") if len(data) >= 84 else -1
    if len(data) != 84 + n_faces * STL_FACE.itemsize:
        raise ValueError(
            f"{path}: expected a binary STL; its length {len(data)} does not fit its header. Reinstall it."
        )
    corners = np.frombuffer(data, STL_FACE, offset=84)["corners"].reshape(-1, 3).astype(np.float64) * scale
    vertices, index = np.unique(np.round(corners, 7), axis=0, return_inverse=True)
    return _without_degenerate(Mesh(vertices=vertices, faces=index.reshape(-1, 3).astype(np.int32)))


def read_obj(path: Path) -> Mesh:
    """Reads the vertices, texture coordinates and polygons (as fans) of a Wavefront OBJ file."""
    positions: list[list[float]] = []
    mapping: list[list[float]] = []
    corners: dict[tuple[int, int], int] = {}
    faces: list[list[int]] = []
    for line in path.read_text().splitlines():
        kind, *values = line.split() or [""]
        if kind == "v":
            positions.append([float(value) for value in values[:3]])
        elif kind == "vt":
            mapping.append([float(value) for value in values[:2]])
        elif kind == "f":
            polygon = []
            for value in values:
                fields = value.split("/")
                key = (int(fields[0]) - 1, int(fields[1]) - 1 if len(fields) > 1 and fields[1] else -1)
                polygon.append(corners.setdefault(key, len(corners)))
            faces.extend([polygon[0], polygon[i], polygon[i + 1]] for i in range(1, len(polygon) - 1))
    if not faces:
        raise ValueError(f"{path}: expected an OBJ file with faces, found none. Reinstall the package that holds it.")
    keys = np.array(list(corners))
    texcoords = np.array(mapping)[keys[:, 1]] if mapping and (keys[:, 1] >= 0).all() else None
    return Mesh(vertices=np.array(positions)[keys[:, 0]], faces=np.array(faces, np.int32), texcoords=texcoords)


def simplified(mesh: Mesh, *, cell_m: float) -> Mesh:
    """Vertex clustering: all vertices in a cell of a grid of `cell_m` metres become their mean."""
    cells = np.floor(mesh.vertices / cell_m).astype(np.int64)
    _, index, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    index = index.reshape(-1)
    vertices = np.zeros((len(counts), 3))
    np.add.at(vertices, index, mesh.vertices)
    vertices /= counts[:, None]
    return _without_degenerate(Mesh(vertices=vertices, faces=index[mesh.faces].astype(np.int32)))


def convex_hull(mesh: Mesh) -> Mesh:
    """The convex hull of the mesh's vertices."""
    from scipy.spatial import ConvexHull

    hull = ConvexHull(mesh.vertices)
    index = np.full(len(mesh.vertices), -1)
    index[hull.vertices] = np.arange(len(hull.vertices))
    vertices, faces = mesh.vertices[hull.vertices], index[hull.simplices]
    a, b, c = vertices[faces[:, 0]], vertices[faces[:, 1]], vertices[faces[:, 2]]
    inwards = np.einsum("fi,fi->f", np.cross(b - a, c - a), hull.equations[:, :3]) < 0
    faces[inwards] = faces[inwards][:, [0, 2, 1]]
    return Mesh(vertices=vertices, faces=faces.astype(np.int32))


def smoothed(mesh: Mesh, *, steps: int, weight: float = 0.5) -> Mesh:
    """Laplacian smoothing: each vertex moves by `weight` of the way to the mean of its neighbours."""
    edges = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    edges = np.unique(np.sort(edges, axis=1), axis=0)
    degree = np.bincount(edges.ravel(), minlength=len(mesh.vertices)).clip(1)[:, None]
    vertices = mesh.vertices
    for _ in range(steps):
        total = np.zeros_like(vertices)
        np.add.at(total, edges[:, 0], vertices[edges[:, 1]])
        np.add.at(total, edges[:, 1], vertices[edges[:, 0]])
        vertices = vertices + weight * (total / degree - vertices)
    return replace(mesh, vertices=vertices)


def _without_degenerate(mesh: Mesh) -> Mesh:
    a, b, c = mesh.faces.T
    faces = mesh.faces[(a != b) & (b != c) & (c != a)]
    # A face and its double, as clustering leaves them, would make the renderer flicker.
    _, first = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    return replace(mesh, faces=faces[np.sort(first)])


def lathe(profile: list[tuple[float, float]], *, sides: int = 24, flatten_y: float = 1.0) -> Mesh:
    """Turns a profile of (radius, z) points, listed upwards along the outside, about the z axis.

    Radius 0 closes an end. `flatten_y` scales y, for elliptical sections such as a forearm's.
    """
    angles = np.linspace(0.0, 2 * np.pi, sides, endpoint=False)
    circle = np.stack([np.cos(angles), flatten_y * np.sin(angles)], axis=1)
    rings = np.array([np.column_stack([radius * circle, np.full(sides, z)]) for radius, z in profile])
    faces = []
    for k in range(len(profile) - 1):
        for i in range(sides):
            j = (i + 1) % sides
            a, b = k * sides + i, k * sides + j
            c, d = a + sides, b + sides
            if profile[k][0] > 0:
                faces.append((a, b, d))
            if profile[k + 1][0] > 0:
                faces.append((a, d, c))
    return _merged(rings.reshape(-1, 3), np.array(faces, np.int32))


def tube(path: np.ndarray, radius: float, *, sides: int = 8) -> Mesh:
    """A round tube along float64[N,3] points in a plane x-z (a mug's handle)."""
    tangents = np.gradient(path, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    side = np.array([0.0, 1.0, 0.0])
    up = np.cross(tangents, side)
    angles = np.linspace(0.0, 2 * np.pi, sides, endpoint=False)
    rings = path[:, None] + radius * (
        np.cos(angles)[None, :, None] * side + np.sin(angles)[None, :, None] * up[:, None]
    )
    faces = []
    for k in range(len(path) - 1):
        for i in range(sides):
            a, b = k * sides + i, k * sides + (i + 1) % sides
            faces += [(a, b + sides, b), (a, a + sides, b + sides)]
    return Mesh(vertices=rings.reshape(-1, 3), faces=np.array(faces, np.int32))


def joined(*parts: Mesh) -> Mesh:
    """One mesh of several, without texture coordinates."""
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    return Mesh(
        vertices=np.concatenate([part.vertices for part in parts]),
        faces=np.concatenate([part.faces + offset for part, offset in zip(parts, offsets, strict=True)]).astype(
            np.int32
        ),
    )


def _merged(vertices: np.ndarray, faces: np.ndarray) -> Mesh:
    unique, index = np.unique(np.round(vertices, 9), axis=0, return_inverse=True)
    return _without_degenerate(Mesh(vertices=unique, faces=index.reshape(-1)[faces].astype(np.int32)))


def add_mesh(spec, name: str, mesh: Mesh, *, smooth: bool = True) -> str:
    """Adds `mesh` to a MuJoCo spec for display only and returns its name."""
    import mujoco

    asset = spec.add_mesh(name=name)
    asset.uservert = mesh.vertices.ravel()
    asset.userface = mesh.faces.ravel()
    if mesh.texcoords is not None:
        asset.usertexcoord = mesh.texcoords.ravel()
        asset.userfacetexcoord = mesh.faces.ravel()
    asset.smoothnormal = smooth
    asset.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
    return name
