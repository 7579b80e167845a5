"""A language model on a server: what is asked, what comes back, seeds, stopping, progress."""

import logging
import re
import subprocess
import sys
import threading

import pytest
import torch

import seed_core
from seed_core import GenerationError, GenerationOptions, OptionError, PromptError
from seed_core.serving.dialects import DIALECTS, completion

GREEDY = GenerationOptions(temperature=0, max_new_tokens=80)
WILD = GenerationOptions(temperature=2.0, top_p=1.0, top_k=0, max_new_tokens=80)


@pytest.fixture
def served(engine, serve):
    return serve(engine)


# --- what is asked ---


def test_every_parameter_is_sent_and_the_prompt_is_token_ids(engine, served):
    options = GenerationOptions(temperature=0.7, top_p=0.8, top_k=9, max_new_tokens=11)
    served.generate("Hello", options=options, generator=seed_core.seeded_generators(5, 1)[0])
    (body,) = engine.bodies
    grammar = body.pop("structured_outputs")["grammar"]
    assert grammar.startswith("root ::= text*\n")  # a picture does not fit
    assert body == {
        "model": "seed-mini",
        "prompt": served.vocab.encode(["USER: Hello\nASSISTANT:"]),
        "max_tokens": 11,
        "min_tokens": 0,
        "n": 1,
        "seed": 5,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 9,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": sorted(served.end_ids),
        "ignore_eos": False,
        "stream": True,
        "return_token_ids": True,
    }


@pytest.mark.parametrize(
    ("reply", "root"),
    [
        ("auto", "(pic | text)*"),
        ("text", "text*"),
        ("image", "code{32} Token(1537) (pic | text)*"),
    ],
)
def test_the_grammar_begins_where_the_reply_does(engine, served, reply, root):
    served.generate("a fox", options=GenerationOptions(reply, 60, temperature=0))
    (body,) = engine.bodies
    grammar = body["structured_outputs"]["grammar"]
    assert grammar.partition("\n")[0] == f"root ::= {root}"
    assert (body["prompt"][-1] == served.vocab.begin_image) is (reply == "image")
    assert body["max_tokens"] == 60 - (reply == "image")


def test_dialects_differ_in_the_grammars_field_and_in_what_keeps_all_tokens():
    def asked(name):
        arguments = ("m", [1], WILD, "root", 5, 7, 2, frozenset({2}))
        return completion(DIALECTS[name], *arguments)

    vllm, sglang = asked("vllm"), asked("sglang")
    assert vllm.pop("structured_outputs") == {"grammar": "root"}
    assert sglang.pop("ebnf") == "root"
    assert (vllm.pop("top_k"), sglang.pop("top_k")) == (0, -1)
    assert vllm == sglang


def test_a_key_goes_with_every_request(engine_module, mini_llm, serve, monkeypatch):
    monkeypatch.setenv("STUDIO_KEY", "sesame")
    with engine_module.Engine(mini_llm, key="sesame") as engine:
        served = serve(engine, key_variable="STUDIO_KEY")
        assert served.generate("Hello", options=GREEDY).is_complete
    assert set(engine.keys) == {"Bearer sesame"}


def test_a_path_in_the_address_comes_before_every_request(engine, serve):
    engine.faults.refusals = [("/llm/v1/models", 418, {}, b"a teapot")]
    served = serve(engine, address=f"http://127.0.0.1:{engine.port}/llm/v1/")
    with pytest.raises(GenerationError, match="answer 418.*teapot"):
        served.generate("Hello")
    assert engine.paths == ["/llm/v1/models"]


def test_the_server_is_asked_each_time_what_it_serves_and_the_vocabulary_when_that_is_new(
    engine, served
):
    for context in (512, 512, 300):
        engine.context = context
        served.generate("Hello", options=GREEDY)
    again = ["/v1/models", "/v1/completions"]
    met = ["/v1/models", "/detokenize", "/v1/completions"]
    assert engine.paths == [*met, *again, *met]
    engine.context, engine.faults.detokenized = 200, {"prompt": "<unk>"}
    with pytest.raises(GenerationError, match="another model"):
        served.generate("Hello", options=GREEDY)


def test_proxies_of_the_environment_are_not_asked(engine, served, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert served.generate("Hello", options=GREEDY).is_complete


def test_planning_asks_nothing_and_needs_no_memory(engine, served, mini_llm, sample_codes):
    asked = ("What is this?", sample_codes[:2], None, GREEDY)
    assert served.count_tokens(*asked) == mini_llm.count_tokens(*asked)
    plan = served.plan(*asked, seed_core.seeded_generators(0, 3))
    assert plan.memory_required == served.memory_required(512, 64) == 0
    assert plan.request.prompt == mini_llm.plan(*asked).request.prompt
    with pytest.raises(PromptError, match="empty"):
        served.plan("")
    assert engine.paths == []


# --- seeds and variations ---


def seeds_and_counts(engine):
    return [(body["seed"], body["n"]) for body in engine.bodies]


def test_variations_are_one_request_and_each_is_the_reply_of_its_seed(engine, served):
    together = served.generate_batch(
        "a fox", options=WILD, generators=seed_core.seeded_generators(3, 4)
    )
    assert seeds_and_counts(engine) == [(3, 4)]
    alone = [
        served.generate("a fox", options=WILD, generator=seed_core.seeded_generators(seed, 1)[0])
        for seed in (3, 4, 5, 6)
    ]
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]
    assert len({r.token_ids for r in together}) == 4


def test_seeds_that_do_not_follow_one_another_are_requests_of_their_own(engine, served):
    generators = [torch.Generator().manual_seed(seed) for seed in (9, 10, 4, 2**63 - 1, 2**63)]
    replies = served.generate_batch("Hello", options=WILD, generators=generators)
    assert seeds_and_counts(engine) == [(9, 2), (4, 1), (2**63 - 1, 1), (0, 1)]
    assert len(replies) == 5


def test_where_an_engine_gives_replies_of_a_request_one_seed_each_is_a_request(engine, serve):
    served = serve(engine, dialect="sglang")
    served.generate_batch("Hello", options=WILD, generators=seed_core.seeded_generators(3, 3))
    assert seeds_and_counts(engine) == [(3, 1), (4, 1), (5, 1)]


def test_greedy_variations_are_asked_for_once(engine, served):
    generators = seed_core.seeded_generators(3, 3)
    replies = served.generate_batch("Hello", options=GREEDY, generators=generators)
    assert seeds_and_counts(engine) == [(3, 1)]
    assert len({r.token_ids for r in replies}) == 1
    assert len(replies) == 3


def test_a_temperature_that_the_engine_refuses_is_refused_here(engine, serve):
    with pytest.raises(OptionError, match=r"0\.\.2 on a server with vllm; got 2\.5"):
        serve(engine).generate("Hello", options=GenerationOptions(temperature=2.5))
    assert engine.paths == []


# --- pictures and the end of the room ---


@pytest.fixture
def drawing_llm():
    """seed-mini, made to begin a picture after each picture, and after words now and then."""
    llm = seed_core.load_llm("seed-mini")
    offset = torch.zeros(llm.vocab.size)
    offset[llm.vocab.begin_image] = 40.0
    llm.module.lm_head.bias = torch.nn.Parameter(offset, requires_grad=False)
    return llm


@pytest.mark.parametrize("length", [34, 40, 68, 69, 90, 110])
def test_a_picture_that_no_longer_fits_is_not_begun_and_words_take_its_place(
    engine_module, drawing_llm, serve, length
):
    options = GenerationOptions(temperature=0, max_new_tokens=length)
    with engine_module.Engine(drawing_llm) as engine:
        reply = serve(engine).generate("a fox", options=options)
    here = drawing_llm.generate("a fox", options=options)
    assert len(here.codes) == length // 34
    assert reply.token_ids == here.token_ids
    assert reply.is_complete == here.is_complete
    assert len(engine.bodies) == 1 + (length % 34 > 0)


def test_of_several_replies_each_goes_on_by_itself(engine_module, drawing_llm, serve):
    options = GenerationOptions(temperature=2.0, top_p=1.0, top_k=0, max_new_tokens=90)
    generators = seed_core.seeded_generators(1, 3)
    with engine_module.Engine(drawing_llm) as engine:
        served = serve(engine)
        replies = served.generate_batch("a fox", options=options, generators=generators)
        again = served.generate_batch("a fox", options=options, generators=generators)
        assert engine.wait_until(lambda engine: not engine.running)
    assert [len(reply.codes) for reply in replies] == [2, 2, 2]
    assert all(68 < len(reply.token_ids) <= 90 for reply in replies)
    assert [r.token_ids for r in replies] == [r.token_ids for r in again]


def test_an_end_token_that_the_engine_leaves_out_ends_the_reply_all_the_same(
    engine, served, mini_llm
):
    engine.faults.strips_end = True
    reply = served.generate("Hello", options=GREEDY)
    assert reply.token_ids == mini_llm.generate("Hello", options=GREEDY).token_ids
    assert reply.is_complete


# --- the context ---


def test_a_server_that_reads_less_gives_shorter_replies(engine_module, mini_llm, serve):
    with engine_module.Engine(mini_llm, context=40) as engine:
        served = serve(engine)
        served.generate("Hello", options=GenerationOptions(temperature=0))
        served.generate("Hello", options=GenerationOptions(temperature=0))
    prompt = len(engine.bodies[0]["prompt"])
    assert [body["max_tokens"] for body in engine.bodies] == [40 - prompt] * 2


def test_a_server_that_is_started_anew_with_more_room_gives_it(engine, served):
    options = GenerationOptions(temperature=0)
    engine.context = 40
    with pytest.raises(GenerationError, match="reads 40"):
        served.generate("fox " * 60, options=options)
    engine.context = 512
    served.generate("fox " * 60, options=options)
    (body,) = engine.bodies
    assert body["max_tokens"] == 512 - len(body["prompt"])


@pytest.mark.parametrize("tells", [True, False])
def test_a_prompt_that_is_too_long_for_the_server_is_refused_as_it_is_here(
    engine_module, mini_llm, serve, tells
):
    """Whether the server tells its context when it is asked, or only as it refuses."""
    with engine_module.Engine(mini_llm, context=40) as engine:
        if not tells:
            engine.faults.models = {"data": [{"id": "seed-mini"}]}
        with pytest.raises(GenerationError, match=r"is \d+ tokens long; this model reads 40 and"):
            serve(engine).generate("fox " * 60)
    assert len(engine.bodies) == (not tells)


def test_a_context_that_only_a_refusal_tells_shortens_the_reply(engine_module, mini_llm, serve):
    with engine_module.Engine(mini_llm, context=40) as engine:
        engine.faults.models = {"data": [{"id": "seed-mini"}]}
        reply = serve(engine).generate("Hello", options=GenerationOptions(temperature=0))
    first, second = engine.bodies
    assert first["max_tokens"] == 512 - len(first["prompt"])
    assert second["max_tokens"] == 40 - len(first["prompt"])
    assert reply.token_ids == mini_llm.generate("Hello", options=GREEDY).token_ids


def test_a_prompt_that_is_too_long_for_the_model_is_not_sent(engine, served):
    with pytest.raises(GenerationError, match="this model reads 512"):
        served.generate("fox " * 4096)
    assert engine.paths == []


def test_the_context_of_an_adapter_is_that_of_its_model(engine, serve):
    engine.name = "night"
    engine.faults.models = {
        "data": [
            {"id": "seed-mini", "max_model_len": 50},
            {"id": "night", "parent": "seed-mini", "max_model_len": None},
        ]
    }
    served = serve(engine, model="night")
    served.generate("Hello", options=GREEDY)
    (body,) = engine.bodies
    assert body["max_tokens"] == 50 - len(body["prompt"])


# --- progress and stopping ---


def test_progress_counts_tokens_and_shows_the_text_so_far(engine, served):
    seen = []
    reply = served.generate(
        "What can you do?",
        options=GREEDY,
        on_token=lambda progress: seen.append((progress.done, progress.total, progress.text())),
    )
    counts = [done for done, _, _ in seen]
    assert counts == sorted(counts)
    assert counts[-1] == len(reply.token_ids)
    assert len(set(counts)) > 5
    assert {total for _, total, _ in seen} == {80}
    texts = [text for _, _, text in seen]
    assert texts[-1] == reply.text
    assert all(reply.text.startswith(text) for text in texts)


class Interrupted(BaseException):
    """The host's interruption is no Exception in every version."""


def test_what_a_listener_raises_ends_the_request_and_passes_through(engine, served):
    interruption = Interrupted()

    def on_token(progress):
        if progress.done > 3:
            raise interruption

    with pytest.raises(Interrupted) as caught:
        served.generate("a fox", options=WILD, on_token=on_token)
    assert caught.value is interruption
    assert engine.wait_until(lambda engine: engine.aborted == 1 and not engine.running)
    assert served.generate("Hello", options=GREEDY).is_complete


@pytest.mark.parametrize("silence", ["headers", "first token", 5])
@pytest.mark.parametrize("pings", [False, True])
def test_stop_works_while_the_server_is_silent(engine, served, silence, pings):
    """The silence has no end: only the closed connection lets the engine go on."""
    engine.faults.silence, engine.faults.pings = silence, pings and silence != "headers"

    def on_token(progress):
        if engine.running:
            raise Interrupted

    with pytest.raises(Interrupted):
        served.generate("a fox", options=WILD, on_token=on_token)
    assert engine.wait_until(lambda engine: engine.aborted == 1 and not engine.running)


def test_stop_works_while_the_server_makes_nobody_welcome(serve, engine):
    """A connection that is taken, and a handshake that is never answered."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"https://127.0.0.1:{deaf.getsockname()[1]}"
        served = serve(engine, address=address, connect_seconds=1)

        def on_token(progress):
            raise Interrupted

        with pytest.raises(Interrupted):
            served.generate("a fox", on_token=on_token)


def test_many_at_once_are_not_mixed_up_whoever_stops_in_between(engine, served, mini_llm):
    prompts = ["Hello", "a fox", "What can you do?", "a panda on blue"] * 2
    replies = [None] * len(prompts)

    def stop(progress):
        if progress.done > 2:
            raise Interrupted

    def ask(number):
        if number % 2:
            with pytest.raises(Interrupted):
                served.generate("a cat", options=WILD, on_token=stop)
        replies[number] = served.generate(prompts[number], options=GREEDY)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [mini_llm.generate(prompt, options=GREEDY).token_ids for prompt in prompts]
    assert [reply.token_ids for reply in replies] == expected
    assert engine.wait_until(lambda engine: not engine.running)
    assert engine.aborted == 4
    assert engine.served == 8


# --- the rest ---


def test_each_generation_is_one_line_of_the_log(engine, served, caplog):
    with caplog.at_level(logging.INFO):
        served.generate("Hello", options=GREEDY)
    (message,) = caplog.messages
    assert re.fullmatch(
        r"SEED-LLaMA: \d+ tokens in [\d.]+ s \([\d.]+ tokens/s\), pictures: 0, server: "
        r"studio\.server\.json, model: seed-mini",
        message,
    )


def test_nothing_of_the_network_is_imported_before_the_first_generation(write_file):
    """torch imports these itself, so they are taken away after it."""
    program = f"""
import sys, torch
late = ("http", "http.client", "ssl", "socket", "_socket", "email.utils", "urllib.request")
for name in late:
    sys.modules[name] = None  # importing it raises ImportError
import seed_core.cli.program
from seed_core.serving.runtime import load_served_llm
llm = load_served_llm({str(write_file())!r})
print(llm.count_tokens("Hello"))
try:
    llm.generate("Hello")
except ImportError as error:
    print(error.name)
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    tokens, name = found.stdout.split()
    assert tokens == "512", found.stderr
    assert name in ("http", "http.client", "socket")  # that is how it would be noticed
