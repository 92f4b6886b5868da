"""Points with properties, as binary PLY."""

import numpy as np

_NAMES = {"f4": "float", "u1": "uchar"}


def encode_ply(table: np.ndarray) -> bytes:
    """One vertex per record, one property per field: little-endian float32 or uint8."""
    fields = "".join(f"property {_NAMES[table.dtype[name].str[1:]]} {name}\n" for name in table.dtype.names or ())
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(table)}\n{fields}end_header\n"
    return header.encode() + table.tobytes()
