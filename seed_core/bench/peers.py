"""The peers: the same networks with the same weights, as transformers and diffusers run them."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..decoder.runtime import SeedDecoder
from ..errors import OptionError
from ..models import names
from ..tokenizer.runtime import SeedTokenizer
from .subject import MINI, Subject

TRANSFORMERS, DIFFUSERS = PEERS = ("transformers", "diffusers")

_TOWER_NAMES = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.", "embeddings.patch_embedding."),
    ("blocks.", "encoder.layers."),
    (".norm", ".layer_norm"),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)
"""Our names in the vision tower to those of transformers' Blip2VisionModel."""


def library(name: str) -> Any:
    """Import a peer; late, and without its types, which are incomplete."""
    return importlib.import_module(name)


def check_installed(libraries: Sequence[str] = PEERS) -> None:
    """Refuse to start where there is nothing to compare with.

    Raises:
        OptionError: one of the libraries is not installed.
    """
    names = [name for name in libraries if not importlib.util.find_spec(name)]
    if names:
        raise OptionError(
            f"bench compares with transformers and diffusers, but {' and '.join(names)} cannot be "
            'imported; install both with: pip install -e ".[demo]"'
        )


def silence(libraries: Sequence[str] = PEERS) -> None:
    """Keep the peers' progress bars and advice out of the table."""
    for name in libraries:
        logging = library(f"{name}.utils.logging")
        logging.disable_progress_bar()
        logging.set_verbosity_error()


def versions(libraries: Sequence[str] = PEERS) -> dict[str, str]:
    """Return the versions of what was measured with."""
    return {name: str(library(name).__version__) for name in ("torch", *libraries)}


def load_llama(subject: Subject) -> Any:
    """Return transformers' LlamaForCausalLM with the subject's weights."""
    llama = library("transformers.models.llama.modeling_llama")
    if subject.size == MINI:
        folder = names.bundled("llm")
        model = llama.LlamaForCausalLM.from_pretrained(folder, dtype=subject.dtype)
        return model.to(subject.device).eval()
    config = llama.LlamaConfig(**dataclasses.asdict(subject.config))
    with torch.device("meta"):
        model = llama.LlamaForCausalLM(config)
    model.load_state_dict(dict(subject.llama_tensors()), assign=True)
    # The frequencies of the positions are in no file, so they are still on the meta device.
    model.model.rotary_emb = llama.LlamaRotaryEmbedding(config).to(subject.device)
    return model.requires_grad_(False).eval()


def generate(
    model: Any,
    prompt: Sequence[int],
    rows: int,
    new_tokens: int,
    end_id: int,
    cache: str | None = None,
) -> list[int]:
    """Return the greedy tokens of the first of several equal rows; ``end_id`` never comes.

    Args:
        model: from `load_llama`.
        prompt: token ids.
        rows: how many are made together.
        new_tokens: how many follow the prompt.
        end_id: the token that would end a reply.
        cache: None for the default, or ``static``, which compiles where there is Triton.
    """
    token_ids = torch.tensor([prompt] * rows, device=model.device)
    made = model.generate(
        token_ids,
        attention_mask=torch.ones_like(token_ids),
        do_sample=False,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        eos_token_id=end_id,
        pad_token_id=0,
        cache_implementation=cache,
        disable_compile=not importlib.util.find_spec("triton"),
    )
    return list(made[0, len(prompt) :].tolist())


def prefill(model: Any, prompt: Sequence[int]) -> torch.Tensor:
    """Return the logits that follow a prompt."""
    with torch.no_grad():
        token_ids = torch.tensor([prompt], device=model.device)
        logits: torch.Tensor = model(token_ids, use_cache=True, logits_to_keep=1).logits
    return logits


def put_tower(tokenizer: SeedTokenizer) -> None:
    """Put transformers' tower with its final norm in the place of ours, with the same weights."""
    blip = library("transformers.models.blip_2.modeling_blip_2")
    ours, vision = tokenizer.module, tokenizer.config.vision
    config = blip.Blip2VisionConfig(
        hidden_size=vision.width,
        intermediate_size=vision.mlp_width,
        num_hidden_layers=vision.depth,
        num_attention_heads=vision.num_heads,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        hidden_act="gelu",
        layer_norm_eps=vision.norm_eps,
    )
    with torch.device("meta"):
        theirs = blip.Blip2VisionModel(config)
    encoder = ours.encoder
    state = {f"post_layernorm.{name}": x for name, x in encoder.image_norm.state_dict().items()}
    for name, tensor in encoder.visual_encoder.state_dict().items():
        for old, new in _TOWER_NAMES:
            name = name.replace(old, new)
        state[name] = tensor
    theirs.load_state_dict(state, assign=True)
    theirs.post_layernorm.eps = tokenizer.config.image_norm_eps
    encoder.add_module("visual_encoder", _Features(theirs.eval()))
    encoder.add_module("image_norm", nn.Identity())


class _Features(nn.Module):
    """A tower of transformers that returns what ours does."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return normed image features ``[B, P, D]`` of pixels."""
        features: torch.Tensor = self.tower(pixels).last_hidden_state
        return features


class _NoImageEncoder(nn.Linear):
    """The pipeline asks its image encoder for device and precision even with no use for it."""

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype


_ABSENT = dict.fromkeys(("feature_extractor", "image_encoder", "text_encoder", "tokenizer"))


def load_pipeline(subject: Subject) -> Any:
    """Return diffusers' pipeline as it loads the bundled decoder."""
    diffusers = library("diffusers")
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline.from_pretrained(
        names.bundled("decoder"), **_ABSENT
    )
    return pipeline.to(subject.device, subject.dtype)


def pipeline_around(decoder: SeedDecoder) -> Any:
    """Return diffusers' pipeline around the networks of our decoder."""
    home = "diffusers.pipelines.stable_diffusion"
    module = decoder.module
    normalizer = library(f"{home}.stable_unclip_image_normalizer").StableUnCLIPImageNormalizer(
        decoder.embedding_dim
    )
    normalizer.load_state_dict({"mean": module.mean, "std": module.std})
    parts = {
        **_ABSENT,
        "image_encoder": _NoImageEncoder(1, 1),
        "image_normalizer": normalizer,
        "image_noising_scheduler": decoder.noising_scheduler,
        "scheduler": copy.deepcopy(decoder.scheduler),
        "unet": module.unet,
        "vae": module.vae,
    }
    kind = library("diffusers").StableUnCLIPImg2ImgPipeline
    pipeline = kind(**parts).to(decoder.device, decoder.dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: Any, decoder: SeedDecoder, image_embedding: torch.Tensor, steps: int
) -> torch.Tensor:
    """Return a picture of an image embedding, with the prompt encoded beforehand as ours has it."""
    text = decoder.module.text.to(decoder.dtype)
    pictures: torch.Tensor = pipeline(
        image_embeds=image_embedding.to(decoder.dtype),
        prompt_embeds=text,
        negative_prompt_embeds=text,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    return pictures
