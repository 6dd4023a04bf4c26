"""Weights named by their content: published whole or not at all, kept for ever, rolled back by name."""

import hashlib
import io
import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loop.durable import atomic
from loop.errors import BadInput, NotFound

Weights = Mapping[str, Tensor]


class WeightsFolder:
    """One model's published weights: <digest>.pt with a <digest>.json beside it, current.json, history.jsonl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    def publish(self, weights: Weights, card: Mapping[str, Any], at: float, *, current: bool = True) -> str:
        """Store weights and make them current; what was current stays and can be rolled back to.

        Args:
            current: False only stores them, as the further members of an ensemble, whose cards name the first with "of".
            card: what is worth knowing of them (metrics, parent, seed, data), kept as JSON.

        Returns:
            The digest: the first 16 hexadecimal digits of the file's SHA-256.
        """
        buffer = io.BytesIO()
        torch.save({key: value.detach().cpu().contiguous() for key, value in weights.items()}, buffer)
        data = buffer.getvalue()
        digest = hashlib.sha256(data).hexdigest()[:16]
        with atomic(self._file(digest), ".pt") as temporary:
            temporary.write_bytes(data)
        _write_json(self._file(digest, ".json"), dict(card) | {"digest": digest, "published_at": at})
        if current:
            self._make_current(digest, at, "published")
        return digest

    def rollback(self, digest: str, at: float) -> None:
        """Make earlier weights current again.

        Raises:
            NotFound: never published here. BadInput: they only vote, as members of an ensemble.
        """
        if first := self.card(digest).get("of"):
            raise BadInput(f"The weights {digest} only vote beside {first}: roll back to those.")
        self._make_current(digest, at, "rolled back")

    def _make_current(self, digest: str, at: float, how: str) -> None:
        with self._lock:
            _write_json(self.folder / "current.json", {"digest": digest, "at": at})
            with open(self.folder / "history.jsonl", "a") as history:
                history.write(json.dumps({"digest": digest, "at": at, "how": how}) + "\n")

    def current(self) -> str | None:
        """Digest of the weights in use, None before the first."""
        try:
            return str(json.loads((self.folder / "current.json").read_text())["digest"])
        except FileNotFoundError:
            return None

    def card(self, digest: str) -> dict[str, Any]:
        """The JSON beside the weights.

        Raises:
            NotFound: no such weights.
        """
        files = (self._file(digest), self._file(digest, ".json"))
        if not re.fullmatch(r"[0-9a-f]{16}", digest) or not all(file.is_file() for file in files):
            raise NotFound(f"There are no weights {digest[:40]!r}. Known: {', '.join(self.digests()) or 'none'}.")
        return dict(json.loads(self._file(digest, ".json").read_text()))

    def cards(self) -> list[dict[str, Any]]:
        """All weights ever published, oldest first."""
        return sorted((self.card(digest) for digest in self.digests()), key=lambda card: float(card["published_at"]))

    def members(self, digest: str) -> list[str]:
        """Digests of the ensemble that was trained with these weights: these, then the others in the order of training."""
        further = [card for card in self.cards() if card.get("of") == digest]
        return [digest, *(card["digest"] for card in sorted(further, key=lambda card: int(card["member"])))]

    def digests(self) -> list[str]:
        """All digests, sorted."""
        # A crash can leave weights whose card was not written: they were never published.
        return sorted(file.stem for file in self.folder.glob("*.pt") if file.with_suffix(".json").is_file())

    def history(self) -> list[dict[str, Any]]:
        """Every publish and rollback, oldest first."""
        file = self.folder / "history.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines() if line] if file.is_file() else []

    def path(self, digest: str) -> Path:
        """The weights' file; raises NotFound as `card`."""
        self.card(digest)
        return self._file(digest)

    def load(self, digest: str, *, plans: str | None = None) -> dict[str, Tensor]:
        """The weights, after checking that the file is what was published.

        Args:
            plans: digest of the plans that they must have been trained under, "" for none; None does not ask.

        Raises:
            NotFound: no such weights. BadInput: the file is damaged, or not plain tensors, or of other plans.
        """
        if plans is not None:
            check_plans(self.card(digest), plans)
        data = self.path(digest).read_bytes()
        if hashlib.sha256(data).hexdigest()[:16] != digest:
            raise BadInput(f"The weights {digest} are damaged: their content has another digest.")
        return read_weights(data)

    def _file(self, digest: str, suffix: str = ".pt") -> Path:
        return self.folder / f"{digest}{suffix}"


def read_weights(data: bytes) -> dict[str, Tensor]:
    """Plain named tensors from a file's bytes; code in it is never run.

    Raises:
        BadInput: not a file of plain named tensors.
    """
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # torch's unpickler raises many kinds; each means that this is no file of ours.
    except Exception as error:  # noqa: BLE001
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise BadInput(f"Weights must be a file of plain tensors: {reason}") from None
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise BadInput("Weights must be a dictionary of named tensors.")
    return found


def check_plans(card: Mapping[str, Any], plans: str) -> None:
    """Raise BadInput if the weights of a card were trained under other plans than those of this digest."""
    if card.get("plans", "") != plans:
        raise BadInput(
            f"The weights {card['digest']} were trained under the plans {card.get('plans') or 'of none'}, and the plans are "
            f"now {plans or 'none'}: train again from scratch, or put the former plans.json back into the model's folder."
        )


def load_into(network: nn.Module, weights: Weights, name: str) -> None:
    """Give the network of the model `name` these weights.

    Raises:
        BadInput: they are of another network.
    """
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()[:200]
        raise BadInput(
            f"The weights do not fit the model {name!r} as configured (other labels or network): {reason}"
        ) from None


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with atomic(path, ".json") as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=float))
