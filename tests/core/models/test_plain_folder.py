"""A language model as a folder that others read: transformers here, vLLM in the tests of serving."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import seed_core
from seed_core import GenerationOptions, OptionError
from seed_core.cli.program import main
from seed_core.compute import fp8
from seed_core.models.convert import plan_conversion
from seed_core.models.lora import SEED_MINI_NIGHT
from seed_core.models.names import bundled
from seed_core.models.plain_folder import write_plain_folder

GREEDY = GenerationOptions(temperature=0, max_new_tokens=60)
NAMES = {
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.model", "added_tokens.json", "tokenizer_config.json"),
}


@pytest.fixture
def source(tmp_path):
    """seed-mini as people have published models: with no more than the files this library needs."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.model", "added_tokens.json"):
        shutil.copy(bundled("llm") / name, folder)
    return folder


@pytest.fixture
def output(tmp_path):
    return tmp_path / "served"


def write(source, output, dtype=torch.float16, loras=(), on_tensor=None):
    return write_plain_folder(plan_conversion(source, dtype, loras), output, on_tensor)


def test_it_holds_what_an_engine_needs_and_is_the_same_model_here(source, output, mini_llm):
    write(source, output)
    assert {path.name for path in output.iterdir()} == NAMES
    config = json.loads((output / "config.json").read_bytes())
    assert (config["model_type"], config["torch_dtype"]) == ("llama", "float16")
    again = seed_core.load_llm(output)
    assert again.end_ids == mini_llm.end_ids
    for prompt in ("Hello", "a panda on blue"):
        here, there = (llm.generate(prompt, options=GREEDY) for llm in (mini_llm, again))
        assert here.token_ids == there.token_ids


def test_a_general_reader_finds_the_same_token_ids(source, output, mini_llm, monkeypatch):
    from transformers import AutoTokenizer

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write(source, output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    vocab = mini_llm.vocab
    codes = tuple(range(0, 512, 16))
    assert tokenizer.encode("Hello, what is this?") == vocab.encode(["Hello, what is this?"])
    picture = "".join(["<img>", *(f"<img_{code:05d}>" for code in codes), "</img>"])
    assert tokenizer.encode(picture, add_special_tokens=False) == vocab.encode_picture(codes)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (vocab.bos, vocab.eos)
    assert len(tokenizer) == vocab.size


def test_a_general_network_computes_the_same(source, output, mini_llm, isolated_random_state):
    from transformers import AutoModelForCausalLM

    write(source, output, torch.float32)
    network = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    reply = mini_llm.generate("a panda on blue", options=GREEDY)
    prompt = mini_llm.plan("a panda on blue").request.prompt
    with torch.inference_mode():
        logits = network(torch.tensor([[*prompt, *reply.token_ids]])).logits[0]
    chosen = logits[len(prompt) : -1].argmax(-1)  # the first is begun by the grammar or the model
    assert chosen.tolist() == list(reply.token_ids[1:])


def test_adapters_are_merged(source, output):
    write(source, output, torch.float32, [(SEED_MINI_NIGHT, 1.0)])
    merged = seed_core.load_llm("seed-mini")
    seed_core.merge_lora(merged.module, seed_core.read_lora(SEED_MINI_NIGHT, merged.config))
    there = seed_core.load_llm(output).module.state_dict()
    for name, tensor in merged.module.state_dict().items():
        torch.testing.assert_close(there[name], tensor)
    plain = seed_core.load_llm("seed-mini").module.state_dict()
    assert any(not torch.equal(there[name], plain[name]) for name in plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_have_the_precision_that_was_chosen(source, output, dtype):
    write(source, output, dtype)
    assert {tensor.dtype for tensor in load_file(output / "model.safetensors").values()} == {dtype}


def test_a_model_that_was_converted_becomes_a_folder_too(source, output, tmp_path, mini_llm):
    file = tmp_path / "mini.safetensors"
    assert main(["convert", str(source), "-o", str(file)]) == 0
    assert main(["convert", str(file), "-o", str(output), "--to", "folder"]) == 0
    assert {path.name for path in output.iterdir()} == NAMES
    here, there = mini_llm, seed_core.load_llm(output)
    assert (
        here.generate("Hello", options=GREEDY).text == there.generate("Hello", options=GREEDY).text
    )


def test_rows_that_pad_a_table_are_left_out_of_the_config_as_of_the_weights(source, output):
    from safetensors.torch import save_file

    tensors = load_file(source / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], tensors[name][:62]])  # 1600, a multiple of 64
    save_file(tensors, source / "model.safetensors")
    config = json.loads((source / "config.json").read_bytes())
    (source / "config.json").write_text(json.dumps({**config, "vocab_size": 1600}), "utf-8")
    write(source, output)
    assert json.loads((output / "config.json").read_bytes())["vocab_size"] == 1538
    assert load_file(output / "model.safetensors")["lm_head.weight"].shape[0] == 1538


def test_a_stopped_run_goes_on(source, output):
    def stop(done, total):
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(source, output, on_tensor=stop)
    assert not (output / "model.safetensors").exists()
    assert (output / "model.safetensors.unfinished").exists()
    digest = write(source, output)
    assert {path.name for path in output.iterdir()} == NAMES
    assert digest == write(source, output.with_name("at_once"))


@pytest.mark.parametrize("loras", [[], [(SEED_MINI_NIGHT, 0.5)]])
def test_a_stopped_run_does_not_go_on_with_another_model(source, output, loras):
    """One with another adapter has the same small files and the same form."""

    def stop(done, total):
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(source, output, loras=loras, on_tensor=stop)
    write(source, output, loras=[(SEED_MINI_NIGHT, 1.0)])
    write(source, output.with_name("at_once"), loras=[(SEED_MINI_NIGHT, 1.0)])
    there, once = (
        load_file(folder / "model.safetensors") for folder in (output, output.with_name("at_once"))
    )
    assert all(torch.equal(there[name], once[name]) for name in once)


# --- refusals ---


@pytest.mark.parametrize("kept", [0, 10])
def test_a_run_that_ended_in_a_small_file_goes_on_too(source, output, kept):
    """As where the power fails."""
    write(source, output)
    (output / "model.safetensors").unlink()
    whole = (output / "config.json").read_bytes()
    (output / "config.json").write_bytes(whole[:kept])
    write(source, output)
    assert (output / "config.json").read_bytes() == whole
    assert {path.name for path in output.iterdir()} == NAMES


def test_a_folder_with_anything_else_in_it_is_not_written_to(source, output, capsys):
    output.mkdir()
    (output / "config.json").write_text("{}", "utf-8")
    command = ["convert", str(source), "-o", str(output), "--to", "folder"]
    assert main(command) == 1
    assert "holds config.json already" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == ["config.json"]


def test_a_finished_folder_is_not_written_to_again(source, output):
    write(source, output)
    before = (output / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(OptionError, match=r"holds model\.safetensors already"):
        write(source, output)
    assert (output / "model.safetensors").stat().st_mtime_ns == before


def test_a_file_is_not_made_a_folder(source, output):
    output.write_text("mine", "utf-8")
    with pytest.raises(OptionError, match="exists already"):
        write(source, output)


def test_fp8_is_left_to_the_engine(source, output):
    with pytest.raises(OptionError, match="choose bf16 or fp16"):
        write(source, output, fp8.FP8)
    assert not output.exists()


def test_other_models_are_refused_by_their_name(mini_folder, output):
    with pytest.raises(OptionError, match="is a tokenizer"):
        write(mini_folder / "tokenizer", output)
    assert not output.exists()


def test_a_dry_run_makes_nothing(source, output, capsys):
    command = ["convert", str(source), "-o", str(output), "--to", "folder", "--dry-run"]
    assert main(command) == 0
    assert "beside them" in capsys.readouterr().out
    assert not output.exists()
