"""A slim SEED-LLaMA in its published form, converted and loaded, against transformers.

Published are pickled shards with an index, a config whose end token is not the vocabulary's, and, as
transformers of that time wrote them, the rotation's frequencies among the weights.
"""

import json
import shutil

import pytest
import torch

import seed_core
from seed_core.llm.cache import KVCache
from seed_core.models.convert import convert_model, plan_conversion

TOLERANCE = 1e-5  # of the largest logit: the same products in another order of summation
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": -1,
    "hidden_act": "silu",
    "vocab_size": 1538,  # of seed-mini's vocabulary
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.30.2",
    "use_cache": False,
}
SHARDS = 3


@pytest.fixture(scope="module")
def reference():
    """transformers' network, of numbers that float16 holds, as the published files store them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {k: v for k, v in CONFIG.items() if k.startswith(("num", "hidden_s", "inter", "vocab"))}
    sizes |= {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(LlamaConfig(**sizes)).eval().requires_grad_(False)
    random = torch.Generator().manual_seed(7)
    for name, value in model.state_dict().items():
        drawn = 0.2 * torch.randn(value.shape, generator=random) + ("norm" in name)
        value.copy_(drawn.half())
    return model


@pytest.fixture(scope="module")
def published(reference, tmp_path_factory, mini_folder):
    folder = tmp_path_factory.mktemp("seed-llama-slim")
    for name in ("tokenizer.model", "added_tokens.json"):
        shutil.copy(mini_folder / "llm" / name, folder)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    ends = {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(ends), encoding="utf-8")
    tensors = {name: value.half() for name, value in reference.state_dict().items()}
    for layer in range(CONFIG["num_hidden_layers"]):
        key = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        tensors[key] = 10000 ** -(torch.arange(0, 16, 2) / 16)
    table = {}
    for number in range(SHARDS):
        name = f"pytorch_model-{number + 1:05d}-of-{SHARDS:05d}.bin"
        shard = dict(list(tensors.items())[number::SHARDS])
        torch.save(shard, folder / name)
        table |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": 1}, "weight_map": table}
    text = json.dumps(index)
    (folder / "pytorch_model.bin.index.json").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=["as published", "converted"])
def llm(request, published, tmp_path_factory):
    if request.param == "as published":
        return seed_core.load_llm(published)
    output = tmp_path_factory.mktemp("converted") / "slim.safetensors"
    convert_model(plan_conversion(published, torch.float16), output)
    return seed_core.load_llm(output)


def test_logits_equal_the_reference(llm, reference, relative_error, make_generator):
    token_ids = torch.randint(0, CONFIG["vocab_size"], (1, 90), generator=make_generator(2))
    cache = KVCache(llm.config, 1, 90, llm.device, llm.dtype)
    with torch.inference_mode():
        ours = llm.module.prefill(token_ids, cache, all_positions=True)
        assert relative_error(ours, reference(token_ids).logits) <= TOLERANCE


def test_a_reply_ends_with_the_vocabularys_end_and_the_configs(llm):
    assert llm.end_ids == {1, 2}


def test_greedy_tokens_equal_the_reference(llm, reference):
    """Text alone: in pictures our grammar leaves out what the reference's may choose."""
    options = seed_core.GenerationOptions(reply="text", temperature=0, max_new_tokens=24)
    reply = llm.generate("What is this?", options=options)
    asked = seed_core.SeedChat("seed-mini", 512).ask(("What is this?",))
    token_ids = llm.vocab.encode(llm.template.render(asked))
    blocked = list(range(llm.vocab.first_code, llm.vocab.size))
    for chosen in reply.token_ids:
        logits = reference(torch.tensor([token_ids])).logits[0, -1]
        logits[blocked] = -torch.inf
        assert chosen == int(logits.argmax())
        token_ids.append(chosen)
