"""The stage ``llm``: pretraining and instruction tuning on pictures and text.

The network is transformers' LlamaForCausalLM. The result is a folder that both `seed_core.load_llm`
and transformers load.

Sources: arXiv 2310.01218 (SEED-LLaMA); transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from ...codes.value import language_family
from ...compute import precision
from ...errors import CheckpointError, OptionError
from ...files.folder import ModelFolder
from ...llm.config import LlamaConfig as NetworkConfig
from ...llm.prompt import VICUNA, PromptTemplate
from ...llm.vocab import VOCABULARY_FILES, Vocabulary, is_padded
from ...models import names
from ...models.llm import find_llm_folder, read_vocabulary, template_of
from ..data import documents, sources
from ..data.examples import collate
from ..loop import train
from ..networks.averaging import keep_of_start
from ..processes import is_first_process
from ..schedule import Schedule
from ..settings import check_at_least, check_fractions
from ..streams import Streams
from ..world.conversations import ConversationSettings

FOLDER = "llm"  # of the run, for the result

_GENERATION = "generation_config.json"
_SIDE_FILES = (*VOCABULARY_FILES, "special_tokens_map.json", "tokenizer_config.json", _GENERATION)


@dataclass(frozen=True)
class Data:
    """What a language model learns from: a mixture of all sources."""

    files: tuple[sources.SourceFiles, ...] = ()  # documents as JSON lines
    world: ConversationSettings | None = None  # conversations about the closed world
    pieces: Literal["separate", "joined"] = "separate"  # see documents.DocumentWriter
    wrong_codes: float = 0.0  # largest fraction of wrong codes, see examples.with_wrong_codes

    def __post_init__(self) -> None:
        check_fractions(self, "wrong_codes", group="data.")

    def open(
        self, vocab: Vocabulary, seed: int, template: PromptTemplate = VICUNA
    ) -> sources.Documents:
        """Return the mixture for a model with this vocabulary and template.

        Raises:
            OptionError: no source is given, or a source does not fit.
            DocumentError: a document does not fit its format.
            CheckpointError: no family has as many codes as the vocabulary.
        """
        family = language_family(vocab.codebook_size)
        writer = documents.DocumentWriter(vocab, family, self.pieces, template)
        mixed = [files.open() for files in self.files]
        if self.world is not None:
            told = self.world.open(seed)
            mixed.append(sources.Source(told, self.world.weight, self.world.max_length))
        opened = sources.Documents(mixed, writer, self.wrong_codes)
        opened.check(Streams(seed))
        return opened


@dataclass(frozen=True)
class Sizes:
    """Sizes of a new network, named as in a config.json of Hugging Face; by default seed-mini's."""

    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    max_position_embeddings: int = 512
    rms_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        check_at_least(1, self, *names, "max_position_embeddings", group="sizes.")
        check_at_least(0, self, "rms_norm_eps", group="sizes.")
        # A head is as wide as its share of the whole, and positions turn pairs of its numbers.
        if self.hidden_size % (2 * self.num_attention_heads):
            raise OptionError(
                f"sizes.hidden_size {self.hidden_size} must be a multiple of twice its "
                f"{self.num_attention_heads} num_attention_heads"
            )

    def config(self, vocab: Vocabulary) -> LlamaConfig:
        """Return transformers' config."""
        return LlamaConfig(
            vocab_size=vocab.size,
            bos_token_id=vocab.bos,
            eos_token_id=vocab.eos,
            pad_token_id=0,
            **dataclasses.asdict(self),
        )


@dataclass(frozen=True)
class Recipe:
    """What the stage reads."""

    data: Data  # the model learns from this
    schedule: Schedule
    # The models to go on with, seed-mini or folders; of several with the same sizes, the average
    # of their weights; by default a new network.
    start: tuple[str, ...] = ()
    keep: float = 0.0  # fraction of the start's weights in the result, see keep_of_start
    sizes: Sizes = Sizes()  # of a new network
    # Seed-mini, or a folder with the files of a vocabulary, to whose size embeddings and head
    # grow; by default that of the start, or seed-mini's.
    vocabulary: str | None = None
    weights: Literal["fp32", "fp16", "bf16"] = "fp16"  # number format of the result

    def __post_init__(self) -> None:
        check_fractions(self, "keep")
        if self.keep and not self.start:
            raise OptionError(f"keep {self.keep} is of the weights of start, which names no model")


RECIPE = Recipe


def run(recipe: Recipe, output: Path) -> None:
    """Train a language model and write the folder ``llm`` of the run.

    Raises:
        OptionError: the data or the start do not fit.
        CheckpointError: the start or the vocabulary is damaged.
    """
    place = model_folder(recipe.vocabulary or [*recipe.start, names.SEED_MINI][0])
    vocab = read_vocabulary(place)
    started: dict[str, torch.Tensor] = {}

    def build() -> LlamaForCausalLM:
        if not recipe.start:
            return LlamaForCausalLM(recipe.sizes.config(vocab))
        model = average([load_start(start, torch.float32, vocab) for start in recipe.start])
        if recipe.keep and not started:  # the first one's: rows of new words are random
            started.update({name: x.detach().clone() for name, x in model.named_parameters()})
        return model

    template = read_template(recipe.start[0]) if recipe.start else VICUNA
    samples = recipe.data.open(vocab, recipe.schedule.seed, template)
    model: Any = train(build, samples, collate, recipe, output, length=len)
    if is_first_process():
        if recipe.keep:
            keep_of_start(model, started, recipe.keep)
        write(model, place, output / FOLDER, precision.PRECISIONS[recipe.weights])


def model_folder(path: str) -> ModelFolder:
    """Return the folder of a vocabulary, or of a model in Hugging Face's form.

    Raises:
        CheckpointError: the folder is missing, or the path leads to a converted file.
    """
    folder = find_llm_folder(path)
    if not folder.path.is_dir():
        raise CheckpointError(
            f"{folder.path} is a converted model; training starts from the Hugging Face folder"
        )
    return folder


def read_template(path: str) -> PromptTemplate:
    """Return the template in which the model of a folder converses."""
    return template_of(NetworkConfig.from_dict(model_folder(path).read_json(names.CONFIG_FILE)))


def load_start(path: str, dtype: torch.dtype, vocab: Vocabulary) -> LlamaForCausalLM:
    """Load transformers' network of a SEED-LLaMA, or of a LLaMA that is to become one.

    Args:
        path: ``seed-mini``, or a folder.
        dtype: of the weights.
        vocab: of the model; embeddings and head get as many rows.

    Raises:
        CheckpointError: the folder is missing, holds another model, or has the larger vocabulary.
    """
    folder = model_folder(path)
    rows = NetworkConfig.from_dict(folder.read_json(names.CONFIG_FILE)).vocab_size
    if rows > vocab.size and not is_padded(rows, vocab.size):
        raise CheckpointError(
            f"{folder.path} has {rows} token ids and the vocabulary {vocab.size}; use the "
            "vocabulary files of the same model"
        )
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder.path, dtype=dtype)
    if rows != vocab.size:
        # Drawn like the rows of a new network, as the reference did, not like those that are there.
        model.resize_token_embeddings(vocab.size, mean_resizing=False)
    return model


def average(models: Sequence[LlamaForCausalLM]) -> LlamaForCausalLM:
    """Return the first model with the mean of all models' weights.

    Raises:
        OptionError: the models have different sizes.
    """
    first, *others = (model.state_dict() for model in models)
    shapes = [{name: x.shape for name, x in state.items()} for state in (first, *others)]
    if any(each != shapes[0] for each in shapes):
        raise OptionError("start names models of different sizes, which have no average")
    for name, tensor in first.items():
        for other in others:
            tensor += other[name]
        tensor /= len(models)
    return models[0]


def write(
    model: LlamaForCausalLM, vocabulary: ModelFolder, folder: Path, dtype: torch.dtype
) -> None:
    """Write a model with the files of its vocabulary, which ``vocabulary`` holds."""
    if not vocabulary.has(_GENERATION):
        model.generation_config = GenerationConfig.from_model_config(model.config)
    model.config.use_cache = True  # which training has switched off
    nn.Module.to(model, dtype=dtype)
    model.save_pretrained(folder)
    for name in _SIDE_FILES:
        if vocabulary.has(name):
            (folder / name).write_bytes(vocabulary.read_bytes(name))
