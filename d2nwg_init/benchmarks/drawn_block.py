"""Text between two markers of a document, which a command draws anew from a results file."""

from __future__ import annotations


def replace_block(document: str, name: str, block: str) -> str:
    """`document` with `block` between <!-- NAME:start --> and <!-- NAME:end -->."""
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    before, rest = document.split(start)
    _, after = rest.split(end)
    return f"{before}{start}\n{block}\n{end}{after}"
