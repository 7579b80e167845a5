"""Codes as safetensors files: one tensor, and in the header the family it belongs to.

Nothing in such a file can run. The command line writes JSON instead (see ``picture_files``).
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import CodesError
from .value import NUM_CODES, SeedCodes

CODES_SUFFIX = ".safetensors"

_TENSOR, _FAMILY, _SIZE = "codes", "family", "codebook_size"


def save_codes_file(codes: SeedCodes, path: Path) -> None:
    """Write codes with their family and codebook size; a file in the way is replaced.

    Raises:
        CodesError: the file cannot be written; then there is none.
    """
    header = {_FAMILY: codes.family, _SIZE: str(codes.codebook_size)}
    unfinished = path.with_suffix(".unfinished")
    try:
        save_file({_TENSOR: codes.values.cpu().contiguous()}, unfinished, header)
        unfinished.replace(path)
    except (SafetensorError, OSError) as error:
        unfinished.unlink(missing_ok=True)
        raise CodesError(f"the codes could not be written to {path}: {error}") from error


def read_codes_file(path: Path) -> SeedCodes:
    """Read what `save_codes_file` wrote, on the CPU.

    Raises:
        CodesError: no such file, a damaged one, one of something else, or values that are no codes.
    """
    try:
        values, family, codebook_size = _read(path)
        return SeedCodes(values, family, codebook_size)
    except CodesError as error:
        raise CodesError(f"{path}: {error}") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CodesError(f"{path} cannot be read as a file of codes: {error}") from error


def _read(path: Path) -> tuple[torch.Tensor, str, int]:
    with safe_open(path, framework="pt", device="cpu") as file:
        header = file.metadata() or {}
        # Looked at before any tensor is read: weights have the same ending, and may be huge.
        if set(file.keys()) != {_TENSOR} or not {_FAMILY, _SIZE} <= set(header):
            raise CodesError("this is a safetensors file of something else, not of codes")
        if len(shape := file.get_slice(_TENSOR).get_shape()) != 2:
            raise CodesError(f"codes are stored as [pictures, {NUM_CODES}]; these are {shape}")
        if not re.fullmatch("[0-9]{1,9}", header[_SIZE]):
            raise CodesError(f"{header[_SIZE]!r:.40} is no codebook size")
        # A copy: what is read may be a view of the file, which can change under it.
        return file.get_tensor(_TENSOR).clone(), header[_FAMILY], int(header[_SIZE])
