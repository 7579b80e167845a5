"""What people are told before a model is fetched."""

from __future__ import annotations

from collections.abc import Iterator

from .downloads import DOWNLOADS, HubSource
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
