"""Working memory: as much as is asked for, not much less, and all of it given back."""

import pytest

pytestmark = pytest.mark.host

MIB = 2**20
ALL_NODES = "every node twice"
MUCH = [
    *("RTX 4090: much at once", "RTX 4090: much at once in fp8", "RTX 3090: much at once in fp8"),
    "RTX 4090: SEED-1",
]
LEFT = 4 * MIB
"""Small weights outside the host's layers, which the host leaves where they are, and what a graph
computed in, which CUDA's own allocator keeps."""
LITTLE = 64 * MIB
"""Too little to be worth a closer estimate."""


def estimates(played):
    """What was asked for and what was used each time that a model was made ready, and in words."""
    for record in played:
        for each in record.readied:
            sizes = f"{each.used / MIB:.0f} MiB used of {each.asked / MIB:.0f} asked for"
            yield f"{record.action}, {each.model}: {sizes}", each.asked, each.used


@pytest.mark.parametrize("played", MUCH, indirect=True)
def test_memory_required_covers_what_is_used(played):
    short = [words for words, asked, used in estimates(played) if used > asked]
    assert short == []


@pytest.mark.parametrize("played", MUCH, indirect=True)
def test_memory_required_asks_for_at_most_three_times_what_is_used(played):
    wasteful = [words for words, asked, used in estimates(played) if asked > 3 * used + LITTLE]
    assert wasteful == []


@pytest.mark.parametrize(
    "played",
    [
        f"{row}: {ALL_NODES}"
        for row in (
            *("RTX 3050 Laptop", "RTX 4080", "RTX 4090", "RTX 4090 --novram"),
            "RTX 4090 --disable-dynamic-vram --disable-cuda-malloc",
        )
    ],
    indirect=True,
)
def test_unloading_gives_all_memory_back(played, system):
    unload = next(record for record in played if record.action == "unload")
    assert sum(unload.on_card.values()) <= LEFT
    assert unload.live <= system + LEFT


@pytest.mark.parametrize(
    "played",
    [f"{row}: {ALL_NODES}" for row in ("RTX 4090", "RTX 4090 --gpu-only")],
    indirect=True,
)
def test_models_that_no_wire_holds_leave_nothing(played, system):
    assert played[-1].action == "forget"
    assert played[-1].live <= system + LEFT
