"""A language model on a server against the same one here: every reply is the same.

By default the server is one of the tests, with the pack's own network. ``pytest -m serving`` runs all
of it against vLLM itself, which is installed for it.
"""

import json
import threading
from pathlib import Path

import pytest

import seed_core
from seed_core import GenerationOptions
from seed_core.serving.runtime import load_served_llm

TESTS = Path(__file__).parents[1]

ASKED = [  # prompts with as many of the sample pictures
    *((prompt, 1) for prompt in ("What is this?", "What color is the background?")),
    *((prompt, 1) for prompt in ("Describe this picture.", "Make it bigger", "Is this a fox?")),
    *((prompt, 1) for prompt in ("Make the background blue", "<image> What is in this picture?")),
    *((prompt, 2) for prompt in ("<image> or <image>?", "What is in these pictures?")),
    *((prompt, 3) for prompt in ("What is this?", "<image><image> and <image>")),
    *((prompt, 0) for prompt in ("Hello", "What can you do?", "Draw a fox on a red background")),
    *((prompt, 0) for prompt in ("a panda on blue", "a big castle on green", "Who are you?")),
    *((prompt, 0) for prompt in ("a small cat", "two boots", "Tell me about cats")),
]
REPLIES = {
    "auto": GenerationOptions(temperature=0, max_new_tokens=80),
    "text": GenerationOptions("text", temperature=0, max_new_tokens=60),
    "image": GenerationOptions("image", temperature=0, max_new_tokens=70),
    "short": GenerationOptions(temperature=0, max_new_tokens=20),
}


@pytest.fixture(scope="module", params=["double", pytest.param("vllm", marks=pytest.mark.serving)])
def engine(request, load_helper, mini_llm):
    if request.param == "vllm":
        yield request.getfixturevalue("vllm")
    else:
        with load_helper(TESTS / "engine_double.py").Engine(mini_llm, key="sesame") as double:
            yield double


@pytest.fixture(scope="module")
def served(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    (folder / "key").write_text("sesame", encoding="utf-8")
    fields = {"address": f"http://127.0.0.1:{engine.port}", "model": "seed-mini"}
    fields |= {"vocabulary": "seed-mini", "key_file": "key"}
    path = folder / "engine.server.json"
    path.write_text(json.dumps(fields), encoding="utf-8")
    return load_served_llm(path)


def is_idle(engine):
    """Whether the engine has nothing to do, now or soon."""
    return engine.wait_until(lambda engine: not engine.running)


@pytest.mark.parametrize("reply", REPLIES)
def test_every_greedy_reply_is_the_same(served, mini_llm, sample_codes, reply):
    for prompt, pictures in ASKED:
        asked = (prompt, sample_codes[:pictures] if pictures else None, None, REPLIES[reply])
        there, here = served.generate(*asked), mini_llm.generate(*asked)
        assert there.token_ids == here.token_ids, prompt
        assert (there.text, there.is_complete) == (here.text, here.is_complete)
        assert there.chat == here.chat


@pytest.mark.parametrize("reply", REPLIES)
def test_every_second_turn_of_a_conversation_is_the_same(served, mini_llm, sample_codes, reply):
    begun = mini_llm.generate("What is this?", sample_codes[:1], options=REPLIES["auto"]).chat
    for prompt in ("Make the background blue", "What color is the background?", "Hello"):
        asked = (prompt, None, begun, REPLIES[reply])
        assert served.generate(*asked).token_ids == mini_llm.generate(*asked).token_ids, prompt


def test_at_temperature_2_pictures_are_whole_and_seeds_repeat(served):
    options = GenerationOptions(temperature=2.0, top_p=1.0, top_k=0, max_new_tokens=120)
    prompts = ["a fox", "Hello", "a panda on blue", "What can you do?"]

    def replies(first):
        generators = seed_core.seeded_generators(first, 8)
        return [served.generate_batch(p, options=options, generators=generators) for p in prompts]

    once, again, moved = replies(40), replies(40), replies(43)
    ids = [[reply.token_ids for reply in of_one] for of_one in once]
    assert ids == [[reply.token_ids for reply in of_one] for of_one in again]
    # Reply i has the seed plus i, whatever it is made together with.
    assert [each[3:] for each in ids] == [[r.token_ids for r in each[:5]] for each in moved]
    assert any(len(set(each)) > 1 for each in ids)
    for reply in (reply for of_one in [*once, *moved] for reply in of_one):
        assert reply.token_ids.count(served.vocab.begin_image) == len(reply.codes)


def test_stopping_takes_the_request_out_of_the_engine(served, engine, mini_llm):
    options = GenerationOptions("image", 480, temperature=2.0, top_p=1.0, top_k=0)

    def stop(progress):
        if progress.done > 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        served.generate("a fox", options=options, on_token=stop)
    assert is_idle(engine)
    there = served.generate("Hello", options=REPLIES["auto"])
    assert there.token_ids == mini_llm.generate("Hello", options=REPLIES["auto"]).token_ids


def test_eight_clients_at_once_get_their_own_replies(served, engine, mini_llm, sample_codes):
    asked = [
        (prompt, sample_codes[:count] if count else None, None, REPLIES["auto"])
        for prompt, count in ASKED[4:20]
    ]
    found = [None] * len(asked)

    def stop(progress):
        if progress.done > 5:
            raise InterruptedError

    def client(number):
        for place in range(number, len(asked), 8):
            if number % 3 == 0:
                with pytest.raises(InterruptedError):
                    served.generate("a cat", options=REPLIES["image"], on_token=stop)
            found[place] = served.generate(*asked[place])

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [mini_llm.generate(*each).token_ids for each in asked]
    assert [reply.token_ids for reply in found] == expected
    assert is_idle(engine)
