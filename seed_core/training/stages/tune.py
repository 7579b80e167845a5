"""The stage ``tune``: a LoRA adapter on a SEED-LLaMA, with peft.

Every layer learns a product of two narrow matrices beside its frozen weights; embeddings and norms
may be trained in full. SEED Load LoRA and ``python -m seed_core convert --lora`` take the result.

Sources: arXiv 2106.09685 (LoRA), 2310.01218 (SEED-LLaMA); AILab-CVC/SEED at 93b3cf4 for the
numbers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from ...compute import precision
from ...errors import OptionError
from ...llm.config import LlamaConfig
from ...models.llm import read_vocabulary
from ...models.names import CONFIG_FILE
from ..data.examples import collate
from ..loop import train
from ..processes import is_first_process
from ..schedule import Schedule
from ..settings import check_at_least
from . import llm
from .llm import Data, load_start, model_folder, read_template

FOLDER = "adapter"  # of the run, for the result

WEIGHTS_FILE = "adapter_model.safetensors"

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj")
"""Every matrix of every layer gets a product."""

_IN_FULL = {
    "embeddings": ("embed_tokens", "lm_head"),
    "norms": ("input_layernorm", "post_attention_layernorm", "norm"),
}

TrainedInFull = Literal["embeddings", "norms"]


@dataclass(frozen=True)
class Recipe:
    """What the stage reads."""

    data: Data  # the adapter learns from this
    schedule: Schedule
    start: str  # the model that the adapter belongs to, seed-mini or a folder
    # Folder with the files of a larger vocabulary, whose new tokens the model gets; by default
    # the model keeps its own.
    vocabulary: str | None = None
    rank: int = 16  # of the products
    alpha: float = 32.0  # the strength of the products is alpha / rank
    dropout: float = 0.05  # fraction of a product's input that is dropped in training
    modules: tuple[str, ...] = MODULES  # the layers that get products
    trained_in_full: tuple[TrainedInFull, ...] = ()  # embeddings includes the head
    # Of the frozen weights; what is trained is always float32.
    base_precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    weights: Literal["fp32", "fp16", "bf16"] = "fp32"  # number format of the adapter
    # Also write the merged model, in the base's number format, to the folder llm.
    merge: bool = False

    def __post_init__(self) -> None:
        check_at_least(0, self, "alpha")
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise OptionError(
                "rank must be at least 1 and dropout in 0..1, below 1; got "
                f"{self.rank} and {self.dropout}"
            )
        if self.base_precision != "fp32" and self.schedule.precision == "fp32":
            raise OptionError(
                f"weights in {self.base_precision} cannot be computed with in fp32; set "
                f"schedule.precision to {self.base_precision}, or base_precision to fp32"
            )


RECIPE = Recipe


def run(recipe: Recipe, output: Path) -> None:
    """Train an adapter and write the folder ``adapter`` of the run, and ``llm`` if it is merged.

    Raises:
        OptionError: the data or the modules do not fit.
        CheckpointError: the model or the vocabulary is damaged.
    """
    place = model_folder(recipe.vocabulary or recipe.start)
    vocab = read_vocabulary(place)
    template = read_template(recipe.start)
    samples = recipe.data.open(vocab, recipe.schedule.seed, template)

    own = LlamaConfig.from_dict(model_folder(recipe.start).read_json(CONFIG_FILE)).vocab_size
    if own < vocab.size and "embeddings" not in recipe.trained_in_full:
        raise OptionError(
            f"the vocabulary has {vocab.size - own} tokens that {recipe.start} lacks; an adapter "
            "keeps what it learns of them only with embeddings in trained_in_full"
        )

    def build() -> PeftModel:
        base = load_start(recipe.start, precision.PRECISIONS[recipe.base_precision], vocab)
        return with_adapter(base, recipe)

    model: Any = train(build, samples, collate, recipe, output, length=len)
    if is_first_process():
        write(model, recipe.start, output / FOLDER, precision.PRECISIONS[recipe.weights])
        if recipe.merge:
            merged: Any = model.merge_and_unload()
            dtype = precision.PRECISIONS[recipe.base_precision]
            llm.write(merged, place, output / llm.FOLDER, dtype)


def with_adapter(base: LlamaForCausalLM, recipe: Recipe) -> PeftModel:
    """Return a network with an adapter that changes nothing yet; only the adapter is trained.

    Raises:
        OptionError: the network has no such modules.
    """
    layers = {name.rsplit(".", 1)[-1] for name, _ in base.named_modules()}
    if unknown := [name for name in recipe.modules if name not in layers]:
        raise OptionError(
            f"the model has no modules {', '.join(unknown)}; see modules in the recipe"
        )
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]  # it may be any number
        lora_dropout=recipe.dropout,
        target_modules=[*recipe.modules],
        modules_to_save=[name for kind in recipe.trained_in_full for name in _IN_FULL[kind]]
        or None,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # 16 bits would lose small steps
    return model


def write(model: PeftModel, base: str, folder: Path, dtype: torch.dtype) -> None:
    """Write an adapter as peft does, with the name of its model but not that model's folder."""
    config: Any = copy.copy(model.peft_config["default"])
    config.inference_mode = True
    config.base_model_name_or_path = Path(base).name
    # Sets by now, which would be written in any order.
    config.target_modules = sorted(config.target_modules)
    # Otherwise peft looks for the model on the hub, to see whether its vocabulary has grown.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    content = {name: x.detach().to("cpu", dtype).contiguous() for name, x in state.items()}
    save_file(content, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config.save_pretrained(folder)
