"""The server file: every field is checked, and keys and addresses come from nowhere else."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from seed_core.errors import CheckpointError, GenerationError
from seed_core.models.convert import convert_model, plan_conversion
from seed_core.models.names import bundled
from seed_core.serving.runtime import load_served_llm
from seed_core.serving.server_file import read_server_file

ROOT = Path(__file__).parents[3]


def test_a_file_with_what_is_needed_gets_the_defaults(write_file):
    server = read_server_file(write_file(address="http://studio:8000"))
    assert (server.address.hostname, server.port, server.address.path) == ("studio", 8000, "")
    assert (server.model, server.vocabulary, server.dialect.name) == ("seed-mini",) * 2 + ("vllm",)
    limits = server.connect_seconds, server.first_token_seconds, server.gap_seconds
    assert limits == (5.0, 120.0, 60.0)
    assert server.key() is None


@pytest.mark.parametrize(
    ("address", "scheme", "port", "path"),
    [
        ("http://studio", "http", 80, ""),
        ("https://studio/", "https", 443, ""),
        ("https://studio/v1", "https", 443, ""),
        ("https://studio:8443/llm/v1/", "https", 8443, "/llm"),
        ("http://[::1]:8000", "http", 8000, ""),
        ("HTTP://studio.local.:8000", "http", 8000, ""),
    ],
)
def test_an_address_is_understood_with_and_without_port_and_path(
    write_file, address, scheme, port, path
):
    server = read_server_file(write_file(address=address))
    assert (server.address.scheme, server.port, server.address.path) == (scheme, port, path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"address": None}, "lacks the field address"),
        ({"model": None}, "lacks the field model"),
        ({"vocabulary": None}, "lacks the field vocabulary"),
        ({"address": "studio:8000"}, "address must be"),
        ({"address": "ftp://studio"}, "address must be"),
        ({"address": "http://"}, "address must be"),
        ({"address": "http://studio:port"}, "address must be"),
        ({"address": "http://studio:99999"}, "address must be"),
        ({"address": "http://studio:0"}, "address must be"),
        ({"address": "http://studio..local:8000"}, "address must be"),
        ({"address": f"http://{'a' * 64}.local"}, "address must be"),
        ({"address": "http://studio/?key=1"}, "address must be"),
        ({"address": "http://stu dio/"}, "address must be"),
        ({"address": "http://studio/\r\nX: y"}, "address must be"),
        ({"address": 7}, "address must be"),
        ({"address": "http://me:secret@studio"}, "name or a password"),
        ({"model": ""}, "model must be"),
        ({"model": ["seed"]}, "model must be"),
        ({"vocabulary": 3}, "vocabulary must be"),
        ({"dialect": "llama.cpp"}, "dialect must be one of vllm, sglang; got 'llama.cpp'"),
        ({"dialect": False}, "dialect must be"),
        ({"key": "sesame"}, "a key does not belong in this file"),
        ({"api_key": "sesame"}, "a key does not belong in this file"),
        ({"key_variable": "A", "key_file": "b"}, "leave one of them out"),
        ({"certificate": "studio.pem"}, "let the address begin with https"),
        ({"key_variable": 1}, "key_variable must be"),
        ({"timeout": 3}, "'timeout', and only these are known: address, model"),
        ({"gap_seconds": 0}, "gap_seconds must be a number of seconds above 0"),
        ({"gap_seconds": "60"}, "gap_seconds must be"),
        ({"connect_seconds": True}, "connect_seconds must be"),
        ({"first_token_seconds": float("nan")}, "first_token_seconds must be"),
        ({"first_token_seconds": float("inf")}, "first_token_seconds must be"),
        ({"first_token_seconds": 10**400}, "first_token_seconds must be"),
    ],
)
def test_each_wrong_field_is_one_clear_error(write_file, fields, said):
    path = write_file(**fields)
    with pytest.raises(CheckpointError) as caught:
        read_server_file(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "secret" not in str(caught.value).replace("secret@", "")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"[]", "JSON object"),
        (b'{"address": 1, "address": 2}', "twice"),
        (b"\xff\x00garbage", "."),
        (b"PK\x03\x04", "."),
    ],
)
def test_a_file_that_is_not_json_is_one_clear_error(tmp_path, content, said):
    path = tmp_path / "x.server.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_server_file(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no server file .*gone\.server\.json"):
        read_server_file(tmp_path / "gone.server.json")


# --- keys ---


def test_a_key_is_read_anew_each_time_from_its_variable(write_file, monkeypatch):
    server = read_server_file(write_file(key_variable="STUDIO_KEY"))
    for key in ("one", " two\n"):
        monkeypatch.setenv("STUDIO_KEY", key)
        assert server.key() == key.strip()


@pytest.mark.parametrize(
    "content",  # the last two are of Windows: an editor's, and what > writes in PowerShell
    [b"sesame\n", b"\xef\xbb\xbfsesame\r\n", "\ufeffsesame\r\n".encode("utf-16-le")],
)
def test_a_key_is_read_from_a_file_beside_the_server_file(write_file, tmp_path, content):
    server = read_server_file(write_file(key_file="studio.key"))
    (tmp_path / "studio.key").write_bytes(content)
    assert server.key() == "sesame"


def test_a_key_that_is_not_there_is_asked_for_by_the_name_of_its_place(
    write_file, tmp_path, monkeypatch
):
    monkeypatch.delenv("STUDIO_KEY", raising=False)
    with pytest.raises(GenerationError, match="environment variable STUDIO_KEY, and there is none"):
        read_server_file(write_file(key_variable="STUDIO_KEY")).key()
    server = read_server_file(write_file(key_file="studio.key"))
    with pytest.raises(GenerationError, match=r"studio\.key, which cannot be read"):
        server.key()
    (tmp_path / "studio.key").write_bytes(b"\xff\xff")
    with pytest.raises(GenerationError, match=r"studio\.key, which cannot be read"):
        server.key()
    (tmp_path / "studio.key").write_text(" \n", encoding="utf-8")
    with pytest.raises(GenerationError, match="there is none"):
        server.key()


@pytest.mark.parametrize("key", ["two words", "line\r\nX-Evil: 1", "schlüssel"])
def test_what_cannot_be_a_key_is_refused_without_being_shown(write_file, monkeypatch, key):
    monkeypatch.setenv("STUDIO_KEY", key)
    with pytest.raises(GenerationError, match="one word") as caught:
        read_server_file(write_file(key_variable="STUDIO_KEY")).key()
    assert key not in str(caught.value)


# --- the vocabulary ---


def small_folder(place):
    """A model's folder without weights."""
    place.mkdir()
    for name in ("config.json", "tokenizer.model", "added_tokens.json"):
        (place / name).write_bytes((bundled("llm") / name).read_bytes())
    return place


def test_a_vocabulary_beside_the_file_comes_first_and_needs_no_weights(write_file, tmp_path):
    small_folder(tmp_path / "mine")
    llm = load_served_llm(write_file(vocabulary="mine"), lambda name: tmp_path / "other")
    assert (llm.family, llm.codebook_size, llm.context) == ("seed-mini", 512, 512)


def test_a_vocabulary_that_is_not_beside_the_file_is_looked_up(write_file, tmp_path):
    (tmp_path / "models").mkdir()
    place = small_folder(tmp_path / "models" / "mine")
    found = {"seed-8b": place}
    assert load_served_llm(write_file(vocabulary="seed-8b"), found.get).family == "seed-mini"
    with pytest.raises(CheckpointError, match=r"vocabulary 'seed-14b' is not there"):
        load_served_llm(write_file(vocabulary="seed-14b"), found.get)


def test_a_converted_model_is_a_vocabulary_too(write_file, tmp_path):
    output = tmp_path / "mini.safetensors"
    convert_model(plan_conversion(bundled("llm"), torch.float16), output)
    llm = load_served_llm(write_file(vocabulary=output.name))
    assert (llm.codebook_size, llm.context) == (512, 512)


def test_a_folder_that_lacks_a_file_of_the_vocabulary_names_it(write_file, tmp_path):
    (small_folder(tmp_path / "mine") / "added_tokens.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks added_tokens\.json"):
        load_served_llm(write_file(vocabulary="mine"))


def test_every_field_is_read(tmp_path):
    """Written by an editor of Windows, with every field."""
    fields = {
        "address": "https://studio.example/llm",
        "model": "seed-llama-8b",
        "vocabulary": "seed-mini",
        "dialect": "sglang",
        "key_file": "studio.key",
        "certificate": "studio.pem",
        "connect_seconds": 2,
        "first_token_seconds": 300,
        "gap_seconds": 30.5,
    }
    path = tmp_path / "studio.server.json"
    path.write_text(json.dumps(fields, indent=2), encoding="utf-8-sig")
    server = read_server_file(path)
    assert server.certificate == tmp_path / "studio.pem"
    assert (server.connect_seconds, server.gap_seconds) == (2.0, 30.5)
    assert server.dialect.name == "sglang"


def test_the_files_in_the_docs_are_right(tmp_path):
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    short, whole = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "studio.server.json"
    for example in (short, whole):
        path.write_text(example, encoding="utf-8")
        server = read_server_file(path)
    fields = {field.name for field in dataclasses.fields(server)} - {"path"}
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == fields
    assert set(json.loads(whole)) == fields - {"key_file"}  # which key_variable stands for
