"""Captured programs that are kept between runs: capturing one again takes seconds of torch's compiler."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amed_env.support.cache import cache_dir
from amed_env.support.files import write_atomically
from amed_env.tracing.identity import identity
from amed_env.tracing.original import Call
from amed_env.tracing.program_file import content_of, read_content
from amed_env.tracing.traced_network import TracedNetwork

logger = logging.getLogger(__name__)

SUFFIX = ".program"
LARGEST_FILE = 2**29
LARGEST_FOLDER = 2**31
"""Bytes of all kept programs together; those that were not used for longest go first."""


@functools.cache
def _this_code() -> str:
    """A digest of the code that captures, so that no other version's programs are found."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def place_of(network: nn.Module, example: torch.Tensor, call: Call, name: str) -> Path | None:
    """The file for the program of a network, or None if something that may decide about it cannot be known.

    Args:
        network: The network.
        example: Tensor (N, …) with which it is captured; its values do not count.
        call: How the network is called.
        name: The network's name.
    """
    try:
        code = _this_code()
        key = identity(network, call, name, tuple(example.shape), example.dtype, example.device, code)
    except Exception as error:  # also of whatever type objects of a user raise when they are looked at
        logger.info("the program of network %r is not kept (%s)", name, error)
        return None
    return cache_dir() / "programs" / f"{key[:32]}{SUFFIX}"


def find(place: Path) -> tuple[TracedNetwork, dict[str, Any]] | None:
    """The program that is kept in a file and the facts beside it, or None; a damaged file is only logged."""
    try:
        found = read_content(place.read_bytes())
    except FileNotFoundError:
        return None
    except Exception as error:  # of many types: whatever is wrong with a file, the network is captured anew
        logger.warning("cannot read %s (%s); the network is captured again", place, error)
        return None
    with contextlib.suppress(OSError):
        os.utime(place)  # it was used
    return found


def keep(place: Path, traced: TracedNetwork, facts: Mapping[str, Any], example: torch.Tensor) -> None:
    """Keep a program, if it is then read as the same one; a folder that cannot be written is only logged.

    Args:
        place: Its file.
        traced: It.
        facts: What `find` shall return beside it.
        example: Tensor (N, …) that it takes.
    """
    try:
        content = content_of(traced, facts)
        if len(content) > LARGEST_FILE:
            raise ValueError(f"{len(content):,} bytes are too many")
        again, _ = read_content(content)
        if not _compute_the_same(again, traced, example):
            raise ValueError("what is read from a file computes something else")
    except Exception as error:  # some programs have what no file can, which shows where they are read at the latest
        logger.info("the program of network %r is not kept (%s)", traced.workload.name, error)
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, content)
        _make_room(place)
    except OSError as error:
        logger.warning("cannot keep %s (%s)", place, error)


def drop(place: Path) -> None:
    """Forget a program."""
    with contextlib.suppress(OSError):
        place.unlink()


def _compute_the_same(one: TracedNetwork, other: TracedNetwork, example: torch.Tensor) -> bool:
    found, expected = (traced.module(example) for traced in (one, other))
    if isinstance(expected, torch.Tensor):
        found, expected = (found,), (expected,)
    pairs = list(zip(found, expected, strict=True))
    return all(torch.equal(tensor, wanted) and tensor.stride() == wanted.stride() for tensor, wanted in pairs)


def _make_room(newest: Path) -> None:
    """Remove the programs that were used least recently, until the folder is small enough."""
    files = []
    for path in newest.parent.glob(f"*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # another process makes room too
            status = path.stat()
            files.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= LARGEST_FOLDER:
            return
        if path != newest:
            path.unlink(missing_ok=True)
            total -= size
