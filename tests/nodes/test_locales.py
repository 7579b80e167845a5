"""The nodes in other languages: complete, in the right script, true to the English of the schemas."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

LOCALES = Path(__file__).resolve().parents[2] / "locales"
# Folder, as the frontend names the language, and a letter or word that its texts are written with.
SCRIPTS = {
    "zh": r"[\u4e00-\u9fff]",
    "ja": r"[\u3040-\u30ff]",
    "ko": r"[\uac00-\ud7af]",
    "fr": r"(?i)[à-ÿ]|\b(?:le|la|les|un|une|des|de|du|pour|sur|avec|et|par|d’\w+|l’\w+)\b",
}
# The frontend reads messages with vue-i18n, to which these are syntax.
I18N_SYNTAX = re.compile(r"[{}@|]")
each_language = pytest.mark.parametrize("language", SCRIPTS)


def read(language: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def english(pack: Any) -> dict[str, Any]:
    """What there is to translate, in the form of a locale file."""
    found = {}
    for node_id, node in pack.nodes_by_id.items():
        schema = node.GET_SCHEMA()
        inputs = {i.id: {"name": i.id, "tooltip": i.tooltip} for i in schema.inputs}
        if any(i.control_after_generate for i in schema.inputs if i.id == "seed"):
            inputs["control_after_generate"] = {"name": "control after generate"}
        found[node_id] = {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": inputs,
            "outputs": {
                str(number): {"name": output.id, "tooltip": output.tooltip}
                for number, output in enumerate(schema.outputs)
            },
        }
    return found


def texts(definitions: dict[str, Any], path: str = "") -> dict[str, str]:
    """Every text by its path, as the frontend looks it up."""
    found: dict[str, str] = {}
    for key, value in definitions.items():
        here = f"{path}.{key}".removeprefix(".")
        found |= texts(value, here) if isinstance(value, dict) else {here: value}
    return found


def sentences(definitions: dict[str, Any]) -> dict[str, str]:
    """Tooltips and descriptions, without names."""
    return {k: v for k, v in texts(definitions).items() if k.endswith(("tooltip", "description"))}


def facts(text: str) -> set[str]:
    """Numbers, files and marks, which a translation must keep. Widgets it calls by its own names."""
    return set(re.findall(r"\d+(?:\.\d+)?|<[a-z_0-9]+>|\b\w+[./]\w[\w./]*\w", text))


def test_there_is_a_folder_for_each_language():
    assert {folder.name for folder in LOCALES.iterdir()} == set(SCRIPTS)


@each_language
def test_every_node_input_and_output_has_a_name_and_a_tooltip(pack, language):
    assert texts(read(language)).keys() == texts(english(pack)).keys()
    assert [path for path, text in texts(read(language)).items() if not text.strip()] == []


@each_language
def test_sentences_are_in_the_language(pack, language):
    source = sentences(english(pack))
    wrong = [
        path
        for path, text in sentences(read(language)).items()
        if text == source[path] or not re.search(SCRIPTS[language], text)
    ]
    assert wrong == []


@each_language
def test_a_name_tells_that_the_node_is_of_seed_and_which_one_it_is(language):
    names = [node["display_name"] for node in read(language).values()]
    assert len(set(names)) == len(names)
    assert [name for name in names if "SEED" not in name] == []
    assert [name for name in names if len(name) > 40] == []


@each_language
def test_labels_fit_on_a_widget(language):
    labels = {k: v for k, v in texts(read(language)).items() if k.endswith(".name")}
    assert {path: label for path, label in labels.items() if len(label) > 28} == {}


@each_language
def test_no_fact_of_the_english_is_missing(pack, language):
    """Numbers, files and marks: what a tooltip is read for, and what shows that it is out of date."""
    translated = sentences(read(language))
    missing = {
        path: lost
        for path, text in sentences(english(pack)).items()
        if (lost := {fact for fact in facts(text) if fact not in translated[path]})
    }
    assert missing == {}


@each_language
def test_choices_keep_their_names(pack, language):
    """The options of a combo are not translated, so the tooltip must call them what they are."""
    translated = read(language)
    missing = []
    for node_id, node in pack.nodes_by_id.items():
        for widget in node.GET_SCHEMA().inputs:
            tooltip = translated[node_id]["inputs"][widget.id]["tooltip"]
            for option in getattr(widget, "options", None) or ():
                if re.search(rf"\b{option}\b", widget.tooltip) and option not in tooltip:
                    missing.append((node_id, widget.id, option))
    assert missing == []


@each_language
def test_no_text_is_syntax_to_the_frontend(language):
    assert {k: v for k, v in texts(read(language)).items() if I18N_SYNTAX.search(v)} == {}
