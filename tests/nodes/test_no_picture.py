"""Codes without a picture, as a reply that is only text gives them: told on the node, and no error."""

import pytest

NEED_A_PICTURE = [
    *("SEEDDecode", "SEEDMixCodes", "SEEDSelectCodes"),
    *("SEEDCodesToEmbedding", "SEEDCodesToIPAdapter", "SEEDCodesToConditioning"),
]


@pytest.mark.parametrize("node", NEED_A_PICTURE)
def test_what_hangs_on_a_picture_that_is_not_there_does_not_run(pack, run_node, mini, node):
    """Before anything that is wrong with the models, which may be right for the next picture."""
    schema = pack.nodes_by_id[node].GET_SCHEMA()
    wires = {
        "SEED_CODES": pack.seed_core.SeedCodes.empty("seed-mini", 512),
        "SEED_TOKENIZER": mini.tokenizer,
        "SEED_DECODER": mini.decoder,
    }
    needed = [i for i in schema.inputs if not i.optional and i.get_io_type() in wires]
    output = run_node(node, **{i.id: wires[i.get_io_type()] for i in needed})
    assert len(output.args) == len(schema.outputs)
    assert {type(each).__name__ for each in output.args} == {"ExecutionBlocker"}
    assert {each.message for each in output.args} == {None}  # a message would be shown as an error
    (said,) = output.ui["text"]
    assert said.startswith("These codes hold no picture")


def test_one_side_of_a_mix_without_a_picture_is_enough(pack, run_node, fox_codes):
    empty = pack.seed_core.SeedCodes.empty("seed-mini", 512)
    for a, b in ((empty, fox_codes), (fox_codes, empty)):
        assert "no picture" in run_node("SEEDMixCodes", codes_a=a, codes_b=b).ui["text"][0]


@pytest.fixture
def with_a_picture(run_node, mini, seed_1, seed_1_codes, fox_codes):
    """Runs a node that needs a picture on one."""
    quick = {"decoder": mini.decoder, "steps": 1, "guidance_scale": 1.0, "width": 64, "height": 64}
    one = {"tokenizer": mini.tokenizer, "codes": fox_codes}
    inputs = {
        "SEEDDecode": one | quick,
        "SEEDMixCodes": {"codes_a": fox_codes, "codes_b": fox_codes},
        "SEEDSelectCodes": {"codes": fox_codes},
        "SEEDCodesToEmbedding": one,
        "SEEDCodesToConditioning": {"tokenizer": seed_1, "codes": seed_1_codes},
    }
    return lambda node: run_node(node, **inputs[node])


@pytest.mark.parametrize("node", [n for n in NEED_A_PICTURE if n != "SEEDCodesToIPAdapter"])
def test_the_next_picture_takes_the_words_off_again(with_a_picture, node):
    """Under the same name, for the host joins what several runs say by the names of the first."""
    assert with_a_picture(node).ui == {"text": []}


@pytest.mark.parametrize("node", NEED_A_PICTURE)
def test_the_words_come_again_with_a_run_from_the_hosts_cache(pack, node):
    """The host sends what a node said again only where the node asks for it."""
    assert pack.nodes_by_id[node].GET_SCHEMA().has_intermediate_output
