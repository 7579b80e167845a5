"""Weight files: finding them, reading them safely, and filling a network strictly.

The one place that knows upstream's key names and the one place that opens pickled files (with
``weights_only``, so no code in them runs). Tensors are read one at a time and assigned to a network
built on the meta device, so a second copy never exists. Knows nothing of what the networks compute.

Source of the names: AILab-CVC/SEED at 93b3cf4 and the files of its published checkpoints.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from .errors import CheckpointError

log = logging.getLogger(__name__)

Tensors = Iterable[tuple[str, torch.Tensor]]
Module = TypeVar("Module", bound=nn.Module)

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The number formats a network can be loaded in, by their usual names."""

PICKLED_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
WEIGHT_SUFFIXES = (".safetensors", ".sft", *PICKLED_SUFFIXES)

SEED_MINI = "seed-mini"
_BUNDLED = Path(__file__).parent / "weights" / SEED_MINI

_RENAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^visual_encoder\.patch_embed\.proj\.", "visual_encoder.patch_embed."),
        (r"^ln_vision\.", "image_norm."),
        (r"^query_tokens$", "qformer.query_tokens"),
        (r"^reverse_tokens$", "reverse_qformer.query_tokens"),
        (r"^Qformer\.bert\.", "qformer."),
        (r"^Reverse_Qformer\.bert\.", "reverse_qformer."),
        (r"(?<=qformer\.)embeddings\.LayerNorm\.", "norm."),
        (r"(?<=qformer\.)encoder\.layer\.", "layers."),
        (r"\.crossattention\.(self\.|output\.)", ".cross_attention."),
        (r"\.attention\.(self\.|output\.)", ".self_attention."),
        (r"_attention\.LayerNorm\.", "_attention.norm."),
        (r"\.intermediate_query\.dense\.", ".fc1."),
        (r"\.output_query\.dense\.", ".fc2."),
        (r"\.output_query\.LayerNorm\.", ".norm."),
        (r"^encode_task_layer\.", "encode_head."),
        (r"^decode_task_layer\.", "decode_head."),
        (r"^quantize\.embedding\.weight$", "quantizer.codebook"),
        (r"^pos_embed_image$", "decode_pos_embed"),
        (r"^blocks_image\.", "decode_blocks."),
        (r"^distill_image_proj\.", "image_projection."),
    )
)
"""Upstream's tokenizer keys to ours, applied in this order."""


def bundled(part: str) -> Path:
    """Return the folder of one part of the bundled seed-mini: tokenizer, llm or decoder."""
    return _BUNDLED / part


def sample_pictures() -> dict[str, Path]:
    """Return the pictures that come with seed-mini, by file name without suffix."""
    return {path.stem: path for path in sorted((_BUNDLED / "samples").glob("*.png"))}


def rename_tokenizer_keys(tensors: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield upstream's tokenizer tensors under our names.

    The vision tower stores query and value biases apart and has none for keys; they become the one
    bias of its fused product, with zeros in the middle.
    """
    halves: dict[str, torch.Tensor] = {}
    for key, tensor in tensors:
        layer, _, kind = key.rpartition(".")
        if kind in ("q_bias", "v_bias"):
            halves[key] = tensor
            query, value = halves.get(f"{layer}.q_bias"), halves.get(f"{layer}.v_bias")
            if query is not None and value is not None:
                yield f"{layer}.qkv.bias", torch.cat((query, torch.zeros_like(query), value))
            continue
        for pattern, name in _RENAMES:
            key = pattern.sub(name, key)
        yield key, tensor


def assemble(
    build: Callable[[Any], Module],
    operations: Any,
    tensors: Tensors,
    device: torch.device,
    source: Path,
) -> Module:
    """Build a network on the meta device and assign ``tensors`` to it, in the network's dtypes.

    Args:
        build: makes the network from the operations it is given, on the meta device.
        operations: where its layers come from, ``torch.nn`` or a host's equivalent.
        tensors: names and tensors; every tensor of the network must be among them, names it does
            not have are ignored and logged.
        device: where the weights are to live.
        source: the file or folder, for messages.

    Raises:
        CheckpointError: missing tensors, or one of another shape, by name.
    """
    # A host's layers may hold no weights before they are loaded, so torch's tell the shapes.
    expected = build(nn).state_dict()
    state: dict[str, torch.Tensor] = {}
    unknown: list[str] = []
    for key, tensor in tensors:
        if key not in expected:
            unknown.append(key)
            continue
        if tensor.shape != expected[key].shape:
            raise CheckpointError(
                f"{source}: {key} has shape {list(tensor.shape)}, this model needs "
                f"{list(expected[key].shape)}. The file belongs to a model of another size; a "
                "model of unusual size needs its config.json beside it."
            )
        state[key] = tensor.to(device=device, dtype=expected[key].dtype)
    if unknown:
        log.debug("%s: ignored %d unknown tensors: %s", source, len(unknown), ", ".join(unknown))
    if missing := [key for key in expected if key not in state]:
        raise CheckpointError(
            f"{source}: {_some(missing, 'tensors')} missing. The file is incomplete or belongs to "
            "another model."
        )
    module = build(operations)
    module.load_state_dict(state, strict=True, assign=True)
    return module.requires_grad_(False).eval()


def _some(names: list[str], what: str) -> str:
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"{len(names)} {what} ({shown})"


def read_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of one safetensors or pickled file, one at a time, on the CPU.

    Raises:
        CheckpointError: no such file, an unknown kind, a damaged one, or a pickle with code in it.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path.name} in the folder {path.parent}")
    suffix = path.suffix.lower()
    if suffix not in WEIGHT_SUFFIXES:
        raise CheckpointError(
            f"{path} is no weight file this can read; known endings: {', '.join(WEIGHT_SUFFIXES)}"
        )
    if suffix in PICKLED_SUFFIXES:
        yield from _read_pickled(path).items()
        return
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for key in file.keys():  # noqa: SIM118 - the handle is no mapping
                yield key, file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def read_keys(path: Path) -> list[str]:
    """Return the names of the tensors of a weight file; of a safetensors file only by its header."""
    if path.suffix.lower() in PICKLED_SUFFIXES or not path.is_file():
        return [key for key, _ in read_tensors(path)]
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} ({path.stat().st_size:,} bytes) cannot be read: {error}. It is damaged or its "
        "download did not finish: delete it and download it again."
    )


def _read_pickled(path: Path) -> dict[str, torch.Tensor]:
    """Read a flat dict of tensors without running code; memory-mapped where the form allows it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces its own deprecations of old forms
            content = _load_weights_only(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused: it is damaged, or it holds program code, and a weight file needs "
            "none. Use the file from its official page, or a .safetensors version of it."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, OSError) as error:
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a table of tensors")
    tensors = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors at its top level: {list(content)[:10]}")
    return tensors


def _load_weights_only(path: Path) -> Any:
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    load: Callable[..., Any] = torch.load  # noqa: TID251 - the one justified use
    return load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: no such file, no JSON, or no object.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no {path.name} in the folder {path.parent}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object; got a {type(content).__name__}")
    return content


def weight_files(folder: Path, stems: tuple[str, ...]) -> list[Path]:
    """Return the weight files of a Hugging Face style folder: shards by their index, or one file.

    Args:
        folder: where to look.
        stems: file names without suffix, best first, such as ``("model", "pytorch_model")``.

    Raises:
        CheckpointError: none found, or an index that names a file outside the folder.
    """
    for stem in stems:
        for suffix in (".safetensors", ".bin"):
            if (index := folder / f"{stem}{suffix}.index.json").is_file():
                return _shards(index)
            if (single := folder / f"{stem}{suffix}").is_file():
                return [single]
    wanted = ", ".join(f"{stem}.safetensors" for stem in stems)
    raise CheckpointError(f"the folder {folder} has no weights; looked for {wanted} and shards")


def _shards(index: Path) -> list[Path]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{index} lists no weight files")
    names = sorted({str(name) for name in table.values()})
    for name in names:
        if Path(name).name != name or "\\" in name:
            raise CheckpointError(f"{index} names {name!r}, which lies outside its folder; refused")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index.parent} lacks {name}, which {index.name} names")
    return [index.parent / name for name in names]
