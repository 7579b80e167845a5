"""Where a model goes: the folder in which ComfyUI looks for its kind.

Source: ``utils/extra_config.py`` and ``folder_paths.py`` of ComfyUI for extra_model_paths.yaml; the
desktop version keeps the same settings in a file of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..command import PACK
from ..errors import DownloadError

_EXTRA = "extra_model_paths.yaml"
_DESKTOP = "extra_models_config.yaml"
_ADVICE = "Say where the models are with --models /path/to/ComfyUI/models"


def find_folder(place: str, models: Path | None, into: Path | None, pack: Path = PACK) -> Path:
    """Return the folder of a model.

    Args:
        place: the kind's folder and the model's own below it: ``seed_llm/seed-llama-8b-sft``.
        models: a folder such as ComfyUI's ``models``, if one is given.
        into: the folder of the kind, such as ``models/seed_llm``, if that is given.
        pack: the folder of this pack, as ComfyUI names it.

    Raises:
        DownloadError: a folder does not exist, this pack lies outside a ComfyUI, or a file of
            settings cannot be read.
    """
    kind, _, own = place.partition("/")
    if into is not None:
        return _existing(into, "--into") / own
    if models is not None:
        return _existing(models, "--models") / kind / own
    around = find_comfyui(pack)
    named = [*_extra_folders(around / _EXTRA, kind), *_desktop_folders(around, kind)]
    return (named[0] if named else around / "models" / kind) / own


def find_comfyui(pack: Path = PACK) -> Path:
    """Return the folder around ``custom_nodes`` and ``models``; the pack may lie behind a link.

    Raises:
        DownloadError: this pack lies outside a ComfyUI.
    """
    typed = Path(os.environ.get("PWD", pack))  # a shell knows the links it went through
    places = [pack, *(here for here in (typed, *typed.parents) if _is_same(here, pack))]
    for custom_nodes in [place.parent for place in (*places, pack.resolve())]:
        models = custom_nodes.parent / "models"
        if models.is_symlink() and not models.exists():
            raise DownloadError(f"{models} is a link to {os.readlink(models)}, which is not there")
        is_comfyui = (
            custom_nodes.name == "custom_nodes" or (custom_nodes.parent / "main.py").exists()
        )
        if is_comfyui and models.is_dir():
            return custom_nodes.parent
    raise DownloadError(f"{pack} is not in the custom_nodes of a ComfyUI. {_ADVICE}")


def _is_same(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return False


def _existing(folder: Path, option: str) -> Path:
    if not folder.is_dir():
        is_file = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DownloadError(f"{option}: the folder {folder} {is_file}")
    return folder.absolute()


def _desktop_folders(around: Path, kind: str) -> list[Path]:
    """Return what the desktop version's settings name, if they are of this ComfyUI."""
    home = Path.home()
    settings = {
        "win32": Path(os.environ.get("APPDATA", home / "AppData" / "Roaming")),
        "darwin": home / "Library" / "Application Support",
    }.get(sys.platform, Path(os.environ.get("XDG_CONFIG_HOME", home / ".config")))
    file = settings / "ComfyUI" / _DESKTOP
    bases = [base for base, _ in _sections(file) if base is not None]
    return _extra_folders(file, kind) if any(_is_same(b, around) for b in bases) else []


def _extra_folders(file: Path, kind: str) -> list[Path]:
    """Return the folders that a file of settings names for a kind, in ComfyUI's order."""
    folders: list[Path] = []
    for base, section in _sections(file):
        for line in filter(None, str(section.get(kind) or "").split("\n")):
            folder = Path(os.path.normpath((base or file.parent.absolute()) / line))
            is_default = bool(section.get("is_default"))
            if folder in folders and not is_default:
                continue
            folders = [other for other in folders if other != folder]
            folders.insert(0 if is_default else len(folders), folder)
    return folders


def _sections(file: Path) -> Iterator[tuple[Path | None, Mapping[str, Any]]]:
    """Yield each section of a file of settings with its base path; of no file, none."""
    if not file.is_file():
        return
    try:
        import yaml  # ComfyUI needs it, too

        sections = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except ImportError as error:
        raise DownloadError(f"{file} cannot be read without PyYAML. {_ADVICE}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DownloadError(f"{file} cannot be read: {reason}. {_ADVICE}") from error
    for section in sections.values() if isinstance(sections, dict) else ():
        if not isinstance(section, dict):
            continue
        base = section.get("base_path")
        if base is None:
            yield None, section
        else:
            expanded = os.path.expandvars(os.path.expanduser(str(base)))
            yield file.parent.absolute() / expanded, section
