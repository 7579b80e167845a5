"""Every node runs to its end on every card: nothing meets on two devices or in two dtypes."""

import pytest

pytestmark = pytest.mark.host

LARGE = [
    *("RTX 4090", "RTX 4090 --disable-dynamic-vram --disable-cuda-malloc", "RTX 4080"),
    "RTX 4090 --gpu-only",
]
ALL_NODES = "every node twice"


def errors(played):
    return {record.action: record.error for record in played if record.error}


@pytest.mark.parametrize("played", [f"{row}: {ALL_NODES}" for row in LARGE], indirect=True)
def test_no_node_meets_two_devices_or_two_dtypes(played):
    assert errors(played) == {}


FP8 = [
    *("RTX 3060", "RTX 4060 --lowvram", "H100 --highvram"),
    "RTX 3050 Laptop --disable-dynamic-vram",
]


@pytest.mark.parametrize("played", [f"{row}: fp8 twice" for row in FP8], indirect=True)
def test_no_node_meets_two_dtypes_in_fp8(played):
    assert errors(played) == {}


@pytest.mark.parametrize("played", ["RTX 4090: SEED-1", "RTX 4090 --novram: SEED-1"], indirect=True)
def test_seed_1_meets_no_two_devices_or_dtypes(played):
    """Of SEED-1 only the tower is in 16 bits."""
    assert errors(played) == {}


@pytest.mark.parametrize("played", ["RTX 4090: schedulers"], indirect=True)
def test_no_scheduler_meets_two_devices_or_two_dtypes(played):
    assert errors(played) == {}


@pytest.mark.parametrize(
    "played",
    [
        f"RTX 3050 Laptop: {ALL_NODES}",
        f"RTX 3050 Laptop --disable-dynamic-vram: {ALL_NODES}",
        f"RTX 4090 --novram: {ALL_NODES}",
    ],
    indirect=True,
)
def test_a_small_card_streams_instead_of_crashing(played):
    assert errors(played) == {}


@pytest.mark.parametrize(
    "played",
    [
        "RTX 3050: a large picture",
        "RTX 3050 --disable-dynamic-vram: a large picture",
    ],
    indirect=True,
)
def test_a_small_card_paints_large_pictures(played):
    """At 1080 pixels the VAE still works on a whole picture."""
    assert errors(played) == {}


@pytest.mark.parametrize("played", [f"{row}: {ALL_NODES}" for row in LARGE], indirect=True)
def test_results_travel_where_the_host_keeps_them(played):
    """In main memory, or on the card with --gpu-only."""
    places = {made.rpartition(" ")[2] for record in played for made in record.made}
    assert len(places) == 1


@pytest.mark.parametrize("played", ["RTX 4090: much at once"], indirect=True)
def test_large_batches_and_tiles_meet_no_two_devices_or_dtypes(played):
    """At 1104 pixels the VAE works in tiles."""
    assert errors(played) == {}
