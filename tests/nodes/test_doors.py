"""Every door of the code wire: as many pictures come out as went in, in order, with the same codes."""

import pytest
import torch

COUNTS = [1, 2, 5]


@pytest.fixture(params=COUNTS)
def pictures(request, run):
    """IMAGE [N, 128, 128, 3] of different samples."""
    names = ["owl_on_red", "fox_on_yellow", "cat_on_orange", "castle_on_blue", "panda_on_orange"]
    return torch.cat([run("SEEDSamplePicture", picture=name)[0] for name in names[: request.param]])


@pytest.fixture
def codes(run, mini, pictures):
    """Their codes, encoded one by one: the order that every door must keep."""
    rows = [run("SEEDEncode", tokenizer=mini.tokenizer, image=each[None])[0] for each in pictures]
    joined = rows[0]
    for row in rows[1:]:
        joined = run("SEEDBatchCodes", codes_1=joined, codes_2=row)[0]
    return joined


def as_text(run, pack, codes, tmp_path, chat):
    return run("SEEDTextToCodes", text=run("SEEDCodesToText", codes=codes)[0], family=codes.family)


def as_json(run, pack, codes, tmp_path, chat):
    written = pack.seed_core.codes.text.codes_to_json(codes)
    return run("SEEDTextToCodes", text=written, family=codes.family)


def as_numbers(run, pack, codes, tmp_path, chat):
    written = "\n".join(" ".join(map(str, row)) for row in codes.values.tolist())
    return run("SEEDTextToCodes", text=written, family=codes.family)


def as_file(run, pack, codes, tmp_path, chat):
    pack.seed_core.codes.file.save_codes_file(codes, tmp_path / "codes.safetensors")
    return (pack.seed_core.codes.file.read_codes_file(tmp_path / "codes.safetensors"),)


def as_json_file(run, pack, codes, tmp_path, chat):
    pack.seed_core.codes.file.save_codes_file(codes, tmp_path / "codes.json")
    return (pack.seed_core.codes.file.read_codes_file(tmp_path / "codes.json"),)


def as_text_file(run, pack, codes, tmp_path, chat):
    pack.seed_core.codes.file.save_codes_file(codes, tmp_path / "codes.txt")
    return (pack.seed_core.codes.file.read_codes_file(tmp_path / "codes.txt"),)


def in_chat(run, pack, codes, tmp_path, chat):
    """What was asked with pictures is all there again in the view of the conversation."""
    return run("SEEDChatView", chat=chat(codes))[1:]


def one_by_one(run, pack, codes, tmp_path, chat):
    joined = run("SEEDSelectCodes", codes=codes, index=0)[0]
    for index in range(1, len(codes)):
        more = run("SEEDSelectCodes", codes=codes, index=index)[0]
        joined = run("SEEDBatchCodes", codes_1=joined, codes_2=more)[0]
    return (joined,)


def mixed_with_itself(run, pack, codes, tmp_path, chat):
    return run("SEEDMixCodes", codes_a=codes, codes_b=codes, start=3, end=30, mode="random")


def previewed(run, pack, codes, tmp_path, chat):
    return run("SEEDPreviewCodes", codes=codes)


DOORS = [
    as_text,
    as_json,
    as_numbers,
    as_file,
    as_json_file,
    as_text_file,
    in_chat,
    one_by_one,
    mixed_with_itself,
    previewed,
]


@pytest.fixture
def chat(pack, run, mini):
    """Asks seed-mini about pictures; its answer is words, so that theirs are the only codes."""

    def ask(codes):
        inputs = {"reply": "text", "max_new_tokens": 8, "temperature": 0.0}
        return run("SEEDGenerate", llm=mini.llm, prompt="What is this?", codes=codes, **inputs)[2][
            0
        ]

    return ask


KEEP_DISTANCES = [as_json, as_file, as_json_file, one_by_one, previewed]


@pytest.mark.parametrize("door", KEEP_DISTANCES)
def test_these_doors_keep_how_well_codes_fit(run, pack, codes, tmp_path, chat, door):
    (again,) = door(run, pack, codes, tmp_path, chat)
    assert codes.distances.isfinite().all()
    assert torch.equal(again.distances, codes.distances)


@pytest.mark.parametrize("door", DOORS)
def test_codes_come_back_equal_and_in_order(run, pack, codes, tmp_path, chat, door):
    (again,) = door(run, pack, codes, tmp_path, chat)
    assert (again.family, again.codebook_size) == (codes.family, codes.codebook_size)
    assert torch.equal(again.values, codes.values)


def test_a_batch_is_encoded_in_order(run, mini, pictures, codes):
    (batch,) = run("SEEDEncode", tokenizer=mini.tokenizer, image=pictures)
    assert torch.equal(batch.values, codes.values)


def test_every_picture_is_painted_in_order(run, mini, pictures, codes):
    """Four steps are rough, but no other sample comes near."""
    inputs = {"tokenizer": mini.tokenizer, "decoder": mini.decoder, "guidance_scale": 2.0}
    (painted,) = run("SEEDDecode", codes=codes, steps=4, **inputs)
    assert painted.shape == pictures.shape
    differences = (painted[:, None] - pictures[None]).square().mean((2, 3, 4))  # [N, N]
    assert differences.argmin(1).tolist() == list(range(len(pictures)))


def test_every_picture_has_its_embedding_in_order(run, mini, codes):
    outputs = run("SEEDCodesToEmbedding", tokenizer=mini.tokenizer, codes=codes)[0]
    assert len(outputs) == len(codes)
    for row, output in zip(codes.values, outputs, strict=True):
        torch.testing.assert_close(output.image_embeds, mini.tokenizer.core.embed(row[None]))


def test_every_picture_conditions_a_latent_in_order(run, seed_1, seed_1_codes):
    ((condition, _),) = run("SEEDCodesToConditioning", tokenizer=seed_1, codes=seed_1_codes)[0]
    for row, own in zip(seed_1_codes.values, condition, strict=True):
        torch.testing.assert_close(own[None], seed_1.core.embed(row[None]))


@pytest.mark.parametrize("variations", [1, 3])
def test_every_variation_has_its_pictures_in_order(run, mini, variations):
    """All pictures of all replies in one batch, as the chats hold them."""
    inputs = {"prompt": "Draw a fox.", "reply": "image", "variations": variations}
    text, codes, chats = run("SEEDGenerate", llm=mini.llm, **inputs)
    assert (len(text), len(chats)) == (variations, variations)
    in_chats = torch.cat([run("SEEDChatView", chat=chat)[1].values for chat in chats])
    assert torch.equal(codes.values, in_chats)
    assert sum(reply.count("<image>") for reply in text) == len(codes)
