"""The host's folders: models, input and output."""

import itertools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import folder_paths

from ...seed_core.errors import CodesError

_OUTPUT_DEPTH = 4  # folders below the output folder, such as codes/2026/11


def register_model_folders(suffixes: dict[str, set[str]]) -> None:
    """Add our folders to the host's, after any that extra_model_paths.yaml named.

    What another pack said of a folder that it has too stays as it is.
    """
    for name, known in suffixes.items():
        folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name))
        paths, said = folder_paths.folder_names_and_paths[name]
        folder_paths.folder_names_and_paths[name] = (paths, said or known)


def model_folders(name: str) -> list[str]:
    """Every place the host looks for models of this kind."""
    return folder_paths.get_folder_paths(name)


def input_files(suffix: str) -> list[str]:
    """Names of the files right in the input folder, as the host's own loaders list them."""
    folder = Path(folder_paths.get_input_directory())
    if not folder.is_dir():
        return []
    return sorted(f.name for f in folder.iterdir() if f.suffix == suffix and f.is_file())


def output_files(suffix: str) -> list[Path]:
    """The files of the output folder and the folders in it, as Save nodes fill them."""
    root = folder_paths.get_output_directory()
    found = []
    for folder, folders, files in os.walk(root):  # passes over what cannot be read
        depth = len(Path(folder).relative_to(root).parts)
        folders[:] = [f for f in folders if depth < _OUTPUT_DEPTH and not f.startswith(".")]
        found += [Path(folder, name) for name in files if name.endswith(suffix)]
    return sorted(found)


def output_name(path: Path) -> str:
    """What the host calls a file of the output folder."""
    return f"{path.relative_to(folder_paths.get_output_directory()).as_posix()} [output]"


def find_file(name: str) -> Path:
    """The path of a file in the input folder (or of "name [output]" in the output folder).

    Raises:
        CodesError: there is none, or the name leads out of the folder.
    """
    folders = folder_paths.get_input_directory(), folder_paths.get_output_directory()
    try:
        path = Path(folder_paths.get_annotated_filepath(name)).resolve()
        # Hosts before 0.29 let a name lead out of the folder.
        if path.is_file() and any(path.is_relative_to(Path(root).resolve()) for root in folders):
            return path
    except ValueError:
        pass  # the name leads out of the folder, or is not a path
    folder = folders[name.endswith("[output]")]
    raise CodesError(
        f"found no file '{name}' in {folder}. Choose one from the list, or drop a file of codes on "
        "the node. A file that was saved just now is in the list after R was pressed."
    )


def new_output_file(prefix: str, suffix: str) -> tuple[Path, dict[str, str]]:
    """A path in the output folder that no file has yet, and what the frontend is told of it."""
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory()
    )
    # For a prefix that ends in a folder the host starts at 1 each time, and calls an empty one ".".
    name = "SEED" if name == "." else name
    names = (f"{name}_{number:05}_{suffix}" for number in itertools.count(counter))
    file = next(file for file in names if not (Path(folder) / file).exists())
    return Path(folder) / file, {"filename": file, "subfolder": subfolder, "type": "output"}


def words(said: Sequence[str]) -> dict[str, list[object]]:
    """What a node says, for the frontend: on the node, and as a file for app views."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(".txt", "SEED_", folder)
    with open(handle, "w", encoding="utf-8") as file:
        file.write("\n\n".join(said))
    kept = {"filename": Path(name).name, "subfolder": "", "type": "temp"}
    return {"text": list(said), "files": [kept]}
