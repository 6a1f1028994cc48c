"""Embed texts with a sentence-transformers model, given by its folder or its public name.

With a cache folder, a text is embedded once, and later builds read its vector from the cache. torch comes
with sentence-transformers and is never imported here. `retrieval.search.dense.faiss_index` searches the
vectors.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jora_core.base.digests import file_digest
from jora_core.base.errors import InputError
from retrieval.search.dense.vector_cache import VectorCache, text_digests
from retrieval.search.sentence_models import open_model

#: Texts that the model reads at a time.
BATCH = 256
#: Texts that are embedded and then written to the cache: what is lost if the process is killed.
CHUNK = 4096

#: What a text is: some models put a prompt before questions only, or have one network for each.
Role = Literal["document", "query"]


@dataclass(frozen=True)
class Embedder:
    """A loaded sentence-transformers model.

    `cache` is the folder of the cached vectors, or None for no cache.
    """

    name: str
    model: Any
    cache: Path | None = None

    @property
    def width(self) -> int:
        """Length of a vector of the model."""
        # Older releases of the library have the second name only, newer ones warn if it is used.
        named = getattr(self.model, "get_embedding_dimension", None)
        return int(named() if named else self.model.get_sentence_embedding_dimension())

    def encode(
        self,
        texts: Sequence[str],
        progress: Callable[[int, int], None] | None = None,
        role: Role = "document",
    ) -> np.ndarray:
        """Embed texts. Equal texts are embedded once, and texts in the cache are not embedded again.

        A vector of the cache may differ from a new one in the seventh decimal, because the last bits depend
        on the other texts of the batch.

        Args:
            texts: the texts.
            progress: called with (done, total), counting only texts that the model embeds.
            role: whether they are documents or questions.

        Returns:
            float32[len(texts), width]: unit vectors, or zeros for a text without a word in the vocabulary of
            the model.

        Raises:
            InputError: the cache cannot be written.
        """
        # Corpora repeat texts (signatures, boilerplate), and the model is far slower than a dictionary.
        places: dict[str, int] = {}
        which = np.fromiter(
            (places.setdefault(t, len(places)) for t in texts), dtype=np.int64, count=len(texts)
        )
        unique = list(places)
        out = np.zeros((len(unique), self.width), dtype=np.float32)
        self._fill(unique, out, progress or _no_progress, role)
        return out if len(unique) == len(texts) else out[which]

    def count_cut(self, texts: Sequence[str]) -> int:
        """Return how many texts are longer than the model reads. It ignores the rest of such a text."""
        limit = getattr(self.model, "max_seq_length", None)
        # Models of single words have no limit.
        if not limit or not math.isfinite(limit):
            return 0
        # A token has at least one character, so shorter texts need not be counted.
        long = [text for text in texts if len(text) > limit]
        cut = 0
        for start in range(0, len(long), CHUNK):
            part = self.model.tokenizer(long[start : start + CHUNK], truncation=False, verbose=False)
            cut += sum(len(ids) > limit for ids in part["input_ids"])
        return cut

    def _fill(
        self, unique: list[str], out: np.ndarray, progress: Callable[[int, int], None], role: Role
    ) -> None:
        cache = VectorCache.open(self.cache, out.shape[1]) if self.cache else None
        new = np.arange(len(unique))
        digests = np.zeros(0)
        if cache is not None:
            # Where a text has one vector for both roles, a query finds the vector of an equal document in the
            # cache.
            digests = text_digests(unique, role if _tells_roles_apart(self.model) else "")
            found = cache.find(digests)
            cache.take(found, out)
            new = new[found[:, 0] < 0]
        # A batch is padded to its longest text, so texts of similar length go together. The sort is stable:
        # equal lengths keep the order of first appearance, and the batches are the same each time.
        new = np.array(sorted(new.tolist(), key=lambda place: len(unique[place])), dtype=np.int64)
        for start in range(0, len(new), CHUNK):
            part = new[start : start + CHUNK]
            out[part] = self._embed([unique[place] for place in part.tolist()], role)
            if cache is not None:
                # After each part, so that a killed build continues here.
                cache.add(digests[part], out[part])
            progress(start + len(part), len(new))

    def _embed(self, texts: list[str], role: Role) -> np.ndarray:
        encode = self.model.encode_query if role == "query" else self.model.encode_document
        vectors = encode(
            texts, batch_size=BATCH, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        # Normalising the zero vector of a text without known words divides zero by zero.
        return np.nan_to_num(np.asarray(vectors, dtype=np.float32))


def load_embedder(embedder: str | None, field: str, cache_dir: Path | None = None) -> Embedder:
    """Load the configured sentence-transformers model.

    Args:
        embedder: folder or public name of the model; None if no model is configured.
        field: the setting that needs the model, for errors.
        cache_dir: folder that keeps vectors between builds, with one folder for each model; None: no cache.

    Raises:
        InputError: no model is configured, its folder is missing, or it is not a sentence-transformers model.
    """
    options = (
        "set embedder to a sentence-transformers folder (such as data/tiny-embedder) or a public name (such "
        "as sentence-transformers/all-MiniLM-L6-v2)"
    )
    if not embedder:
        raise InputError(
            f"{field} has the leg 'dense' but no embedder is configured; {options}, or leave 'dense' out"
        )

    def make(name: str) -> Any:
        # Here, because it imports torch, which takes seconds.
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(name)

    model, folder = open_model("embedder", embedder, "modules.json", options, make)
    cache = cache_dir / model_digest(model, folder) if cache_dir else None
    return Embedder(embedder, model, cache)


def model_digest(model: Any, folder: Path | None) -> str:
    """Return a digest of a model, of 32 hexadecimal digits, which changes whenever its vectors change.

    The digest covers the files of the model's folder or, for a model by public name, its loaded weights and
    settings.
    """
    # One stream of bytes, not a digest of JSON: users keep caches below this name, and it must not change.
    digest = hashlib.sha256()
    # A folder is digested by its files: that needs no loaded weights, and covers settings that a module does
    # not show.
    if folder is not None:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(folder).as_posix()} {file_digest(path)}\n".encode())
        return digest.hexdigest()[:32]
    settings = {
        "modules": [
            [type(module).__name__, getattr(module, "get_config_dict", dict)()] for module in model.modules()
        ],
        "prompts": [model.prompts, model.default_prompt_name],
        "tokenizer": _tokenizer_json(model.tokenizer),
    }
    # default: modules may hold objects that JSON does not know.
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        # As float32: numpy has no bfloat16, and float32 holds every half-precision number exactly.
        values = np.ascontiguousarray(tensor.detach().cpu().float().numpy())
        digest.update(f"{name} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:32]


def _tokenizer_json(tokenizer: Any) -> str:
    fast = getattr(tokenizer, "backend_tokenizer", tokenizer)
    return fast.to_str() if hasattr(fast, "to_str") else repr(tokenizer)


def _tells_roles_apart(model: Any) -> bool:
    """Return whether the model embeds a text differently as a question and as a document."""
    routed = any(type(module).__name__ == "Router" for module in model.modules())
    return routed or any(model.prompts.values()) or model.default_prompt_name is not None


def _no_progress(done: int, total: int) -> None:
    """Ignore progress."""
