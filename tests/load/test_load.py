"""Four clients keep 50 prompts in the queue of a real ComfyUI, with interrupts and broken connections.

A short load runs with the other host tests. `pytest -m slow tests/load` runs 20 minutes, or as many
as SEED_LOAD_MINUTES says. Both print their figures; `-rP` shows them.
"""

import json
import os
import re
import statistics
from pathlib import Path

import pytest

pytestmark = pytest.mark.host

HERE = Path(__file__).parent
TWINS = HERE.parent / "workflows" / "api"
BUNDLED = "seed-mini (bundled)"
RARER = ("story", "variations_grid")  # these take ten times as long as others
RANDOM_SEED = 20
QUEUED = 50
GROWTH = 0.05  # of the server's memory


def bundled_twins():
    """The templates that run on the bundled model, as prompts."""
    twins = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in TWINS.iterdir()}
    return {
        name: prompt
        for name, prompt in sorted(twins.items())
        if all(
            BUNDLED in node["inputs"].values()
            for node in prompt.values()
            if "Loader" in node["class_type"]
        )
    }


def saving_codes(prompt):
    """The prompt with the codes of its pictures saved to files, too."""
    saves = {
        f"save {node_id}": {
            "class_type": "SEEDSaveCodes",
            "inputs": {"codes": [node_id, 0], "filename_prefix": "codes/load"},
        }
        for node_id, node in prompt.items()
        if node["class_type"] == "SEEDEncode"
    }
    return prompt | saves


def mixed_prompts(clients, seeds, steps):
    """Every workflow under several random seeds, so that the host's cache has seldom the result."""
    return {
        f"{name}, seed + {number}": clients.with_random_seed(
            clients.with_fewer_steps(saving_codes(prompt), steps), number
        )
        for name, prompt in bundled_twins().items()
        for number in range(1 if name in RARER else seeds)
    }


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("short", id="short"),
        pytest.param("long", id="long", marks=pytest.mark.slow),
    ],
)
def load(request, comfy, load_helper, tmp_path_factory):
    """The load on a server of its own, done: the laws below look at what happened."""
    clients = load_helper(HERE / "clients.py")
    if request.param == "short":
        minutes, seeds, steps, every = 0.3, 2, 2, 4.0
    else:
        minutes, seeds, steps, every = float(os.environ.get("SEED_LOAD_MINUTES", "20")), 4, 4, 8.0
    packs = {comfy.PACK_NAME: comfy.PACK_ROOT, "seed-test-probe": HERE.parent / "host" / "probe"}
    server = comfy.ComfyServer(comfy.find_checkout(), tmp_path_factory.mktemp("load"), packs)
    load = clients.Load(
        server,
        mixed_prompts(clients, seeds, steps),
        minutes,
        RANDOM_SEED,
        queued=QUEUED,
        trouble_every=every,
    )
    try:
        server.start()
        load.run(drain_within=900)
        print(f"\nrandom seed {RANDOM_SEED}\n{load.summary()}")
        yield load
    finally:
        server.stop()


def some(tickets):
    """The first few of many, for a message."""
    shown = [f"{t.name} ({t.prompt_id}) {t.end or 'no history'}" for t in tickets[:5]]
    return f"{len(tickets)} prompts: " + "; ".join(shown)


def test_the_queue_is_full_until_the_time_is_up(load):
    queued = [sample.queued for sample in load.samples if 5 < sample.time < load.seconds]
    assert max(queued) <= QUEUED, "the clients queue more than they should"
    assert statistics.median(queued) >= 0.9 * QUEUED, f"of {QUEUED} prompts at once: {queued}"


def test_every_kind_of_trouble_was_made(load):
    made = load.troubles.dealt
    assert made.keys() == set(load.possible_troubles), made
    assert load.ended("execution_interrupted"), "no interrupt has hit a prompt"


def test_every_workflow_was_run_rather_than_answered_from_the_cache(load):
    """But for one or two whose only run of a short load was interrupted, or deleted before it."""
    ran = {t.name for t in load.ended("execution_success") if not t.is_from_cache}
    never = set(load.prompts) - ran
    stopped = [t for t in load.tickets.values() if t.is_deleted]
    stopped += load.ended("execution_interrupted")
    assert never <= {ticket.name for ticket in stopped}
    assert len(never) <= 2


def test_nothing_is_lost_from_history(load):
    lost = [t for t in load.tickets.values() if not t.history and not t.is_deleted]
    assert not lost, f"neither queued nor in history nor deleted by us: {some(lost)}"
    gone = [t for t in load.kept_by_the_host if t.prompt_id not in load.history_at_the_end]
    assert not gone, f"in history once, and not at the end: {some(gone)}"


def test_every_prompt_runs_and_ends_exactly_once(load):
    kept = [t for t in load.tickets.values() if t.history]
    odd = [
        ticket
        for ticket in kept
        if len(ticket.events["execution_start"]) != 1
        or sum(len(ticket.events[kind]) for kind in load.final_events) != 1
    ]
    assert not odd, f"not one start and one end: {some(odd)}"
    assert load.runs_in_the_log == len(kept), "the log counts other runs than history has"


def test_no_prompt_fails(load):
    failed = load.ended("execution_error")
    assert not failed, f"{some(failed)}: {failed[0].events['execution_error']}"


def test_the_log_has_no_traceback(load):
    found = re.search(r"Traceback \(most recent|\[ERROR\]|Unhandled|never awaited", load.log)
    assert not found, load.log[max(found.start() - 500, 0) : found.start() + 3000]


def test_only_what_we_interrupt_is_interrupted(load):
    unasked = [
        ticket
        for ticket in load.ended("execution_interrupted")
        if not any(interrupt.may_have_hit(ticket) for interrupt in load.interrupts)
    ]
    assert not unasked, f"nobody asked for it: {some(unasked)}"


def test_results_equal_those_of_the_quiet_run(load):
    """To the last bit: one thread adds up in one order, whatever ran before."""
    different = {
        f"{t.name} ({t.prompt_id})": t.differences for t in load.tickets.values() if t.differences
    }
    assert not different, f"{len(different)} prompts: {dict(list(different.items())[:5])}"


def test_a_client_that_stays_connected_hears_the_end_of_its_prompts_once(load):
    unheard = [ticket for ticket in load.tickets.values() if ticket.is_unheard]
    assert not unheard, f"ended without a word to their client: {some(unheard)}"
    connections = [connection for client in load.clients for connection in client.connections]
    assert not any(connection.was_lost for connection in connections), "the server hung up"
    often = {p: ends for c in connections for p, ends in c.ends.items() if len(ends) > 1}
    assert not often, f"told of more than one end: {often}"


def test_the_server_answers_throughout(load):
    assert load.slowest_answer < 30, f"/system_stats once took {load.slowest_answer:.1f} s"
    assert load.samples[-1].time > load.seconds, "it was not asked to the end"


def test_memory_does_not_grow(load):
    early, late = load.rss(*load.early), load.rss(*load.late)
    assert late < early * (1 + GROWTH), f"RSS went from {early:.1f} to {late:.1f} MiB\n" + (
        load.summary()
    )


def test_unloading_leaves_neither_models_nor_tensors(load):
    before, after = load.rests
    assert after.models == [], "alive after everything was unloaded"
    assert (after.tensors, after.tensor_mib) <= (before.tensors, before.tensor_mib)


def test_afterwards_a_prompt_gives_the_quiet_result(load):
    assert load.quiet_again.keys()
    different = {name: found for name, found in load.quiet_again.items() if found}
    assert not different
