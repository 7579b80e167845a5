"""Full-size models on disk without their weights: files of the published sizes with holes in them.

The pack's own loaders find, check and read them. A hole takes no space, and nothing ever looks at
its numbers, as large tensors in main memory are invented (see ``watch``). Small ones are read as
they are: zeros, or what is written here.
"""

import dataclasses
import importlib
import json
import math
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

Shapes = Mapping[str, tuple[int, ...]]

DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}
FP8_SCALE = 2.0**-11
LAYERS = (2, 3)
"""Depths of language models that differ by one layer, to count what a layer launches."""
FEW_WEIGHTS = 4
"""Weights that the small adapter changes."""


def write_models(base: Path, pack: Path) -> None:
    """Write everything that the tests load, below ``base``/models.

    Args:
        base: ComfyUI's base folder.
        pack: the pack's folder, importable.
    """
    models = base / "models"
    _write_llms(models / "seed_llm", pack)
    _write_tokenizers(models / "seed_tokenizer")
    _write_decoders(models / "seed_decoder")
    _write_loras(models / "seed_lora")


def write_hollow(
    path: Path,
    shapes: Shapes,
    dtype: str,
    dtypes: Mapping[str, str] | None = None,
    values: Mapping[str, list[float]] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file whose tensors are holes.

    Args:
        path: the file.
        shapes: of all tensors, by name.
        dtype: of all tensors, as safetensors calls it.
        dtypes: of those that have another.
        values: of float32 tensors that are none.
        metadata: of the header.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        kind = (dtypes or {}).get(name, dtype)
        start, end = end, end + math.prod(shape) * DTYPES[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        begin = file.tell()
        for name, numbers in (values or {}).items():
            file.seek(begin + header[name]["data_offsets"][0])
            file.write(struct.pack(f"<{len(numbers)}f", *numbers))
        file.truncate(begin + end)


def _core(name: str) -> Any:
    return importlib.import_module(f"seed_core.{name}")


def llm_config(layers: int | None = None) -> Any:
    """Sizes of SEED-LLaMA 8B, or of its first layers."""
    config = _core("bench.subject")._RANDOM["8b"]
    return dataclasses.replace(config, num_hidden_layers=layers) if layers else config


def _write_llms(folder: Path, pack: Path) -> None:
    for layers in (None, *LAYERS):
        for precision in ("bf16", "fp8"):
            name = f"8b {precision}" + (f" {layers} layers" if layers else "")
            _write_llm(folder / name, llm_config(layers), precision, pack)


def _write_llm(folder: Path, config: Any, precision: str, pack: Path) -> None:
    shapes = {name: part.shape for name, part in _core("llm.layout").parts_in_file(config).items()}
    dtypes: dict[str, str] = {}
    scales: dict[str, list[float]] = {}
    if precision == "fp8":
        products = _core("models.llm").matrix_products(config).values()
        weights = [name for names in products for name in names if "lm_head" not in name]
        dtypes = dict.fromkeys(weights, "F8_E4M3") | {f"{name}_scale": "F32" for name in weights}
        scales = {f"{name}_scale": [FP8_SCALE] for name in weights}
        shapes |= dict.fromkeys(scales, ())
    write_hollow(folder / "model.safetensors", shapes, "BF16", dtypes, scales)
    fields = dataclasses.asdict(config) | {"model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    _write_vocabulary(folder, config.vocab_size, pack)


def _write_vocabulary(folder: Path, size: int, pack: Path) -> None:
    """The miniature's words, then words that there are none of, then SEED-2's pictures."""
    import sentencepiece

    words = pack / "seed_core" / "weights" / "seed-mini" / "llm" / "tokenizer.model"
    shutil.copy(words, folder)
    count = sentencepiece.SentencePieceProcessor(str(words)).vocab_size()
    codes = _core("codes.value")
    codebook = codes.CODEBOOK_SIZES["seed-2"]
    first = size - codebook - 2
    added = {f"<word {i}>": i for i in range(count, first)}
    added |= {codes.image_token(code): first + code for code in range(codebook)}
    added |= {codes.BEGIN_IMAGE: size - 2, codes.END_IMAGE: size - 1}
    (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")


def _write_tokenizers(folder: Path) -> None:
    configs, networks = _core("tokenizer.config"), _core("tokenizer.network")
    for family in ("seed_1", "seed_2"):
        config = getattr(configs.TokenizerConfig, family)()
        side = "text" if config.embeds_text else "image"
        own = networks.TokenizerModel(config, device="meta").state_dict()
        shapes: dict[str, tuple[int, ...]] = {}
        for name, tensor in own.items():
            parts = _core("models.names").upstream_tokenizer_names(name, side)
            shape = (tensor.shape[0] // len(parts), *tensor.shape[1:])
            shapes |= {part: shape for part in parts if part is not None}
        name = family.replace("_", "-")
        write_hollow(folder / name / "model.safetensors", shapes, "F16")
        text = json.dumps(config.to_dict())
        (folder / name / "config.json").write_text(text, encoding="utf-8")


def _write_decoders(folder: Path) -> None:
    """Stable Diffusion 2.1 unCLIP, and its outermost layers for what is counted by step."""
    sizes = _core("models.sd21")
    _write_decoder(folder / "sd21-unclip.safetensors", sizes.UNET, sizes.VAE)
    unet = sizes.UNET | {
        "block_out_channels": (320, 640),
        "attention_head_dim": (5, 10),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
    }
    vae = sizes.VAE | {"layers_per_block": 1}
    _write_decoder(folder / "shallow.safetensors", unet, vae)


def _write_decoder(path: Path, unet: dict[str, Any], vae: dict[str, Any]) -> None:
    """Write a decoder as the pack's converter does: everything in one file."""
    import diffusers

    sizes = _core("models.sd21")
    parts = {"unet": (diffusers.UNet2DConditionModel, unet)}
    parts["vae"] = (diffusers.AutoencoderKL, vae)
    shapes: dict[str, tuple[int, ...]] = {}
    for part, (kind, config) in parts.items():
        with torch.device("meta"):
            tensors = kind(**config).state_dict()
        shapes |= {f"{part}.{name}": tuple(tensor.shape) for name, tensor in tensors.items()}
    values = {f"image_normalizer.{name}": [1.0] * 1024 for name in ("mean", "std")}
    shapes |= dict.fromkeys(values, (1, 1024)) | {"text_encoder.empty_prompt": (1, 77, 1024)}
    files = {
        "model_index.json": {"_class_name": "StableUnCLIPImg2ImgPipeline"},
        "unet/config.json": unet,
        "vae/config.json": vae,
        "scheduler/scheduler_config.json": sizes.SCHEDULER,
        "image_noising_scheduler/scheduler_config.json": sizes.NOISING_SCHEDULER,
    }
    content = {name: json.dumps(fields).encode() for name, fields in files.items()}
    header = _core("files.folder").header("decoder", content, {})
    write_hollow(path, shapes, "F16", dict.fromkeys(values, "F32"), values, header)


def _write_loras(folder: Path) -> None:
    """One adapter of a few weights, and one of every matrix of every layer."""
    config = llm_config()
    parts = _core("llm.layout").parts_in_file(config)
    layers = [name for name in parts if name.endswith("_proj.weight")]
    few = [name for name in layers if name.endswith(".o_proj.weight")][:FEW_WEIGHTS]
    for name, weights, rank in (("few", few, 8), ("all", layers, 16)):
        shapes: dict[str, tuple[int, ...]] = {}
        for weight in weights:
            rows, columns = parts[weight].shape
            module = "base_model.model." + weight.removesuffix(".weight")
            shapes[f"{module}.lora_A.weight"] = (rank, columns)
            shapes[f"{module}.lora_B.weight"] = (rows, rank)
        write_hollow(folder / name / "adapter_model.safetensors", shapes, "F32")
        fields = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}
        (folder / name / "adapter_config.json").write_text(json.dumps(fields), encoding="utf-8")
