"""However much a text or a widget asks for: a sentence before memory is taken, or little work."""

import pytest
import torch

ROWS = 20_000


@pytest.fixture
def many(pack):
    values = torch.arange(ROWS * 32).reshape(ROWS, 32) % 512
    return pack.seed_core.SeedCodes(values, "seed-mini", 512)


@pytest.fixture
def refused(pack, run):
    def refuse(node, message, **inputs):
        with pytest.raises(pack.seed_core.errors.SeedError, match=message):
            run(node, **inputs)

    return refuse


def test_a_preview_shows_the_first_pictures_and_says_how_many_there_are(pack, many, monkeypatch):
    texts = []
    monkeypatch.setattr(pack.host, "show_text", texts.append)
    output = pack.nodes_by_id["SEEDPreviewCodes"].execute(codes=many)
    assert len(output.ui["images"]) == 64
    assert texts == ["20000 pictures; the first 64 are shown"]
    assert output.args == (many,)


def test_twenty_thousand_pictures_survive_text_and_back(run, many):
    (text,) = run("SEEDCodesToText", codes=many)
    (codes,) = run("SEEDTextToCodes", text=text, family="seed-mini")
    assert torch.equal(codes.values, many.values)


def test_a_text_of_more_pictures_than_anyone_makes_is_refused(refused):
    line = "<img>" + "<img_00012>" * 32 + "</img>\n"
    refused("SEEDTextToCodes", "100001 pictures", text=line * 100_001, family="seed-mini")
    refused("SEEDTextToCodes", "characters", text="1 " * 20_000_001, family="seed-mini")
    refused("SEEDTextToCodes", "lists", text="[" + "[]," * 1_000_000 + "[]]", family="seed-mini")


def test_batches_of_batches_come_to_an_end(run, refused, many):
    """Four inputs a node: ten of them in a row would be a million times as many."""
    four = dict.fromkeys(("codes_1", "codes_2", "codes_3", "codes_4"), many)
    (larger,) = run("SEEDBatchCodes", **four)
    assert len(larger) == 4 * ROWS
    refused("SEEDBatchCodes", "320000 pictures", **dict.fromkeys(four, larger))


def test_mixing_and_picking_take_any_number(run, many):
    (mixed,) = run("SEEDMixCodes", codes_a=many, codes_b=many, mode="random")
    (picked,) = run("SEEDSelectCodes", codes=mixed, index=-1, length=1)
    assert torch.equal(picked.values, many.values[-1:])


@pytest.mark.parametrize("node", ["SEEDDecode", "SEEDCodesToEmbedding"])
def test_more_pictures_than_a_batch_of_the_host_are_not_painted(refused, mini, many, node):
    models = {"tokenizer": mini.tokenizer, "codes": many}
    models |= {"decoder": mini.decoder} if node == "SEEDDecode" else {}
    refused(node, "20000 pictures.* 4096 .*SEED Select Codes", **models)


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ({"width": 10**9, "height": 8}, "up to 4096; got 1000000000"),
        ({"width": 4096, "height": 4096, "rows": 20}, "20 pictures of 4096 x 4096 are too many"),
        ({"steps": 10**9}, "steps must lie in 1..1000"),
    ],
)
def test_a_picture_whose_size_came_by_wire_is_bounded_too(
    refused, mini, many, pack, sides, message
):
    """The host holds widgets to their ranges, and numbers on wires to none."""
    sides = dict(sides)
    rows = sides.pop("rows", 1)
    codes = pack.seed_core.SeedCodes(many.values[:rows], "seed-mini", 512)
    models = {"tokenizer": mini.tokenizer, "decoder": mini.decoder}
    refused("SEEDDecode", message, **models, codes=codes, **sides)


def test_replies_are_bounded(refused, mini, many):
    refused(
        "SEEDGenerate",
        r"variations must lie in 1\.\.64",
        llm=mini.llm,
        prompt="a",
        variations=10**9,
    )
    refused("SEEDGenerate", "2000000 characters", llm=mini.llm, prompt="a" * 2_000_000)
    refused("SEEDGenerate", "680005 tokens long", llm=mini.llm, prompt="", codes=many)


def test_work_that_no_memory_here_could_hold_is_refused_before_it_begins(pack, mini):
    with pytest.raises(pack.seed_core.errors.OptionError, match=r"1024\.0 GiB .* fewer variations"):
        mini.llm.ready(2**40)
