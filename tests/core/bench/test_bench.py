"""The bench command: every row is there, with both sides on the same weights. No timing is judged."""

import json
import subprocess
import sys

import pytest
import torch

from seed_core.__main__ import main
from seed_core.bench import BenchOptions, peers, run_bench, subject
from seed_core.bench.sections import encode
from seed_core.errors import OptionError
from seed_core.llm.config import LlamaConfig
from seed_core.llm.llama import Llama

CPU = torch.device("cpu")
TINY = LlamaConfig(40194, 32, 48, 2, 2, 2, 64)

LINUX_ONLY = {"load language model, RAM", "load decoder, RAM", "load tokenizer, RAM"}
TRANSFORMERS = {"transformers", "transformers, static"}
TOWER = "transformers' Blip2 tower"
DECODED = {"ours", "limit", *TRANSFORMERS}
SHORTER = {"ours, fp16", "ours, bf16", "ours, fp8"}
EXPECTED = {
    "load language model, time": {"ours", "transformers"},
    "load language model, RAM": {"ours", "transformers"},
    "load decoder, time": {"ours", "diffusers"},
    "load decoder, RAM": {"ours", "diffusers"},
    "load tokenizer, time": {"ours"},
    "load tokenizer, RAM": {"ours"},
    "encode, batch 1": {"ours", TOWER},
    "encode, batch 8": {"ours", TOWER},
    "encode, batch 64": {"ours", TOWER},
    "equal codes": {TOWER},
    "prefill": {"ours", "transformers"},
    "decode, 1 variation": DECODED,
    "decode, 4 variations": DECODED,
    "decode, 8 variations": DECODED,
    "equal greedy tokens": TRANSFORMERS,
    "draw, 128 pixels, 1 steps": {"ours", "transformers, diffusers"},
    "perplexity": SHORTER,
    "tokens as in fp32": SHORTER,
    "KL divergence from fp32": SHORTER,
}


@pytest.fixture
def tiny_300m(monkeypatch):
    """The size 300m, made small enough for a test."""
    monkeypatch.setitem(subject._RANDOM, "300m", TINY)
    return "300m"


def measured(**options):
    lines = []
    report = run_bench(BenchOptions(repeat=1, tokens=4, steps=1, **options), lines.append)
    return report["rows"], lines


def values(rows, measure):
    return {row["who"]: row for row in rows if row["measure"] == measure}


def test_mini_end_to_end_has_every_row(tmp_path, capsys):
    output = tmp_path / "bench.json"
    arguments = ["bench", "--tokens", "4", "--steps", "1", "--repeat", "1"]
    assert main([*arguments, "--json", str(output)]) == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    assert set(report["versions"]) == {"torch", "transformers", "diffusers"}
    wanted = {m for m in EXPECTED if sys.platform == "linux" or m not in LINUX_ONLY}
    assert {row["measure"] for row in report["rows"]} == wanted
    for measure in wanted:
        rows = values(report["rows"], measure)
        assert set(rows) == EXPECTED[measure]
        for row in rows.values():
            figure = row["figure"]
            assert figure is not None, row["note"]
            assert figure["least"] <= figure["median"] <= figure["most"]
            assert figure["median"] > 0 or measure in LINUX_ONLY  # memory may be reused
    equal = values(report["rows"], "equal greedy tokens").values()
    assert [(row["figure"]["median"], row["note"]) for row in equal] == [(16, "of 16")] * 2
    assert values(report["rows"], "equal codes")[TOWER]["figure"]["median"] == 8 * 32
    table = capsys.readouterr().out
    assert all(f"| {measure} " in table for measure in wanted)


@pytest.mark.parametrize(("peers", "left"), [("eager", {"transformers"}), ("none", set())])
def test_peers_can_be_left_out(tiny_300m, peers, left):
    rows, _ = measured(size=tiny_300m, only=("load", "decode"), peers=peers)
    assert {row["who"] for row in rows} == {"ours", "limit"} | left


@pytest.mark.parametrize(
    ("only", "peers", "libraries"),
    [
        (("decode",), "all", ("transformers",)),
        (("encode", "draw"), "eager", ("transformers", "diffusers")),
        (("decode", "encode"), "none", ()),
        (("draw",), "none", ("diffusers",)),
    ],
)
def test_only_libraries_that_are_used_have_to_be_there(only, peers, libraries):
    assert BenchOptions(only=only, peers=peers).libraries() == libraries


def test_random_weights_are_the_same_on_both_sides(tiny_300m):
    rows, _ = measured(size=tiny_300m)
    parts = {"load", "prefill", "decode,", "equal", "tokens", "KL"}
    assert {row["measure"].split()[0] for row in rows} == parts
    for row in values(rows, "equal greedy tokens").values():
        assert row["figure"]["median"] == 16


def test_random_weights_in_fp8_choose_as_in_16_bits_more_often_than_not(tiny_300m):
    """A vocabulary of 40194 and weights of noise: by chance none would agree."""
    rows, _ = measured(size=tiny_300m, only=("quality",))
    found = {row["measure"]: row["figure"]["median"] for row in rows}
    assert set(found) == {"tokens as in bf16", "KL divergence from bf16"}
    assert found["tokens as in bf16"] >= 50
    assert 0 < found["KL divergence from bf16"] < 0.01


def test_fp8_weights_are_the_same_numbers_on_both_sides(tiny_300m):
    """Ours keeps them in fp8, the peer has them in bf16: every one of them without rounding."""
    models = subject.Subject(tiny_300m, CPU, torch.float8_e4m3fn)
    ours, theirs = models.llama(), peers.load_llama(models)
    layer = ours.model.layers[1].self_attn.o_proj
    assert layer.weight.dtype == torch.float8_e4m3fn
    expected = theirs.model.layers[1].self_attn.o_proj.weight
    assert expected.dtype == torch.bfloat16
    assert torch.equal(layer.weight.to(torch.bfloat16) * layer.weight_scale.bfloat16(), expected)
    rows, _ = measured(size=tiny_300m, precision="fp8", only=("decode",))
    assert all(row["figure"] for row in rows)


def test_a_peer_has_one_thread_too_where_ours_takes_one(tiny_300m, monkeypatch):
    """Beside its row with all threads, so that neither of them flatters ours."""
    found = {}

    def seen(model, prompt, rows=1, new_tokens=0, *_):
        found.setdefault(torch.get_num_threads(), []).append(rows)
        return [3] * new_tokens

    monkeypatch.setattr(peers, "generate", seen)
    monkeypatch.setattr(peers, "prefill", seen)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        rows, _ = measured(size=tiny_300m, only=("decode",))
    finally:
        torch.set_num_threads(before)
    few = {row["measure"] for row in rows if row["who"] == "transformers, one thread"}
    assert few == {measure for measure in EXPECTED if measure.startswith("decode,")}
    assert set(found) == {1, 2}
    assert len(found[1]) == 2 * len(few)  # the first of each does not count


def test_a_peer_that_fails_becomes_a_text(monkeypatch):
    def fail(*arguments, **named):
        raise RuntimeError("out of memory\nand a page of advice")

    monkeypatch.setattr(encode, "BATCHES", (1,))
    for name in ("load_llama", "put_tower", "pipeline_around"):
        monkeypatch.setattr(peers, name, fail)
    rows, lines = measured(only=("load", "encode", "decode", "draw"))
    failed = [row for row in rows if row["figure"] is None]
    assert [row["note"] for row in failed] == ["RuntimeError: out of memory"] * 4
    assert all(row["who"] != "ours" for row in failed)
    assert sum("RuntimeError: out of memory" in line for line in lines) == 4


def test_published_sizes_are_those_of_the_readme():
    """12.7 and 24.4 GiB in 16 bits."""
    for size, expected in (("8b", 12.7), ("14b", 24.4)):
        model = Llama(subject._RANDOM[size], device="meta", dtype=torch.float16)
        assert round(sum(p.nbytes for p in model.parameters()) / 2**30, 1) == expected


def test_code_tokens_close_the_vocabulary_of_seed_mini(mini_llm):
    """So that no vocabulary file is needed to tell them."""
    images = subject.Subject("mini", CPU, torch.float32).images
    vocab = mini_llm.vocab
    found = (images.begin, images.end, images.first_code, images.codebook_size)
    assert found == (vocab.begin_image, vocab.end_image, vocab.first_code, vocab.codebook_size)


def test_a_missing_peer_is_one_sentence_that_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert main(["bench"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "diffusers cannot be imported" in message
    assert 'pip install -e ".[demo]"' in message


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"repeat": 0}, "repeat"),
        ({"tokens": 0}, "tokens"),
        ({"only": ("draw",), "size": "300m"}, "draw"),
        ({"only": ("paint",)}, "paint"),
        ({"size": "7b"}, "7b"),
        ({"precision": "fp8"}, "fp8"),
        ({"peers": "some"}, "some"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options, named):
    with pytest.raises(OptionError, match=named):
        BenchOptions(**options)


def test_importing_it_pulls_in_no_heavy_library():
    program = "import sys, seed_core.bench; print({'transformers', 'diffusers'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert found.stdout.strip() == "set()", found.stderr
