"""What things are called: the bundled models, and the tensors in the published tokenizers.

Source of the names: AILab-CVC/SEED at 93b3cf4 and the files of its published checkpoints.
"""

from __future__ import annotations

import re
from pathlib import Path

SEED_MINI = "seed-mini"

CONFIG_FILE = "config.json"

_BUNDLED = Path(__file__).parents[1] / "weights" / SEED_MINI

# Our names of the tokenizer's tensors to those in upstream's files, applied in this order.
#
# ``{side}`` is what codes become: "text" in SEED-1, "image" in SEED-2.
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


def bundled(kind: str) -> Path:
    """Return a folder of the bundled seed-mini: tokenizer, llm, decoder or lora/night."""
    return _BUNDLED / kind


def place_of(path: str | Path, kind: str) -> Path:
    """Return where a model lies: the bundled one under its name, any other at its path."""
    return bundled(kind) if path == SEED_MINI else Path(path)


def sample_pictures() -> dict[str, Path]:
    """Return the pictures that come with seed-mini, by file name without suffix."""
    return {path.stem: path for path in sorted((_BUNDLED / "samples").glob("*.png"))}


def upstream_tokenizer_names(name: str, side: str = "image") -> tuple[str | None, ...]:
    """Return under which names upstream's files hold one of our tokenizer's tensors."""
    for pattern, upstream in _UPSTREAM_NAMES:
        name = pattern.sub(upstream.replace("{side}", side), name)
    if name.startswith("visual_encoder.") and name.endswith(".qkv.bias"):
        # Upstream has none for keys: in our one bias of the fused product they are zeros.
        layer = name.removesuffix(".qkv.bias")
        return f"{layer}.q_bias", None, f"{layer}.v_bias"
    return (name,)
