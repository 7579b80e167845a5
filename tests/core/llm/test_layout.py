"""Where the network holds the tensors of a Hugging Face file."""

from seed_core.llm.layout import names_in_file, parts_in_file
from seed_core.llm.llama import Llama


def test_names_in_files_are_hugging_faces(tiny_config):
    ours = Llama(tiny_config, device="meta").state_dict()
    names = {name for own in ours for name in names_in_file(own)}
    layer = {
        f"model.layers.{i}.{name}.weight"
        for i in range(2)
        for name in (
            "input_layernorm",
            "post_attention_layernorm",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
    }
    assert names == layer | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def test_the_parts_in_a_file_cover_every_weight_once(tiny_config):
    state = Llama(tiny_config, device="meta").state_dict()
    rows = {name: [] for name in state}
    for part in parts_in_file(tiny_config).values():
        first, length = part.rows or (0, part.shape[0])
        assert part.shape == (length, *state[part.weight].shape[1:])
        rows[part.weight] += range(first, first + length)
    assert rows == {name: list(range(len(tensor))) for name, tensor in state.items()}
    query, key, value = (f"model.layers.1.self_attn.{x}_proj.weight" for x in "qkv")
    parts = parts_in_file(tiny_config)
    assert [parts[x].rows for x in (query, key, value)] == [(0, 32), (32, 16), (48, 16)]
