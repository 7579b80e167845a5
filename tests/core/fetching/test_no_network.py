"""Only fetch and Get SEED Model open a connection, and a language model on a server.

Shown in processes where sockets are forbidden. (training data artwork, which does too, is not of
seed_core's command line.)

The guard is an audit hook, which sees every use of Python's sockets whatever name it goes by, and
it ends the process, so that no library can take the refusal for a server that is down. A socket
that is made and bound to this machine does not connect to anything: urllib3, which diffusers imports, looks that
way whether there is IPv6.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from seed_core.fetching.downloads import DOWNLOADS
from seed_core.models import names

FORBIDDEN = 97  # the status of a process that tried
HUB = "hub.invalid"  # a name that no server ever has
GUARD = f"""
import os, sys, traceback

def refuse(event, arguments):
    looks_for_ipv6 = event == "socket.bind" and arguments[1] == ("::1", 0)
    if event.startswith("socket.") and event != "socket.__new__" and not looks_for_ipv6:
        sys.stderr.write(f"{{event}} {{arguments}}\\n")
        traceback.print_stack()
        sys.stderr.flush()
        os._exit({FORBIDDEN})

sys.addaudithook(refuse)
"""
PACK_ROOT = Path(__file__).resolve().parents[3]
FOX = str(names.sample_pictures()["fox_on_yellow"])
BUNDLED_LLM = str(names.bundled("llm"))


def run(program, folder, **environment):
    return subprocess.run(
        [sys.executable, "-c", GUARD + program],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def asks_the_hub(program, folder):
    """Tell whether a program ends as it asks where the Hub is."""
    settings = {"HF_ENDPOINT": f"http://{HUB}", "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
    found = run(program, folder, **settings)
    asked = re.search(rf"^socket\.getaddrinfo \(b?'{re.escape(HUB)}'", found.stderr, re.M)
    return found.returncode == FORBIDDEN and asked is not None


def command(*arguments):
    return f"from seed_core.__main__ import main; sys.exit(main({list(arguments)}))"


LOAD_THE_PACK = f"""
import importlib.util
from pathlib import Path

def load(name, *place):
    spec = importlib.util.spec_from_file_location(name, Path({str(PACK_ROOT)!r}, *place))
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def done(coroutine):  # without an event loop, which makes sockets
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value

load("host_double", "tests", "host_double.py").install(Path("models").absolute())
extension = done(load("pack", "__init__.py").comfy_entrypoint())
done(extension.on_load())
nodes = {{each.GET_SCHEMA().node_id: each for each in done(extension.get_node_list())}}
"""


def node(*runs):
    """Load the pack as the host does, on the double, and run nodes: an id and its inputs each."""
    return f"""{LOAD_THE_PACK}
for node_id, inputs in {list(runs)}:
    assert nodes[node_id].validate_inputs(inputs["model"], inputs["precision"]) is True
    nodes[node_id].fingerprint_inputs(**inputs)
    print(nodes[node_id].execute(**inputs).ui["text"])
"""


def get_model(model, precision, action):
    return "SEEDGetModel", {"model": model, "precision": precision, "action": action}


def on_a_server(folder, more):
    """Write a server file, and choose it in the loader; then do more with the wire."""
    place = folder / "models" / "seed_llm" / "studio.server.json"
    place.parent.mkdir(parents=True)
    fields = {"address": f"http://{HUB}", "model": "mini", "vocabulary": "seed-mini"}
    place.write_text(json.dumps(fields), encoding="utf-8")
    return f"""{LOAD_THE_PACK}
loader, generate = nodes["SEEDServerLoader"], nodes["SEEDGenerate"]
(name,) = loader.GET_SCHEMA().inputs[0].options
assert loader.validate_inputs(name) is True
loader.fingerprint_inputs(name)
(llm,) = loader.execute(name).args
print("chosen", name, flush=True)
{more}
"""


# --- the guard itself ---


@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.socket().connect(('127.0.0.1', 9))",
        "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', 9))",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.getaddrinfo('localhost', 80)",
        "import huggingface_hub; huggingface_hub.HfApi().model_info('owner/model')",
        "import transformers; transformers.CLIPTokenizer.from_pretrained('owner/model')",
        "import diffusers; diffusers.AutoencoderKL.from_pretrained('owner/model')",
    ],
)
def test_the_guard_ends_whoever_goes_online(program, tmp_path):
    """Empty caches: a model that is on the disk needs no connection."""
    found = run(program, tmp_path, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="0")
    assert found.returncode == FORBIDDEN, found.stderr
    assert re.search(r"^socket\.(connect|sendto|getaddrinfo)", found.stderr, re.M)


def test_fetch_is_what_goes_online_and_its_list_is_not(tmp_path):
    assert asks_the_hub(command("fetch", "seed-tokenizer-2", "--models", str(tmp_path)), tmp_path)
    assert run(command("fetch"), tmp_path).returncode == 0


@pytest.mark.parametrize("precision", ["as published", "fp16"])
def test_the_node_goes_online_to_fetch(precision, tmp_path):
    assert asks_the_hub(node(get_model("seed-tokenizer-2", precision, "fetch")), tmp_path)


@pytest.mark.parametrize("name", [n for n, d in DOWNLOADS.items() if not d.published_gigabytes])
def test_the_node_asks_the_page_of_a_model_whose_size_the_table_does_not_have(name, tmp_path):
    assert asks_the_hub(node(get_model(name, "as published", "show")), tmp_path)


GENERATE = "generate.execute(llm, 'a fox', 'auto', 1, 40, 0.0, 1.0, 0, 1)"


def test_a_model_on_a_server_asks_the_server_of_its_file(tmp_path):
    assert asks_the_hub(on_a_server(tmp_path, GENERATE), tmp_path)
    file = tmp_path / "models" / "seed_llm" / "studio.server.json"
    assert asks_the_hub(command("chat", "a fox", "--server", str(file)), tmp_path)


# --- what must not ---


def test_a_server_is_chosen_and_its_file_checked_without_sockets(tmp_path):
    """What is wrong with a prompt is told without any, too."""
    empty = GENERATE.replace("a fox", "")
    told = f"""
try:
    {empty}
except Exception as error:
    print(type(error).__name__)"""
    found = run(on_a_server(tmp_path, told), tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["chosen", "studio.server.json", "PromptError"]


def test_the_node_shows_without_sockets_what_it_would_fetch(tmp_path):
    known = [name for name, download in DOWNLOADS.items() if download.published_gigabytes]
    shown = [get_model(n, p, "show") for n in known for p in ("as published", "bf16")]
    found = run(node(*shown), tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("is not there yet") == len(shown)
    assert not list(tmp_path.rglob("*"))


def test_every_other_command_works_without_sockets(tmp_path):
    greedy = ["--temperature", "0", "--max-new-tokens", "40"]
    commands = [
        ["encode", FOX],
        ["decode", "codes.json", "--steps", "1", "--negative", "codes.json"],
        ["chat", "What is this?", "--picture", FOX, *greedy],
        ["chat", "a panda on blue", "--reply", "image", *greedy],
        ["convert", BUNDLED_LLM, "-o", "fp8.safetensors", "--precision", "fp8"],
        ["chat", "What is this?", "--codes", "codes.json", "--model", "fp8.safetensors", *greedy],
    ]
    program = "from seed_core.__main__ import main\n"
    program += f"sys.exit(max(main(each) for each in {commands}))"
    found = run(program, tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("It is a fox.") == 2
    assert {"codes.json", "decoded.png", "reply.json", "fp8.safetensors"} <= {
        p.name for p in tmp_path.iterdir()
    }


WORDS = {"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}


@pytest.mark.parametrize("part", ["tokenizer", "llm", "decoder"])
def test_no_loader_looks_elsewhere_for_a_file_that_is_missing(part, tmp_path, mini_folder):
    """Each file of the model is taken away in turn, beside a text encoder for the decoder."""
    program = f"""
import shutil
from pathlib import Path
import seed_core
source, copy = Path({str(mini_folder / part)!r}), Path("copy")
shutil.copytree(source, copy)
if {part == "decoder"}:
    from transformers import CLIPTextConfig, CLIPTextModel
    sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4)
    sizes["max_position_embeddings"] = 12
    CLIPTextModel(CLIPTextConfig(vocab_size=4, **sizes)).save_pretrained(copy / "text_encoder")
    (copy / "tokenizer").mkdir()
    (copy / "tokenizer" / "vocab.json").write_text({json.dumps(WORDS)!r})
    (copy / "tokenizer" / "merges.txt").write_text("#version: 0.2\\n")
    (copy / "tokenizer" / "tokenizer_config.json").write_text('{{"model_max_length": 12}}')
load = seed_core.load_{part}
load(copy)
refused = []
for file in sorted(path for path in copy.rglob("*") if path.is_file()):
    aside = file.rename(Path("aside"))
    try:
        load(copy)
    except seed_core.SeedError:
        refused.append(file.name)
    aside.rename(file)
print(sorted(set(refused)))
"""
    found = run(program, tmp_path, HF_HOME=str(tmp_path / "hub"))
    assert found.returncode == 0, found.stderr
    weights = {"llm": "model.safetensors", "tokenizer": "model.safetensors"}
    assert weights.get(part, "diffusion_pytorch_model.safetensors") in found.stdout
    assert "config.json" in found.stdout
