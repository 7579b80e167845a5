"""What people are told before a model is fetched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from .downloads import DOWNLOADS, HubSource, path_of
from .plan import Plan


def describe(plan: Plan) -> Iterator[str]:
    """Yield lines that say what would be fetched, from where, with which licence, and to where."""
    yield f"{plan.name} into {plan.folder}"
    for source in DOWNLOADS[plan.name].sources:
        files = [file for of, file in plan.files if of is source]
        yield f"  from {source.page}" + (f" ({source.remark})" if source.remark else "")
        if isinstance(source, HubSource):
            commit = files[0].commit
            is_pinned = source.commit is not None and str(commit).startswith(source.commit)
            yield f"  commit {commit}" + ("" if is_pinned else ", which this pack does not pin")
        yield f"  licence: {source.licence}"
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
        plan: with the exact sizes; without one, those of ``DOWNLOADS`` are told, which are rounded.
    """
    download, path = DOWNLOADS[name], path_of(name, folder, precision)
    published = about(download.published_gigabytes)
    if plan is not None:
        published = show_size(plan.size)
    kept = published if precision is None else about(download.gigabytes[precision])
    there = next(each for each in (path, *path.parents) if each.exists())
    yield f"Download: {published}"
    yield f"On the disk in the end: {kept}"
    yield f"  {path}"
    if precision is not None:
        yield "While it comes, also one of the published files"
    yield f"Free on that disk: {show_size(shutil.disk_usage(there).free)}"
    for source in download.sources:
        files = [] if plan is None else [file for of, file in plan.files if of is source]
        first, *more = source.files
        named = f"{first} and {len(more)} more" if len(more) > 2 else ", ".join(source.files)
        size = show_size(sum(file.size for file in files)) if files else about(source.gigabytes)
        yield f"- {named}: {size}"
        yield f"  from {source.page}" + (f" ({source.remark})" if source.remark else "")
        if isinstance(source, HubSource):
            commit = files[0].commit if files else source.commit
            pinned = "" if source.commit else ", which this pack does not pin"
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
