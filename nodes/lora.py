"""LoRA adapters on the language model."""

from comfy_api.latest import io

from ..seed_core import SeedLLM, read_lora
from ..seed_core.errors import OptionError
from . import host
from .io_types import CATEGORY, SeedLlmWire, ServedModel
from .kinds import LORA

_Llm = host.LoadedModel[SeedLLM] | ServedModel


class SeedLoraLoader(io.ComfyNode):
    """SEED_LLM + combo of `models/seed_lora` -> SEED_LLM."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDLoRALoader",
            display_name="Load SEED LoRA",
            category=CATEGORY,
            description="Applies a LoRA adapter, as saved by peft after fine-tuning, to SEED-LLaMA. "
            "The model itself stays as it is. Several adapters can be chained.",
            search_aliases=["LoRA", "peft", "adapter", "fine-tune", "SEED-LLaMA"],
            inputs=[
                SeedLlmWire.Input(
                    "llm", tooltip="From Load SEED LLM, or from another Load SEED LoRA."
                ),
                io.Combo.Input(
                    "lora",
                    options=LORA.choices(),
                    default=LORA.bundled_choice,
                    tooltip="A peft folder (with adapter_config.json) or a .safetensors file in "
                    "models/seed_lora, trained on the connected model. seed-mini night comes with "
                    "the pack: with it, seed-mini draws on a black background.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How strongly it acts. 1 is as trained, 0 is off, below 0 reverses it.",
                ),
            ],
            outputs=[
                SeedLlmWire.Output("llm", tooltip="The model with the adapter, for SEED Generate.")
            ],
        )

    @classmethod
    def validate_inputs(cls, lora: str = "") -> bool | str:
        return LORA.check(lora)

    @classmethod
    def fingerprint_inputs(cls, lora: str, strength: float, llm: _Llm | None = None) -> str:
        return LORA.fingerprint(lora)

    @classmethod
    def execute(cls, llm: _Llm, lora: str, strength: float) -> io.NodeOutput:
        if strength == 0:
            return io.NodeOutput(llm)
        if isinstance(llm, ServedModel):
            raise OptionError(
                f"{llm.core.server} has its own adapters, each under a model name of its own: write that "
                f"name as model into {llm.core.server.path.name} and take this node out"
            )
        adapter = read_lora(LORA.find(lora), llm.core.config)
        return io.NodeOutput(llm.with_lora(adapter, strength))
