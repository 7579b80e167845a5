"""The key-value cache; what the network computes with it is tested against transformers in tests/parity."""

import torch

from seed_core.llm.cache import ATTENTION_STEP, KVCache
from seed_core.llm.config import LlamaConfig
from seed_core.llm.llama import Llama

CONFIG = LlamaConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
)


def test_the_estimate_of_the_cache_is_its_size():
    cache = KVCache(CONFIG, 3, 20, torch.device("cpu"), torch.float16)
    held = sum(x.numel() * x.element_size() for x in (cache.keys, cache.values))
    assert KVCache.bytes_needed(CONFIG, 3, 20, torch.float16) == held
    assert cache.length == ATTENTION_STEP


def test_a_processor_reads_no_position_that_was_not_written(generator):
    """So nothing has to be cleared for it: here the rest of the cache holds no numbers."""
    network = Llama(CONFIG, device="meta").to_empty(device="cpu").requires_grad_(False)
    for weight in network.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator))
    cpu, logits = torch.device("cpu"), []
    for rest in (torch.nan, 0.0):
        cache = KVCache(CONFIG, 2, 20, cpu, torch.float32)
        cache.pairs.fill_(rest)
        network.prefill(torch.tensor([[1, 2, 3]]), cache)
        logits.append(network.decode(torch.tensor([4, 5]), cache, torch.tensor([3]), cache.length))
    assert logits[0].isfinite().all()
    assert torch.equal(logits[0], logits[1])
