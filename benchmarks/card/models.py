"""Random models in ComfyUI's models folder: SEED-LLaMA, tokenizer, decoder and a LoRA.

Drawn tensor by tensor on the card and written as they are published, but for the language model: it
is written once, in fp8 as `python -m seed_core convert` writes it. That is half the bytes of the
published 16 bits, and the one file is loaded in fp8 and in bf16, so both ways are run.
"""

import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import sentencepiece
import torch

from seed_core import TokenizerConfig
from seed_core.bench.card.graphs import DECODER, LLM, LORA, TOKENIZER, TOKENIZER_FILE
from seed_core.bench.subject import Subject
from seed_core.codes.value import BEGIN_IMAGE, CODEBOOK_SIZES, END_IMAGE, image_token
from seed_core.compute import fp8
from seed_core.files.folder import header
from seed_core.llm.config import LlamaConfig
from seed_core.llm.layout import parts_in_file
from seed_core.llm.vocab import VOCABULARY_FILES
from seed_core.models import names, quantization
from seed_core.models.llm import HEAD, matrix_products
from seed_core.models.sd21 import UNET, VAE, side_files
from seed_core.tokenizer.eva_vit import VisionConfig
from seed_core.tokenizer.network import TokenizerModel
from seed_core.tokenizer.qformer import QFormerConfig

from .helpers import borrow

FP8_SCALE = torch.tensor(2.0**-11)
"""Of every weight in fp8: the largest fp8 number is 14 deviations of the widest weights then."""

SPARE_DISK = 2 * 2**30  # bytes

_PUBLISHED = torch.float16
_WEIGHTS = "diffusion_pytorch_model.safetensors"


Forms = dict[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Sizes:
    """How large the models are.

    Attributes:
        unet: config of diffusers' network; so is `vae`.
    """

    llm: LlamaConfig
    tokenizer: TokenizerConfig
    unet: dict[str, Any]
    vae: dict[str, Any]


def full() -> Sizes:
    """Return those of SEED-LLaMA-8B, SEED-2 and SD 2.1 unCLIP."""
    llm = Subject("8b", torch.device("cpu"), fp8.FP8).config
    return Sizes(llm, TokenizerConfig.seed_2(), UNET, VAE)


def tiny() -> Sizes:
    """Return sizes that a processor runs in no time, with the vocabulary and codes of SEED-2."""
    width = 32
    unet = {
        "sample_size": 8,
        "block_out_channels": (width, 2 * width),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 8,
        "layers_per_block": 1,
        "cross_attention_dim": width,
        "projection_class_embeddings_input_dim": 2 * width,
    }
    vae = {"block_out_channels": (width,) * 4, "layers_per_block": 1, "sample_size": 64}
    tokenizer = TokenizerConfig(
        vision=VisionConfig(28, 14, width, 2, 2, 2 * width),
        qformer=QFormerConfig(
            width=width, context_width=width, depth=2, num_heads=2, mlp_width=2 * width
        ),
        decode_depth=1,
        decode_heads=2,
        embedding_dim=width,
    )
    llm = replace(
        full().llm,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return Sizes(llm, tokenizer, UNET | unet, VAE | vae)


@dataclass(frozen=True)
class WeightFile:
    """One file of random weights.

    Attributes:
        path: below the models folder.
        forms: dtype and shape of each tensor.
        metadata: what the header says besides.
        constants: tensors that are not random.
        beside: small files, by their paths below the models folder.
    """

    path: str
    forms: Forms
    metadata: dict[str, str] = field(default_factory=dict)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    beside: dict[str, bytes] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(_writers().nbytes(*form) for form in self.forms.values())

    def write(self, models: Path, device: torch.device) -> None:
        """Draw the tensors on a device and write them."""
        generator = torch.Generator(device).manual_seed(len(self.forms))

        def make(key: str) -> torch.Tensor:
            if key in self.constants:
                return self.constants[key]
            dtype, shape = self.forms[key]
            drawn: torch.Tensor = _writers().random_tensor(key, shape, generator)
            is_fp8 = dtype == fp8.FP8
            return fp8.quantize(drawn, FP8_SCALE.to(device)) if is_fp8 else drawn.to(dtype)

        _writers().write_tensors(models / self.path, self.forms, make, self.metadata)
        for name, content in self.beside.items():
            (models / name).parent.mkdir(parents=True, exist_ok=True)
            (models / name).write_bytes(content)


def _writers() -> Any:
    return borrow("host/random_checkpoints.py")


def language_model(config: LlamaConfig) -> WeightFile:
    """Plan a SEED-LLaMA as one file in fp8, with its vocabulary in the header."""
    products = [keys for keys in matrix_products(config).values() if HEAD not in keys]
    quantised = [key for keys in products for key in keys]
    shapes = {key: part.shape for key, part in parts_in_file(config).items()}
    scales = [f"{key}{fp8.SCALE_SUFFIX}" for key in quantised]
    # The widest numbers first, so that each tensor begins at a multiple of its numbers' size.
    forms: Forms = dict.fromkeys(scales, (torch.float32, ()))
    forms |= {key: (fp8.COMPUTING_DTYPE, x) for key, x in shapes.items() if key not in quantised}
    forms |= {key: (fp8.FP8, shapes[key]) for key in quantised}
    fields = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2, **asdict(config)}
    files = {"config.json": json.dumps(fields).encode(), **vocabulary(config.vocab_size)}
    origin = {"source": "random numbers", "precision": "fp8"}
    return WeightFile(
        f"seed_llm/{LLM}",
        forms,
        {
            "format": "pt",
            **header("llm", files, origin),
            **quantization.header(quantised),
        },
        constants=dict.fromkeys(scales, FP8_SCALE),
    )


def vocabulary(size: int) -> dict[str, bytes]:
    """Return seed-mini's words, made up to a vocabulary of SEED-2's size and codes by unused ids."""
    text_file, added_file = VOCABULARY_FILES
    words = (names.bundled("llm") / text_file).read_bytes()
    count = sentencepiece.SentencePieceProcessor(model_proto=words).vocab_size()
    first = size - 2 - CODEBOOK_SIZES["seed-2"]
    added = {f"<unused_{token_id:05}>": token_id for token_id in range(count, first)}
    added |= {image_token(i): first + i for i in range(CODEBOOK_SIZES["seed-2"])}
    added |= {BEGIN_IMAGE: size - 2, END_IMAGE: size - 1}
    return {text_file: words, added_file: json.dumps(added).encode()}


def tokenizer(config: TokenizerConfig) -> WeightFile:
    """Plan a SEED-2 tokenizer by upstream's names, vision tower included."""
    forms: Forms = {}
    for name, tensor in TokenizerModel(config, device="meta").state_dict().items():
        keys = names.upstream_tokenizer_names(name)
        shape = (len(tensor) // len(keys), *tensor.shape[1:])
        forms |= {key: (_PUBLISHED, shape) for key in keys if key is not None}
    is_published = config == TokenizerConfig.seed_2()
    own = {f"seed_tokenizer/{TOKENIZER}/config.json": json.dumps(config.to_dict()).encode()}
    return WeightFile(f"seed_tokenizer/{TOKENIZER_FILE}", forms, beside={} if is_published else own)


def decoder(sizes: Sizes) -> list[WeightFile]:
    """Plan a diffusers folder of an unCLIP pipeline without text encoder: three weight files."""
    diffusers: Any = importlib.import_module("diffusers")
    folder = f"seed_decoder/{DECODER}"
    configs = {"unet/config.json": sizes.unet, "vae/config.json": sizes.vae}
    small = side_files() | {name: json.dumps(config).encode() for name, config in configs.items()}
    files = []
    kinds = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
    for part, kind in kinds.items():
        with torch.device("meta"):
            network = kind(**configs[f"{part}/config.json"])
        shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        forms = {key: (_PUBLISHED, shape) for key, shape in shapes.items()}
        files.append(WeightFile(f"{folder}/{part}/{_WEIGHTS}", forms))
    width = sizes.tokenizer.embedding_dim
    constants = {"mean": torch.zeros(1, width), "std": torch.ones(1, width)}
    files.append(
        WeightFile(
            f"{folder}/image_normalizer/{_WEIGHTS}",
            dict.fromkeys(constants, (torch.float32, (1, width))),
            constants=constants,
            beside={f"{folder}/{name}": content for name, content in small.items()},
        )
    )
    return files


def write(
    models: Path,
    sizes: Sizes,
    device: torch.device,
    has_decoder: bool,
    on_file: Callable[[str], None],
) -> int:
    """Write all models; return their bytes.

    Args:
        models: ComfyUI's models folder.
        sizes: see `full` and `tiny`.
        device: where the numbers are drawn.
        has_decoder: whether there is diffusers, which a decoder needs.
        on_file: told what is written.

    Raises:
        OSError: the disk has too little room.
    """
    files = [language_model(sizes.llm), tokenizer(sizes.tokenizer)]
    files += decoder(sizes) if has_decoder else []
    needed = sum(file.nbytes for file in files)
    free = shutil.disk_usage(models).free
    if free < needed + SPARE_DISK:
        raise OSError(
            f"the models take {needed / 2**30:.1f} GiB and {models} has {free / 2**30:.1f} GiB left; "
            "name another folder with --folder"
        )
    for file in files:
        on_file(f"{file.path}, {file.nbytes / 2**30:.2f} GiB")
        file.write(models, device)
    adapters = borrow("peft_adapter.py")
    random = torch.Generator().manual_seed(0)
    tensors = adapters.random_tensors(sizes.llm, random, size=0.05)
    adapters.save(models / "seed_lora" / LORA, tensors)
    return needed
