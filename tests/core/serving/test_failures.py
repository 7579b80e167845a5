"""Whatever a server does wrong is one sentence, within its time limit, and nothing hangs."""

import errno
import json
import shutil
import socket
import ssl
import subprocess

import pytest

from seed_core import GenerationError, GenerationOptions
from seed_core.serving.failures import message_in

GREEDY = GenerationOptions(temperature=0, max_new_tokens=80)
WILD = GenerationOptions("image", 80, temperature=2.0, top_p=1.0, top_k=0)
QUICK = {"connect_seconds": 0.4, "first_token_seconds": 0.4, "gap_seconds": 0.4}


def fails(served, options=GREEDY):
    """The one sentence that a generation ends with."""
    with pytest.raises(GenerationError) as caught:
        served.generate("a fox", options=options)
    message = str(caught.value)
    assert "studio.server.json" in message
    assert "\n" not in message
    return message


# --- there is no connection ---


def test_a_port_where_nothing_listens_refuses_connections(engine, serve):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    message = fails(serve(engine, address=f"http://127.0.0.1:{port}"))
    assert f"http://127.0.0.1:{port} of studio.server.json refuses connections" in message


def test_a_name_that_nobody_knows_is_told(engine, serve, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "the name studio of" in fails(serve(engine, address="http://studio:8000"))


def test_a_network_without_a_way_there_is_told(engine, serve, monkeypatch):
    def unreachable(*_, **__):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    message = fails(serve(engine, address="http://10.1.2.3"))
    assert "cannot be reached: [Errno 101] Network is unreachable" in message


def test_a_connection_that_does_not_come_about_ends_at_its_time_limit(engine, serve):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"https://127.0.0.1:{deaf.getsockname()[1]}"
        message = fails(serve(engine, address=address, connect_seconds=0.4))
    assert "gave no connection within 0.4 seconds" in message
    assert "connect_seconds" in message


def test_a_name_that_is_looked_up_for_ever_ends_at_the_same_limit(engine, serve, monkeypatch):
    import threading

    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait() and [])
    try:
        message = fails(serve(engine, address="http://studio:8000", connect_seconds=0.4))
    finally:
        released.set()
    assert "gave no connection within 0.4 seconds" in message


# --- https ---


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A certificate of 127.0.0.1 that its own key has signed, and that key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("certificate")
    files = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=studio", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-out", files[0], "-keyout", files[1]]
    subprocess.run(command, check=True, capture_output=True)
    return files


@pytest.fixture
def secure(engine_module, mini_llm, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    wrap = lambda plain: context.wrap_socket(plain, server_side=True)  # noqa: E731
    with engine_module.Engine(mini_llm, wrap=wrap) as engine:
        yield engine


def test_a_certificate_that_nobody_vouches_for_is_not_trusted(secure, serve):
    served = serve(secure, address=f"https://127.0.0.1:{secure.port}")
    message = fails(served)
    assert "the certificate of the server https://127.0.0.1" in message
    assert "is not trusted (self-signed certificate)" in message
    assert secure.paths == []


def test_a_certificate_that_the_server_file_names_is_trusted(
    secure, serve, certificate, tmp_path, mini_llm
):
    shutil.copy(certificate[0], tmp_path / "studio.pem")
    fields = {"address": f"https://127.0.0.1:{secure.port}", "certificate": "studio.pem"}
    reply = serve(secure, **fields).generate("Hello", options=GREEDY)
    assert reply.token_ids == mini_llm.generate("Hello", options=GREEDY).token_ids


def test_a_certificate_of_another_name_is_not_trusted(secure, serve, certificate, tmp_path):
    shutil.copy(certificate[0], tmp_path / "studio.pem")
    fields = {"address": f"https://localhost:{secure.port}", "certificate": "studio.pem"}
    assert "is not trusted" in fails(serve(secure, **fields))


def test_stop_works_over_https_while_the_server_is_silent(secure, serve, certificate, tmp_path):
    shutil.copy(certificate[0], tmp_path / "studio.pem")
    fields = {"address": f"https://127.0.0.1:{secure.port}", "certificate": "studio.pem"}
    secure.faults.silence, secure.faults.pings = 3, True

    def on_token(progress):
        if progress.done == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        serve(secure, **fields).generate("Hello", options=GREEDY, on_token=on_token)
    assert secure.wait_until(lambda engine: engine.aborted == 1 and not engine.running)


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_a_certificate_file_that_cannot_be_used_is_named(secure, serve, tmp_path, content):
    if content is not None:
        (tmp_path / "studio.pem").write_bytes(content)
    served = serve(secure, address=f"https://127.0.0.1:{secure.port}", certificate="studio.pem")
    assert "studio.pem, the certificate of" in fails(served)


def test_a_server_without_https_is_told(engine, serve):
    message = fails(serve(engine, address=f"https://127.0.0.1:{engine.port}"))
    assert "does not speak https" in message


def test_https_that_is_asked_for_without_is_told(secure, serve):
    message = fails(serve(secure, address=f"http://127.0.0.1:{secure.port}"))
    assert "broke" in message or "does not answer as a web server does" in message


# --- it refuses ---


def test_without_a_key_one_is_asked_for_and_a_wrong_one_is_told(
    engine_module, mini_llm, serve, tmp_path
):
    with engine_module.Engine(mini_llm, key="sesame") as engine:
        assert "wants a key, and the server file has neither" in fails(serve(engine))
        (tmp_path / "studio.key").write_text("poppy", encoding="utf-8")
        message = fails(serve(engine, key_file="studio.key"))
    assert "refuses the key" in message
    assert "(answer 401)" in message
    assert "poppy" not in message


def test_a_model_that_the_server_does_not_offer_is_told_with_those_that_it_does(engine, serve):
    engine.faults.models = {"data": [{"id": "seed-8b"}, {"id": "seed-14b"}]}
    message = fails(serve(engine))
    assert "does not offer the model 'seed-mini', but seed-8b, seed-14b" in message


def test_a_server_that_offers_nothing_is_told(engine, serve):
    engine.faults.models = {"data": []}
    assert fails(serve(engine)).endswith("does not offer the model 'seed-mini', or any other")


def test_names_and_types_that_a_server_tells_are_quoted_short_and_in_one_line(engine, serve):
    """A console obeys some characters, and an answer may be long."""
    engine.faults.models = {"data": [{"id": "\x1b[31m\nred"}, {"id": "x" * 100_000}]}
    message = fails(serve(engine))
    assert "but \\x1b[31m red, xxx" in message
    assert len(message) < 500
    engine.faults.models = None
    engine.faults.instead = "text/\x1b[31mhtml" + "x" * 10_000, b""
    message = fails(serve(engine))
    assert "(text/\\x1b[31mhtmlxxx" in message
    assert len(message) < 600


def test_a_model_that_is_not_there_is_told_where_the_server_has_no_list(engine, serve):
    engine.faults.lacks = ("/v1/models", "/detokenize")
    message = fails(serve(engine, model="seed-8b"))
    assert "does not know the model 'seed-8b'" in message
    assert "The model `seed-8b` does not exist." in message


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (
            400,
            b'{"error": {"message": "grammar: no\\nxgrammar"}}',
            "(answer 400): grammar: no xgrammar",
        ),
        (400, b'{"object": "error", "message": "bad"}', "(answer 400): bad"),
        (422, b'{"detail": [{"loc": 1}]}', '(answer 422): [{"loc": 1}]'),
        (500, b"<html>\x1b[31mboom</html>", "failed (answer 500): <html>\\x1b[31mboom</html>"),
        (502, b"", "failed (answer 502)"),
        (404, b'{"detail":"Not Found"}', "nothing at this address (answer 404): Not Found"),
        (404, b"", "(answer 404): no reason given"),
        (302, b"", "redirects to another address (answer 302)"),
        (403, b"", "wants a key"),
    ],
)
def test_a_refusal_is_told_in_the_servers_own_words(engine, serve, status, body, said):
    engine.faults.refusals = [("completions", status, {"Location": "http://127.0.0.1:1/"}, body)]
    assert said in fails(serve(engine))
    assert len(engine.bodies) == 0


def test_what_a_server_says_is_kept_short():
    assert len(message_in(b"x" * 100_000)) < 400
    assert message_in(b"[" * 100_000)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("headers", "when"),
    [
        ({}, "run it again later"),
        ({"Retry-After": "soon"}, "run it again later"),
        ({"Retry-After": "9" * 400}, "run it again later"),
        ({"Retry-After": "30"}, "run it again after 30 seconds, as it asks"),
        ({"Retry-After": "6000"}, "run it again after 100 minutes, as it asks"),
    ],
)
def test_a_busy_server_is_one_sentence_that_says_when(engine, serve, status, headers, when):
    engine.faults.refusals = [("completions", status, headers, b"")]
    message = fails(serve(engine, first_token_seconds=5))
    assert f"is too busy (answer {status}): {when}" in message


def test_a_busy_server_is_asked_again_when_it_says_so(engine, serve, mini_llm):
    engine.faults.refusals = [("completions", 503, {"Retry-After": "0"}, b"")] * 2
    engine.faults.refusals += [("models", 429, {"Retry-After": "1"}, b"")]
    reply = serve(engine).generate("Hello", options=GREEDY)
    assert reply.token_ids == mini_llm.generate("Hello", options=GREEDY).token_ids
    assert engine.paths.count("/v1/completions") == 3


def test_a_server_that_asks_for_no_pause_is_left_alone_for_a_second_all_the_same(engine, serve):
    engine.faults.refusals = [("completions", 503, {"Retry-After": "0"}, b"")]
    engine.faults.refuses_always = True
    assert "is too busy (answer 503)" in fails(serve(engine, first_token_seconds=1.9))
    assert engine.paths.count("/v1/completions") <= 2


def test_stop_works_while_a_busy_server_is_waited_for(engine, serve):
    engine.faults.refusals = [("completions", 503, {"Retry-After": "60"}, b"")]

    def on_token(progress):
        if not engine.faults.refusals:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        serve(engine).generate("Hello", options=GREEDY, on_token=on_token)


# --- it is silent, or breaks off ---


@pytest.mark.parametrize(
    ("silence", "said"),
    [
        ("headers", "gave no token within 0.4 seconds"),
        ("first token", "gave no token within 0.4 seconds"),
        (5, "gave no further token within 0.4 seconds"),
    ],
)
@pytest.mark.parametrize("pings", [False, True])
def test_silence_ends_at_its_time_limit(engine, serve, silence, said, pings):
    engine.faults.silence, engine.faults.pings = silence, pings and silence != "headers"
    limit = "gap_seconds" if silence == 5 else "first_token_seconds"
    message = fails(serve(engine, **{limit: 0.4}), WILD)
    assert said in message
    assert f"; {limit} in the server file" in message
    assert engine.wait_until(lambda engine: engine.aborted == 1 and not engine.running)


@pytest.mark.parametrize("tokens", [1, 10])
def test_a_stream_that_is_cut_is_told(engine, serve, tokens):
    engine.faults.cut = tokens
    message = fails(serve(engine), WILD)
    assert "broke before the reply was complete" in message


def test_an_answer_that_is_cut_is_told(engine, serve):
    engine.faults.refusals = [("models", 200, {"Content-Length": "500"}, b'{"data": [{"id": "se')]
    assert "broke before the reply was complete" in fails(serve(engine))


def test_a_stream_that_ends_too_early_is_told(engine, serve):
    engine.faults.instead = "text/event-stream", b"data: [DONE]\n\n"
    assert "broke before the reply was complete" in fails(serve(engine))
    engine.faults.instead = "text/event-stream", b""
    assert "broke before the reply was complete" in fails(serve(engine))


# --- it sends something else ---


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/html", b"<html>sign in</html>"),
        ("application/json", b'{"choices": [{"text": "Hello"}]}'),
        ("text/event-stream", b"<html>sign in</html>\n"),
        ("text/event-stream", b"data: {broken\n\n"),
        ("text/event-stream", b"data: \xff\xfe\n\n"),
        ("text/event-stream", b"data: [1, 2]\n\n"),
        ("text/event-stream", b"data: " + b"[" * 100_000 + b"\n\n"),
        ("text/event-stream", b"data: {}\n\n"),
        ("text/event-stream", b'data: {"choices": [7]}\n\n'),
        ("text/event-stream", b'data: {"choices": [{"index": 1, "token_ids": [5]}]}\n\n'),
        ("text/event-stream", b'data: {"choices": [{"index": -1, "token_ids": [5]}]}\n\n'),
        ("text/event-stream", b'data: {"choices": [{"index": 0, "token_ids": 5}]}\n\n'),
    ],
)
def test_garbage_is_one_sentence(engine, serve, kind, body):
    engine.faults.instead = kind, body
    assert "sent something that is not the answer of vllm" in fails(serve(engine))


def test_a_line_without_an_end_is_not_kept_in_memory(engine, serve):
    engine.faults.instead = "text/event-stream", b"data: " + b"x" * 5_000_000
    assert "the answer of vllm (a line without an end)" in fails(serve(engine))


@pytest.mark.parametrize("told", [b"<html>", b"[]", b'{"data": 7}', b'{"data": [7]}', b"\xff"])
def test_a_list_of_models_that_is_none_is_garbage(engine, serve, told):
    engine.faults.refusals = [("models", 200, {}, told)]
    assert "sent something that is not the answer of vllm" in fails(serve(engine))


def test_what_is_not_a_web_server_is_told(engine, serve):
    import threading

    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            with server.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        message = fails(serve(engine, address=f"http://127.0.0.1:{server.getsockname()[1]}"))
        thread.join()
    assert "does not answer as a web server does (SSH-2.0-OpenSSH_9.2)" in message


def test_an_error_in_the_stream_is_told_in_the_servers_own_words(engine, serve):
    body = {"error": {"message": "out of memory", "code": 500}}
    engine.faults.instead = "text/event-stream", b"data: " + json.dumps(body).encode() + b"\n\n"
    assert "failed (answer 500): out of memory" in fails(serve(engine))


@pytest.mark.parametrize("code", [True, -5, 10**9, "x", None])
def test_an_error_without_a_status_is_a_failure_of_the_server(engine, serve, code):
    body = {"error": {"message": "out of memory", "code": code}}
    engine.faults.instead = "text/event-stream", b"data: " + json.dumps(body).encode() + b"\n\n"
    assert "failed (answer 500): out of memory" in fails(serve(engine))


def test_a_field_for_errors_with_nothing_in_it_is_no_error(engine, serve):
    engine.faults.mangle = lambda event: {**event, "error": None}
    assert serve(engine).generate("Hello", options=GREEDY).is_complete


def test_the_type_of_a_stream_may_be_written_in_capitals(engine, serve):
    body = b'data: {"choices": [{"index": 0, "token_ids": [2], "finish_reason": "stop"}]}\r\n\r\n'
    engine.faults.instead = "Text/Event-Stream; charset=UTF-8", body
    assert serve(engine).generate("Hello", options=GREEDY).is_complete


def test_words_without_token_ids_tell_of_another_engine(engine, serve):
    def without_ids(event):
        del event["choices"][0]["token_ids"]
        return event

    engine.faults.mangle = without_ids
    assert "words without their token ids" in fails(serve(engine), WILD)


def test_a_whole_reply_in_words_alone_is_not_lost_without_a_word(engine, serve):
    """One event may be all of a short reply."""
    body = b'data: {"choices": [{"index": 0, "text": "A fox.", "finish_reason": "stop"}]}\n\n'
    engine.faults.instead = "text/event-stream", body
    assert "words without their token ids" in fails(serve(engine))


def test_a_server_without_grammars_is_told_in_one_sentence(engine, serve):
    engine.faults.ignores_grammar = True
    assert "does not keep to the grammar" in fails(serve(engine), WILD)
    assert engine.wait_until(lambda engine: not engine.running)


def test_a_reply_that_does_not_end_where_it_should_is_told(engine, serve):
    engine.faults.ignores_length = True
    options = GenerationOptions("image", 34, temperature=2.0, top_p=1.0)
    engine.faults.mangle = lambda event: {
        "choices": [{**event["choices"][0], "finish_reason": None}]
    }
    message = fails(serve(engine), options)
    assert "sent more than the 34 tokens" in message


# --- it serves another model ---


@pytest.mark.parametrize("field", ["prompt", "text"])
def test_other_names_of_token_ids_tell_of_another_model(engine, serve, field):
    engine.faults.detokenized = {field: "<img_00000><img_00400></img><img>"}
    message = fails(serve(engine))
    assert "serves another model than that of the vocabulary 'seed-mini'" in message
    assert engine.bodies == []


def test_spaces_between_names_mean_nothing(engine, serve):
    engine.faults.detokenized = {"prompt": "<img_00000> <img_00511> <img> </img>"}
    assert serve(engine).generate("Hello", options=GREEDY).is_complete


def test_token_ids_that_the_server_does_not_know_tell_of_another_model(engine, serve):
    engine.faults.refusals = [("detokenize", 400, {}, b"out of vocabulary")]
    assert "serves another model" in fails(serve(engine))


def test_token_ids_outside_the_vocabulary_tell_of_another_model(engine, serve):
    engine.faults.mangle = lambda event: {
        "choices": [{**event["choices"][0], "token_ids": [40000]}]
    }
    message = fails(serve(engine), WILD)
    assert "sent the token id 40000, and the vocabulary has 0..1537" in message


def test_a_server_that_tells_neither_models_nor_names_is_used_all_the_same(engine, serve):
    engine.faults.lacks = ("/v1/models", "/detokenize")
    assert serve(engine).generate("Hello", options=GREEDY).is_complete
