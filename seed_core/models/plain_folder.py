"""A language model as a plain Hugging Face folder, for engines that know nothing of this library.

Beside the weights lies everything that such an engine asks for, the vocabulary for a general reader
of tokenizers among it. Adapters are merged, and weights are not quantised.

Source: the folders that transformers 4.50 to 5 and vLLM 0.32 read as a LLaMA.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..compute import fp8
from ..errors import OptionError
from ..files import side_files
from ..files.writer import check_output
from .convert import Conversion, Progress, write_tensors
from .llm import GENERATION_FILE, OpenedLlm
from .names import CONFIG_FILE

WEIGHTS = "model.safetensors"

_TOKENIZER_CONFIG = "tokenizer_config.json"

# What general readers of LLaMA's vocabularies have to be told.
_TOKENIZER_FIELDS = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
    "legacy": True,
    "sp_model_kwargs": {},
}

# Fields of a config.json that tell of weights as they were stored before.
_OF_OTHER_WEIGHTS = ("quantization_config", "auto_map", "dtype", "transformers_version")


def write_plain_folder(
    conversion: Conversion, output: Path, on_tensor: Progress | None = None
) -> str:
    """Write a language model as a folder; after an end of any kind the same call goes on.

    Args:
        conversion: see `plan_conversion`.
        output: the folder to make. It is complete when its weights are there.
        on_tensor: called after each tensor with the number of tensors done and of all.

    Returns:
        the SHA-256 of the weights, as hexadecimal digits.

    Raises:
        CheckpointError: the source is damaged, or has numbers that the precision cannot hold.
        OptionError: see `check_plain_folder`.
    """
    check_plain_folder(conversion, output)
    output.mkdir(exist_ok=True)
    for name, content in _small_files(conversion).items():
        (output / name).write_bytes(content)
    # A run goes on only where the header is the same, so it tells models of one form apart.
    metadata = {"format": "pt", "made_from": json.dumps(conversion.made_from())}
    return write_tensors(conversion, output / WEIGHTS, metadata, on_tensor)


def check_plain_folder(conversion: Conversion, output: Path) -> None:
    """Refuse what cannot be written, before anything is.

    Raises:
        OptionError: the model is not a language model, or quantised; or the folder holds something
            else or cannot be made, or its disk has too little room.
    """
    small = _small_files(conversion)
    if conversion.dtype == fp8.FP8:
        raise OptionError(
            "engines quantise weights in their own ways: choose bf16 or fp16 for a folder, and let the "
            "engine make fp8 of it as it starts"
        )
    if output.is_dir():
        if strange := sorted(path for path in output.iterdir() if not _is_ours(path, small)):
            raise OptionError(
                f"{output} holds {strange[0].name} already; give the name of a new folder"
            )
        output /= WEIGHTS
    check_output(output, nbytes=conversion.nbytes)


def _is_ours(path: Path, small: Mapping[str, bytes]) -> bool:
    """Tell whether a file is what an earlier run of the same conversion left behind, perhaps cut."""
    if path.name in small:
        return path.is_file() and small[path.name].startswith(path.read_bytes())
    return path.name in {f"{WEIGHTS}{end}" for end in (".unfinished", ".journal", ".lock")}


def _small_files(conversion: Conversion) -> dict[str, bytes]:
    opened = conversion.opened
    if not isinstance(opened, OpenedLlm):
        raise OptionError(
            f"a folder for engines is of a language model; {opened.source} is a {opened.kind}"
        )
    config = side_files.parse_json(opened.files[CONFIG_FILE], CONFIG_FILE)
    config = {name: value for name, value in config.items() if name not in _OF_OTHER_WEIGHTS}
    config |= {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": opened.config.vocab_size,
        "tie_word_embeddings": bool(opened.copies),
        "torch_dtype": str(conversion.dtype).removeprefix("torch."),
    }
    vocab = opened.vocab
    tokenizer: dict[str, Any] = {
        **_TOKENIZER_FIELDS,
        "bos_token": vocab.piece(vocab.bos),
        "eos_token": vocab.piece(vocab.eos),
        "unk_token": vocab.piece(vocab.unknown),
        "model_max_length": opened.config.max_position_embeddings,
    }
    ends = sorted(opened.end_ids)
    generation = {"bos_token_id": vocab.bos, "eos_token_id": ends[0] if len(ends) == 1 else ends}
    return {
        **opened.files,
        CONFIG_FILE: _json(config),
        GENERATION_FILE: _json(generation),
        _TOKENIZER_CONFIG: _json(tokenizer),
    }


def _json(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, indent=2).encode()
