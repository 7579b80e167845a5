"""What people are told before a model is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .downloads import DOWNLOADS, HubSource, Source, path_of
from .outline import room_on_disk
from .plan import UNFINISHED, Plan, free_room


def describe(plan: Plan) -> Iterator[str]:
    """Yield lines that say what would be fetched, from where, with which licence, and to where."""
    yield f"{plan.name} into {plan.folder}"
    for source in DOWNLOADS[plan.name].sources:
        files = [file for of, file in plan.files if of is source]
        yield from _describe_source(source, files[0].commit)
        for file in files:
            there = ", is there already" if (plan.folder / file.name).exists() else ""
            yield f"    {file.name}, {show_size(file.size)}{there}"
    yield f"to fetch: {show_size(plan.needed)}; free on that disk: {show_size(plan.free)}"


def describe_choice(
    name: str, precision: str | None, folder: Path, plan: Plan | None = None
) -> Iterator[str]:
    """Yield lines on what would be fetched, what stays, and where it is from; asks no server.

    Args:
        name: a key of ``DOWNLOADS``.
        precision: that it would be converted to; None as it is published.
        folder: for models of its kind.
        plan: with sizes that ``DOWNLOADS`` does not know.

    Raises:
        DownloadError: the disk of the folder is not there.
    """
    download, free = DOWNLOADS[name], free_room(folder)
    comes = download.published_gigabytes if plan is None else plan.size / 1e9
    stays = comes if precision is None else download.gigabytes[precision]
    begun = [*folder.glob(f"{UNFINISHED}/**/*"), *(folder / name).glob(f"{UNFINISHED}/**/*")]
    there = sum(room_on_disk(file) for file in begun if file.is_file())
    yield f"Download: {about(comes)}"
    yield f"On the disk in the end: {about(stays)}"
    yield f"  {path_of(name, folder, precision)}"
    if precision is not None:
        yield "While it comes, also one of the published files"
    yield f"Free on that disk: {show_size(free)}" + (
        ", too little" if free + there < 1e9 * (stays or 0) else ""
    )
    if there:
        yield f"Unfinished downloads there: {show_size(there)}"
    for source in download.sources:
        files = [] if plan is None else [file for of, file in plan.files if of is source]
        first, *more = source.files
        named = f"{first} and {len(more)} more" if len(more) > 2 else ", ".join(source.files)
        size = sum(file.size for file in files) / 1e9 if files else source.gigabytes
        yield f"- {named}: {about(size)}"
        yield from _describe_source(source, files[0].commit if files else None)


def _describe_source(source: Source, commit: str | None) -> Iterator[str]:
    yield f"  from {source.page}" + (f" ({source.remark})" if source.remark else "")
    if isinstance(source, HubSource):
        commit = commit or source.commit
        is_pinned = source.commit is not None and str(commit).startswith(source.commit)
        pinned = "" if is_pinned else ", which this pack does not pin"
        yield f"  commit {commit}{pinned}" if commit else "  the newest commit: none is pinned"
    yield f"  licence: {source.licence}"


def about(gigabytes: float | None) -> str:
    """Return a rounded size."""
    if gigabytes is None:
        return "its page does not say how large"
    return f"about {gigabytes:.1f} GB" if gigabytes >= 0.1 else f"about {1000 * gigabytes:.1f} MB"


def describe_all() -> Iterator[str]:
    """Yield lines that name every model, without asking a server."""
    for name, download in DOWNLOADS.items():
        whole = download.published_gigabytes
        total = "" if whole is None else f"about {whole:.1f} GB "
        yield f"{name}: {total}into models/{download.folder}"
        for source in download.sources:
            remark = f"; {source.remark}" if source.remark else ""
            yield f"    {source.page} (licence: {source.licence}{remark})"


def show_size(size: int) -> str:
    """Return a size in the units that Hugging Face's pages use."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size} bytes"
