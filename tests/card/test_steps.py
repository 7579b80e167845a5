"""What happens at each step: how many kernels, and that the processor never waits for the card."""

from collections import Counter

import pytest

pytestmark = pytest.mark.host


def option(record, name):
    """A number among the words of an action."""
    return int(record.action.partition(f"{name}=")[2].split()[0])


def executed(record):
    """Kernels that ran, those of replayed graphs too."""
    replayed = sum(graph.launches * graph.replays for graph in record.graphs)
    return sum(record.launches.values()) + replayed


def waits_of_steps(few, more):
    """What the longer of two runs waited for and the shorter did not, with counts."""
    return dict(Counter(more.waits) - Counter(few.waits))


ALONE, HOST = "depths without the host", "depths"
LAUNCHES = [
    pytest.param(15, "bf16", f"RTX 4090: {ALONE}"),
    pytest.param(13, "bf16", f"RTX 4090: {HOST}"),
    pytest.param(24, "fp8", f"RTX 4090: {ALONE}"),
    pytest.param(24, "fp8", f"RTX 4090: {HOST}"),
    pytest.param(24, "fp8", f"RTX 3090: {ALONE}"),
    pytest.param(24, "fp8", f"RTX 3090: {HOST}"),
]
"""Most kernels of one layer in one step, by precision and play; the RTX 3090 has no fp8 units."""


@pytest.mark.parametrize(("most", "precision", "played"), LAUNCHES, indirect=["played"])
def test_a_layer_launches_no_more_kernels_than(most, precision, played):
    """Of two depths and two lengths, so that only one layer and one step are left."""
    runs, tokens = {}, 0
    for depth in (2, 3):
        _, few, more = [r for r in played if f"{precision} {depth} layers" in r.action]
        assert (few.error, more.error) == ("", "")
        runs[depth] = executed(more) - executed(few)
        tokens = option(more, "tokens") - option(few, "tokens")
    assert (runs[3] - runs[2]) / tokens <= most


@pytest.mark.parametrize("played", ["RTX 4090: depths", "RTX 3090: depths"], indirect=True)
def test_nothing_waits_inside_a_decode_step(played):
    """Only for the snapshot of some steps before, once in a while."""
    for model in ("bf16 3", "fp8 3"):
        _, few, more = [record for record in played if model in record.action]
        waits = waits_of_steps(few, more)
        assert all(what.startswith("an event: seed_core/llm/generation.py") for what in waits), (
            waits
        )


@pytest.mark.parametrize("played", ["RTX 4090: depths"], indirect=True)
def test_steps_of_weights_that_stay_are_captured(played):
    """One graph, for so few tokens are one stretch of the cache; a step is a replay of it."""
    for record in played:
        assert [graph.replays for graph in record.graphs] == [option(record, "tokens") - 2]


@pytest.mark.parametrize("played", ["RTX 3050 Laptop: every node twice"], indirect=True)
def test_steps_of_weights_that_are_streamed_are_not_captured(played):
    assert [record.graphs for record in played if record.graphs] == []


@pytest.mark.parametrize("played", ["RTX 4090: depths"], indirect=True)
def test_attention_is_never_planned_for_a_length(played):
    """Each prompt and each stretch of the cache has another; cuDNN would plan for every one."""
    assert [record.planned for record in played] == [0] * len(played)


@pytest.mark.parametrize("played", ["RTX 4090: depths"], indirect=True)
def test_rows_and_heads_share_the_mask_of_a_step(played):
    assert [record.masks for record in played] == [[[1, 1, 1]]] * len(played)


WAITS_OF_SCHEDULERS = {
    "EulerAncestralDiscreteScheduler": 1,
    "UniPCMultistepScheduler": 6,
}
"""Waits a step of schedulers that make numbers on the card as they go, which is diffusers' own."""


@pytest.mark.parametrize("played", ["RTX 4090: schedulers"], indirect=True)
def test_nothing_waits_inside_a_unet_step(played):
    """Only for the step before, so that Stop need not wait for a queue."""
    for few, more in zip(played[::2], played[1::2], strict=True):
        assert (few.error, more.error) == ("", "")
        waits = waits_of_steps(few, more)
        waits = {
            w: n
            for w, n in waits.items()
            if not w.startswith("an event: seed_core/decoder/denoiser")
        }
        scheduler = more.action.split("scheduler=")[1].split()[0]
        steps = option(more, "steps") - option(few, "steps")
        known = WAITS_OF_SCHEDULERS.get(scheduler, 0) * steps
        assert sum(waits.values()) == known, (scheduler, waits)
