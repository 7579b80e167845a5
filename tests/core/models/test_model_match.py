"""Parts that do not belong together: each mismatch is one sentence that names both sides."""

import contextlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import seed_core
from seed_core import SeedCodes
from seed_core.errors import CheckpointError, CodesError, OptionError
from seed_core.models.convert import convert_model, plan_conversion

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def change_json(file, change):
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def refused(llm_folder, pattern):
    with pytest.raises(CheckpointError, match=pattern) as caught:
        seed_core.load_llm(llm_folder)
    with pytest.raises(CheckpointError, match=pattern):
        plan_conversion(llm_folder, torch.bfloat16)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", [EMBEDDINGS, HEAD])
@pytest.mark.parametrize("rows", [1024, 1537, 1539])
def test_weights_have_one_row_for_each_token_id(llm_folder, key, rows):
    """1024 is a LLaMA before it learned pictures."""
    file = llm_folder / "model.safetensors"
    save_file({**load_file(file), key: torch.zeros(rows, 32)}, file)
    refused(llm_folder, rf"{key} \[{rows}, 32\] should have one row for each of the 1538 token ids")


def test_a_config_of_another_vocabulary_is_refused(llm_folder):
    change_json(llm_folder / "config.json", lambda fields: fields.update(vocab_size=32000))
    refused(llm_folder, "vocabulary files have 1538 token ids, the model's config.json 32000")


def move_begin(added):
    added["<img>"] = 1538  # past the end: a row that no weight has


def move_begin_far(added):
    added["<img>"] = 10**12


def no_gap_but_no_begin(added):
    added["<img>"] = added["</img>"]


def drop_code(added):
    del added["<img_00511>"]


def number_as_text(added):
    added["<img>"] = str(added["<img>"])


@pytest.mark.parametrize(
    "change", [move_begin, move_begin_far, no_gap_but_no_begin, drop_code, number_as_text]
)
def test_the_ids_of_markers_and_codes_leave_none_out(llm_folder, change):
    change_json(llm_folder / "added_tokens.json", change)
    refused(llm_folder, r"added_tokens\.json")


def test_a_text_vocabulary_that_lost_its_end_is_refused(llm_folder):
    """sentencepiece may read what is left of it, and would encode words in another way."""
    import sentencepiece

    file = llm_folder / "tokenizer.model"
    content, read = file.read_bytes(), 0
    for length in {len(content) * share // 100 for share in range(100)} | {
        len(content) - lost for lost in range(1, 100)
    }:
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
            seed_core.load_llm(llm_folder)
        with contextlib.suppress(RuntimeError):
            sentencepiece.SentencePieceProcessor(model_proto=content[:length])
            read += length > 0
    assert read  # sentencepiece alone does not see it


def test_codes_of_a_number_that_no_family_has_are_refused(llm_folder):
    """Eight codes where seed-mini has 512."""

    def cut(added):
        for code in range(8, 512):
            del added[f"<img_{code:05d}>"]
        added["<img>"], added["</img>"] = 1032, 1033

    change_json(llm_folder / "added_tokens.json", cut)
    change_json(llm_folder / "config.json", lambda fields: fields.update(vocab_size=1034))
    file = llm_folder / "model.safetensors"
    rows = {key: load_file(file)[key][:1034].clone() for key in (EMBEDDINGS, HEAD)}
    save_file({**load_file(file), **rows}, file)
    with pytest.raises(CheckpointError, match="vocabulary has 8 image codes; SEED-2 models have"):
        seed_core.load_llm(llm_folder)


# --- one part with another ---

SEED_2 = SeedCodes(torch.zeros(1, 32, dtype=torch.int64), "seed-2", 8192)


def test_codes_of_another_tokenizer_are_refused_by_both_families(mini_tokenizer, mini_llm):
    message = r"reads seed-mini codes \(0..511\), but these are seed-2 codes \(0..8191\)"
    with pytest.raises(CodesError, match=message):
        mini_tokenizer.embed(SEED_2)
    with pytest.raises(CodesError, match=message):
        mini_llm.generate("What is this?", SEED_2)


def test_an_embedding_of_another_tokenizer_is_refused_by_both_widths(mini_decoder):
    """SEED-2's is 1024 wide, seed-mini's decoder takes 256."""
    with pytest.raises(OptionError, match=r"\[pictures, 256\]; got \[1, 1024\].* same family"):
        mini_decoder.decode(torch.zeros(1, 1024))


def test_a_part_in_the_place_of_another_is_refused_by_both_names(mini_folder, tmp_path):
    path = tmp_path / "tokenizer.safetensors"
    convert_model(plan_conversion(mini_folder / "tokenizer", torch.float16), path)
    with pytest.raises(CheckpointError, match="holds a SEED tokenizer; a SEED llm is needed"):
        seed_core.load_llm(path)
