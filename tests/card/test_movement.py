"""What travels between main memory and the card: weights once, and only what finds no room."""

import pytest

pytestmark = pytest.mark.host

MIB = 2**20
INPUTS = 4 * MIB
"""A picture or a prompt, and the smallest weights, which dynamic memory copies for each node."""
RESULTS = 8 * MIB
"""A picture of 768 pixels in float32."""

WEIGHT = 2 * 11008 * 4096 * 2
"""Bytes of a layer's largest product in 16 bits, gate and up: the host moves whole weights."""

ALL_NODES = "every node twice"

EACH_FITS = [
    *("RTX 4080", "RTX 4090", "RTX 4090 --disable-dynamic-vram --disable-cuda-malloc"),
    "RTX 4090 --gpu-only",
]


def second(played, action):
    """The second run of a node, right after the first."""
    return [record for record in played if record.action.split()[0] == action][1]


def rows(names, play=ALL_NODES):
    return [f"{name}: {play}" for name in names]


@pytest.mark.parametrize("played", rows(EACH_FITS), indirect=True)
def test_a_second_encode_moves_no_weights(played):
    assert second(played, "encode").up <= INPUTS
    assert second(played, "encode").down <= RESULTS


@pytest.mark.parametrize("played", rows(EACH_FITS), indirect=True)
def test_a_second_generate_moves_no_weights(played):
    assert second(played, "generate").up <= INPUTS
    assert second(played, "generate").down <= RESULTS


@pytest.mark.parametrize("played", rows(EACH_FITS), indirect=True)
def test_a_second_decode_moves_no_weights_of_its_own(played):
    assert second(played, "decode").up <= INPUTS


@pytest.mark.parametrize("played", rows(EACH_FITS), indirect=True)
def test_a_second_decode_pushes_no_other_model_off_the_card(played):
    assert second(played, "decode").down <= RESULTS


@pytest.mark.parametrize(
    "played", rows(["RTX 3060", "H100 --highvram"], "fp8 twice"), indirect=True
)
def test_a_second_generate_in_fp8_moves_no_weights(played):
    assert second(played, "generate").up <= INPUTS


@pytest.mark.parametrize(
    "played",
    [
        "RTX 4090: in turns",
        "RTX 4080: in turns",
        "RTX 3060: in turns in fp8",
    ],
    indirect=True,
)
def test_generate_and_decode_in_turns_move_no_more_than_what_does_not_fit(played, total, reserve):
    """The language model makes room for the decoder, and gets it back; or the other way round."""
    *_, decode, generate = played
    weights = sum(max(r.on_card.get(name, 0) for r in played) for name in generate.on_card)
    working = max(readied.asked for readied in decode.readied)
    lacking = max(0, weights + working + reserve - total)
    allowed = 1.1 * lacking + WEIGHT if lacking else 0  # the host asks for a tenth more
    assert decode.down <= allowed + RESULTS
    assert decode.up <= allowed + INPUTS
    assert generate.up <= allowed + INPUTS


@pytest.mark.parametrize("played", rows(["RTX 4090", "RTX 3090"], "depths"), indirect=True)
def test_no_weight_travels_for_a_token_where_weights_stay(played):
    for model in ("bf16 3", "fp8 3"):
        few, more = [record for record in played if model in record.action][1:]
        assert more.up - few.up <= 1024
        assert more.down - few.down <= 1024


O_PROJ = 4096 * 4096
FEW = 4
"""Weights that the adapter "few" changes, all of this size."""
ADAPTERS = ["RTX 4090: adapters", "RTX 3060: adapters in fp8"]


@pytest.mark.parametrize("played", ADAPTERS, indirect=True)
def test_an_adapter_moves_only_the_weights_that_it_changes(played):
    """On, off, and on again; each weight goes back or comes anew, with its narrow matrices."""
    size = FEW * O_PROJ * (1 if "fp8" in played[0].action else 2)
    for record in played[1:4]:
        assert record.error == ""
        assert record.up + record.down <= 2.5 * size


@pytest.mark.parametrize("played", ADAPTERS, indirect=True)
def test_an_adapter_that_was_used_last_moves_nothing(played):
    assert played[4].error == ""
    assert played[4].up <= INPUTS
    assert played[4].down <= RESULTS
