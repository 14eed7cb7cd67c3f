"""Ways to damage a bundle: its JSON, the header and the tensors of its weights, its files.

Each takes a random state and the bundle's files by name, and changes the latter in place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import timm

from pretrained_generators.bundle_files import CONFIG, WEIGHTS

Files = dict[str, bytes]
STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 3, 17, 255, 2**31, 2**63, 10**30, 0.5, -1.5, 1e308, float("nan"), float("inf"),
    "", "x", "..", "../../etc/passwd", "/etc/passwd", "x" * 5000, "\x1b[2J", "\ud800", "\x00", "F32", "I8", "BF16",
    "U64", "test_resnet", "torchvision:resnet18", [], [0], [[]], {}, {"x": 1}, [1] * 1000,
)  # fmt: skip
ARGUMENTS = (
    "depth", "embed_dim", "num_heads", "patch_size", "img_size", "window_size", "mlp_ratio", "features_only", "device",
    "pretrained", "checkpoint_path",
)  # fmt: skip
NOTHING_TO_CHANGE = (KeyError, ValueError, IndexError, TypeError, AttributeError, RecursionError)  # after others
HALVES = (0x7C00, 0xFC00, 0x7E00, 0x7BFF, 0xFBFF, 0x0001, 0x8000)  # infinite, NaN, largest, smallest, minus zero


def mutate(random: Random, files: Files) -> bool:
    """One to three mutations; in nine of ten cases sizes and hashes are recomputed after them, so that what comes
    behind their check is reached. Returns whether they were."""
    for mutation in random.choices(MUTATIONS, k=random.choice((1, 1, 2, 3))):
        with contextlib.suppress(*NOTHING_TO_CHANGE):
            mutation(random, files)
    return random.random() < 0.9 and _rehash(files)


def _rehash(files: Files) -> bool:
    try:
        config = json.loads(files[CONFIG])
        for told in config["files"]:
            contents = files[told["name"]]
            told |= {"bytes": len(contents), "sha256": hashlib.sha256(contents).hexdigest()}
    except NOTHING_TO_CHANGE:
        return False
    files[CONFIG] = json.dumps(config).encode()
    return True


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of nested JSON."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, k) for k in keys] + [place for k in keys for place in _places(value[k])]


def _change_json(random: Random, value: Any) -> None:
    container, key = random.choice(_places(value))
    other, name = random.choice(_places(value))
    what = random.randrange(5)
    if what == 0:
        del container[key]
    elif what == 1 and isinstance(container, dict):
        container[random.choice(("x", "", "format", str(key).upper(), "../x"))] = container.pop(key)
    elif what == 2:
        container[key] = other[name]
    elif what == 3 and type(container[key]) in (int, float):
        container[key] = random.choice((container[key] + 1, container[key] - 1, container[key] * 2, -container[key]))
    else:
        container[key] = random.choice(STRANGE)


def config_value(random: Random, files: Files) -> None:
    config = json.loads(files[CONFIG])
    _change_json(random, config)
    files[CONFIG] = json.dumps(config).encode("utf-8", "surrogatepass")


def config_backbone(random: Random, files: Files) -> None:
    """Another model, an argument of its factory, or both."""
    config = json.loads(files[CONFIG])
    backbone = config["generator"]["backbone"]
    if random.random() < 0.6:
        backbone["model"] = random.choice(timm.list_models())
    if random.random() < 0.6:
        values = (-1, 0, 1, 3, 1000, 16384, 10**12, "x", "cpu", True, 0.5)
        backbone["args"][random.choice(ARGUMENTS)] = random.choice(values)
    files[CONFIG] = json.dumps(config).encode()


def config_sizes(random: Random, files: Files) -> None:
    """One of the numbers that say how large the networks are, or how many blocks they have."""
    config = json.loads(files[CONFIG])
    generator = config["generator"]
    part = random.choice((generator, generator["layout"], *(generator[k] for k in ("vae", "encoder", "diffusion"))))
    part[random.choice([k for k, v in part.items() if type(v) is int])] = random.choice((17, 4096, 10**6, 10**12))
    if random.random() < 0.2:
        block = random.choice(generator["layout"]["blocks"])
        generator["layout"]["blocks"] += [block | {"name": f"x.{i}", "rank": 1} for i in range(5000)]
    files[CONFIG] = json.dumps(config).encode()


def config_text(random: Random, files: Files) -> None:
    files[CONFIG] = _damaged(random, files[CONFIG], len(files[CONFIG]))


def config_nested(random: Random, files: Files) -> None:
    depth = random.choice((10, 1000, 100_000))
    files[CONFIG] = b"[" * depth + files[CONFIG] + b"]" * depth


def header_value(random: Random, files: Files) -> None:
    header, data = _split(files[WEIGHTS])
    _change_json(random, header)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    files[WEIGHTS] = struct.pack("<Q", len(text)) + text + data


def header_bytes(random: Random, files: Files) -> None:
    files[WEIGHTS] = _damaged(random, files[WEIGHTS], 8 + _header_length(files[WEIGHTS]))


def header_length(random: Random, files: Files) -> None:
    length = _header_length(files[WEIGHTS])
    length = random.choice((0, 1, 7, length - 1, length + 1, 2**20, 2**31, 2**63, 2**64 - 1))
    files[WEIGHTS] = (length % 2**64).to_bytes(8, "little") + files[WEIGHTS][8:]


def tensor_bytes(random: Random, files: Files) -> None:
    contents = bytearray(files[WEIGHTS])
    start = 8 + _header_length(files[WEIGHTS])
    for _ in range(random.choice((1, 10, 1000))):
        place = random.randrange(start, len(contents) - 1)
        contents[place] = random.randrange(256)
    files[WEIGHTS] = bytes(contents)


def tensor_numbers(random: Random, files: Files) -> None:
    """Halves that are special: one of a tensor, or all of it."""
    header, data = _split(files[WEIGHTS])
    begin, end = random.choice([t["data_offsets"] for n, t in header.items() if n != "__metadata__"])
    if random.random() < 0.5:
        begin = random.randrange(begin, end, 2)
        end = begin + 2
    special = struct.pack("<H", random.choice(HALVES))
    start = len(files[WEIGHTS]) - len(data)
    files[WEIGHTS] = files[WEIGHTS][: start + begin] + special * ((end - begin) // 2) + data[end:]


def weights_length(random: Random, files: Files) -> None:
    contents = files[WEIGHTS]
    longer = contents + random.randbytes(random.choice((1, 8, 4096)))
    files[WEIGHTS] = random.choice((b"", contents[:7], contents[: random.randrange(len(contents))], longer))


def file_list(random: Random, files: Files) -> None:
    """A file more, a file less, or two that change places."""
    what, name = random.randrange(3), random.choice(list(files))
    if what == 0:
        files[random.choice(("setup.py", "model.bin", "x.json", ".hidden", "a b.md"))] = b"x"
    elif what == 1:
        del files[name]
    else:
        files[name], files[WEIGHTS] = files[WEIGHTS], files[name]


def _damaged(random: Random, contents: bytes, length: int) -> bytes:
    """The first `length` bytes with some of them changed, put in or taken out."""
    head = bytearray(contents[:length])
    for _ in range(random.choice((1, 2, 8))):
        place = random.randrange(len(head))
        what = random.randrange(3)
        if what == 0:
            head[place] = random.randrange(256)
        elif what == 1:
            head[place:place] = random.choice((b'"', b"{", b"}", b",", b"0", b"9" * 30, b"\\u0000"))
        else:
            del head[place]
    return bytes(head) + contents[length:]


def _header_length(weights: bytes) -> int:
    return int.from_bytes(weights[:8], "little")


def _split(weights: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + _header_length(weights)
    return json.loads(weights[8:end]), weights[end:]


MUTATIONS: tuple[Callable[[Random, Files], None], ...] = (
    config_value, config_value, config_value, config_backbone, config_sizes, config_text, config_nested, header_value,
    header_value, header_bytes, header_length, tensor_bytes, tensor_numbers, weights_length, file_list,
)  # fmt: skip
