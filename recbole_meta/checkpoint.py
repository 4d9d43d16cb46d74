"""Checkpoints: tensors and plain values, written whole, read without running code."""

import io
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_meta.errors import DataError
from recbole_meta.tracking import write_atomically

FORMAT = 1


class Checkpoints:
    """``last.pt`` and ``best.pt`` of one training, told from others by its ``identity``."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, identity

    def write(self, name: str, content: dict[str, Any]) -> None:
        """A temporary file, synced, renamed: never half-written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "identity": self.identity, **content}, buffer)
        write_atomically(self.folder / f"{name}.pt", buffer.getvalue())

    def read(self, name: str) -> dict[str, Any] | None:
        """The content; None where there is none of this training."""
        path = self.folder / f"{name}.pt"
        if not path.is_file():
            return None
        content = read_checkpoint(path)
        return content if content.get("identity") == self.identity else None


def finish(folder: Path) -> None:
    """A training in this folder is over and judged: what it would go on from leaves."""
    for path in folder.rglob("last.pt"):
        path.unlink()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What was written, on the CPU; loading runs no code."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} is damaged or no checkpoint: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path} has format {found}, this version reads {FORMAT}.")
    return content


def generators() -> dict[str, Any]:
    """The state of every global generator: torch's, CUDA's, numpy's and Python's."""
    name, keys, place, has_gauss, gauss = np.random.get_state()
    version, numbers, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), place, has_gauss, gauss],
        "python": [version, list(numbers), gauss_next],
    }


def set_generators(state: dict[str, Any]) -> None:
    """Put the global generators where they were."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, place, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), place, has_gauss, gauss))
    version, numbers, gauss_next = state["python"]
    random.setstate((version, tuple(numbers), gauss_next))
