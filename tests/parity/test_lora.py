"""A merged adapter against peft's own, on transformers' network: the recipe that SEED-LLaMA's weights have.

peft is optional: without it these tests are skipped, and tests/core holds the sums alone.
"""

import pytest
import torch
from safetensors.torch import save_file

from seed_core import merge_lora, read_lora
from seed_core.files.assemble import assemble
from seed_core.files.weights import read_tensors
from seed_core.llm.cache import KVCache
from seed_core.llm.config import LlamaConfig
from seed_core.llm.layout import names_in_file
from seed_core.llm.llama import Llama

TOLERANCE = 1e-5  # of the largest logit: the same products in another order of summation
CPU = torch.device("cpu")
FIELDS = {
    "model_type": "llama",
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IN_FULL = ["embed_tokens", "lm_head", "input_layernorm", "post_attention_layernorm", "norm"]
RECIPE = {"r": 16, "lora_alpha": 32, "target_modules": PROJECTIONS}
SETTINGS = {
    "the published recipe": {**RECIPE, "modules_to_save": IN_FULL},
    "rank-stabilised": {**RECIPE, "use_rslora": True},
    "patterns": {
        **RECIPE,
        "rank_pattern": {"v_proj": 4, "layers.1.self_attn.q_proj": 2},
        "alpha_pattern": {"mlp.down_proj": 5, r"layers\.2\.self_attn\..*": 7},
    },
    "embeddings": {**RECIPE, "target_modules": ["embed_tokens", "lm_head"]},
}


def randomise(parameters, seed):
    random = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=random))


@pytest.fixture
def base(isolated_random_state, tmp_path):
    """transformers' network with random weights, and a file of them."""
    from transformers import LlamaConfig as HubConfig
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(HubConfig(**FIELDS)).eval()
    randomise(model.parameters(), seed=1)
    file = tmp_path / "model.safetensors"
    save_file(model.state_dict(), file)
    return model, file


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_logits_are_pefts(base, settings, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model, file = base
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()
    randomise((p for p in wrapped.parameters() if p.requires_grad), seed=2)
    wrapped.save_pretrained(tmp_path / "adapter")

    config = LlamaConfig.from_dict(FIELDS)
    ours = assemble(
        lambda layers: Llama(config, layers, device="meta"),
        torch.nn,
        read_tensors(file),
        CPU,
        file,
        names_in_file,
    )
    token_ids = torch.randint(0, 120, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = wrapped(token_ids).logits
        plain = ours.prefill(token_ids, KVCache(config, 2, 40, CPU, torch.float32), True)
        merge_lora(ours, read_lora(tmp_path / "adapter", config))
        logits = ours.prefill(token_ids, KVCache(config, 2, 40, CPU, torch.float32), True)
    largest = expected.abs().max()
    assert (plain - expected).abs().max() > 0.1 * largest
    assert (logits - expected).abs().max() < TOLERANCE * largest
