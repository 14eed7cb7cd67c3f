from pathlib import Path


def write_page(report: dict, out: Path) -> None: ...
