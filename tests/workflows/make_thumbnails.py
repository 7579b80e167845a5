"""Regenerates workflows/*.jpg and tests/workflows/api/*.json by running the templates.

    python tests/workflows/make_thumbnails.py [NAME ...]

needs what the browser tests need: a ComfyUI checkout (COMFYUI_PATH), Chromium, playwright. Each
template, or each one named, is loaded and queued in the real frontend on a server of its own; the
thumbnail is laid out from the pictures and words that came out, and the API twin is what the
frontend queued.

The templates of COMPOSED need models of gigabytes and cannot be run here. Their thumbnails show
what the file says, a picture, its codes, a checkpoint's name, and no result.
"""

import contextlib
import importlib.util
import io
import json
import os
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
TESTS = HERE.parent
WORKFLOWS = TESTS.parent / "workflows"
SAMPLES = TESTS.parent / "seed_core" / "weights" / "seed-mini" / "samples"
IPADAPTER_DOUBLE = TESTS / "browser" / "ipadapter_double"
SIZE = 512  # pixels; the template browser shows thumbnails as squares
MARGIN = 20
HALF = (SIZE - 3 * MARGIN) // 2
PAPER, CARD, INK, SOFT = "#3d4256", "#262a38", "#ffffff", "#c9cee0"


def load_beside(path: Path) -> ModuleType:
    """Import a helper from its file: nothing under tests is on sys.path."""
    spec = importlib.util.spec_from_file_location(f"thumbnails_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Sheet:
    """A slate-blue square to place rounded pictures and words on."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (SIZE, SIZE), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def picture(self, picture: Image.Image, left: int, top: int, width: int, height: int) -> None:
        mask = Image.new("L", (width, height))
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, width - 1, height - 1), 16, fill=255)
        self.image.paste(
            picture.resize((width, height), Image.Resampling.LANCZOS), (left, top), mask
        )

    def words(self, text: str, top: int, size: int, color: str = INK) -> None:
        """One centred line, made smaller until it fits."""
        font = ImageFont.load_default(size)
        while font.getlength(text) > SIZE - 4 * MARGIN:
            font = ImageFont.load_default(font.size - 1)
        self.draw.text((SIZE // 2, top), text, color, font, anchor="mm")

    def bubble(self, text: str, middle: int, size: int = 34) -> None:
        """One or two lines on a rounded card over the whole width."""
        lines = textwrap.wrap(text, 26)
        reach = size * (len(lines) + 1) // 2
        box = (MARGIN, middle - reach, SIZE - MARGIN, middle + reach)
        self.draw.rounded_rectangle(box, 20, fill=CARD)
        for i, line in enumerate(lines):
            self.words(line, middle + round((i - (len(lines) - 1) / 2) * 1.1 * size), size)

    def card(self, text: str, left: int, top: int, width: int, height: int, size: int = 30) -> None:
        """A rounded card of a picture's place and size, with a few lines in its middle."""
        self.draw.rounded_rectangle((left, top, left + width, top + height), 16, fill=CARD)
        lines = textwrap.fill(text, int(width / size * 1.7))
        place = left + width // 2, top + height // 2
        font = ImageFont.load_default(size)
        self.draw.multiline_text(place, lines, INK, font, "mm", spacing=12, align="center")

    def arrow(self, x: int, y: int) -> None:
        self.draw.ellipse((x - 24, y - 24, x + 24, y + 24), fill=PAPER)
        self.draw.polygon([(x - 9, y - 14), (x + 15, y), (x - 9, y + 14)], fill=INK)


def reconstruct(shown: dict[str, list[Any]], _: list[str]) -> Image.Image:
    sheet = Sheet()
    sheet.picture(shown["Before"][0], MARGIN, MARGIN, HALF, HALF)
    sheet.picture(shown["After"][0], 2 * MARGIN + HALF, MARGIN, HALF, HALF)
    sheet.arrow(SIZE // 2, MARGIN + HALF // 2)
    codes = shown["32 codes"][0]
    width = SIZE - 2 * MARGIN
    height = min(width * codes.height // codes.width, SIZE - HALF - 3 * MARGIN)
    sheet.picture(codes, MARGIN, SIZE - MARGIN - height, width, height)
    return sheet.image


def ask(shown: dict[str, list[Any]], prompts: list[str]) -> Image.Image:
    sheet = Sheet()
    side = 290
    sheet.picture(shown["The picture"][0], (SIZE - side) // 2, MARGIN, side, side)
    sheet.words(prompts[0], 346, 32, SOFT)
    sheet.bubble(shown["The answer"][0], 432)
    return sheet.image


def text_to_image(shown: dict[str, list[Any]], prompts: list[str]) -> Image.Image:
    sheet = Sheet()
    side = 190
    left = (SIZE - 2 * side - MARGIN) // 2
    for i, picture in enumerate(shown["Your drawings"]):
        column, row = i % 2, i // 2
        place = left + column * (side + MARGIN), MARGIN + row * (side + MARGIN)
        sheet.picture(picture, *place, side, side)
    sheet.words(prompts[0], SIZE - 46, 34)
    return sheet.image


def edit(shown: dict[str, list[Any]], prompts: list[str]) -> Image.Image:
    sheet = Sheet()
    top = 90
    sheet.picture(shown["Before"][0], MARGIN, top, HALF, HALF)
    sheet.picture(shown["After"][0], 2 * MARGIN + HALF, top, HALF, HALF)
    sheet.arrow(SIZE // 2, top + HALF // 2)
    sheet.bubble(prompts[0], 400)
    return sheet.image


def caption(shown: dict[str, list[Any]], _: list[str]) -> Image.Image:
    sheet = Sheet()
    gap = 12
    side = (SIZE - 2 * MARGIN - 4 * gap) // 5
    left = MARGIN + side + gap
    texts = shown["SEED Generate"]
    for i in range(5):
        top = MARGIN + i * (side + gap)
        sheet.picture(shown["The pictures"][i], MARGIN, top, side, side)
        sheet.card(texts[i], left, top, SIZE - MARGIN - left, side, size=26)
    return sheet.image


def draft(shown: dict[str, list[Any]], prompts: list[str]) -> Image.Image:
    sheet = Sheet()
    sheet.picture(shown["The draft"][0], MARGIN, MARGIN, HALF, HALF)
    sheet.card("Your own model", 2 * MARGIN + HALF, MARGIN, HALF, HALF)
    sheet.arrow(SIZE // 2, MARGIN + HALF // 2)
    sheet.words(prompts[0], HALF + 3 * MARGIN + 40, 32, SOFT)
    sheet.bubble(shown["Describe the draft"][0], 412)
    return sheet.image


def layout(shown: dict[str, list[Any]], prompts: list[str]) -> Image.Image:
    sheet = Sheet()
    side = (SIZE - 4 * MARGIN) // 3
    top = 110
    sheet.picture(shown["Before"][0], MARGIN, top, side, side)
    sheet.picture(shown["The edit"][0], 2 * MARGIN + side, top, side, side)
    sheet.card("Your own model", 3 * MARGIN + 2 * side, top, side, side, size=26)
    sheet.arrow(MARGIN + side + MARGIN // 2, top + side // 2)
    sheet.arrow(2 * MARGIN + 2 * side + MARGIN // 2, top + side // 2)
    sheet.bubble(prompts[0], 360)
    sheet.words("The layout stays", SIZE - 60, 30, SOFT)
    return sheet.image


def mix(shown: dict[str, list[Any]], _: list[str]) -> Image.Image:
    sheet = Sheet()
    left, right = MARGIN, 2 * MARGIN + HALF
    for top, before, after in (
        (left, "Picture A", "A, then B"),
        (right, "Picture B", "B, then A"),
    ):
        sheet.picture(shown[before][0], left, top, HALF, HALF)
        sheet.picture(shown[after][0], right, top, HALF, HALF)
        sheet.arrow(SIZE // 2, top + HALF // 2)
    return sheet.image


def conversation(shown: dict[str, list[Any]], prompts: list[str]) -> Image.Image:
    sheet = Sheet()
    side = 196
    *_, answer = shown["SEED Chat View"][-1].split("Assistant: ")
    left, right = SIZE // 2 - side - MARGIN, SIZE // 2 + MARGIN
    sheet.picture(shown["Before"][0], left, MARGIN, side, side)
    sheet.picture(shown["After"][0], right, MARGIN, side, side)
    sheet.arrow(SIZE // 2, MARGIN + side // 2)
    sheet.words(prompts[1], 272, 32, SOFT)
    sheet.words(prompts[2], 326, 32, SOFT)
    sheet.bubble(answer.strip(), 424)
    return sheet.image


def variations(shown: dict[str, list[Any]], prompts: list[str]) -> Image.Image:
    sheet = Sheet()
    gap = 8
    side = (SIZE - 2 * MARGIN - 3 * gap) // 4
    height = 3 * side + 2 * gap
    for i, picture in enumerate(shown["With noise_level 0"]):
        row, column = divmod(i, 4)
        place = MARGIN + column * (side + gap), MARGIN + row * (side + gap)
        sheet.picture(picture, *place, side, side)
    sheet.words(prompts[0], (SIZE + MARGIN + height) // 2 - 24, 34)
    sheet.words("temperature, seed, noise_level", (SIZE + MARGIN + height) // 2 + 24, 26, SOFT)
    return sheet.image


def story(shown: dict[str, list[Any]], _: list[str]) -> Image.Image:
    sheet = Sheet()
    right = 2 * MARGIN + HALF
    *_, last_words = shown["SEED Chat View"][-1].split("Assistant: ")
    places = ((MARGIN, MARGIN), (right, MARGIN), (MARGIN, right))
    for picture, place in zip(shown["The pictures of the story"], places, strict=True):
        sheet.picture(picture, *place, HALF, HALF)
    sheet.card(last_words, right, right, HALF, HALF)
    return sheet.image


def keep_codes(shown: dict[str, list[Any]], _: list[str]) -> Image.Image:
    sheet = Sheet()
    right = 2 * MARGIN + HALF
    sheet.picture(shown["Before"][0], MARGIN, MARGIN, HALF, HALF)
    sheet.picture(shown["After"][0], right, MARGIN, HALF, HALF)
    sheet.arrow(SIZE // 2, MARGIN + HALF // 2)
    codes = shown["Codes before and after"][0]
    upper = codes.crop((0, 0, codes.width, 264))  # the first 16 codes of both
    width = HALF * upper.width // upper.height
    sheet.picture(upper, (SIZE - width) // 2, right, width, HALF)
    return sheet.image


def lora(shown: dict[str, list[Any]], prompts: list[str]) -> Image.Image:
    sheet = Sheet()
    side = (SIZE - 5 * MARGIN) // 4
    for row, title in enumerate(("Without the LoRA", "With the LoRA")):
        top = MARGIN + row * (side + 80)
        for column, picture in enumerate(shown[title]):
            sheet.picture(picture, MARGIN + column * (side + MARGIN), top, side, side)
        sheet.words(title, top + side + 34, 30, SOFT)
    sheet.words(prompts[0], SIZE - 44, 34)
    return sheet.image


def get_models(shown: dict[str, list[Any]], prompts: list[str]) -> Image.Image:
    sheet = Sheet()
    names = ("tokenizer", "SEED-LLaMA", "decoder")
    height = (HALF - 2 * MARGIN) // 3
    for i, name in enumerate(names):
        sheet.card(name, MARGIN, 70 + i * (height + MARGIN), HALF, height, size=26)
    sheet.picture(shown["Your drawing"][0], 2 * MARGIN + HALF, 70, HALF, HALF)
    sheet.arrow(SIZE // 2, 70 + HALF // 2)
    sheet.words("Get the real models", 370, 38)
    sheet.words("36 GB to download, 11 GB stay", 428, 28, SOFT)
    return sheet.image


LAYOUTS = {
    "reconstruct": reconstruct,
    "ask_about_a_picture": ask,
    "text_to_image": text_to_image,
    "edit_by_instruction": edit,
    "caption_a_folder": caption,
    "draft_then_your_model": draft,
    "keep_the_layout": layout,
    "mix_two_pictures": mix,
    "conversation": conversation,
    "variations_grid": variations,
    "story": story,
    "keep_codes": keep_codes,
    "lora": lora,
    "get_the_real_models": get_models,
}
# What paints, in words, and what is said below.
COMPOSED = {
    "native_blend": ("KSampler with SD 2.1 unCLIP", "Between two pictures"),
    "native_unclip": ("KSampler with SD 2.1 unCLIP", "Codes in your own graph"),
    "ipadapter_plus_sdxl": ("SDXL and the pack IPAdapter_plus", "Codes guide SDXL"),
    "ipadapter_sd15": ("Any SD 1.5 model", "Codes guide your model"),
    "ipadapter_sdxl": ("Any SDXL model", "Codes guide your model"),
    "seed1_stable_diffusion": ("Any Stable Diffusion 1.x", "Codes as a prompt"),
}


def compose(name: str) -> Image.Image:
    """The sample pictures, 32 codes as empty places, and in words what paints from them."""
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    samples = [n for n in workflow["nodes"] if n["type"] == "SEEDSamplePicture" and not n["mode"]]
    painter, line = COMPOSED[name]
    sheet = Sheet()
    places = (MARGIN, 2 * MARGIN + HALF)
    for sample, left in zip(samples, places, strict=False):
        with Image.open(SAMPLES / f"{sample['widgets_values'][0]}.png") as picture:
            sheet.picture(picture.convert("RGB"), left, MARGIN, HALF, HALF)
    if len(samples) == 1:
        sheet.card(painter, places[1], MARGIN, HALF, HALF)
        sheet.arrow(SIZE // 2, MARGIN + HALF // 2)
    side = (SIZE - 2 * MARGIN) // 16
    for i in range(32):
        left, top = MARGIN + i % 16 * side, HALF + 3 * MARGIN + i // 16 * side
        sheet.draw.rounded_rectangle((left + 3, top + 3, left + side - 3, top + side - 3), 5, CARD)
    sheet.words(line, 404, 38)
    sheet.words("needs models to download", 458, 26, SOFT)
    return sheet.image


def stand_ins(models: Path) -> None:
    """Empty files of the right names: the frontend then reads the widgets as on a full install."""
    for name in COMPOSED:
        workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
        for model in (m for n in workflow["nodes"] for m in n["properties"].get("models", [])):
            folder = models / model["directory"]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / model["name"]).touch()


def shown_by_title(frontend: Any, outputs: dict[str, Any]) -> dict[str, list[Any]]:
    """Pictures, then texts of every output node, under the node's title."""
    titles = frontend.page.evaluate("app.rootGraph._nodes.map((n) => [String(n.id), n.title])")
    found: dict[str, list[Any]] = {}
    for node, title in titles:
        output = outputs.get(node) or {}
        files = [frontend.server.picture(image) for image in output.get("images", [])]
        pictures = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        found[title] = pictures + list(output.get("text", []))
    return found


def refresh(frontend: Any, name: str) -> None:
    """Write one template's twin and its thumbnail, running it where that can be done."""
    frontend.load_template(name)
    prompt = frontend.api_prompt()
    text = json.dumps(prompt, indent=1, ensure_ascii=False) + "\n"
    (HERE / "api" / f"{name}.json").write_text(text, encoding="utf-8")
    picture = compose(name) if name in COMPOSED else lay_out(frontend, name, prompt)
    picture.save(WORKFLOWS / f"{name}.jpg", quality=90, optimize=True)


def lay_out(frontend: Any, name: str, prompt: dict[str, Any]) -> Image.Image:
    """The thumbnail of a run of the loaded template."""
    turns = [node for node in prompt.values() if node["class_type"] == "SEEDGenerate"]
    wishes = [turn["inputs"]["prompt"] for turn in turns]
    words = [prompt[w[0]]["inputs"]["value"] if isinstance(w, list) else w for w in wishes]
    return LAYOUTS[name](shown_by_title(frontend, frontend.run(300)), words)


@contextlib.contextmanager
def open_frontend(vue_nodes: bool) -> Iterator[Any]:
    """The real frontend on a server of its own that has, or seems to have, all that templates need."""
    comfy = load_beside(TESTS / "comfy_server.py")
    drive = load_beside(TESTS / "browser" / "frontend.py")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        packs = {comfy.PACK_NAME: comfy.PACK_ROOT, "ipadapter": IPADAPTER_DOUBLE}
        newest = os.environ.get("COMFYUI_FRONTEND_PATH")  # as for the tests of the browser
        args = (*comfy.ON_THE_PROCESSOR, *(("--front-end-root", newest) if newest else ()))
        server = comfy.ComfyServer(comfy.find_checkout(), Path(folder) / "comfy", packs, args)
        stand_ins(server.base_dir / "models")
        server.start()
        try:
            with drive.launch(drive.find_chromium(), Path(folder) / "profile") as context:
                yield drive.Frontend(context, server, vue_nodes)
        finally:
            server.stop()


def main() -> None:
    with open_frontend(vue_nodes=False) as frontend:
        for name in sys.argv[1:] or (*LAYOUTS, *COMPOSED):
            refresh(frontend, name)
            print(f"{name}: thumbnail and API twin written")


if __name__ == "__main__":
    main()
