"""Every prompt string of the reference's scripts and demo, its segments and its token ids."""

import copy
import io
import json
from pathlib import Path

import pytest
import sentencepiece
import torch

from seed_core.codes.value import codes_to_text
from seed_core.files.folder import ModelFolder
from seed_core.llm.chat import SeedChat
from seed_core.llm.prompt import LLAMA_2, VICUNA, pieces_to_string, split_marks
from seed_core.llm.sampling import GenerationOptions
from seed_core.models.llm import read_vocabulary

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "prompts.json"
PROMPTS = json.loads(GOLDEN.read_text(encoding="utf-8"))
SYSTEM = "A chat between a curious user and an artificial intelligence assistant. "
TEMPLATES = {"8B": (VICUNA, ""), "14B": (LLAMA_2, ""), "8B_with_system": (VICUNA, SYSTEM)}

SCRIPTS = [(size, name) for size, facts in PROMPTS["scripts"].items() for name in facts["prompts"]]
DEMO = [(size, name) for size, cases in PROMPTS["gradio"].items() for name in cases]


@pytest.fixture(scope="module")
def text_model():
    """A sentencepiece model like LLaMA's in kind: BPE, dummy prefix, byte fallback."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([GOLDEN.read_text(encoding="utf-8")[:3000]]),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        max_sentence_length=10_000,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module")
def vocab(text_model, tmp_path_factory):
    """The release's 8192 image tokens and two markers over a toy text vocabulary."""
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "tokenizer.model").write_bytes(text_model.serialized_model_proto())
    first = text_model.vocab_size()
    added = {f"<img_{code:05d}>": first + code for code in range(8192)}
    added |= {"<img>": first + 8192, "</img>": first + 8193}
    (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    return read_vocabulary(ModelFolder(folder))


def codes_of(rows):
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 32)


def chat_of(messages):
    chat = SeedChat(family="seed-2", codebook_size=8192)
    for message in messages:
        parts = split_marks(message["text"], codes_of(message["images_ids"]))
        chat = chat.ask(parts) if message["role"] in ("USER", "[INST]") else chat.answer(parts)
    return chat


def expected_ids(segments, text_model, vocab):
    """Token ids of golden segments: '<s>' first, a list is a whole picture."""
    assert segments[0] == "<s>"
    token_ids = [1]
    for segment in segments[1:]:
        if isinstance(segment, str):
            token_ids += text_model.encode(segment)
        else:
            first = text_model.vocab_size()
            token_ids += [vocab.begin_image, *(first + c for c in segment), vocab.end_image]
    return token_ids


def as_lists(segments):
    return [piece if isinstance(piece, str) else list(piece) for piece in segments]


@pytest.fixture(params=SCRIPTS, ids="-".join)
def script(request):
    """A prompt of the inference scripts, our pieces for it and what the golden says."""
    size, name = request.param
    facts = PROMPTS["scripts"][size]
    asked = {"vqa": "question", "text_to_image": "prompt", "edit": "instruction"}[name]
    rows = [] if name == "text_to_image" else [PROMPTS["image_codes"]]
    chat = SeedChat(family="seed-2", codebook_size=8192)
    chat = chat.ask(split_marks(facts[asked], codes_of(rows)))  # no mark: the picture goes first
    return TEMPLATES[size][0].render(chat), facts["prompts"][name], facts["segments"][name]


@pytest.fixture(params=DEMO, ids="-".join)
def demo(request):
    """A conversation of the demo: our pieces and the golden's facts."""
    size, name = request.param
    facts = PROMPTS["gradio"][size][name]
    template, system = TEMPLATES[size]
    return template.render(chat_of(facts["messages"]), system), facts


def test_every_recorded_prompt_is_covered():
    assert (len(SCRIPTS), len(DEMO)) == (6, 21)


def test_script_prompt_is_the_reference_string(script):
    pieces, prompt, _ = script
    assert "<s>" + pieces_to_string(pieces) == prompt


def test_script_prompt_is_cut_as_the_reference_cuts_it(script, vocab, text_model):
    pieces, _, segments = script
    assert ["<s>", *as_lists(vocab.segments(pieces))] == segments
    assert vocab.encode(pieces) == expected_ids(segments, text_model, vocab)


def test_demo_prompt_is_the_reference_string(demo):
    pieces, facts = demo
    assert "<s>" + pieces_to_string(pieces) == facts["final_prompt"]
    assert "<s>" + pieces_to_string(pieces) + "<img>" == facts["final_prompt_force_boi"]


def test_demo_prompt_is_cut_as_the_reference_cuts_it(demo, vocab, text_model):
    pieces, facts = demo
    assert ["<s>", *as_lists(vocab.segments(pieces))] == facts["segments"]
    assert vocab.encode(pieces) == expected_ids(facts["segments"], text_model, vocab)


def reference_prompt(size, messages, system=""):
    """The demo's way of joining any number of messages, restated."""
    written = "<s>" + (system + "\n" if system else "")
    for message in messages:
        text = message["text"]
        for row in message["images_ids"]:
            text = text.replace("<image>", codes_to_text(row), 1)
        if size != "14B":
            written += f"{message['role']}: {text}\n"
        else:
            written += f"[INST] {text} [/INST]\n" if message["role"] == "[INST]" else f"{text}\n"
    return written + ("" if size == "14B" else "ASSISTANT:")


@pytest.mark.parametrize(("size", "name"), DEMO)
def test_the_restated_reference_writes_every_recorded_prompt(size, name):
    facts = PROMPTS["gradio"][size][name]
    prompt = reference_prompt(size, facts["messages"], TEMPLATES[size][1])
    assert prompt == facts["final_prompt"]


@pytest.mark.parametrize(
    ("size", "roles"), [("8B", ("USER", "ASSISTANT")), ("14B", ("[INST]", "[/INST]"))]
)
def test_five_turns_with_four_pictures_are_written_as_the_reference_writes_them(size, roles):
    """The recordings end at three turns and two pictures."""
    texts = ["<image>Make it blue.", "Here: <image>", "And <image> too?", "<image>", "Thanks!"]
    rows = iter([(code + shift) % 8192 for code in PROMPTS["image_codes"]] for shift in range(4))
    messages = [
        {
            "role": roles[i % 2],
            "text": text,
            "images_ids": [next(rows) for _ in range(text.count("<image>"))],
        }
        for i, text in enumerate(texts)
    ]
    chat = chat_of(messages)
    assert len(chat.codes) == 4
    pieces = TEMPLATES[size][0].render(chat)
    assert "<s>" + pieces_to_string(pieces) == reference_prompt(size, messages)


@pytest.mark.parametrize("template", [VICUNA, LLAMA_2], ids=["8B", "14B"])
def test_a_forced_picture_drops_the_white_space_before_it(template, mini_llm, monkeypatch):
    r"""The reference appends `<img>` to the prompt's string, so the segment rule reaches the template.

    14B's prompts end with `[/INST]\n`; with the picture forced, that `\n` touches an image token.
    """
    llm = copy.copy(mini_llm)
    llm.template = template
    fed = []
    for name in ("prefill", "decode"):
        method = getattr(llm.module, name)

        def watched(token_ids, *rest, method=method):
            fed.append(token_ids.clone())
            return method(token_ids, *rest)

        monkeypatch.setattr(llm.module, name, watched)
    options = GenerationOptions(reply="image", max_new_tokens=34, temperature=0)
    llm.generate("a panda on blue", options=options)
    chat = SeedChat(family="seed-mini", codebook_size=512).ask(("a panda on blue",))
    text = pieces_to_string(template.render(chat)).rstrip()
    assert fed[0].tolist() == [llm.vocab.encode([text])]
    assert fed[1].flatten().tolist() == [llm.vocab.begin_image]
