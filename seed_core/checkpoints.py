"""Weight files: finding them, reading them safely, and filling a network strictly.

The one place that knows upstream's key names and the one place that opens pickled files (with
``weights_only``, so no code in them runs). Tensors are read one at a time and assigned to a network
built on the meta device, so a second copy never exists. Knows nothing of what the networks compute.

Source of the names: AILab-CVC/SEED at 93b3cf4 and the files of its published checkpoints.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import mmap
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from safetensors import safe_open
from torch import nn

from . import fp8
from .errors import CheckpointError

log = logging.getLogger(__name__)

Tensors = Iterable[tuple[str, torch.Tensor]]
Module = TypeVar("Module", bound=nn.Module)

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The number formats a network can be loaded in, by their usual names."""

LLM_PRECISIONS = {**PRECISIONS, "fp8": fp8.FP8}
"""Those of the language model. fp8 is that of its weights; the rest of it computes in bf16."""

PICKLED_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
WEIGHT_SUFFIXES = (*SAFETENSORS_SUFFIXES, *PICKLED_SUFFIXES)

_STORED_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
}
"""Number formats of weights; integers are another program's quantisation."""

_STORED_AS = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8},
    "C64": torch.complex64,
}
"""Number formats by their names in safetensors files."""

_LARGEST_SIDE_FILE = 64 * 2**20
"""Bytes of a config or a vocabulary that are read; published ones have half a million."""

_EAGER = ("torch.", f"{__package__}.")
"""Where layers come from that hold weights from the beginning."""

_MAPPED_AT_ONCE = 512 * 2**20
"""Bytes of a pickled file that are read before its mapping is renewed."""

_MAPPED_TOGETHER = 256 * 2**10
"""Bytes of neighbouring tensors that share a mapping; the parts of a product may have more."""

_MAPPINGS = 128
"""About how many mappings a file gets: neighbours of a large one may take this part of it each."""

SEED_MINI = "seed-mini"
_BUNDLED = Path(__file__).parent / "weights" / SEED_MINI

_UPSTREAM_NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^(?:encoder|embedder)\.", ""),
        (r"^(visual_encoder\.patch_embed\.)", r"\1proj."),
        (r"^image_norm\.", "ln_vision."),
        (r"^qformer\.query_tokens$", "query_tokens"),
        (r"^reverse_qformer\.query_tokens$", "reverse_tokens"),
        (r"^qformer\.", "Qformer.bert."),
        (r"^reverse_qformer\.", "Reverse_Qformer.bert."),
        (r"\.bert\.norm\.", ".bert.embeddings.LayerNorm."),
        (r"\.bert\.layers\.", ".bert.encoder.layer."),
        (r"(layer\.\d+)\.fc1\.", r"\1.intermediate_query.dense."),
        (r"(layer\.\d+)\.fc2\.", r"\1.output_query.dense."),
        (r"(layer\.\d+)\.norm\.", r"\1.output_query.LayerNorm."),
        (r"\.(?:self_(attention)|(cross)_(attention))\.dense\.", r".\1\2\3.output.dense."),
        (r"\.(?:self_(attention)|(cross)_(attention))\.norm\.", r".\1\2\3.output.LayerNorm."),
        (r"\.(?:self_(attention)|(cross)_(attention))\.", r".\1\2\3.self."),
        (r"^encode_head\.", "encode_task_layer."),
        (r"^decode_head\.", "decode_task_layer."),
        (r"^quantizer\.codebook$", "quantize.embedding.weight"),
        (r"^decode_pos_embed$", "pos_embed_{side}"),
        (r"^decode_blocks\.", "blocks_{side}."),
        (r"^projection\.", "distill_{side}_proj."),
    )
)
"""Our names of the tokenizer's tensors to those in upstream's files, applied in this order.

``{side}`` is what codes become: "text" in SEED-1, "image" in SEED-2.
"""


def bundled(part: str) -> Path:
    """Return the folder of a part of the bundled seed-mini: tokenizer, llm, decoder or lora/night."""
    return _BUNDLED / part


def sample_pictures() -> dict[str, Path]:
    """Return the pictures that come with seed-mini, by file name without suffix."""
    return {path.stem: path for path in sorted((_BUNDLED / "samples").glob("*.png"))}


def upstream_tokenizer_names(name: str, side: str = "image") -> tuple[str | None, ...]:
    """Return under which names upstream's files hold one of our tokenizer's tensors.

    The vision tower stores query and value biases apart and has none for keys; they are joined to
    the one bias of its fused product, with zeros in the middle.
    """
    for pattern, upstream in _UPSTREAM_NAMES:
        name = pattern.sub(upstream.replace("{side}", side), name)
    if name.startswith("visual_encoder.") and name.endswith(".qkv.bias"):
        layer = name.removesuffix(".qkv.bias")
        return f"{layer}.q_bias", None, f"{layer}.v_bias"
    return (name,)


def _same_name(name: str) -> tuple[str | None, ...]:
    return (name,)


def assemble(
    build: Callable[[Any], Module],
    operations: Any,
    tensors: Tensors,
    device: torch.device,
    source: Path,
    names_in_file: Callable[[str], tuple[str | None, ...]] = _same_name,
    scales: Mapping[str, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Module:
    """Build a network on the meta device and assign ``tensors`` to it, in the network's dtypes.

    Args:
        build: makes the network from the operations it is given, on the meta device.
        operations: where its layers come from, ``torch.nn`` or a host's equivalent.
        tensors: names and tensors; every tensor of the network must be among them, names it does
            not have are ignored and logged.
        device: where the weights are to live.
        source: the file or folder, for messages.
        names_in_file: the network's name of a tensor to the file's; several are joined by rows, and
            None among them stands for zeros.
        scales: of quantised weights, by the network's names of those weights, which keep the dtype
            they come in; the network's layers take both.
        dtype: of the weights, where it is another than that of the network as it is built.

    Raises:
        CheckpointError: missing tensors, or one of another shape or with numbers that are none, by
            their names in the file.
    """
    module = build(operations)
    # A host's layers may hold no weights before they are loaded; torch's then tell the shapes.
    is_whole = operations is nn or _holds_weights(module)
    expected = (module if is_whole else build(nn)).state_dict()
    scales = scales or {}
    pieces = {name: names_in_file(name) for name in expected}
    owners = {key: name for name, keys in pieces.items() for key in keys if key is not None}
    found: dict[str, dict[str, torch.Tensor]] = {}
    state: dict[str, torch.Tensor] = {}
    given: set[str] = set()
    unknown: list[str] = []
    for key, tensor in tensors:
        name = owners.get(key)
        if name is None:
            unknown.append(key)
            continue
        parts = found.setdefault(name, {})
        check_kind(key, tensor, source)
        parts[key] = tensor.to(device, None if name in scales else dtype or expected[name].dtype)
        check_finite(key, parts[key], source)
        given.add(key)
        if all(other is None or other in parts for other in pieces[name]):
            state[name] = _join(pieces[name], found.pop(name), expected[name], source)
    if unknown:
        log.debug("%s: ignored %d unknown tensors: %s", source, len(unknown), ", ".join(unknown))
    check_complete(owners, given, source)
    state |= {f"{name}{fp8.SCALE_SUFFIX}": scale.to(device) for name, scale in scales.items()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.requires_grad_(False).eval()


def _holds_weights(network: nn.Module) -> bool:
    """Tell whether every layer of a host has a weight already; torch's and ours always have."""
    return all(
        isinstance(getattr(module, "weight", None), torch.Tensor)
        for module in network.modules()
        if not module._modules and not type(module).__module__.startswith(_EAGER)
    )


def check_kind(key: str, tensor: torch.Tensor, source: Path) -> None:
    """Refuse a tensor of whole numbers or of a format that no weights are published in.

    Raises:
        CheckpointError: naming the tensor and its format.
    """
    if tensor.dtype not in _STORED_DTYPES:
        raise CheckpointError(
            f"{source} holds {key} as {str(tensor.dtype).removeprefix('torch.')}, no number format "
            "of weights: it was quantised by another program. Use the model in 16 or 32 bits."
        )


def check_finite(key: str, tensor: torch.Tensor, source: Path) -> None:
    """Refuse a tensor with numbers that are none, as damage and overflow leave them behind.

    Raises:
        CheckpointError: naming the tensor.
    """
    if not math.isfinite(largest(tensor)):
        raise CheckpointError(
            f"{source}: {key} holds numbers that are infinite or none in "
            f"{str(tensor.dtype).removeprefix('torch.')}. The file is damaged, or made for another "
            "precision: try bf16 or fp32, then download it again."
        )


def largest(tensor: torch.Tensor) -> float:
    """Return the largest magnitude in a tensor, NaN where a number is none; 0 of no numbers.

    One pass without a copy, where torch's own isfinite and norms take thirty times as long.
    """
    if tensor.is_meta or not tensor.numel():
        return 0.0
    if tensor.dtype == fp8.FP8:
        return fp8.largest(tensor)
    low, high = torch.aminmax(tensor)
    return torch.maximum(-low, high).item()


def check_complete(wanted: Iterable[str], given: Collection[str | None], source: Path) -> None:
    """Refuse a file that lacks tensors.

    Raises:
        CheckpointError: naming those that are missing.
    """
    if missing := [key for key in wanted if key not in given]:
        raise CheckpointError(
            f"{source}: {_some(missing, 'tensors')} missing. The file is incomplete or belongs to "
            "another model."
        )


def _join(
    keys: Sequence[str | None], found: dict[str, torch.Tensor], wanted: torch.Tensor, source: Path
) -> torch.Tensor:
    """Return the tensors one below the other, zeros like the first for a key that is None."""
    first = next(iter(found.values()))
    parts = [torch.zeros_like(first) if key is None else found[key] for key in keys]
    if len(parts) == 1:
        shape = first.shape
    else:
        shape = torch.Size([sum(part.shape[0] for part in parts), *first.shape[1:]])
    if shape != wanted.shape or any(part.shape[1:] != first.shape[1:] for part in parts):
        have = ", ".join(f"{key} {list(tensor.shape)}" for key, tensor in found.items())
        raise CheckpointError(
            f"{source} holds {have}; this model needs {list(wanted.shape)}"
            f"{' of them together' if len(parts) > 1 else ''}. The file belongs to a model of "
            "another size; a model of unusual size needs its config.json beside it."
        )
    if all(_follows(part, before) for before, part in itertools.pairwise(parts)):
        return first.as_strided(shape, torch.empty(shape, device="meta").stride())
    return torch.cat(parts)


def _follows(part: torch.Tensor, before: torch.Tensor) -> bool:
    """Tell whether a tensor begins in memory where another ends."""
    return (
        part.untyped_storage().data_ptr() == before.untyped_storage().data_ptr()
        and part.data_ptr() == before.data_ptr() + before.nbytes
        and part.dtype == before.dtype
        and part.is_contiguous()
        and before.is_contiguous()
    )


def _some(names: list[str], what: str) -> str:
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"{len(names)} {what} ({shown})"


def read_tensors(
    path: Path, prefix: str = "", joined: Iterable[tuple[str, ...]] = ()
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of one safetensors or pickled file, one at a time, on the CPU.

    Args:
        path: the file.
        prefix: only those whose names begin with it.
        joined: names of tensors that `assemble` will join. Where they lie behind one another in a
            safetensors file they do so in memory, and are joined without a copy.

    Raises:
        CheckpointError: no such file, an unknown kind, a damaged one, or a pickle with code in it.
    """
    if _is_pickled(path):
        yield from _pickled_tensors(path, prefix)
        return
    yield from _mapped_tensors(path, lambda key: key.startswith(prefix), joined)


def read_named(path: Path, names: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of these names from a safetensors file, on the CPU.

    Raises:
        CheckpointError: a damaged file.
    """
    if names:
        yield from _mapped_tensors(path, lambda key: key in names)


def _mapped_tensors(
    path: Path, is_wanted: Callable[[str], bool], joined: Iterable[tuple[str, ...]] = ()
) -> Iterator[tuple[str, torch.Tensor]]:
    start, fields = _read_header(path)
    wanted = {key: field for key, field in fields.items() if is_wanted(key)}
    try:
        file = path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error
    with file:
        for stretch in _stretches(wanted, joined):
            try:
                tensors = _map(file, {key: wanted[key] for key in stretch}, start)
            except (OSError, ValueError) as error:
                raise _unreadable(path, error) from error
            while tensors:  # none is kept here once it is yielded
                yield tensors.pop()


def _stretches(
    fields: Mapping[str, dict[str, Any]], joined: Iterable[tuple[str, ...]]
) -> list[list[str]]:
    """Return the names of a file's tensors in its order, in groups that are mapped together."""
    products = {key: keys for keys in joined for key in keys}
    size = max((field["data_offsets"][1] for field in fields.values()), default=0)
    most = max(_MAPPED_TOGETHER, size // _MAPPINGS)
    stretches: list[list[str]] = []
    product, begin, end = None, 0, -1
    for key in sorted(fields, key=lambda key: tuple(fields[key]["data_offsets"])):
        before, (first, last) = product, fields[key]["data_offsets"]
        product = products.get(key)
        is_small = last - begin <= most
        if first == end and product == before and (product is not None or is_small):
            stretches[-1].append(key)
        else:
            stretches.append([key])
            begin = first
        end = last
    return stretches


def _map(
    file: BinaryIO, fields: Mapping[str, dict[str, Any]], start: int
) -> list[tuple[str, torch.Tensor]]:
    """Return tensors as views of their stretch of a file, the last one first.

    Pages are copied when they are written to. What was read of a mapping counts as memory until the
    mapping ends, and systems refuse one as large as all their memory, which the library makes of a
    large file: so a stretch is one tensor. But every mapping takes one of the few files that a
    process may have open: so small ones share theirs, and so do those that are joined.
    """
    places = [field["data_offsets"] for field in fields.values()]
    first, end = start + places[0][0], start + places[-1][1]
    before = first % mmap.ALLOCATIONGRANULARITY
    data = torch.empty(0, dtype=torch.uint8)
    if end > first:
        stretch = mmap.mmap(
            file.fileno(), end - first + before, access=mmap.ACCESS_COPY, offset=first - before
        )
        data = torch.frombuffer(stretch, dtype=torch.uint8, offset=before)
    tensors = []
    for key, field in fields.items():
        begin, end = field["data_offsets"]
        own = data[begin - places[0][0] : end - places[0][0]]
        dtype = _STORED_AS.get(field["dtype"])
        shape = field["shape"] if dtype else [end - begin]  # of a format unknown here, its bytes
        dtype = dtype or torch.uint8
        if own.data_ptr() % dtype.itemsize or own.storage_offset() % dtype.itemsize:
            own = own.clone()
        tensors.append((key, own.view(dtype).reshape(shape)))
    return tensors[::-1]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; whatever goes wrong with it is one error."""
    try:
        with safe_open(path, framework="np") as file:  # for torch it would map all of it to write
            yield file
    except Exception as error:  # of several libraries
        raise _unreadable(path, error) from error


def _read_header(path: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return where a safetensors file's tensors begin, and what its header says of each.

    The library checks everything but names that occur twice, of which it takes one.
    """
    with _opened(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length)
    fields = parse_json(text, f"the header of {path}")
    fields.pop("__metadata__", None)
    return 8 + length, fields


def read_weights(
    files: Iterable[Path], prefix: str = "", joined: Collection[tuple[str, ...]] = ()
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of several files, as `read_tensors` does.

    Raises:
        CheckpointError: also for a tensor that two of the files hold.
    """
    given: set[str] = set()
    for file in files:
        for key, tensor in read_tensors(file, prefix, joined):
            if key in given:
                raise CheckpointError(
                    f"{file} holds {key}, and so does another file of the model in {file.parent}. "
                    "Files of two downloads are mixed there: download the model into an empty folder."
                )
            given.add(key)
            yield key, tensor


def _pickled_tensors(path: Path, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield copies, and map the file anew from time to time, as one mapping holds all of it."""
    content = _read_pickled(path)
    used = 0
    for key in list(content):
        if not key.startswith(prefix):
            continue
        if used > _MAPPED_AT_ONCE and _is_zip(path):
            content, used = {}, 0  # the old mapping ends before the new one begins
            content = _read_pickled(path)
        tensor = content.pop(key).clone()
        used += tensor.nbytes
        yield key, tensor


def read_keys(path: Path) -> list[str]:
    """Return the names of the tensors of a weight file; of a safetensors file only by its header."""
    return list(read_shapes(path))


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors of a weight file, of a safetensors file by its header.

    Raises:
        CheckpointError: a damaged file.
    """
    if _is_pickled(path):
        return {key: tuple(tensor.shape) for key, tensor in _read_pickled(path).items()}
    return {key: tuple(field["shape"]) for key, field in _read_header(path)[1].items()}


def read_metadata(path: Path) -> dict[str, str]:
    """Return what a safetensors file's header says besides its tensors.

    Raises:
        CheckpointError: a damaged file.
    """
    with _opened(path) as file:
        return dict(file.metadata() or {})


def _is_pickled(path: Path) -> bool:
    """Tell the kind of a weight file, or say why it is none."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path.name} in the folder {path.parent}")
    suffix = path.suffix.lower()
    if suffix not in WEIGHT_SUFFIXES:
        raise CheckpointError(
            f"{path} is no weight file this can read; known endings: {', '.join(WEIGHT_SUFFIXES)}"
        )
    return suffix in PICKLED_SUFFIXES


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """Return what to do about a file: a healthy one is not to be downloaded again."""
    what = f"{path} ({path.stat().st_size:,} bytes) cannot be read: {error}."
    if isinstance(error, PermissionError):
        return CheckpointError(f"{what} Give yourself the right to read it.")
    # Libraries hand on the system's refusal as an error of their own.
    if isinstance(error, MemoryError) or "memory" in str(error).lower():
        return CheckpointError(
            f"{what} There is too little memory for it at the moment: close other programs, or on "
            "Windows enlarge the page file."
        )
    return CheckpointError(
        f"{what} It is damaged or its download did not finish: delete it and download it again."
    )


def _read_pickled(path: Path) -> dict[str, torch.Tensor]:
    """Read a table of tensors without running code; memory-mapped where the form allows it."""
    check_pickled(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces its own deprecations of old forms
            content = _load_weights_only(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused: it is damaged, or it holds program code, and a weight file needs "
            "none. Use the file from its official page, or a .safetensors version of it."
        ) from error
    except Exception as error:  # on a file cut short or overwritten torch raises any kind
        raise _unreadable(path, error) from error
    for name in ("model", "state_dict"):  # as training scripts save it: SEED-1's, LAVIS's, SD's
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a table of tensors")
    tensors = {
        k: v.detach()
        for k, v in content.items()
        if isinstance(k, str) and isinstance(v, torch.Tensor)
    }
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors at its top level: {list(content)[:10]}")
    for key, tensor in tensors.items():
        if not _is_stored(tensor):
            raise CheckpointError(
                f"{path} was refused: {key} stands for more numbers than are stored in the file, or "
                "for a special kind of tensor. Use a .safetensors version of it."
            )
    return tensors


def _is_stored(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is plain numbers that its file really holds."""
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not is_plain or tensor.is_quantized or tensor.is_nested:
        return False
    return tensor.nbytes <= tensor.untyped_storage().nbytes()


def check_pickled(path: Path) -> None:
    """Refuse archives that could be larger inside than they are, before anything unpacks them.

    Raises:
        CheckpointError: a tar archive, or a zip archive whose content is packed or overlaps.
    """
    with path.open("rb") as file:
        start = file.read(512)
    if start[257:262] == b"ustar":
        raise CheckpointError(
            f"{path} is a tar archive, as PyTorch saved files before 2017; these are refused. Use a "
            ".safetensors version of it."
        )
    if not _is_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # zipfile checks little before it computes with what it finds
        raise _unreadable(path, error) from error
    size = path.stat().st_size
    is_packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if is_packed or sum(member.file_size for member in members) > size:
        raise CheckpointError(
            f"{path} was refused: it would take more memory than its {size:,} bytes. PyTorch writes "
            "no such files; use the file from its official page."
        )


def _load_weights_only(path: Path) -> Any:
    load: Callable[..., Any] = torch.load  # noqa: TID251 - the one justified use
    return load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: no such file, no JSON, or no object.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no {path.name} in the folder {path.parent}")
    return parse_json(read_side_file(path), str(path))


def read_side_file(path: Path) -> bytes:
    """Return the content of a small file.

    Raises:
        CheckpointError: one too large to be what it should, or that may not be read.
    """
    try:
        if (size := path.stat().st_size) <= _LARGEST_SIDE_FILE:
            return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    raise CheckpointError(f"{path} has {size:,} bytes, far too many for a {path.name}")


def parse_json(text: bytes, where: str) -> dict[str, Any]:
    """Return the object written in ``text``.

    Args:
        text: JSON in UTF-8.
        where: what the text is, for messages.

    Raises:
        CheckpointError: no JSON, no object, or a name that occurs twice in one.
    """
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{where} must hold a JSON object; got a {type(content).__name__}")
    return content


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in table if names.count(name) > 1)
        raise ValueError(f"{twice!r:.80} occurs twice")
    return table


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
        if not _is_file(index.parent / name):
            raise CheckpointError(f"{index.parent} lacks {name}, which {index.name} names")
    return [index.parent / name for name in names]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False
