"""Tokenizers in training: networks whose ``forward`` returns a loss.

`ContrastiveLearner` trains the causal Q-Former. `CodebookLearner` trains the codebook and the
de-tokenizer as in the reference, `MiniLearner` all of seed-mini's tokenizer at once on the closed
world. The vision tower is frozen in each.

Sources: arXiv 2301.12597 (BLIP-2), 2307.08041 (SEED), 1711.00937 (VQ-VAE); AILab-CVC/SEED at
93b3cf4.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertModel

from ...codes.value import NUM_CODES
from ...tokenizer.codebook import Codebook
from ...tokenizer.config import TokenizerConfig
from ...tokenizer.eva_vit import Block, EvaVit
from ...tokenizer.network import TokenizerModel
from ...tokenizer.qformer import QFormer, QFormerConfig
from ..world.closed_world import World
from ..world.rendering import normalize
from ..world.scenes import Scene
from .losses import contrastive_loss, cosine_loss, detached, quantization_loss, straight_through
from .moving_average import MovingAverage
from .teacher import HeadLossWeights, Labels, Teacher
from .weights import initialize, initialize_tokens, leave_out, upstream_tensors

FIRST_TEMPERATURE = 0.07
RECONSTRUCTION_DEPTH = 4
"""Blocks that restore the Q-Former's output from codes, for training only."""

_QFORMER = "Qformer.bert."


class ContrastiveLearner(nn.Module):
    """Draws the last query's output to the picture's caption, and away from other captions.

    The text encoder is a BERT that has the Q-Former's self-attention and norms, and feed-forward
    layers of its own, as in the reference. Unlike there, nothing is dropped out.
    """

    def __init__(
        self,
        visual_encoder: EvaVit,
        config: QFormerConfig,
        image_norm_eps: float,  # of the norm between the two
        vocabulary_size: int,  # of the captions' tokenizer
        embedding_dim: int = 256,  # in which pictures and captions are compared
    ) -> None:
        super().__init__()
        self.visual_encoder = visual_encoder.requires_grad_(False)
        self.image_norm = nn.LayerNorm(config.context_width, eps=image_norm_eps)
        self.qformer = QFormer(config, nn)
        self.text_encoder = _text_encoder(config, vocabulary_size)
        self.vision_proj = nn.Linear(config.width, embedding_dim)
        self.text_proj = nn.Linear(config.width, embedding_dim)
        self.temperature = nn.Parameter(torch.tensor(FIRST_TEMPERATURE))
        for module in (self.qformer, self.text_encoder, self.vision_proj, self.text_proj):
            initialize(module)
        self._share_attention()
        leave_out(self, self._is_left_out)

    def _share_attention(self) -> None:
        text: Any = self.text_encoder
        text.embeddings.LayerNorm = self.qformer.norm
        # The reference has no kinds of tokens; BertModel always adds one.
        nn.init.zeros_(text.embeddings.token_type_embeddings.weight).requires_grad_(False)
        queries: Any = self.qformer.layers
        for layer, of_queries in zip(text.encoder.layer, queries, strict=True):
            own, shared = layer.attention, of_queries.self_attention
            own.self.query, own.self.key, own.self.value = shared.query, shared.key, shared.value
            own.output.dense, own.output.LayerNorm = shared.dense, shared.norm

    def _is_left_out(self, name: str) -> bool:
        of_text = name.removeprefix("text_encoder.")
        return name.startswith("visual_encoder.") or (of_text != name and _is_shared(of_text))

    def forward(
        self, pixels: torch.Tensor, token_ids: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, Any]:
        """Return the loss.

        Args:
            pixels: float ``[B, 3, S, S]``, CLIP-normalised.
            token_ids: int64 ``[B, T]``, captions, each with BERT's [CLS] first.
            mask: int64 ``[B, T]``, 1 for tokens and 0 for padding.
        """
        with torch.no_grad():
            features = self.visual_encoder(pixels)
        queries = self.qformer(self.image_norm(features))  # [B, 32, D]
        words = self.text_encoder(input_ids=token_ids, attention_mask=mask).last_hidden_state
        pictures = F.normalize(self.vision_proj(queries[:, -1]).float(), dim=-1)
        texts = F.normalize(self.text_proj(words[:, 0]).float(), dim=-1)
        with torch.autocast(pixels.device.type, enabled=False):
            loss = contrastive_loss(pictures, texts, self.temperature)
        is_right = (pictures.detach() @ texts.detach().t()).argmax(1) == torch.arange(
            len(pictures), device=pictures.device
        )
        terms = {"temperature": self.temperature.detach(), "accuracy": is_right.float().mean()}
        return {"loss": loss, "terms": terms}

    def upstream_tensors(self) -> dict[str, torch.Tensor]:
        """Return all that is trained, by upstream's names; writing to it changes the network."""
        text = {
            _QFORMER + name: parameter.detach()
            for name, parameter in self.text_encoder.named_parameters()
            if not _is_shared(name) and "token_type" not in name
        }
        projections = {
            f"{name}.{key}": parameter.detach()
            for name in ("vision_proj", "text_proj")
            for key, parameter in getattr(self, name).named_parameters()
        }
        return {
            **upstream_tensors(self.image_norm, "image_norm"),
            **upstream_tensors(self.qformer, "qformer"),
            **text,
            **projections,
            "temp": self.temperature.detach(),
        }


def _text_encoder(config: QFormerConfig, vocabulary_size: int) -> BertModel:
    sizes = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_width,
        layer_norm_eps=config.norm_eps,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        type_vocab_size=1,
    )
    return BertModel(sizes, add_pooling_layer=False)


def _is_shared(name: str) -> bool:
    """Tell by its name in the text encoder whether a tensor is the Q-Former's."""
    return ".attention." in name or name.startswith("embeddings.LayerNorm.")


def nearest_rows(quantizer: Codebook, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes ``[B, 32]`` of vectors ``[B, 32, D]`` and their rows, computed in float32."""
    with torch.autocast(vectors.device.type, enabled=False):
        codes = quantizer.nearest(vectors.detach().float())
        return codes, quantizer.lookup(codes)


class CodebookLearner(nn.Module):
    """Learns codes that restore the Q-Former's output and an image embedding.

    Args:
        model: has a trained tower, norm and Q-Former, which are frozen here.
        config: its sizes.
        teacher: pixels ``[B, 3, S, S]`` to image embeddings ``[B, D]``; frozen.
    """

    def __init__(self, model: TokenizerModel, config: TokenizerConfig, teacher: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.teacher = teacher.requires_grad_(False)
        width = config.qformer.width
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.decode_heads,
                int(width * config.decode_mlp_ratio),
                config.decode_norm_eps,
                nn,
            )
            for _ in range(RECONSTRUCTION_DEPTH)
        )
        self.pos_embed = nn.Parameter(torch.empty(1, NUM_CODES, width))
        frozen = (model.encoder.visual_encoder, model.encoder.image_norm, model.encoder.qformer)
        for module in frozen:
            module.requires_grad_(False)
        initialize(self.blocks)
        initialize_tokens(self.pos_embed)
        initialize_codes(model)
        spread = 1 / config.codebook_size
        nn.init.uniform_(model.embedder.quantizer.codebook, -spread, spread)
        names = (
            "model.encoder.visual_encoder.",
            "model.encoder.image_norm.",
            "model.encoder.qformer.",
            "teacher.",
        )
        leave_out(self, lambda name: name.startswith(names))

    def forward(self, pixels: torch.Tensor) -> dict[str, Any]:
        """Return the loss of pixels ``[B, 3, S, S]``, CLIP-normalised."""
        model = self.model
        with torch.no_grad():
            queries = model.encoder.qformer(
                model.encoder.image_norm(model.encoder.visual_encoder(pixels))
            )
            wanted = self.teacher(pixels)
        vectors = model.encoder.encode_head(queries).float()
        codes, rows = nearest_rows(model.embedder.quantizer, vectors)
        decoded = model.embedder.decode_head(straight_through(vectors, rows))
        restored = decoded + self.pos_embed.to(decoded)
        for block in self.blocks:
            restored = block(restored)
        terms = {
            "quantization": quantization_loss(vectors, rows),
            "reconstruction": cosine_loss(restored, queries),
            "embedding": F.mse_loss(model.embedder.embed_decoded(decoded).float(), wanted.float()),
        }
        loss = 5 * terms["quantization"] + 2 * terms["reconstruction"] + 0.5 * terms["embedding"]
        in_batch = torch.tensor(codes.unique().numel())
        return {"loss": loss, "terms": {**detached(terms), "codes_in_batch": in_batch}}

    def reconstruction_tensors(self) -> dict[str, torch.Tensor]:
        """Return the blocks that only training needs, by upstream's names."""
        blocks = {f"blocks.{k}": v.detach() for k, v in self.blocks.named_parameters()}
        return {**blocks, "pos_embed": self.pos_embed.detach()}


def initialize_codes(model: TokenizerModel) -> None:
    """Give first values to everything after the Q-Former except the codebook."""
    initialize_tokens(model.embedder.decode_pos_embed)
    modules = (
        *(
            model.encoder.encode_head,
            model.embedder.decode_head,
            model.embedder.image_down,
            model.embedder.projection,
        ),
        *(model.embedder.decode_blocks, model.embedder.reverse_qformer),
    )
    for module in modules:
        if module is not None:
            initialize(module)


class MiniLearner(nn.Module):
    """Learns codes that restore the teacher's embedding and what its heads read in it.

    Args:
        model: a network of seed-mini's kind; its tower becomes the teacher's.
        teacher: frozen.
        average: of the codebook.
        world: renders scenes.
        reading: factors of what the teacher's heads read in restored embeddings.
        commitment: factor of the pull of the vectors to the codebook.
    """

    def __init__(
        self,
        model: TokenizerModel,
        teacher: Teacher,
        average: MovingAverage,
        world: World,
        reading: HeadLossWeights,
        commitment: float,
    ) -> None:
        super().__init__()
        initialize(model.encoder.qformer)
        initialize(model.encoder.image_norm)
        initialize_codes(model)
        nn.init.zeros_(model.embedder.quantizer.codebook).requires_grad_(False)
        model.encoder.visual_encoder = teacher.visual_encoder
        self.model = model
        self.teacher = teacher.requires_grad_(False)
        self.average = average
        self._world = world
        self._reading = reading
        self._commitment = commitment
        names = ("model.encoder.visual_encoder.", "teacher.")
        leave_out(self, lambda name: name.startswith(names))

    def forward(
        self, scenes: list[Scene], backgrounds: torch.Tensor, num_codes: torch.Tensor
    ) -> dict[str, Any]:
        """Return the loss of a batch of `samples.collate_scenes`."""
        model = self.model
        labels = Labels.of(scenes, backgrounds, self._world)
        with torch.no_grad():
            features = model.encoder.visual_encoder(normalize(labels.pictures))
            wanted = self.teacher.embed_features(features).float()
        vectors = model.encoder.encode_head(
            model.encoder.qformer(model.encoder.image_norm(features))
        ).float()
        rows = self._quantize(vectors)
        decoded = model.embedder.decode_head(straight_through(vectors, rows))
        is_given = torch.arange(NUM_CODES, device=vectors.device) < num_codes[:, None]
        embedding = model.embedder.embed_decoded(decoded * is_given[..., None]).float()
        read = self.teacher.reader.losses(embedding, labels)
        terms = {
            "regression": F.mse_loss(embedding, wanted),
            "commitment": F.mse_loss(vectors, rows),
            **read,
        }
        loss = terms["regression"] + self._commitment * terms["commitment"]
        loss = loss + sum(getattr(self._reading, name) * value for name, value in read.items())
        terms = detached(terms)
        terms["object_accuracy"] = self.teacher.reader.accuracy(embedding, labels)
        terms["perplexity"] = self.average.perplexity()
        return {"loss": loss, "terms": terms}

    def _quantize(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the rows of vectors ``[B, 32, D]``; in training, the codebook learns from them."""
        quantizer = self.model.embedder.quantizer
        if self.training:
            self.average.prepare(quantizer, vectors)
        codes, rows = nearest_rows(quantizer, vectors)
        if self.training:
            self.average.update(quantizer, vectors, codes)
        return rows
