"""A tokenizer and a language model small enough to build in a test, saved as they are published."""

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seed_core import SeedLLM, load_llm
from seed_core.llm import vocab
from seed_core.llm.config import LlamaConfig
from seed_core.llm.layout import names_in_file
from seed_core.llm.llama import Llama

TINY_CONFIG = {
    "family": "seed-2",
    "version": 2,
    "image_size": 16,
    "patch_size": 8,
    "vit_width": 24,
    "vit_depth": 2,
    "vit_heads": 2,
    "vit_mlp_hidden": 32,
    "vit_norm_eps": 1e-6,
    "ln_vision_eps": 1e-5,
    "num_query_tokens": 32,
    "qformer_hidden_size": 24,
    "qformer_num_layers": 2,
    "qformer_num_heads": 2,
    "qformer_intermediate_size": 32,
    "qformer_layer_norm_eps": 1e-12,
    "cross_attention_freq": 2,
    "causal": True,
    "n_embed": 16,
    "codebook_embed_dim": 8,
    "blocks_image_depth": 1,
    "blocks_image_heads": 2,
    "blocks_image_mlp_ratio": 2.0,
    "blocks_norm_eps": 1e-6,
    "image_down": [16, 4],
    "image_features_dim": 20,
}


def _linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _bert_layer(name: str, context: int, has_cross: bool) -> dict[str, tuple[int, ...]]:
    shapes = {}
    kinds = [("attention", 24)] + ([("crossattention", context)] if has_cross else [])
    for kind, into in kinds:
        shapes |= _linear(f"{name}.{kind}.self.query", 24, 24)
        shapes |= _linear(f"{name}.{kind}.self.key", 24, into)
        shapes |= _linear(f"{name}.{kind}.self.value", 24, into)
        shapes |= _linear(f"{name}.{kind}.output.dense", 24, 24)
        shapes |= _norm(f"{name}.{kind}.output.LayerNorm", 24)
    shapes |= _linear(f"{name}.intermediate_query.dense", 32, 24)
    shapes |= _linear(f"{name}.output_query.dense", 24, 32)
    return shapes | _norm(f"{name}.output_query.LayerNorm", 24)


def _block(name: str, mlp: int) -> dict[str, tuple[int, ...]]:
    shapes = _norm(f"{name}.norm1", 24) | _norm(f"{name}.norm2", 24)
    shapes |= _linear(f"{name}.attn.proj", 24, 24)
    return shapes | _linear(f"{name}.mlp.fc1", mlp, 24) | _linear(f"{name}.mlp.fc2", 24, mlp)


def upstream_shapes() -> dict[str, tuple[int, ...]]:
    """Every key that inference reads, by upstream's names, for TINY_CONFIG."""
    shapes = {
        "visual_encoder.cls_token": (1, 1, 24),
        "visual_encoder.pos_embed": (1, 5, 24),
        "visual_encoder.patch_embed.proj.weight": (24, 3, 8, 8),
        "visual_encoder.patch_embed.proj.bias": (24,),
        "query_tokens": (1, 32, 24),
        "quantize.embedding.weight": (16, 8),
        "pos_embed_image": (1, 32, 24),
        "image_down.0.weight": (16, 24),
        "image_down.2.weight": (4, 16),
    }
    for i in range(2):
        name = f"visual_encoder.blocks.{i}"
        shapes |= _block(name, 32)
        shapes |= {f"{name}.attn.qkv.weight": (72, 24)}
        shapes |= {f"{name}.attn.q_bias": (24,), f"{name}.attn.v_bias": (24,)}
        shapes |= _bert_layer(f"Qformer.bert.encoder.layer.{i}", 24, has_cross=i == 0)
    shapes |= _block("blocks_image.0", 48) | _linear("blocks_image.0.attn.qkv", 72, 24)
    shapes |= _norm("ln_vision", 24) | _norm("Qformer.bert.embeddings.LayerNorm", 24)
    shapes |= _linear("encode_task_layer.0", 24, 24) | _linear("encode_task_layer.2", 8, 24)
    shapes |= _linear("decode_task_layer.0", 8, 8) | _linear("decode_task_layer.2", 24, 8)
    return shapes | _linear("distill_image_proj", 20, 128)


@pytest.fixture
def tiny_tensors(make_generator) -> dict[str, torch.Tensor]:
    """Random weights by upstream's names, spread widely enough for pictures to differ in codes."""
    random, tensors = make_generator(21), {}
    for key, shape in upstream_shapes().items():
        is_norm = key.endswith(".weight") and ("orm" in key or "ln_vision" in key)
        spread = 2.0 if key.startswith(("quantize", "query_tokens", "visual")) else 0.5
        noise = torch.randn(shape, generator=random)
        tensors[key] = 1.0 + 0.1 * noise if is_norm else spread * noise
    return tensors


@pytest.fixture
def tiny_config(tmp_path: Path) -> Path:
    """The folder tmp_path with the tiny tokenizer's config.json in it."""
    (tmp_path / "config.json").write_text(json.dumps(TINY_CONFIG), encoding="utf-8")
    return tmp_path


# --- a language model ---

TINY_LLM = {
    "model_type": "llama",
    "vocab_size": 1538,  # of seed-mini's vocabulary
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}


@pytest.fixture
def llm_folder(tmp_path: Path, mini_folder: Path, make_generator) -> Path:
    """A random network whose keys and values are shared, in float32 in a folder of its own."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name in ("tokenizer.model", "added_tokens.json", "generation_config.json"):
        shutil.copy(mini_folder / "llm" / name, folder)
    (folder / "config.json").write_text(json.dumps(TINY_LLM), encoding="utf-8")
    random, config = make_generator(5), LlamaConfig.from_dict(TINY_LLM)
    widths = {"k_proj": 16, "v_proj": 16}  # two heads of eight, where a query has four
    tensors = {}
    for name, tensor in Llama(config, device="meta").state_dict().items():
        for key in names_in_file(name):
            rows = len(tensor) if len(names_in_file(name)) == 1 else 48 if "mlp" in key else 32
            rows = next((width for part, width in widths.items() if part in key), rows)
            tensors[key] = 0.2 * torch.randn(rows, *tensor.shape[1:], generator=random)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def ancestor(llm_folder, tmp_path):
    """The model before it had tokens of pictures, with SEED's vocabulary already beside it."""
    folder = tmp_path / "ancestor"
    shutil.copytree(llm_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[key] = tensors[key][:1024].clone()
    save_file(tensors, folder / "model.safetensors")
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**fields, "vocab_size": 1024})
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def one_text_vocabulary() -> Iterator[None]:
    """The same bytes are always the same vocabulary, and slow to read."""
    with pytest.MonkeyPatch.context() as patch:
        read, made = vocab._read_sentencepiece, {}

        def remembered(content, where):
            if content not in made:
                made[content] = read(content, where)
            return made[content]

        patch.setattr(vocab, "_read_sentencepiece", remembered)
        yield


# --- adapters for it ---


@pytest.fixture
def llm(llm_folder: Path) -> SeedLLM:
    return load_llm(llm_folder)


@pytest.fixture
def tensors(llm: SeedLLM, peft_adapter, make_generator) -> dict[str, torch.Tensor]:
    """Of every projection, with rank 4."""
    return peft_adapter.random_tensors(llm.config, make_generator(8))


@pytest.fixture
def save_adapter(peft_adapter, tmp_path: Path) -> Callable[..., Path]:
    return lambda tensors, name="adapter", **fields: peft_adapter.save(
        tmp_path / name, tensors, **fields
    )


@pytest.fixture
def peak_memory(tmp_path: Path) -> Callable[[Callable[[], object]], int]:
    """Most bytes of tensors that a function holds at once, as torch's allocator reports them."""

    def measure(function: Callable[[], object]) -> int:
        trace = tmp_path / "trace.json"
        with torch.profiler.profile(profile_memory=True) as profile:
            function()
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
        held = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
        return max(accumulate(size for _, size in held))

    return measure
