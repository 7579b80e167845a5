"""Every setting of adapter_config.json: followed as peft does, harmless, or refused by its name."""

import dataclasses
import json

import pytest
import torch

from seed_core import CheckpointError, merge_lora, read_lora
from seed_core.llm.cache import KVCache

CPU = torch.device("cpu")
TOLERANCE = 1e-5  # of the largest logit: the same products in another order of summation


def logits_of(llm):
    """Logits at each of 60 random tokens."""
    token_ids = torch.randint(3, 1500, (1, 60), generator=torch.Generator().manual_seed(3))
    cache = KVCache(llm.config, 1, 60, CPU, torch.float32)
    with torch.inference_mode():
        return llm.module.prefill(token_ids, cache, all_positions=True)


@pytest.fixture
def save(llm, peft_adapter, make_generator, tmp_path):
    """Writes an adapter of every projection, of rank 4."""

    def save(folder="adapter", extra=(), without=(), in_full=False, **fields):
        tensors = peft_adapter.random_tensors(llm.config, make_generator(8), in_full=in_full)
        tensors = {k: x for k, x in tensors.items() if not any(part in k for part in without)}
        return peft_adapter.save(tmp_path / folder, tensors | dict(extra), **fields)

    return save


# --- followed as peft does ---

QV = ["q_proj", "v_proj"]
SEVEN = [*QV, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EVERY = {
    "a range of layers": {"rank_pattern": {"layers.[0-9].self_attn.q_proj": 2}},
    "a choice of layers": {
        "rank_pattern": {"layers.(0|2).self_attn.q_proj": 2, "(k|v)_proj": 8},
        "alpha_pattern": {r"layers\.\d+\.self_attn\.v_proj": 5, r".*\.(1)\..*q_proj": 3},
    },
    "whole names": {
        "rank_pattern": {"^model.layers.1.self_attn.q_proj": 2, "^layers.0.self_attn.q_proj": 8},
        "alpha_pattern": {"^q_proj|v_proj$": 3},
    },
    "rank-stabilised": {"use_rslora": True, "rank_pattern": {"q_proj": 2}},
    "turned, as GPT-2's": {"fan_in_fan_out": True},
    "with biases that a LLaMA lacks": {"bias": "all"},
    "with biases of its own layers": {"bias": "lora_only"},
    "one layer": {"layers_to_transform": 1},
    "some layers": {"layers_to_transform": [0], "layers_pattern": "layers"},
    "some layers of a list": {"layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
    "without a module": {"exclude_modules": ["layers.0.self_attn.q_proj"]},
    "without a pattern": {"exclude_modules": r".*\.1\..*v_proj"},
    "by a pattern": {"target_modules": r".*\.(q|down)_proj"},
    "by a pattern that is not read here": {
        "target_modules": r"(?:\bmodel\.layers\..*(?<=down)_proj)"
    },
    "all matrices": {"target_modules": "all-linear"},
    "the table and the head": {"target_modules": ["embed_tokens", "lm_head"]},
    "names of other models too": {"target_modules": [*QV, "Wqkv", "gate_up_proj"]},
    "the norms by an ending": {"modules_to_save": ["norm"]},
    "the head in full": {"modules_to_save": ["lm_head"]},
    "a whole block in full": {"modules_to_save": ["layers.0.mlp"]},
    "new tokens": {"trainable_token_indices": [1537, 3, 4, 900]},
    "new tokens of two tables": {
        "trainable_token_indices": {"embed_tokens": [7, 5], "lm_head": [1000, 2, 3]}
    },
    "begun at random": {"init_lora_weights": "gaussian"},
    "begun without zeros": {"init_lora_weights": False},
    "begun at right angles": {"init_lora_weights": "orthogonal"},
    "begun with the smallest parts": {"init_lora_weights": "mica"},
    "trained with fewer activations": {"velora_config": {"num_groups": 4, "init_type": "random"}},
    "dropped in training": {"lora_dropout": 0.5},
}


@pytest.fixture
def peft_logits(llm_folder, isolated_random_state, tmp_path):
    """Saves an adapter with peft, all of it at random, and returns its folder and peft's logits."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    from transformers import LlamaForCausalLM

    def peft_logits(**settings):
        known = {field.name for field in dataclasses.fields(peft.LoraConfig)}
        if missing := settings.keys() - known:
            pytest.skip(f"this peft has no {missing}")
        model = LlamaForCausalLM.from_pretrained(llm_folder, dtype=torch.float32).eval()
        config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": QV, **settings})
        try:
            wrapped = peft.get_peft_model(model, config).eval()
        except ValueError as error:
            if "Unknown initialization" not in str(error):
                raise
            pytest.skip(f"this peft says {error}")
        random = torch.Generator().manual_seed(2)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=random))
        wrapped.save_pretrained(tmp_path / "saved")
        token_ids = torch.randint(3, 1500, (1, 60), generator=torch.Generator().manual_seed(3))
        with torch.inference_mode():
            return tmp_path / "saved", wrapped(token_ids).logits

    return peft_logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", EVERY.values(), ids=EVERY)
def test_an_adapter_says_what_it_says_in_peft(llm, peft_logits, settings):
    folder, expected = peft_logits(**settings)
    plain, largest = logits_of(llm), expected.abs().max()
    merge_lora(llm.module, read_lora(folder, llm.config))
    assert (plain - expected).abs().max() > 0.01 * largest
    assert (logits_of(llm) - expected).abs().max() < TOLERANCE * largest


# --- harmless ---

HARMLESS = {
    "task_type": ["CAUSAL_LM", "FEATURE_EXTRACTION"],
    "auto_mapping": [{"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True}],
    "base_model_name_or_path": ["unsloth/tiny", "/somebody's/folder", ""],
    "revision": ["main"],
    "inference_mode": [True, False],
    "peft_version": ["0.21.2", "0.18.1.dev0@UNKNOWN"],
    "lora_dropout": [0.05],
    "fan_in_fan_out": [True],
    "bias": ["none", "all", "lora_only"],
    "use_rslora": [False],
    "modules_to_save": [[], ["classifier", "score"]],
    "init_lora_weights": [True, False, "gaussian", "eva", "orthogonal", "mica", "True"],
    "layers_to_transform": [[], [0, 1]],
    "layers_pattern": [[], "layers", ["h", "model.layers"]],
    "rank_pattern": [{}, {"q_proj": 4}, {"nothing.*like.it": 3}],
    "alpha_pattern": [{}, {"q_proj": 8}],
    "exclude_modules": [[], ["lm_head"], "lm_head", "all-linear"],
    "target_modules": ["all-linear", ".*_proj", "(?=q).*", ["gate_up_proj", *SEVEN]],
    "target_parameters": [[]],
    "trainable_token_indices": [[], {}, {"embed_tokens": []}],
    "layer_replication": [[]],
    "megatron_config": [{"a": 1}],
    "megatron_core": ["megatron.core"],
    "loftq_config": [{}, {"loftq_bits": 4}],
    "eva_config": [{"rho": 2.0}],
    "corda_config": [{"use_float16_for_covariance": False}],
    "lora_ga_config": [{"scale": "stable"}],
    "velora_config": [{"num_groups": 64}],
    "qalora_group_size": [16],
    "ensure_weight_tying": [True, False],
    "runtime_config": [{"ephemeral_gpu_offload": True}],
    "use_dora": [False, 0],
    "use_qalora": [False],
    "use_bdlora": [False],
    "lora_bias": [False],
    "merge_weights": [False, True],
    "peft_type": ["LORA", "lora"],
    "lora_dtype": ["bf16"],
    "lorap_lr_ratio": [16.0],
    "lorap_emb_lr": [1e-6],
    "_from_model_config": [True],
    "transformers_version": ["4.31.0"],
    "r": [4, 4.0],
    "lora_alpha": [8, 8.0],
    "a_setting_of_tomorrow": [False, 0, [], {}, ""],
}  # fmt: skip
OTHER_FIELDS = (
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config"),
    "enable_lora",
)


@pytest.mark.parametrize("name", [*HARMLESS, *OTHER_FIELDS])
def test_a_setting_that_changes_nothing_is_passed_over(llm, save, name):
    """Of any value that leaves the result as it is; null always does, but for the strength."""
    expected = read_lora(save(), llm.config)
    for value in [*HARMLESS.get(name, []), *[None] * (name != "lora_alpha")]:
        adapter = read_lora(save(**{name: value}), llm.config)
        assert [p.scale for p in adapter.products] == [p.scale for p in expected.products]
        for mine, its in zip(adapter.products, expected.products, strict=True):
            assert mine.part == its.part
            assert torch.equal(mine.down, its.down)


def test_every_setting_of_the_installed_peft_is_known():
    """A release with more of them fails here: what they mean has to be looked up."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    names = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert names - HARMLESS.keys() - set(OTHER_FIELDS) == set()


# --- refused by name ---


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"use_dora": "false"}, "use_dora"),
        ({"use_qalora": True}, "use_qalora"),
        ({"use_bdlora": {}}, "use_bdlora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"alora_invocation_tokens": []}, "alora_invocation_tokens"),
        ({"arrow_config": {}}, "arrow_config"),
        ({"kasa_config": {"beta": 1e-4}}, "kasa_config"),
        ({"monteclora_config": {"num_samples": 8}}, "monteclora_config"),
        ({"target_parameters": ["q_proj.weight"]}, "target_parameters"),
        ({"enable_lora": [True, False, True]}, "enable_lora"),
        *(
            ({"init_lora_weights": start}, f"init_lora_weights .*{start}")
            for start in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "PiSSA")
        ),
        ({"init_lora_weights": "of_tomorrow"}, "init_lora_weights 'of_tomorrow'"),
        ({"init_lora_weights": 3}, "init_lora_weights 3"),
        ({"a_setting_of_tomorrow": True, "more": {"a": 1}}, "a_setting_of_tomorrow, more"),
        ({"use_rslora": "false"}, "use_rslora that cannot be read"),
        ({"lora_alpha": True}, "how strong"),
        ({"lora_alpha": "8"}, "how strong"),
        ({"lora_alpha": 1e30}, r"lora_alpha of 1e\+30"),
        ({"lora_alpha": -1e9}, "2.5e.08 times as strong"),
        ({"r": 10**6}, "rank 4 for .* says 1000000"),
        ({"r": "4"}, "rank 4 for .* says '4'"),
        ({"rank_pattern": {"(?i)q_proj": 4}}, r"rank_pattern that cannot be read: .*\(\?i\)q_proj"),
        ({"alpha_pattern": {"(?!q).*": 4}}, r"alpha_pattern that cannot be read: .*\(\?!q\)"),
        ({"alpha_pattern": {str(n): 1 for n in range(2000)}}, "2,000 patterns"),
        ({"alpha_pattern": {"q_proj": None, "k_proj": 8}}, "how strong"),
        ({"target_modules": ["q_proj"]}, "changes model.layers.0.self_attn.k_proj.*target_modules"),
        ({"target_modules": [*QV, "lm_head"]}, "no matrices for lm_head|changes .*k_proj"),
        ({"target_modules": ".*(q|v)_proj"}, "changes .*k_proj.*target_modules"),
        ({"target_modules": [*QV, 3]}, "target_modules that cannot be read"),
        ({"exclude_modules": ["k_proj"], "target_modules": "all-linear"}, "changes .*k_proj"),
        ({"exclude_modules": ".*k_proj"}, "changes .*k_proj"),
        (
            {"layers_to_transform": [0], "target_modules": SEVEN},
            r"changes model\.layers\.1",
        ),
        ({"layers_pattern": 5}, "layers_pattern that cannot be read"),
        (
            {"layers_to_transform": [0, 1], "layers_pattern": "h", "target_modules": SEVEN},
            r"changes model\.layers\.0",
        ),
        ({"layers_to_transform": ["0"]}, "layers_to_transform that cannot be read"),
        ({"modules_to_save": ["lm_head"]}, "lacks lm_head, which .* modules_to_save"),
        ({"modules_to_save": ["norm"]}, "lacks .*norm, which .* modules_to_save"),
        ({"modules_to_save": "lm_head"}, "modules_to_save that cannot be read"),
        ({"trainable_token_indices": [1]}, "lacks the rows of model.embed_tokens"),
        ({"trainable_token_indices": {"lm_head": [1]}}, "lacks the rows of lm_head"),
        ({"trainable_token_indices": 5}, "trainable_token_indices that cannot be read"),
        *(({"peft_type": kind}, kind) for kind in ("ADALORA", "LOHA", "IA3", "TRAINABLE_TOKENS")),
        ({"peft_type": ["LORA"]}, "of the kind .*LORA"),
    ],
)  # fmt: skip
def test_a_setting_that_is_not_followed_is_refused_by_its_name(llm, save, fields, named):
    with pytest.raises(CheckpointError, match=named):
        read_lora(save(**fields), llm.config)


def test_a_file_without_a_module_that_training_changed_is_incomplete(llm, save):
    folder = save(without=["layers.1.mlp.up_proj"], target_modules=SEVEN)
    with pytest.raises(CheckpointError, match=r"no matrices for model\.layers\.1\.mlp\.up_proj"):
        read_lora(folder, llm.config)


# --- tokens that were trained alone ---

ROWS = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


@pytest.mark.parametrize(
    ("ids", "named"),
    [
        (None, "names 0 tokens"),
        ([5], "2 rows of model.embed_tokens .* names 1 token"),
        ([5, 5], "names 1 token"),
        ([5, 1538], r"whole numbers in 0\.\.1537"),
        ([5, -1], "whole numbers"),
        ([5, "6"], "whole numbers"),
        ({"lm_head": [5, 6]}, "names 0 tokens"),
    ],
)
def test_rows_have_to_be_of_known_tokens(llm, save, ids, named):
    folder = save(extra={ROWS: torch.zeros(2, 32)}, trainable_token_indices=ids)
    with pytest.raises(CheckpointError, match=named):
        read_lora(folder, llm.config)


def test_rows_of_another_width_belong_to_another_model(llm, save):
    folder = save(extra={ROWS: torch.zeros(2, 40)}, trainable_token_indices=[5, 6])
    with pytest.raises(CheckpointError, match=r"another language model.*\[2, 40\].*\[1538, 32\]"):
        read_lora(folder, llm.config)


@pytest.mark.parametrize("strength", [1.0, 0.25, -1.0])
def test_rows_lie_on_the_line_between_the_models_and_the_trained(
    llm, save, make_generator, strength
):
    rows = torch.randn(3, 32, generator=make_generator(3))
    before = llm.module.state_dict()["model.embed_tokens.weight"].clone()
    folder = save(extra={ROWS: rows}, trainable_token_indices=[900, 2, 3])
    merge_lora(llm.module, read_lora(folder, llm.config), strength)
    after = llm.module.state_dict()["model.embed_tokens.weight"]
    expected = before.index_copy(
        0, torch.tensor([900, 2, 3]), before[[900, 2, 3]].lerp(rows, strength)
    )
    torch.testing.assert_close(after, expected, rtol=1e-6, atol=1e-6)


def test_rows_of_one_table_for_two_are_refused(llm, save):
    folder = save(extra={ROWS: torch.zeros(1, 32)}, trainable_token_indices=[5])
    tied = dataclasses.replace(llm.config, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match="one table for embeddings and head"):
        read_lora(folder, tied)


# --- strengths in two places ---


def test_a_strength_in_the_file_that_the_config_contradicts_is_refused(llm, save):
    key = "base_model.model.model.layers.0.self_attn.q_proj.alpha"
    assert read_lora(save(extra={key: torch.tensor(8.0)}), llm.config).products
    with pytest.raises(CheckpointError, match="alpha 6 for .*q_proj .* 8"):
        read_lora(save(extra={key: torch.tensor(6.0)}), llm.config)


@pytest.mark.parametrize("alpha", [torch.zeros(2), torch.zeros(0), torch.tensor(torch.nan)])
def test_a_strength_in_the_file_that_is_no_number_is_refused(llm, save, alpha):
    key = "base_model.model.model.layers.0.self_attn.q_proj.alpha"
    with pytest.raises(CheckpointError, match="how strong|NaN"):
        read_lora(save(extra={key: alpha}), llm.config)


def test_a_config_of_nothing_but_the_strength_is_enough(llm, save):
    folder = save()
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2}), encoding="utf-8")
    assert {product.scale for product in read_lora(folder, llm.config).products} == {0.5}
