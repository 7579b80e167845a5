"""What goes wrong gets one clear error, and the server lives on."""

import pickle
import shutil

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.host


@pytest.fixture(autouse=True)
def server_lives_on(comfy_server, make_graphs):
    yield
    run = comfy_server.run(make_graphs()["ask"])
    assert run.status == "execution_success"
    assert comfy_server.is_alive()


@pytest.fixture
def tokenizer_folder(comfy_server):
    folder = comfy_server.base_dir / "models" / "seed_tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder)


def fails(server, graph, node, *words):
    """The prompt stops at `node`, with an error of ours that holds every word."""
    run = server.run(graph)
    assert run.status == "execution_error"
    assert run.error["node_id"] == node
    assert run.error["exception_type"].startswith("SEED.")
    message = run.error["exception_message"]
    assert not [word for word in words if word not in message], message
    return message


def refused(server, comfy, graph, *words):
    """The host does not even queue the prompt."""
    with pytest.raises(comfy.RefusedPromptError) as caught:
        server.queue(graph)
    message = caught.value.messages()
    assert not [word for word in words if word not in message], message


def test_a_missing_file_is_named_with_folder_and_link(comfy_server, comfy, graphs):
    graph = graphs["reconstruct"].set("tokenizer", tokenizer="gone.safetensors")
    refused(
        comfy_server,
        comfy,
        graph,
        "gone.safetensors",
        "models/seed_tokenizer",
        "huggingface.co/AILab-CVC",
    )


@pytest.mark.parametrize(
    ("node", "name", "link"),
    [
        ("llm", "model", "AILab-CVC/seed-llama-8b-sft"),
        ("decoder", "decoder", "sd2-community/stable-diffusion-2-1-unclip"),
    ],
)
def test_a_missing_folder_is_named_with_its_link(comfy_server, comfy, graphs, node, name, link):
    graph = graphs["text_to_image"].set("llm", model="gone").set(node, **{name: "gone"})
    refused(comfy_server, comfy, graph, "'gone'", link)


def test_a_path_out_of_the_model_folder_is_refused(comfy_server, comfy, graphs):
    graph = graphs["reconstruct"].set("tokenizer", tokenizer="../../../../etc/passwd")
    refused(comfy_server, comfy, graph, "is not in models/seed_tokenizer")


def test_a_truncated_checkpoint_says_download_again(comfy_server, comfy, graphs, tokenizer_folder):
    whole = comfy.PACK_ROOT / "seed_core/weights/seed-mini/tokenizer/model.safetensors"
    (tokenizer_folder / "half.safetensors").write_bytes(whole.read_bytes()[:100_000])
    graph = graphs["reconstruct"].set("tokenizer", tokenizer="half.safetensors")
    refused(comfy_server, comfy, graph, "half.safetensors", "download", "huggingface.co")


def test_a_file_of_noise_is_refused(comfy_server, comfy, graphs, tokenizer_folder):
    (tokenizer_folder / "noise.pt").write_bytes(bytes(range(256)) * 40)
    graph = graphs["reconstruct"].set("tokenizer", tokenizer="noise.pt")
    refused(comfy_server, comfy, graph, "noise.pt")


class Bomb:
    """A pickle that would make a file when it is loaded carelessly."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_a_pickle_with_code_in_it_is_refused_and_does_not_run(
    comfy_server, comfy, graphs, tokenizer_folder
):
    target = comfy_server.base_dir / "the_code_ran"
    (tokenizer_folder / "bomb.pt").write_bytes(pickle.dumps({"a": Bomb(target)}))
    graph = graphs["reconstruct"].set("tokenizer", tokenizer="bomb.pt")
    refused(comfy_server, comfy, graph, "bomb.pt")
    assert not target.exists()


def test_a_checkpoint_of_another_model_is_refused(comfy_server, comfy, graphs, tokenizer_folder):
    torch.save({"unet.weight": torch.zeros(3)}, tokenizer_folder / "other.pt")
    graph = graphs["reconstruct"].set("tokenizer", tokenizer="other.pt")
    refused(comfy_server, comfy, graph, "not a whole SEED tokenizer", "huggingface.co")


def test_a_new_file_is_offered_without_a_restart(comfy_server, comfy, tokenizer_folder):
    (tokenizer_folder / "sub").mkdir()
    (tokenizer_folder / "sub" / "new.safetensors").write_bytes(b"")
    (tokenizer_folder / "sub" / "eva_vit_g.pth").write_bytes(b"")
    node = comfy_server.get("/object_info/SEEDTokenizerLoader")["SEEDTokenizerLoader"]
    kind, extra = node["input"]["required"]["tokenizer"]
    options = extra["options"] if kind == "COMBO" else kind
    assert options == ["seed-mini (bundled)", "sub/new.safetensors"]


def test_an_empty_prompt_is_not_even_queued(comfy_server, comfy, graphs):
    graph = graphs["text_to_image"].set("generate", prompt="  \n ")
    refused(comfy_server, comfy, graph, "prompt is empty")


def test_marks_without_pictures_are_counted(comfy_server, graphs):
    graph = graphs["edit"].set("generate", prompt="<image> and <image> together")
    fails(comfy_server, graph, "generate", "2 <image> mark", "1 picture")


def test_a_prompt_longer_than_the_model_reads_is_refused(comfy_server, graphs):
    graph = graphs["text_to_image"].set("generate", prompt="fox " * 4096)
    fails(comfy_server, graph, "generate", "tokens long")


def test_fp8_is_refused_with_the_reason(comfy_server, graphs):
    graph = graphs["ask"].set("llm", precision="fp8")
    fails(comfy_server, graph, "llm", "fp8", "converted")


def test_too_many_negatives_are_counted(comfy_server, graphs):
    graph = graphs["reconstruct"]
    repeat = {"image": ["picture", 0], "amount": 3}
    graph["three"] = {"class_type": "RepeatImageBatch", "inputs": repeat}
    graph.add("encode")
    graph["negatives"] = {
        "class_type": "SEEDEncode",
        "inputs": {"tokenizer": ["tokenizer", 0], "image": ["three", 0], "fit": "stretch"},
    }
    graph.set("decode", negative_codes=["negatives", 0])
    fails(comfy_server, graph, "decode", "3 pictures")


@pytest.mark.parametrize(
    ("name", "node", "value", "words"),
    [
        ("reconstruct", "decode", {"steps": 0}, "smaller than min"),
        ("ask", "generate", {"top_p": 1.5}, "bigger than max"),
        ("reconstruct", "encode", {"fit": "zoom"}, "not in list"),
        ("text_to_image", "generate", {"prompt": " "}, "the prompt is empty"),
        ("reconstruct", "decode", {"width": 100}, "multiple of 8 pixels up to 4096; got 100"),
    ],
)
def test_bad_values_are_told_by_the_host(comfy_server, graphs, name, node, value, words):
    """It runs whatever does not need that node."""
    prompt = {"prompt": graphs[name].set(node, **value), "client_id": comfy_server.client_id}
    _, reply = comfy_server.post("/prompt", prompt)
    errors = reply["node_errors"][node]["errors"]
    assert words in " ".join(f"{each['message']} {each['details']}" for each in errors)
    if "prompt_id" in reply:
        assert node not in comfy_server.wait(reply["prompt_id"]).executed


def test_codes_of_another_family_are_refused_by_both_names(
    comfy_server, comfy, graphs, tokenizer_folder
):
    """The same weights under another name: only the family differs."""
    bundled = comfy.PACK_ROOT / "seed_core/weights/seed-mini/tokenizer"
    shutil.copytree(bundled, tokenizer_folder / "other")
    config = tokenizer_folder / "other" / "config.json"
    renamed = config.read_text(encoding="utf-8").replace('"seed-mini"', '"seed-2"')
    config.write_text(renamed, encoding="utf-8")
    graph = graphs["reconstruct"]
    inputs = {"tokenizer": "other/model.safetensors", "precision": "auto"}
    graph["other"] = {"class_type": "SEEDTokenizerLoader", "inputs": inputs}
    graph.set("decode", tokenizer=["other", 0])
    fails(comfy_server, graph, "decode", "seed-2", "seed-mini", "same family")


@pytest.mark.parametrize(
    ("mode", "size"),
    [("RGBA", (40, 30)), ("L", (33, 20)), ("LA", (20, 20)), ("P", (64, 8)), ("RGB", (1, 1))],
)
def test_odd_pictures_work(comfy_server, graphs, mode, size):
    encoded(comfy_server, graphs, Image.new("RGB", size, "orange").convert(mode))


def test_an_8k_picture_works(comfy_server, graphs):
    encoded(comfy_server, graphs, Image.new("RGB", (7680, 4320), "teal"))


def encoded(server, graphs, picture):
    """Encode a picture that comes through the host's own Load Image, in every fit."""
    name = f"{picture.mode}_{picture.width}x{picture.height}.png"
    picture.save(server.base_dir / "input" / name, compress_level=1)
    graph = graphs["reconstruct"].reads(name)
    for extra in ("decoder", "decode", "show"):
        del graph[extra]
    for fit in ("crop", "pad"):
        inputs = {"tokenizer": ["tokenizer", 0], "image": ["picture", 0], "fit": fit}
        graph[fit] = {"class_type": "SEEDEncode", "inputs": inputs}
        graph[f"{fit} codes"] = {"class_type": "SEEDPreviewCodes", "inputs": {"codes": [fit, 0]}}
    run = server.run(graph)
    assert run.status == "execution_success", run.error["exception_message"]
    assert {"codes", "crop codes", "pad codes"} <= run.outputs.keys()
