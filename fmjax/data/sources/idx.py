"""Reader of the IDX file format of MNIST: a magic number, the dimensions, big-endian values.

Reference: Y. LeCun, C. Cortes and C. Burges, The MNIST database, "File formats".
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from fmjax._checks import require

_UNSIGNED_BYTE = 0x08
_MAX_AXES = 8


def read_idx(file: Path) -> np.ndarray:
    """Read the array of unsigned bytes in an IDX file, gzipped or plain.

    Raises:
        ValueError: If a `.gz` file is not valid gzip, the file does not start with the magic
            number of unsigned bytes, or its length does not match the header.
    """
    name = f"file {file}"
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{name} must be a valid gzip file, got {error}") from error
    magic = content[:4]
    is_idx = len(magic) == 4 and magic[:2] == b"\0\0" and magic[3] > 0
    require(is_idx, name, "begin with an IDX magic number", f"bytes {magic.hex() or 'none'}")
    value_type = f"type 0x{magic[2]:02x}"
    require(magic[2] == _UNSIGNED_BYTE, name, "hold unsigned bytes (type 0x08)", value_type)
    require(magic[3] <= _MAX_AXES, name, f"have at most {_MAX_AXES} axes", magic[3])
    header = 4 + 4 * magic[3]
    require(len(content) >= header, name, f"have a header of {header} bytes", len(content))
    shape = tuple(int(n) for n in np.frombuffer(content, dtype=">u4", count=magic[3], offset=4))
    size = len(content) - header
    require(size == math.prod(shape), name, f"hold {math.prod(shape)} values {shape}", size)
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
