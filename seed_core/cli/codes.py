"""Codes between the files a person names and the models: what encode, decode and chat share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch

from .. import SeedCodes, SeedTokenizer, load_decoder, load_tokenizer, seeded_generators
from ..codes.edits import join_codes, select_codes
from ..codes.file import CODES_SUFFIXES, TEXT_SUFFIX, read_codes_file, save_codes_file
from ..codes.value import MOST_AT_ONCE, check_count
from ..decoder.embeddings import require_image_embedding
from ..errors import OptionError
from ..files.pictures import is_picture_file, is_picture_name, read_picture, save_pictures
from ..files.writer import check_output
from ..models import names
from ..models.tokenizer import open_tokenizer
from ..tokenizer.config import TokenizerConfig
from ..tokenizer.preprocess import preprocess
from .console import progress_bar, say
from .options import decode_options

LoadTokenizer = Callable[[], SeedTokenizer]


def tokenizer_of(args: argparse.Namespace, dtype: torch.dtype) -> LoadTokenizer:
    """Return a function that loads the tokenizer at its first call."""
    return cache(lambda: load_tokenizer(args.tokenizer, args.device, dtype))


def tokenizer_config(path: str) -> TokenizerConfig:
    """Return what a tokenizer's files say of it; its weights are not read."""
    is_bundled = path == names.SEED_MINI
    return open_tokenizer(names.bundled("tokenizer") if is_bundled else Path(path)).config


def read_codes(
    args: argparse.Namespace, paths: Sequence[Path], tokenizer: LoadTokenizer
) -> SeedCodes:
    """Return the codes of picture files and codes files, in order; pictures are encoded.

    Raises:
        CodesError: a file does not hold codes, or two hold codes of different families.
        PictureError: a picture cannot be read.
    """
    pictures = list(dict.fromkeys(path for path in paths if is_picture_file(path)))
    read = {path: _read_file(args, path) for path in paths if path not in pictures}
    if pictures:
        codes = encode(args, pictures, tokenizer)
        read |= {path: select_codes(codes, row, 1) for row, path in enumerate(pictures)}
    return join_codes([read[path] for path in paths])


def _read_file(args: argparse.Namespace, path: Path) -> SeedCodes:
    is_text = path.suffix.lower() == TEXT_SUFFIX
    return read_codes_file(path, tokenizer_config(args.tokenizer).family if is_text else None)


def encode(args: argparse.Namespace, paths: Sequence[Path], tokenizer: LoadTokenizer) -> SeedCodes:
    """Return the codes of picture files, and how well they fit.

    All are read before the tokenizer is loaded, and no two are in memory at once.

    Raises:
        PictureError: a picture cannot be read.
    """
    config = tokenizer_config(args.tokenizer)
    size, filter_ = config.vision.image_size, config.interpolation
    pixels = [preprocess([read_picture(path)], size, args.fit, filter_) for path in paths]
    loaded = tokenizer()
    values, distances = loaded.encode_with_distances(torch.cat(pixels))
    return SeedCodes(values, loaded.family, loaded.codebook_size, distances)


def embed(codes: SeedCodes, tokenizer: SeedTokenizer) -> torch.Tensor:
    """Return the embeddings ``[B, D]`` that a decoder paints from.

    Raises:
        CodesError: there are more pictures than `MOST_AT_ONCE`.
        EmbeddingError: this tokenizer makes text conditions.
    """
    require_image_embedding(tokenizer.embedding_shape, tokenizer.family)
    check_count(len(codes), MOST_AT_ONCE, "these are")
    return tokenizer.embed(codes)


def paint(
    args: argparse.Namespace,
    embedding: torch.Tensor,  # [B, D]
    negative: torch.Tensor | None,
    dtype: torch.dtype,
    output: Path,
) -> None:
    """Write one picture for each row of an embedding; several get numbers."""
    decoder = load_decoder(args.decoder, args.device, dtype)
    generators = seeded_generators(args.seed, len(embedding))
    with progress_bar("step") as on_step:
        pixels = decoder.decode(embedding, negative, decode_options(args), generators, on_step)
    for path in save_pictures(pixels, output):
        say(f"wrote {path}")


def check_codes_output(path: Path) -> None:
    """Check that codes can be written to a path.

    Raises:
        OptionError: the ending is a picture's, or `check_output` refuses the path.
    """
    if is_picture_name(path):
        raise OptionError(
            f"{path.name} ends as a picture does, and this writes codes: use one of "
            f"{', '.join(CODES_SUFFIXES)}. The command decode paints pictures from codes"
        )
    check_output(path)


def write_codes(codes: SeedCodes, path: Path) -> None:
    """Write codes in the form of the file's ending."""
    save_codes_file(codes, path)
    say(f"wrote the codes of {len(codes)} picture{'' if len(codes) == 1 else 's'} to {path}")
