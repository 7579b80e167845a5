"""Get SEED Model: it shows without a connection, fetches when told to, and then a loader has it."""

import math
import shutil
from pathlib import Path

import pytest

NODE = "SEEDGetModel"
MODEL = "seed-llama-8b-sft"
FILES = ("config.json", "generation_config.json", "model.safetensors")
WORDS = ("tokenizer.model", "added_tokens.json")
FP8 = f"{MODEL}-fp8.safetensors"


class StopPressed(BaseException):
    """Like the host's interruption: not an Exception."""


@pytest.fixture
def folder(pack):
    """The host's folder for language models, empty before and after."""
    place = Path(pack.host.model_folders("seed_llm")[0])
    shutil.rmtree(place, ignore_errors=True)
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def downloads(pack):
    return pack.seed_core.fetching.downloads


@pytest.fixture
def published(hub, downloads, mini_folder, monkeypatch):
    """The hub with the bundled language model on it, under the name of a published one."""
    hub.files = {name: (mini_folder / "llm" / name).read_bytes() for name in (*FILES, *WORDS)}
    sources = (
        downloads.HubSource("owner/model", FILES, 27.2, "llama2", hub.commit),
        downloads.HubSource("owner/model", WORDS, 0.0007, "apache-2.0", None, "a remark"),
    )
    sizes = {"bf16": 13.6, "fp16": 13.6, "fp8": 7.1}
    model = downloads.Download(f"seed_llm/{MODEL}", sources, sizes)
    monkeypatch.setitem(downloads.DOWNLOADS, MODEL, model)
    return hub


@pytest.fixture
def said(pack, monkeypatch):
    """All that was written on a node while it ran."""
    words = []
    monkeypatch.setattr(pack.host.progress, "show_text", words.append)
    return words


def words_of(output):
    return "\n".join(output.ui["text"])


def options(pack):
    return pack.nodes_by_id["SEEDLLaMALoader"].GET_SCHEMA().inputs[0].options


# --- show ---


def test_it_offers_what_fetch_knows_and_begins_with_show(pack, downloads):
    model, precision, action = pack.nodes_by_id[NODE].GET_SCHEMA().inputs
    assert model.options == list(downloads.DOWNLOADS)
    assert precision.options == ["as published", "bf16", "fp16", "fp8"]
    assert (precision.default, action.default) == ("as published", "show")
    assert action.options == ["show", "fetch"]


def test_show_tells_files_sizes_licences_commits_place_and_room(published, folder, run_node):
    output = run_node(NODE, model=MODEL, precision="fp8")
    for told in (
        *(FILES[0], "about 27.2 GB", "licence: llama2", published.commit),
        *(*WORDS, "about 0.7 MB", "licence: apache-2.0", "a remark", "the newest commit"),
        *("about 7.1 GB", str(folder / FP8), "Free on that disk: "),
    ):
        assert told in words_of(output)
    assert output.args == (FP8,)
    assert published.asked == []
    assert not folder.exists()


@pytest.mark.parametrize("precision", ["as published", "fp16"])
def test_show_asks_no_server_for_a_size_that_is_known(hub, pack, downloads, run_node, precision):
    for model, download in downloads.DOWNLOADS.items():
        if download.published_gigabytes is not None:
            assert "licence" in words_of(run_node(NODE, model=model, precision=precision))
    assert hub.asked == []


@pytest.fixture
def of_unknown_size(published, downloads, monkeypatch):
    known = downloads.DOWNLOADS[MODEL]
    sources = (downloads.HubSource("owner/model", FILES, None, "llama2", None), known.sources[1])
    monkeypatch.setitem(downloads.DOWNLOADS, MODEL, known._replace(sources=sources))
    return published


def test_show_asks_for_a_size_that_is_not_known_and_says_so(of_unknown_size, run_node, folder):
    said = words_of(run_node(NODE, model=MODEL))
    assert "was asked" in said
    total = sum(len(of_unknown_size.files[name]) for name in FILES)
    assert f"about {total / 1e6:.1f} MB" in said
    assert "/api/models/owner/model" in {path for path, _ in of_unknown_size.asked}
    assert not [name for name, *_ in of_unknown_size.served if name]  # no file
    assert not folder.exists()


def test_show_says_what_it_knows_without_a_connection_too(of_unknown_size, run_node, folder):
    of_unknown_size.refusal = (404, {})
    said = words_of(run_node(NODE, model=MODEL))
    assert "404" in said
    assert "licence: llama2" in said


# --- fetch ---


def test_what_it_fetches_the_loader_has_and_loads(published, pack, folder, run, run_node, bar):
    output = run_node(NODE, model=MODEL, action="fetch")
    assert output.args == (MODEL,)
    assert output.ui["new_model"] == [MODEL]
    assert f"{MODEL} is there" in words_of(output)
    assert MODEL in options(pack)
    assert pack.nodes_by_id["SEEDLLaMALoader"].validate_inputs(model=MODEL) is True
    assert run("SEEDLLaMALoader", model=MODEL)[0].core.config.vocab_size > 0
    total = sum(map(len, published.files.values()))
    assert bar[-1] == (total, total)
    assert bar == sorted(bar)


def test_a_precision_is_made_while_it_comes(published, pack, folder, run, run_node, bar):
    output = run_node(NODE, model=MODEL, precision="fp8", action="fetch")
    assert output.args == (FP8,)
    assert FP8 in options(pack)
    assert [path.name for path in folder.iterdir()] == [FP8]
    assert pack.nodes_by_id["SEEDLLaMALoader"].validate_inputs(model=FP8) is True
    total = sum(map(len, published.files.values()))
    assert bar[-1] == (total, total)


def test_what_is_there_is_not_asked_for_again(published, folder, run_node):
    run_node(NODE, model=MODEL, precision="fp8", action="fetch")
    published.asked.clear()
    for action in ("show", "fetch"):
        output = run_node(NODE, model=MODEL, precision="fp8", action=action)
        assert f"{FP8} is there" in words_of(output)
        assert output.ui["new_model"] == []
    assert published.asked == []


def test_what_lies_in_another_of_the_hosts_folders_is_there(
    published, pack, folder, mini_folder, tmp_path, run_node, monkeypatch
):
    """As extra_model_paths.yaml names them."""
    folders = [str(folder), str(tmp_path)]
    monkeypatch.setattr(pack.host, "model_folders", lambda name: folders)
    shutil.copytree(mini_folder / "llm", tmp_path / MODEL)
    assert str(tmp_path / MODEL) in words_of(run_node(NODE, model=MODEL))
    assert published.asked == []
    assert run_node(NODE, model=MODEL, action="fetch").ui["new_model"] == []
    assert not folder.exists()


def test_what_was_put_there_by_hand_is_checked_by_its_hashes_once(
    published, pack, folder, mini_folder, run_node
):
    shutil.copytree(mini_folder / "llm", folder / MODEL)
    run_node(NODE, model=MODEL, action="fetch")
    published.asked.clear()
    run_node(NODE, model=MODEL, action="fetch")
    assert published.asked == []
    weights = folder / MODEL / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(pack.seed_core.errors.DownloadError, match="another file"):
        run_node(NODE, model=MODEL, action="fetch")


def test_a_folder_that_cannot_be_made_is_one_sentence(
    published, pack, tmp_path, run_node, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(pack.host, "model_folders", lambda name: [str(tmp_path / "file" / "llm")])
    for precision in ("as published", "fp8"):
        with pytest.raises(pack.seed_core.errors.DownloadError, match="cannot be used"):
            run_node(NODE, model=MODEL, precision=precision, action="fetch")


def test_an_action_that_is_none_is_refused(published, pack, run_node):
    with pytest.raises(pack.seed_core.errors.OptionError, match="there is no action 'get'"):
        run_node(NODE, model=MODEL, action="get")


def test_it_goes_to_the_first_of_the_hosts_folders(
    published, pack, folder, tmp_path, run_node, monkeypatch
):
    first = tmp_path / "elsewhere"
    monkeypatch.setattr(pack.host, "model_folders", lambda name: [str(first), str(folder)])
    run_node(NODE, model=MODEL, precision="fp8", action="fetch")
    assert [path.name for path in first.iterdir()] == [FP8]
    assert not folder.exists()


@pytest.mark.parametrize("precision", ["as published", "fp8"])
def test_stop_ends_it_and_the_next_run_goes_on(
    published, pack, management, folder, run_node, monkeypatch, bar, precision
):
    """No byte comes twice."""

    def check():
        if bar[-1][0] > bar[-1][1] // 3:
            raise StopPressed

    with monkeypatch.context() as patch:
        patch.setattr(management, "throw_exception_if_processing_interrupted", check)
        with pytest.raises(StopPressed):
            run_node(NODE, model=MODEL, precision=precision, action="fetch")
    name = FP8 if precision == "fp8" else MODEL
    assert name not in options(pack)
    bar.clear()
    output = run_node(NODE, model=MODEL, precision=precision, action="fetch")
    assert name in options(pack)
    assert output.ui["new_model"] == [name]
    total = sum(map(len, published.files.values()))
    assert next(here for here, all_of_it in bar if all_of_it == total) > 0  # not from nothing
    assert bar[-1] == (total, total)


def test_what_goes_wrong_is_told_in_one_sentence_and_nothing_is_there(
    published, pack, folder, run_node
):
    published.refusal = (403, {})
    with pytest.raises(pack.seed_core.errors.DownloadError, match="answer 403"):
        run_node(NODE, model=MODEL, action="fetch")
    assert options(pack) == ["seed-mini (bundled)"]


def test_how_long_it_takes_is_told_from_the_last_download(published, folder, run_node, said):
    run_node(NODE, model=MODEL, action="fetch")
    shutil.rmtree(folder)
    assert "of the last download" in words_of(run_node(NODE, model=MODEL))


# --- what it takes ---


@pytest.mark.parametrize(
    ("model", "precision", "needed"),
    [
        ("https://example.org/model", "fp8", "there is no 'https://example.org/model'"),
        ("../seed-llama-8b-sft", "fp8", "there is no"),
        (MODEL, "int4", "int4"),
        ("seed-tokenizer-2", "fp8", "fp8 is for language models"),
    ],
)
def test_only_what_the_table_has_is_fetched(pack, hub, run_node, model, precision, needed):
    """Whatever a workflow names."""
    said = pack.nodes_by_id[NODE].validate_inputs(model=model, precision=precision)
    assert needed in said
    with pytest.raises(pack.seed_core.errors.OptionError, match=r"^" + said[:20]):
        run_node(NODE, model=model, precision=precision, action="fetch")
    assert hub.asked == []


def test_what_comes_by_wire_is_checked_when_it_has(pack):
    assert pack.nodes_by_id[NODE].validate_inputs(model=None, precision="fp8") is True


def test_it_runs_each_time_until_the_model_is_there_and_again_when_it_is_gone(
    published, pack, folder, run_node
):
    def fingerprint():
        return pack.nodes_by_id[NODE].fingerprint_inputs(MODEL, "fp8", "fetch")

    assert math.isnan(fingerprint())
    run_node(NODE, model=MODEL, precision="fp8", action="fetch")
    there = fingerprint()
    assert there == fingerprint()
    (folder / FP8).unlink()
    assert math.isnan(fingerprint())
