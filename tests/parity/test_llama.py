"""Our LLaMA against transformers' LlamaForCausalLM: logits, caching, greedy replies.

1e-5 of the largest logit in float32: the same products in another order of summation; a wrong rotation,
norm epsilon or head grouping is off by a hundredth and more.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from seed_core.codes.value import NUM_CODES
from seed_core.files.assemble import assemble
from seed_core.llm.cache import ATTENTION_STEP, KVCache, attended_length
from seed_core.llm.config import LlamaConfig
from seed_core.llm.generation import DecodeRequest, generate_tokens
from seed_core.llm.layout import names_in_file
from seed_core.llm.llama import Llama
from seed_core.llm.prompt import VICUNA, split_marks
from seed_core.llm.sampling import GenerationOptions, ImageTokens

TOLERANCE = 1e-5
CPU = torch.device("cpu")
VOCAB = 120
# Text 0..79, codes 80..117, then the two markers.
IMAGES = ImageTokens(begin=118, end=119, first_code=80, codebook_size=38, per_image=NUM_CODES)


def hub_config(key_value_heads, **changes):
    """A config.json as Hugging Face folders have it."""
    return {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": key_value_heads,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        **changes,
    }


def reference_model(fields, seed):
    """transformers' network with random weights; its constructor draws, so the state is put back."""
    from transformers import LlamaConfig as HubConfig
    from transformers import LlamaForCausalLM

    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(HubConfig(**fields)).eval().requires_grad_(False)
    for name, value in model.state_dict().items():
        centre = 1.0 if "norm" in name else 0.0
        value.copy_(centre + 0.2 * torch.randn(value.shape, generator=random))
    return model


@pytest.fixture(scope="module", params=[8, 2, 1], ids=["MHA", "GQA", "MQA"])
def pair(request):
    """Both networks with the same random weights; 8 heads that share 8, 2 or 1 of keys."""
    fields = hub_config(request.param)
    theirs = reference_model(fields, seed=request.param)
    config = LlamaConfig.from_dict(fields)
    ours = assemble(
        lambda layers: Llama(config, layers, device="meta", dtype=torch.float32),
        torch.nn,
        theirs.state_dict().items(),
        CPU,
        Path("transformers"),
        names_in_file,
    )
    return SimpleNamespace(ours=ours, theirs=theirs, config=config)


@pytest.fixture
def token_ids(make_generator):
    return torch.randint(0, VOCAB, (2, 40), generator=make_generator(9))


def cache_for(pair, batch=2, length=48):
    return KVCache(pair.config, batch, length, CPU, torch.float32)


def test_logits_of_every_position_equal_the_reference(pair, token_ids, relative_error):
    ours = pair.ours.prefill(token_ids, cache_for(pair), all_positions=True)
    assert relative_error(ours, pair.theirs(token_ids).logits) <= TOLERANCE


def test_last_position_alone_is_the_last_of_all(pair, token_ids, relative_error):
    ours = pair.ours.prefill(token_ids, cache_for(pair))
    assert relative_error(ours, pair.theirs(token_ids).logits[:, -1]) <= TOLERANCE


@pytest.mark.parametrize("prompt", [1, 17, 39])
def test_steps_after_a_prompt_give_the_logits_of_one_pass(pair, token_ids, prompt, relative_error):
    cache = cache_for(pair)
    logits = [pair.ours.prefill(token_ids[:, :prompt], cache)]
    for position in range(prompt, token_ids.shape[1]):
        logits.append(decode_at(pair, token_ids[:, position], cache, position))
    expected = pair.theirs(token_ids).logits[:, prompt - 1 :]
    assert relative_error(torch.stack(logits, 1), expected) <= TOLERANCE


def decode_at(pair, token_ids, cache, position):
    length = attended_length(position + 1)
    return pair.ours.decode(token_ids, cache, torch.tensor([position]), length)


def test_steps_cross_into_the_next_stretch_of_the_cache(pair, make_generator, relative_error):
    """Attention looks at stretches of the cache; a reply must not notice where one ends."""
    last = ATTENTION_STEP + 2
    token_ids = torch.randint(0, VOCAB, (1, last + 1), generator=make_generator(4))
    cache = cache_for(pair, batch=1, length=last + 1)
    pair.ours.prefill(token_ids[:, : ATTENTION_STEP - 2], cache)
    logits = [
        decode_at(pair, token_ids[:, position], cache, position)
        for position in range(ATTENTION_STEP - 2, last + 1)
    ]
    expected = pair.theirs(token_ids).logits[:, ATTENTION_STEP - 2 :]
    assert relative_error(torch.stack(logits, 1), expected) <= TOLERANCE


def test_a_longer_cache_changes_nothing(pair, token_ids):
    logits = []
    for length in (40, 4 * ATTENTION_STEP):
        cache = cache_for(pair, length=length)
        pair.ours.prefill(token_ids[:, :39], cache)
        logits.append(decode_at(pair, token_ids[:, 39], cache, 39))
    assert torch.equal(*logits)


def test_rows_continue_a_shared_prompt(pair, token_ids, relative_error):
    """One pass over the prompt, then rows with different continuations."""
    cache = cache_for(pair, batch=3)
    pair.ours.prefill(token_ids[:1], cache)
    following = torch.tensor([5, 77, 118])
    ours = decode_at(pair, following, cache, 40)
    whole = torch.cat((token_ids[:1].expand(3, -1), following[:, None]), dim=1)
    assert relative_error(ours, pair.theirs(whole).logits[:, -1]) <= TOLERANCE


def decode(pair, prompt, end=2, **options):
    request = DecodeRequest(
        prompt=prompt,
        tokens=IMAGES,
        end_ids=frozenset({end}),
        options=GenerationOptions(temperature=0, **options),
        generators=[torch.Generator().manual_seed(0)],
    )
    with torch.inference_mode():
        return generate_tokens(pair.ours, request, CPU, torch.float32)[0]


def test_512_greedy_tokens_equal_transformers(pair, make_generator):
    """Across several stretches of the cache, and far from the prompt; the end token cannot come."""
    prompt = torch.randint(3, 80, (1, 12), generator=make_generator(7))
    theirs = pair.theirs.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=512,
        eos_token_id=IMAGES.begin,
        pad_token_id=0,
        suppress_tokens=list(range(80, VOCAB)),
    )[0, 12:]
    reply = decode(pair, prompt[0].tolist(), end=IMAGES.begin, reply="text", max_new_tokens=512)
    assert len(reply) == 512
    assert reply == theirs.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_greedy_text_equals_transformers_token_by_token(pair, seed, make_generator):
    prompt = torch.randint(3, 80, (1, 12), generator=make_generator(seed))
    theirs = pair.theirs.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=60,
        eos_token_id=2,
        pad_token_id=0,
        suppress_tokens=list(range(80, VOCAB)),
    )[0, 12:]
    assert decode(pair, prompt[0].tolist(), reply="text", max_new_tokens=60) == theirs.tolist()


def greedy_by_the_grammar(model, prompt, steps, first=None):
    """A plain loop without a cache: every step masks what the picture grammar forbids."""
    reply, codes_to_come = [], None
    for step in range(steps):
        logits = model(torch.tensor([[*prompt, *reply]])).logits[0, -1]
        if step == 0 and first is not None:
            token = first
        else:
            if codes_to_come is None:
                allowed = set(range(80))
                if steps - step >= 34:
                    allowed.add(IMAGES.begin)
            else:
                allowed = set(range(80, 118)) if codes_to_come else {IMAGES.end}
            token = max(sorted(allowed), key=lambda token_id: float(logits[token_id]))
        reply.append(token)
        if token == 2:
            break
        if token == IMAGES.begin:
            codes_to_come = 32
        elif codes_to_come is not None:
            codes_to_come = codes_to_come - 1 if codes_to_come else None
    return reply


@pytest.mark.parametrize("reply", ["auto", "image"])
@pytest.mark.parametrize("seed", range(2))
def test_greedy_with_pictures_equals_a_plain_constrained_loop(pair, seed, reply, make_generator):
    prompt = torch.randint(3, 80, (12,), generator=make_generator(seed)).tolist()
    first = IMAGES.begin if reply == "image" else None
    expected = greedy_by_the_grammar(pair.theirs, prompt, 75, first)
    assert decode(pair, prompt, reply=reply, max_new_tokens=75) == expected


@pytest.fixture(scope="module")
def mini_reference(mini_folder):
    """transformers' own reading of the bundled language model."""
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM.from_pretrained(mini_folder / "llm", dtype=torch.float32)
    return model.eval().requires_grad_(False)


PROMPTS = [
    ("Draw a big hedgehog on a yellow background", 0),
    ("a panda on blue", 0),
    ("Hello", 0),
    ("What is this?", 1),
    ("Make the background blue", 1),
    ("Put the first object on the background of the second picture", 2),
]


def mini_prompt(mini_llm, sample_codes, text, pictures):
    from seed_core.llm.chat import SeedChat

    chat = SeedChat(family="seed-mini", codebook_size=512)
    chat = chat.ask(split_marks(text, sample_codes[:pictures].cpu()))
    return mini_llm.vocab.encode(VICUNA.render(chat))


@pytest.mark.parametrize(("text", "pictures"), PROMPTS)
def test_seed_mini_logits_equal_transformers(
    text, pictures, mini_llm, mini_reference, sample_codes, relative_error
):
    prompt = torch.tensor([mini_prompt(mini_llm, sample_codes, text, pictures)])
    cache = KVCache(mini_llm.config, 1, prompt.shape[1], CPU, torch.float32)
    ours = mini_llm.module.prefill(prompt, cache, all_positions=True)
    assert relative_error(ours, mini_reference(prompt).logits) <= TOLERANCE


@pytest.mark.parametrize(("text", "pictures"), PROMPTS)
def test_seed_mini_greedy_reply_equals_transformers(
    text, pictures, mini_llm, mini_reference, sample_codes
):
    """The model was trained to write whole pictures, so the grammar only confirms its choices here."""
    prompt = mini_prompt(mini_llm, sample_codes, text, pictures)
    theirs = mini_reference.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=80,
        top_p=None,
        temperature=None,
    )[0, len(prompt) :]
    options = GenerationOptions(temperature=0, max_new_tokens=80)
    reply = mini_llm.generate(text, sample_codes[:pictures], options=options)
    assert list(reply.token_ids) == theirs.tolist()
    assert reply.is_complete
