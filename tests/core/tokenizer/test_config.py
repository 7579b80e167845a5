"""TokenizerConfig: config.json there and back, published sizes, and what the weights' names tell."""

import json
from dataclasses import replace

import pytest

from seed_core.errors import CheckpointError
from seed_core.models import names
from seed_core.tokenizer.config import TokenizerConfig

MINI = json.loads((names.bundled("tokenizer") / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "config",
    [TokenizerConfig.from_dict(MINI), TokenizerConfig.seed_2(), TokenizerConfig.seed_1()],
    ids=["seed-mini", "seed-2", "seed-1"],
)
def test_a_config_file_holds_every_size(config):
    """But the depth of the reverse Q-Former, which the names of the weights tell."""
    written = json.loads(json.dumps(config.to_dict()))
    assert TokenizerConfig.from_dict(written) == replace(config, reverse_depth=0)


def test_the_bundled_config_is_read_in_full():
    written = TokenizerConfig.from_dict(MINI).to_dict()
    assert written.keys() - MINI.keys() <= {"num_reverse_tokens", "interpolation"}
    assert [key for key, value in written.items() if MINI.get(key, value) != value] == []


@pytest.mark.parametrize("key", ["family", "vit_width", "blocks_image_depth", "n_embed"])
def test_a_missing_field_is_named(key):
    fields = {name: value for name, value in MINI.items() if name != key}
    with pytest.raises(CheckpointError, match=f"incomplete or wrong: KeyError.*{key}"):
        TokenizerConfig.from_dict(fields)


@pytest.mark.parametrize("key", ["image_down", "num_reverse_tokens", "interpolation"])
def test_fields_that_older_files_lack_have_their_meaning_of_then(key):
    fields = {name: value for name, value in MINI.items() if name != key}
    config = TokenizerConfig.from_dict(fields)
    then = {"image_down": [], "num_reverse_tokens": 1, "interpolation": "bilinear"}
    assert config.to_dict()[key] == then[key]


@pytest.mark.parametrize(
    "fields", [[], "text", {**MINI, "image_down": 3}, {**MINI, "n_embed": "x"}]
)
def test_a_config_of_other_types_is_one_sentence(fields):
    with pytest.raises(CheckpointError):
        TokenizerConfig.from_dict(fields)


def test_the_head_is_told_by_the_names_of_the_weights():
    config = TokenizerConfig.seed_2()
    reverse = [f"Reverse_Qformer.bert.encoder.layer.{i}.x" for i in range(3)]
    found = config.with_head_of(["distill_image_proj.weight", *reverse])
    assert (found.image_down, found.reverse_depth) == ((), 3)
    assert config.with_head_of(["image_down.0.weight"]) == config
    with pytest.raises(CheckpointError, match="neither image_down"):
        config.with_head_of(["distill_image_proj.weight"])
    with pytest.raises(CheckpointError, match="those of SEED-1"):
        config.with_head_of(["distill_text_proj.weight", *reverse])
