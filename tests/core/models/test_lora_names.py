"""Names of tensors in adapters, as peft, training scripts and other programs write them."""

import pytest
import torch

from seed_core import CheckpointError, load_llm, merge_lora, read_lora
from seed_core.models.lora_names import sort_names

BASE = "base_model.model."


@pytest.fixture
def tensors(llm, peft_adapter, make_generator):
    """Of every projection, and embeddings, head and norms in full."""
    return peft_adapter.random_tensors(llm.config, make_generator(9), in_full=True)


@pytest.fixture
def projections(llm, peft_adapter, make_generator):
    return peft_adapter.random_tensors(llm.config, make_generator(9))


@pytest.fixture
def state_after(llm_folder):
    def state_after(path):
        llm = load_llm(llm_folder)
        merge_lora(llm.module, read_lora(path, llm.config))
        return llm.module.state_dict()

    return state_after


def renamed(tensors, change):
    return {change(key): tensor for key, tensor in tensors.items()}


# --- read ---

WRAPPED = {
    "compiled": lambda key: f"_orig_mod.{key}",
    "compiled inside": lambda key: key.replace(BASE, f"{BASE}_orig_mod."),
    "a compiled layer": lambda key: key.replace("layers.1.", "layers.1._orig_mod."),
    "on several cards": lambda key: f"module.{key}",
    "on several cards, compiled": lambda key: f"module._orig_mod.{key}",
    "with a head for rewards": lambda key: f"pretrained_model.{key}",
    "in a lightning strategy": lambda key: f"_forward_module.model.{key}",
    "wrapped twice": lambda key: BASE + key,
    "wrapped in a wrapped one": lambda key: f"{BASE}model.{key}",
    "three times": lambda key: BASE * 2 + key,
    "in a lightning module": lambda key: f"model.{key}",
    "of sharded weights": lambda key: key.replace("layers.0.", "layers.0._fsdp_wrapped_module."),
    "of recomputed layers": lambda key: key.replace(
        "layers.0.", "layers.0._checkpoint_wrapped_module."
    ),
    "by another name than default": lambda key: key.replace("_A.weight", "_A.my-run_2.weight")
    .replace("_B.weight", "_B.my-run_2.weight"),
    "trained without the head": lambda key: key.replace(f"{BASE}model.", BASE),
    "as parameters": lambda key: key.replace("_A.weight", "_A").replace("_B.weight", "_B"),
}  # fmt: skip
BY_OTHERS = {
    "in ComfyUI's names": lambda key: (
        key.removeprefix(BASE).replace("lora_A", "lora_down").replace("lora_B", "lora_up")
    ),
    "in diffusers' old names": lambda key: (
        key.removeprefix(BASE).replace("lora_A", "lora.down").replace("lora_B", "lora.up")
    ),
    "without a prefix": lambda key: key.removeprefix(BASE),
}


@pytest.mark.parametrize("form", WRAPPED)
def test_what_wraps_modules_is_no_part_of_their_names(tensors, save_adapter, state_after, form):
    expected = state_after(save_adapter(tensors))
    other = renamed(tensors, WRAPPED[form])
    assert other.keys() != tensors.keys()
    state = state_after(save_adapter(other, "renamed"))
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("form", BY_OTHERS)
def test_other_programs_names_of_the_matrices_are_read(
    projections, save_adapter, state_after, form
):
    expected = state_after(save_adapter(projections))
    state = state_after(save_adapter(renamed(projections, BY_OTHERS[form]), "renamed"))
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_a_whole_state_with_the_model_in_it_is_the_adapter(
    llm, llm_folder, projections, save_adapter, state_after
):
    """As a training script saves it that knows nothing of peft."""
    from safetensors.torch import load_file

    whole = {}
    for key, tensor in load_file(llm_folder / "model.safetensors").items():
        module = f"{BASE}{key.removesuffix('.weight')}"
        is_target = f"{module}.lora_A.weight" in projections
        whole[f"{module}.base_layer.weight" if is_target else f"{module}.weight"] = tensor
    whole[f"{BASE}model.rotary_emb.inv_freq"] = torch.ones(4)
    named = renamed(projections, lambda key: key.replace(".weight", ".default.weight"))
    expected, state = (
        state_after(save_adapter(projections)),
        state_after(save_adapter(whole | named, "whole")),
    )
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [1544, 1600, 1664])
def test_rows_that_only_fill_up_a_table_are_left_out(
    llm, tensors, projections, save_adapter, state_after, make_generator, rows
):
    """Trained after resize_token_embeddings(pad_to_multiple_of=...)."""
    names = (f"{BASE}model.embed_tokens.weight", f"{BASE}lm_head.weight")
    more = torch.randn(rows - 1538, 32, generator=make_generator(1))
    padded = tensors | {name: torch.cat([tensors[name], more]) for name in names}
    expected, state = (
        state_after(save_adapter(tensors)),
        state_after(save_adapter(padded, "padded")),
    )
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())

    random = make_generator(2)
    down, up = (torch.randn(shape, generator=random) for shape in ((4, 32), (rows, 4)))
    pairs = {f"{BASE}lm_head.lora_A.weight": down, f"{BASE}lm_head.lora_B.weight": up}
    short = pairs | {f"{BASE}lm_head.lora_B.weight": up[:1538]}
    expected, state = (
        state_after(save_adapter(short, "short")),
        state_after(save_adapter(pairs, "long")),
    )
    assert torch.equal(state["lm_head.weight"], expected["lm_head.weight"])


@pytest.mark.parametrize("rows", [1530, 1537, 1539, 1601, 3076])
def test_a_table_of_another_size_is_of_another_model(llm, tensors, save_adapter, rows):
    key = f"{BASE}lm_head.weight"
    other = torch.zeros(rows, 32)
    with pytest.raises(CheckpointError, match=rf"lm_head.*\[{rows}, 32\].*\[1538, 32\]"):
        read_lora(save_adapter(tensors | {key: other}), llm.config)


# --- refused ---


@pytest.mark.parametrize(
    ("key", "named"),
    [
        (f"{BASE}model.layers.0.mlp.up_proj.lora_magnitude_vector", "DoRA"),
        (f"{BASE}model.layers.0.mlp.up_proj.lora_magnitude_vector.default.weight", "DoRA"),
        (f"{BASE}model.layers.0.mlp.up_proj.lora_B.bias", "biases"),
        (f"{BASE}model.layers.0.mlp.up_proj.lora_E", "AdaLoRA"),
        (f"{BASE}model.layers.0.mlp.up_proj.lora_diag", "KaSA"),
        (f"{BASE}model.layers.0.mlp.up_proj.base_layer.weight.absmax", "bitsandbytes"),
        (f"{BASE}model.layers.0.mlp.up_proj.bias", "another kind"),
        (f"{BASE}model.layers.0.mlp.up_proj.lora_something.weight", "another kind"),
    ],
)
def test_what_is_more_than_a_plain_lora_is_named(llm, projections, save_adapter, key, named):
    with pytest.raises(CheckpointError, match=named) as caught:
        read_lora(save_adapter(projections | {key: torch.zeros(4)}), llm.config)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("model.layers.0.self_attn.q_proj.lora_a", "mlx"),
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "diffusion models"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "diffusion models"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", "diffusion models"),
        ("diffusion_model.blocks.0.attn.lora_up.weight", "diffusion models"),
        ("transformer.blocks.0.attn.lora.down.weight", "diffusion models"),
        ("lycoris_model_layers_0_mlp.hada_w1_a", "LoHa"),
        ("model.layers.0.mlp.lokr_w1", "LoKr"),
        (f"{BASE}model.layers.0.mlp.up_proj.ia3_l", "IA3"),
        ("prompt_embeddings", "prompt"),
        ("layers.0.attn.q_proj.lora.a.weight", "no LoRA adapter"),
        ("module.model.layers.0.self_attn.q_proj.weight", "no LoRA adapter"),
        ("lora_A.weight", "no LoRA adapter"),
        ("weight", "no LoRA adapter"),
        ("", "no LoRA adapter"),
        ("." * 50, "no LoRA adapter"),
    ],
)
def test_what_holds_no_adapter_of_a_language_model_is_named(llm, save_adapter, key, named):
    with pytest.raises(CheckpointError, match=named):
        read_lora(save_adapter({key: torch.zeros(4, 4)}), llm.config)


def test_the_same_matrix_by_two_names_is_refused(llm, projections, save_adapter):
    key = f"{BASE}model.layers.0.self_attn.q_proj.lora_A"
    twice = projections | {f"_orig_mod.{key}.weight": projections[f"{key}.weight"]}
    with pytest.raises(CheckpointError, match="several adapters at once"):
        read_lora(save_adapter(twice), llm.config)


def test_a_hundred_thousand_names_are_each_looked_at_once(tmp_path):
    """Compared with one another they would take minutes."""
    modules = {f"model.layers.{number}.mlp.up_proj" for number in range(50_000)}
    keys = [f"{BASE}{name}.lora_{matrix}.weight" for name in modules for matrix in "AB"]
    assert sort_names(tmp_path, keys).keys() == modules
    with pytest.raises(CheckpointError, match="100000 tensors that a LoRA adapter does not have"):
        sort_names(tmp_path, [*(f"{key}.x.y" for key in keys), keys[0]])
