"""The key-value cache; what the network computes with it is tested against transformers in tests/parity."""

import torch

from seed_core.llm.cache import ATTENTION_STEP, KVCache
from seed_core.llm.llama import Llama


def test_the_estimate_of_the_cache_is_its_size(tiny_config):
    cache = KVCache(tiny_config, 3, 20, torch.device("cpu"), torch.float16)
    held = sum(x.numel() * x.element_size() for x in (cache.keys, cache.values))
    assert KVCache.bytes_needed(tiny_config, 3, 20, torch.float16) == held
    assert cache.length == ATTENTION_STEP


def test_a_processor_reads_no_position_that_was_not_written(tiny_config, generator):
    """So nothing has to be cleared for it: here the rest of the cache holds no numbers."""
    network = Llama(tiny_config, device="meta").to_empty(device="cpu").requires_grad_(False)
    for weight in network.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator))
    cpu, logits = torch.device("cpu"), []
    for rest in (torch.nan, 0.0):
        cache = KVCache(tiny_config, 2, 20, cpu, torch.float32)
        cache.pairs.fill_(rest)
        network.prefill(torch.tensor([[1, 2, 3]]), cache)
        logits.append(network.decode(torch.tensor([4, 5]), cache, torch.tensor([3]), cache.length))
    assert logits[0].isfinite().all()
    assert torch.equal(logits[0], logits[1])
