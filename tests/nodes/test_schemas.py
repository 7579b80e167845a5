"""What the host and every saved workflow know about the nodes."""

import inspect

import pytest

# The public contract: node ids, input ids ("?" = optional socket) and types, outputs ("*" = a list).
# Saved workflows depend on it: never renamed, never reordered, only appended to.
CONTRACT = {
    "SEEDSamplePicture": (["picture COMBO"], ["image IMAGE"]),
    "SEEDTokenizerLoader": (
        ["tokenizer COMBO", "precision COMBO"],
        ["tokenizer SEED_TOKENIZER"],
    ),
    "SEEDLLaMALoader": (["model COMBO", "precision COMBO"], ["llm SEED_LLM"]),
    "SEEDServerLoader": (["server COMBO"], ["llm SEED_LLM"]),
    "SEEDDecoderLoader": (["decoder COMBO", "precision COMBO"], ["decoder SEED_DECODER"]),
    "SEEDEncode": (
        ["tokenizer SEED_TOKENIZER", "image IMAGE", "fit COMBO"],
        ["codes SEED_CODES"],
    ),
    "SEEDGenerate": (
        [
            "llm SEED_LLM",
            "prompt STRING",
            "codes? SEED_CODES",
            "chat? SEED_CHAT",
            "reply COMBO",
            "variations INT",
            "max_new_tokens INT",
            "temperature FLOAT",
            "top_p FLOAT",
            "top_k INT",
            "seed INT",
        ],
        ["text* STRING", "codes SEED_CODES", "chat* SEED_CHAT"],
    ),
    "SEEDLoRALoader": (["llm SEED_LLM", "lora COMBO", "strength FLOAT"], ["llm SEED_LLM"]),
    "SEEDChatView": (
        ["chat SEED_CHAT", "tokenizer? SEED_TOKENIZER", "decoder? SEED_DECODER"],
        ["text STRING", "codes SEED_CODES"],
    ),
    "SEEDDecode": (
        [
            "tokenizer SEED_TOKENIZER",
            "decoder SEED_DECODER",
            "codes SEED_CODES",
            "negative_codes? SEED_CODES",
            "seed INT",
            "steps INT",
            "guidance_scale FLOAT",
            "noise_level INT",
            "width INT",
            "height INT",
        ],
        ["image IMAGE"],
    ),
    "SEEDPreviewCodes": (["codes SEED_CODES", "compare_with? SEED_CODES"], ["codes SEED_CODES"]),
    "SEEDCodesToEmbedding": (
        ["tokenizer SEED_TOKENIZER", "codes SEED_CODES"],
        ["clip_vision_output* CLIP_VISION_OUTPUT"],
    ),
    "SEEDCodesToIPAdapter": (
        ["tokenizer SEED_TOKENIZER", "codes SEED_CODES"],
        ["pos_embed EMBEDS", "neg_embed EMBEDS"],
    ),
    "SEEDCodesToConditioning": (
        ["tokenizer SEED_TOKENIZER", "codes SEED_CODES"],
        ["conditioning CONDITIONING"],
    ),
    "SEEDIPAdapter": (
        [
            *("model MODEL", "ipadapter COMBO", "tokenizer SEED_TOKENIZER", "codes SEED_CODES"),
            *("negative_codes? SEED_CODES", "weight FLOAT", "start_at FLOAT", "end_at FLOAT"),
        ],
        ["model MODEL"],
    ),
    "SEEDBlendEmbeddings": (
        ["a CLIP_VISION_OUTPUT", "b CLIP_VISION_OUTPUT", "factor FLOAT", "mode COMBO"],
        ["clip_vision_output CLIP_VISION_OUTPUT"],
    ),
    "SEEDCodesToText": (["codes SEED_CODES"], ["text STRING"]),
    "SEEDTextToCodes": (["text STRING", "family COMBO"], ["codes SEED_CODES"]),
    "SEEDMixCodes": (
        [
            "codes_a SEED_CODES",
            "codes_b SEED_CODES",
            "start INT",
            "end INT",
            "mode COMBO",
            "amount FLOAT",
            "seed INT",
        ],
        ["codes SEED_CODES"],
    ),
    "SEEDBatchCodes": (
        [
            "codes_1 SEED_CODES",
            "codes_2 SEED_CODES",
            "codes_3? SEED_CODES",
            "codes_4? SEED_CODES",
        ],
        ["codes SEED_CODES"],
    ),
    "SEEDSelectCodes": (["codes SEED_CODES", "index INT", "length INT"], ["codes SEED_CODES"]),
    "SEEDSaveCodes": (["codes SEED_CODES", "filename_prefix STRING"], ["codes SEED_CODES"]),
    "SEEDLoadCodes": (["file COMBO"], ["codes SEED_CODES"]),
    "SEEDGetModel": (["model COMBO", "precision COMBO", "action COMBO"], ["name STRING"]),
}
DEFAULTS = {
    "SEEDGenerate": {
        "reply": "auto",
        "variations": 1,
        "max_new_tokens": 512,
        "temperature": 1.0,
        "top_p": 0.5,
        "top_k": 50,
    },
    "SEEDDecode": {
        "steps": 20,
        "guidance_scale": -1.0,
        "noise_level": 0,
        "width": 0,
        "height": 0,
    },
    "SEEDLoRALoader": {"strength": 1.0},
    "SEEDEncode": {"fit": "stretch"},
    "SEEDBlendEmbeddings": {"factor": 0.5, "mode": "linear"},
}
OPTIONS = {
    ("SEEDEncode", "fit"): ["stretch", "crop", "pad"],
    ("SEEDBlendEmbeddings", "mode"): ["linear", "spherical"],
    ("SEEDGenerate", "reply"): ["auto", "text", "image"],
    ("SEEDTokenizerLoader", "precision"): ["auto", "fp32", "fp16", "bf16"],
    ("SEEDLLaMALoader", "precision"): ["auto", "bf16", "fp16", "fp32", "fp8"],
    ("SEEDDecoderLoader", "precision"): ["auto", "fp32", "fp16", "bf16"],
    ("SEEDTextToCodes", "family"): ["seed-1", "seed-2", "seed-mini"],
    ("SEEDMixCodes", "mode"): ["splice", "random"],
    ("SEEDGetModel", "precision"): ["as published", "bf16", "fp16", "fp8"],
    ("SEEDGetModel", "action"): ["show", "fetch"],
}


CHOICES_OF_MODELS = [
    *(("SEEDTokenizerLoader", "tokenizer"), ("SEEDLLaMALoader", "model")),
    *(("SEEDDecoderLoader", "decoder"), ("SEEDLoRALoader", "lora")),
]


def widgets_of(*types):
    """Nodes and names of all inputs of these types."""
    inputs = [(node_id, text.split()) for node_id, (ids, _) in CONTRACT.items() for text in ids]
    return [(node_id, name) for node_id, (name, kind) in inputs if kind in types]


@pytest.fixture(params=CONTRACT)
def node_id(request):
    return request.param


@pytest.fixture
def widget(pack):
    """Gives a widget by the ids of its node and of itself."""

    def find(node_id, name):
        (found,) = [i for i in pack.nodes_by_id[node_id].GET_SCHEMA().inputs if i.id == name]
        return found

    return find


@pytest.fixture
def node(pack, node_id):
    return pack.nodes_by_id[node_id]


@pytest.fixture
def schema(node):
    return node.GET_SCHEMA()


def test_the_nodes_come_in_the_order_of_the_contract(pack):
    assert list(pack.nodes_by_id) == list(CONTRACT)


# What makes a wire and what most often takes it.
NEIGHBOURS = {
    "SEED_TOKENIZER": ("SEEDTokenizerLoader", "SEEDEncode"),
    "SEED_LLM": ("SEEDLLaMALoader", "SEEDGenerate"),
    "SEED_DECODER": ("SEEDDecoderLoader", "SEEDDecode"),
    "SEED_CODES": ("SEEDEncode", "SEEDDecode"),
    "SEED_CHAT": ("SEEDGenerate", "SEEDChatView"),
}


def _shortest(schema):
    return min(len(schema.display_name), len(schema.node_id))


@pytest.mark.parametrize("wire", NEIGHBOURS)
def test_a_wire_that_is_let_go_suggests_its_neighbour_first(pack, wire):
    """The frontend's menu keeps our order; its search puts the shortest name or id first."""
    schemas = [node.GET_SCHEMA() for node in pack.nodes_by_id.values()]
    makers = [s for s in schemas if wire in [o.get_io_type() for o in s.outputs]]
    takers = [s for s in schemas if wire in [i.get_io_type() for i in s.inputs if not i.optional]]
    for found, wanted in zip((makers, takers), NEIGHBOURS[wire], strict=True):
        assert found[0].node_id == wanted
        assert min(found, key=_shortest).node_id == wanted


def test_ids_types_and_order_are_the_contract(schema, node_id):
    inputs = [f"{i.id}{'?' if i.optional else ''} {i.get_io_type()}" for i in schema.inputs]
    outputs = [f"{o.id}{'*' if o.is_output_list else ''} {o.get_io_type()}" for o in schema.outputs]
    assert (inputs, outputs) == CONTRACT[node_id]


def test_the_schema_is_valid_and_filled(schema):
    schema.validate()
    assert schema.category == "SEED"
    assert schema.display_name
    assert len(schema.description) > 40
    assert schema.search_aliases


def test_every_socket_and_widget_is_explained(schema):
    short = [s.id for s in (*schema.inputs, *schema.outputs) if len(s.tooltip or "") < 12]
    assert not short


@pytest.mark.parametrize("node_id", DEFAULTS, indirect=True)
def test_defaults_are_the_references(schema, node_id):
    found = {i.id: getattr(i, "default", None) for i in schema.inputs}
    assert {name: found[name] for name in DEFAULTS[node_id]} == DEFAULTS[node_id]


@pytest.mark.parametrize(("owner", "name"), widgets_of("INT", "FLOAT"))
def test_a_number_begins_in_its_range(widget, owner, name):
    found = widget(owner, name)
    assert found.min <= found.default <= found.max


@pytest.mark.parametrize(("owner", "name"), OPTIONS)
def test_choices_are_the_contract(widget, owner, name):
    found = widget(owner, name)
    assert found.options == OPTIONS[owner, name]
    assert found.default in found.options


@pytest.mark.parametrize(("owner", "name"), CHOICES_OF_MODELS)
def test_a_choice_of_models_begins_with_the_bundled_one(widget, owner, name):
    found = widget(owner, name)
    assert found.default == found.options[0]
    assert found.default.endswith(" (bundled)")


def test_every_choice_is_told_above():
    """But for what is there in great number, where the host takes the first."""
    told = {*OPTIONS, *CHOICES_OF_MODELS}
    left = {
        ("SEEDSamplePicture", "picture"),
        ("SEEDLoadCodes", "file"),
        ("SEEDServerLoader", "server"),
        ("SEEDGetModel", "model"),
        ("SEEDIPAdapter", "ipadapter"),
    }
    assert set(widgets_of("COMBO")) == told | left


@pytest.mark.parametrize("node_id", [node for node, name in widgets_of("INT") if name == "seed"])
def test_random_seeds_can_be_varied_after_each_run(widget, node_id):
    found = widget(node_id, "seed")
    assert found.control_after_generate
    assert (found.min, found.max) == (0, 2**64 - 1)


def test_execute_takes_exactly_the_inputs(node, schema):
    taken = [name for name in inspect.signature(node.execute).parameters if name != "cls"]
    assert sorted(taken) == sorted(i.id for i in schema.inputs)
