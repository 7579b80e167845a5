"""Regenerates nodes/web/docs/images/*.jpg: each node in a graph, as the real frontend draws it.

    python tests/workflows/make_help_pictures.py [NODE_ID ...]

needs what make_thumbnails.py needs. A template that holds the node is opened, and run where it needs
no download; the picture is the node with the ends of its wires.
"""

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

HERE = Path(__file__).parent
PICTURES = HERE.parents[1] / "nodes" / "web" / "docs" / "images"
# The template where each node is seen best. Of several nodes of the type, the first is pictured.
PLACES = {
    "SEEDSamplePicture": "reconstruct",
    "SEEDTokenizerLoader": "reconstruct",
    "SEEDLLaMALoader": "ask_about_a_picture",
    "SEEDServerLoader": "get_the_real_models",
    "SEEDDecoderLoader": "reconstruct",
    "SEEDLoRALoader": "lora",
    "SEEDEncode": "reconstruct",
    "SEEDGenerate": "ask_about_a_picture",
    "SEEDChatView": "conversation",
    "SEEDDecode": "reconstruct",
    "SEEDCodesToEmbedding": "native_unclip",
    "SEEDCodesToIPAdapter": "ipadapter_plus_sdxl",
    "SEEDCodesToConditioning": "seed1_stable_diffusion",
    "SEEDIPAdapter": "ipadapter_sd15",
    "SEEDBlendEmbeddings": "native_blend",
    "SEEDCodesToText": "keep_codes",
    "SEEDTextToCodes": "keep_codes",
    "SEEDMixCodes": "mix_two_pictures",
    "SEEDBatchCodes": "variations_grid",
    "SEEDSelectCodes": "variations_grid",
    "SEEDPreviewCodes": "edit_by_instruction",
    "SEEDSaveCodes": "keep_codes",
    "SEEDLoadCodes": "keep_codes",
    "SEEDGetModel": "get_the_real_models",
}
ASIDE, ABOVE = 130, 36  # pixels of the graph shown around a node: wires and what they lead to
HIGHEST = 620  # pixels of a node; a higher one is pictured smaller
# Lets every node that takes a file of the user's take the first there is.
CHOOSE_FILES = """async () => {
    await app.refreshComboInNodes();
    const takers = ["SEEDLoadCodes", "SEEDServerLoader"];
    for (const node of app.rootGraph._nodes.filter((node) => takers.includes(node.type)))
        node.widgets[0].value = node.widgets[0].options.values[0];
}"""
# Puts the node in the middle of the window, at most as high as told, and tells its box there.
CENTRE = """async ([type, highest]) => {
    const node = app.rootGraph._nodes.find((node) => node.type === type);
    const canvas = app.canvas, [x, y, width, height] = node.boundingRect;
    const { clientWidth, clientHeight } = canvas.canvas;
    canvas.deselectAll();
    node.title = node.constructor.title;  // a template may call it by what it is for
    node.mode = 0;  // a node that the template switches off is pictured switched on
    const scale = Math.min(1, highest / height);
    canvas.ds.scale = scale;
    canvas.ds.offset = [
        clientWidth / scale / 2 - x - width / 2, clientHeight / scale / 2 - y - height / 2];
    canvas.setDirty(true, true);
    return [
        (clientWidth - width * scale) / 2, (clientHeight - height * scale) / 2,
        width * scale, height * scale];
}"""


def load_beside(name: str) -> ModuleType:
    """Import a script of this folder: nothing under tests is on sys.path."""
    spec = importlib.util.spec_from_file_location(f"help_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def choose_files(frontend: Any) -> None:
    """Do what templates tell their user to: move what keep_codes saved to input, put a server file
    where it belongs, and choose them."""
    folder = frontend.server.base_dir
    server = folder / "models" / "seed_llm" / "studio.server.json"
    server.parent.mkdir(exist_ok=True)
    server.write_text("{}", encoding="utf-8")
    for path in (folder / "output" / "codes").glob("*.safetensors"):
        shutil.move(path, folder / "input" / path.name)
    frontend.page.evaluate(CHOOSE_FILES)


def photograph(frontend: Any, node_id: str) -> None:
    """Write the picture of one node of the open graph."""
    left, top, width, height = frontend.page.evaluate(CENTRE, [node_id, HIGHEST])
    frontend.page.wait_for_timeout(1000)  # until Vue has moved the nodes
    area = {
        "x": left - ASIDE,
        "y": top - ABOVE,
        "width": width + 2 * ASIDE,
        "height": height + 2 * ABOVE,
    }
    path = PICTURES / f"{node_id}.png"
    frontend.page.screenshot(path=str(path), clip=area)
    with Image.open(path) as picture:
        picture.convert("RGB").save(path.with_suffix(".jpg"), quality=85, optimize=True)
    path.unlink()


def main() -> None:
    thumbnails = load_beside("make_thumbnails")
    PICTURES.mkdir(exist_ok=True)
    wanted = sys.argv[1:] or list(PLACES)
    with thumbnails.open_frontend(vue_nodes=True) as frontend:
        for template in sorted({PLACES[node_id] for node_id in wanted}):
            frontend.load_template(template)
            if template in thumbnails.LAYOUTS:
                frontend.run(300)
                frontend.settle()
            choose_files(frontend)
            for node_id in (n for n in wanted if PLACES[n] == template):
                photograph(frontend, node_id)
                print(f"{node_id}: pictured in {template}")


if __name__ == "__main__":
    main()
