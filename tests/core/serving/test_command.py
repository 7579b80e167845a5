"""The command chat with --server: the language model elsewhere, everything else here."""

import pytest

from seed_core.cli.program import main


@pytest.fixture
def server_file(engine, write_file):
    return str(write_file(address=f"http://127.0.0.1:{engine.port}"))


def test_words_and_pictures_come_from_the_server(engine, server_file, tmp_path, capsys):
    output = tmp_path / "reply.json"
    options = ["--temperature", "0", "--server", server_file]
    assert main(["chat", "a panda on blue", "-o", str(output), *options]) == 0
    assert "<image>" in capsys.readouterr().out
    there = output.read_bytes()
    assert [body["temperature"] for body in engine.bodies] == [0]
    output.unlink()
    assert main(["chat", "a panda on blue", "-o", str(output), "--temperature", "0"]) == 0
    assert output.read_bytes() == there
    assert len(engine.bodies) == 1


def test_what_the_server_is_asked_has_the_options_of_the_command(engine, server_file):
    options = ["--seed", "7", "--top-k", "3", "--top-p", "0.25", "--max-new-tokens", "9"]
    assert main(["chat", "Hello", "--reply", "text", *options, "--server", server_file]) == 0
    (body,) = engine.bodies
    asked = {name: body[name] for name in ("seed", "top_k", "top_p", "max_tokens")}
    assert asked == {"seed": 7, "top_k": 3, "top_p": 0.25, "max_tokens": 9}


def test_a_failure_is_one_sentence_and_exit_status_1(engine, server_file, capsys):
    engine.faults.refusals = [("completions", 503, {}, b"")]
    assert main(["chat", "Hello", "--server", server_file]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: the server http://127.0.0.1")
    assert said.count("\n") == 1


def test_an_adapter_on_a_server_is_refused_with_what_to_do(engine, server_file, capsys):
    assert main(["chat", "Hello", "--server", server_file, "--lora", "seed-mini night"]) == 1
    assert "write that as model into the server file" in capsys.readouterr().err
    assert engine.paths == []


def test_fp8_of_a_model_on_a_server_is_refused_with_what_to_do(engine, server_file, capsys):
    assert main(["chat", "Hello", "--server", server_file, "--precision", "fp8"]) == 1
    assert "an engine is told as it starts" in capsys.readouterr().err
    assert engine.paths == []


def test_what_is_wrong_with_a_server_file_is_told_before_pictures_are_read(write_file, capsys):
    for fields, said in ({"model": ""}, "model must be"), ({"key_file": "gone.key"}, "gone.key"):
        path = str(write_file(**fields))
        assert main(["chat", "What is this?", "--image", "gone.png", "--server", path]) == 1
        assert said in capsys.readouterr().err


def test_codes_of_another_family_than_the_tokenizers_are_refused_before_the_server_is_asked(
    engine, write_file, tmp_path, capsys, seed_1_folder
):
    path = str(write_file(address=f"http://127.0.0.1:{engine.port}"))
    arguments = ["chat", "a fox", "-o", str(tmp_path / "fox.png"), "--server", path]
    assert main([*arguments, "--tokenizer", str(seed_1_folder)]) == 1
    assert "studio.server.json draws seed-mini codes" in capsys.readouterr().err
    assert engine.paths == []


def test_a_model_here_and_one_on_a_server_exclude_each_other(server_file, capsys):
    with pytest.raises(SystemExit):
        main(["chat", "Hello", "--server", server_file, "--model", "seed-mini"])
    assert "not allowed with" in capsys.readouterr().err


def test_what_is_wrong_with_a_server_file_is_one_sentence(write_file, capsys):
    assert main(["chat", "Hello", "--server", str(write_file(model=None))]) == 1
    assert "lacks the field model" in capsys.readouterr().err
