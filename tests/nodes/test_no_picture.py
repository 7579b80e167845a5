"""Codes without a picture, as a reply that is only text gives them: told on the node, and no error."""

import pytest


@pytest.mark.parametrize(
    "node",
    [
        "SEEDDecode",
        "SEEDCodesToEmbedding",
        "SEEDCodesToIPAdapter",
        "SEEDCodesToConditioning",
        "SEEDMixCodes",
        "SEEDSelectCodes",
    ],
)
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
