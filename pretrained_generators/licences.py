"""Which licences of training data allow commercial use of what was trained on it."""

from __future__ import annotations

# SPDX identifiers. What is not here (none stated, research only, non-commercial, a note in words) does not.
COMMERCIAL = frozenset(
    {
        "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0",
        "CC0-1.0", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0", "ISC", "MIT", "ODC-By-1.0", "PDDL-1.0", "Unlicense",
    }
)  # fmt: skip
_KNOWN = frozenset(licence.lower() for licence in COMMERCIAL)


def permits_commercial_use(licence: str) -> bool:
    """Of an SPDX identifier, in any case of letters, as the Hub writes them; several are parted by commas."""
    return all(part.strip().lower() in _KNOWN for part in licence.split(","))
