"""Full-size Stable Diffusion files with random weights, as they are published: one file, fp16.

And what goes with them: an IPAdapter, and tokenizers whose embeddings fit. Names and shapes are
written down here, not asked of the host, so that it has to recognise the files as it does a
download. Tensors are drawn and written one by one: no more than one is in memory.
"""

import itertools
import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Shapes = dict[str, tuple[int, ...]]
Form = tuple[torch.dtype, tuple[int, ...]]

STORED_AS = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
}

UNET_WIDTH = 320
UNET_FACTORS = (1, 2, 4, 4)
VAE_WIDTHS = (128, 256, 512, 512)
VOCABULARY, TEXT_TOKENS = 49408, 77
IP_TOKENS = 4


def write_unclip_h(path: Path) -> None:
    """SD 2.1 unCLIP-H: 1024 numbers of an image embedding and as many of its noise level."""
    shapes = (
        under("model.diffusion_model.", unet(context=1024, label=2048))
        | under("first_stage_model.", vae())
        | under("cond_stage_model.model.", open_clip_text(width=1024, depth=24))
    )
    write(path, shapes, seed=21)


def write_sd15(path: Path) -> None:
    shapes = (
        under("model.diffusion_model.", unet(context=768))
        | under("first_stage_model.", vae())
        | under("cond_stage_model.transformer.text_model.", clip_text(width=768, depth=12))
    )
    write(path, shapes, seed=15)


def write_controlnet_sd15(path: Path) -> None:
    """As control_v11p_sd15_canny: the UNet's first half, a way in for the lines, and ways out."""
    shared = ("time_embed.", "input_blocks.", "middle_block.")
    shapes = {key: shape for key, shape in unet(context=768).items() if key.startswith(shared)}
    widths = (3, 16, 16, 32, 32, 96, 96, 256, UNET_WIDTH)
    for i, (into, out) in enumerate(itertools.pairwise(widths)):
        shapes |= conv(f"input_hint_block.{2 * i}", out, into)
    skips = [UNET_WIDTH * factor for factor in (1, 1, 1, 1, 2, 2, 2, 4, 4, 4, 4, 4)]
    for i, width in enumerate(skips):
        shapes |= conv(f"zero_convs.{i}.0", width, width, side=1)
    shapes |= conv("middle_block_out.0", skips[-1], skips[-1], side=1)
    write(path, under("control_model.", shapes), seed=8)


def write_ip_adapter_sd15(path: Path) -> None:
    """The plain ip-adapter_sd15: a projection to four tokens, and keys and values of each layer."""
    shapes = linear("image_proj.proj", IP_TOKENS * 768, 1024) | norm("image_proj.norm", 768)
    down = [UNET_WIDTH * factor for factor in (1, 1, 2, 2, 4, 4)]
    up = [UNET_WIDTH * factor for factor in (4, 4, 4, 2, 2, 2, 1, 1, 1)]
    for layer, width in enumerate([*down, *up, UNET_WIDTH * 4]):
        # diffusers counts self-attention too, which has nothing to store.
        for kind in ("to_k_ip", "to_v_ip"):
            shapes |= linear(f"ip_adapter.{2 * layer + 1}.{kind}", width, 768, has_bias=False)
    write(path, shapes, seed=3)


def write_tokenizer(source: Path, folder: Path, **sizes: int | str) -> None:
    """A small tokenizer of ours with other sizes, say the published codebook, random where new."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8")) | sizes
    tensors = load_file(source / "model.safetensors")
    new: Shapes = {"quantize.embedding.weight": (config["n_embed"], config["codebook_embed_dim"])}
    if "image_features_dim" in sizes:
        joined = tensors["distill_image_proj.weight"].shape[1]
        new |= linear("distill_image_proj", config["image_features_dim"], joined)
    generator = torch.Generator().manual_seed(2)
    for key, shape in new.items():
        tensors[key] = random_tensor(key, shape, generator)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


# --- files ---


def write(path: Path, shapes: Shapes, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    forms = {key: (torch.float16, shape) for key, shape in shapes.items()}
    write_tensors(path, forms, lambda key: random_tensor(key, shapes[key], generator))


def write_tensors(
    path: Path,
    forms: Mapping[str, Form],
    make: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write what `make` gives for each name, one after the other; it has the form, on any device."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for key, (dtype, shape) in forms.items():
        start, end = end, end + nbytes(dtype, shape)
        fields = {"dtype": STORED_AS[dtype], "shape": shape, "data_offsets": [start, end]}
        header[key] = fields
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key in forms:
            tensor = make(key).cpu().reshape(-1)
            file.write(tensor.view(torch.uint8).numpy().data)


def nbytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """What a tensor of this form takes in a file."""
    return dtype.itemsize * math.prod(shape)


def random_tensor(key: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Spread so that a layer's output is about as large as its input."""
    if len(shape) == 1 and key.endswith("weight"):
        return torch.ones(shape, dtype=torch.float16, device=generator.device)  # a norm's
    # The host takes an SD 2 for one that predicts v by the spread (above 0.09) of one norm's bias.
    spread = 0.2 if len(shape) == 1 else 1 / math.sqrt(math.prod(shape[1:]))
    empty = torch.empty(shape, dtype=torch.float16, device=generator.device)
    return empty.normal_(std=spread, generator=generator)


# --- layers ---


def under(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + key: shape for key, shape in shapes.items()}


def linear(name: str, out: int, into: int, has_bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if has_bias else {})


def conv(name: str, out: int, into: int, side: int = 3) -> Shapes:
    return {f"{name}.weight": (out, into, side, side), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


# --- the UNet ---


def unet(context: int, label: int = 0) -> Shapes:
    width = UNET_WIDTH
    shapes = linear("time_embed.0", 4 * width, width) | linear("time_embed.2", 4 * width, 4 * width)
    if label:
        shapes |= linear("label_emb.0.0", 4 * width, label)
        shapes |= linear("label_emb.0.2", 4 * width, 4 * width)
    shapes |= conv("input_blocks.0.0", width, 4)
    skips, deepest = [width], len(UNET_FACTORS) - 1
    for level, factor in enumerate(UNET_FACTORS):
        for _ in range(2):
            block = f"input_blocks.{len(skips)}"
            shapes |= residual(f"{block}.0", factor * UNET_WIDTH, width)
            width = factor * UNET_WIDTH
            if level < deepest:
                shapes |= transformer(f"{block}.1", width, context)
            skips.append(width)
        if level < deepest:
            shapes |= conv(f"input_blocks.{len(skips)}.0.op", width, width)
            skips.append(width)
    shapes |= residual("middle_block.0", width, width)
    shapes |= transformer("middle_block.1", width, context)
    shapes |= residual("middle_block.2", width, width)
    for i in range(len(skips)):
        block, level = f"output_blocks.{i}", deepest - i // 3
        out = UNET_FACTORS[level] * UNET_WIDTH
        shapes |= residual(f"{block}.0", out, width + skips.pop())
        width = out
        if level < deepest:
            shapes |= transformer(f"{block}.1", width, context)
        if i % 3 == 2 and level:
            shapes |= conv(f"{block}.{2 if level < deepest else 1}.conv", width, width)
    return shapes | norm("out.0", width) | conv("out.2", 4, width)


def residual(name: str, out: int, into: int) -> Shapes:
    shapes = norm(f"{name}.in_layers.0", into) | conv(f"{name}.in_layers.2", out, into)
    shapes |= linear(f"{name}.emb_layers.1", out, 4 * UNET_WIDTH)
    shapes |= norm(f"{name}.out_layers.0", out) | conv(f"{name}.out_layers.3", out, out)
    return shapes | (conv(f"{name}.skip_connection", out, into, 1) if out != into else {})


def transformer(name: str, width: int, context: int) -> Shapes:
    # SD 1 projects with 1x1 convolutions, SD 2 with linear layers.
    project = linear if context == 1024 else lambda *shape: conv(*shape, side=1)
    shapes = norm(f"{name}.norm", width)
    shapes |= project(f"{name}.proj_in", width, width) | project(f"{name}.proj_out", width, width)
    block = f"{name}.transformer_blocks.0"
    for attention, into in ((f"{block}.attn1", width), (f"{block}.attn2", context)):
        shapes |= linear(f"{attention}.to_q", width, width, has_bias=False)
        shapes |= linear(f"{attention}.to_k", width, into, has_bias=False)
        shapes |= linear(f"{attention}.to_v", width, into, has_bias=False)
        shapes |= linear(f"{attention}.to_out.0", width, width)
    shapes |= linear(f"{block}.ff.net.0.proj", 8 * width, width)
    shapes |= linear(f"{block}.ff.net.2", width, 4 * width)
    for i in (1, 2, 3):
        shapes |= norm(f"{block}.norm{i}", width)
    return shapes


# --- the VAE ---


def vae() -> Shapes:
    shapes = under("encoder.", vae_encoder()) | under("decoder.", vae_decoder())
    return shapes | conv("quant_conv", 8, 8, 1) | conv("post_quant_conv", 4, 4, 1)


def vae_encoder() -> Shapes:
    width = VAE_WIDTHS[0]
    shapes = conv("conv_in", width, 3)
    for level, out in enumerate(VAE_WIDTHS):
        for i in range(2):
            shapes |= vae_residual(f"down.{level}.block.{i}", out, width)
            width = out
        if level < len(VAE_WIDTHS) - 1:
            shapes |= conv(f"down.{level}.downsample.conv", width, width)
    return shapes | vae_middle(width) | norm("norm_out", width) | conv("conv_out", 8, width)


def vae_decoder() -> Shapes:
    width = VAE_WIDTHS[-1]
    shapes = conv("conv_in", width, 4) | vae_middle(width)
    for level, out in reversed(list(enumerate(VAE_WIDTHS))):
        for i in range(3):
            shapes |= vae_residual(f"up.{level}.block.{i}", out, width)
            width = out
        if level:
            shapes |= conv(f"up.{level}.upsample.conv", width, width)
    return shapes | norm("norm_out", width) | conv("conv_out", 3, width)


def vae_middle(width: int) -> Shapes:
    shapes = norm("mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= conv(f"mid.attn_1.{part}", width, width, 1)
    return (
        shapes
        | vae_residual("mid.block_1", width, width)
        | vae_residual("mid.block_2", width, width)
    )


def vae_residual(name: str, out: int, into: int) -> Shapes:
    shapes = norm(f"{name}.norm1", into) | conv(f"{name}.conv1", out, into)
    shapes |= norm(f"{name}.norm2", out) | conv(f"{name}.conv2", out, out)
    return shapes | (conv(f"{name}.nin_shortcut", out, into, 1) if out != into else {})


# --- text encoders ---


def open_clip_text(width: int, depth: int) -> Shapes:
    """ViT-H's, by OpenCLIP's names, as SD 2 files hold it."""
    shapes: Shapes = {
        "positional_embedding": (TEXT_TOKENS, width),
        "token_embedding.weight": (VOCABULARY, width),
        "text_projection": (width, width),
    }
    for i in range(depth):
        block = f"transformer.resblocks.{i}"
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width)}
        shapes |= {f"{block}.attn.in_proj_bias": (3 * width,)}
        shapes |= linear(f"{block}.attn.out_proj", width, width)
        shapes |= linear(f"{block}.mlp.c_fc", 4 * width, width)
        shapes |= linear(f"{block}.mlp.c_proj", width, 4 * width)
        shapes |= norm(f"{block}.ln_1", width) | norm(f"{block}.ln_2", width)
    return shapes | norm("ln_final", width)


def clip_text(width: int, depth: int) -> Shapes:
    """ViT-L's, by transformers' names, as SD 1 files hold it."""
    shapes: Shapes = {
        "embeddings.token_embedding.weight": (VOCABULARY, width),
        "embeddings.position_embedding.weight": (TEXT_TOKENS, width),
    }
    for i in range(depth):
        block = f"encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{block}.self_attn.{part}", width, width)
        shapes |= linear(f"{block}.mlp.fc1", 4 * width, width)
        shapes |= linear(f"{block}.mlp.fc2", width, 4 * width)
        shapes |= norm(f"{block}.layer_norm1", width) | norm(f"{block}.layer_norm2", width)
    return shapes | norm("final_layer_norm", width)
