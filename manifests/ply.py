"""Writes and reads PLY files: coloured points, and triangle meshes."""

import io

import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8

_TYPES = {"f4": "float", "u1": "uchar"}


def encode_points(table: np.ndarray) -> bytes:
    """Binary PLY of a structured array: one vertex per record, one property (little-endian float32 or uint8) per field."""
    fields = "".join(f"property {_TYPES[table.dtype[name].str[1:]]} {name}\n" for name in table.dtype.names or ())
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(table)}\n{fields}end_header\n"
    return header.encode() + table.tobytes()


def encode_coloured_points(xyz: Float[np.ndarray, "n 3"], rgb: UInt8[np.ndarray, "n 3"]) -> bytes:
    """Binary PLY of points with colours."""
    columns = {**dict.fromkeys("xyz", "<f4"), **dict.fromkeys(("red", "green", "blue"), "u1")}
    table = np.empty(len(xyz), list(columns.items()))
    for name, values in zip(columns, (*xyz.T, *rgb.T), strict=True):
        table[name] = values
    return encode_points(table)


def encode_mesh(
    vertices: Float32[np.ndarray, "n 3"],
    faces: Int32[np.ndarray, "m 3"],
    colours: UInt8[np.ndarray, "n 3"] | None = None,
) -> bytes:
    """Binary PLY of a mesh, with or without colours of its vertices."""
    import trimesh
    from trimesh.exchange.ply import export_ply

    return export_ply(trimesh.Trimesh(vertices, faces, vertex_colors=colours, process=False))


def decode_mesh(ply: bytes) -> tuple[Float32[np.ndarray, "n 3"], Int32[np.ndarray, "m 3"]]:
    """The vertices and faces of a mesh."""
    import trimesh

    mesh = trimesh.load_mesh(io.BytesIO(ply), file_type="ply", process=False)
    return np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int32)
