"""The settings of building records. The same models are the form in the orchestrator's UI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import (
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
    model_validator,
)

from jora_core.base.secrets import references
from retrieval.settings.limits import InputLimits, Threshold
from retrieval.settings.task_registry import TASKS
from retrieval.settings.tasks import QaTask, SettingsModel, TablesTask, TaskSettings, ThreadsTask
from retrieval.text.normalize import Diacritics, Stemmer, Tokenizer

#: Fields that hold paths. They stay out of what is written into the records, so that a moved corpus gives the
#: same bytes. The digests of the files' contents are written instead.
PATH_FIELDS = frozenset(
    {
        "source", "test_source", "questions", "synthetic_questions", "embedder", "embedding_cache",
        "reranker", "tokenizer", "decisions", "model_folder", "adapter_folder", "base_url",
    }
)  # fmt: skip

#: Fields that decide which processes build the records. They change no record, so they stay out as well.
EXECUTION_FIELDS = frozenset(
    {"backend", "workers", "dask_address", "shard_records", "limits", "allow_links_outside"}
)


class _ContextSettings(SettingsModel):
    """What concerns all tasks."""

    seed: int = Field(default=0, ge=0, title="Seed", description="Decides splits, samples and orders.")
    test_share: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        title="Test share",
        description="Share of the contexts held out, where no test source is given.",
    )
    near_duplicates: Threshold = Field(
        default=0.8,
        title="Near-duplicates",
        description="Similarity (Jaccard, runs of three words) from which a training text counts as a copy "
        "of a held-out one and is left out; off: only equal texts are.",
    )
    embedder: str | None = Field(
        default=None,
        title="Embedder",
        description="sentence-transformers model for the dense leg: a folder or a public name.",
    )
    tokenizer: str | None = Field(
        default=None,
        title="Tokenizer",
        description="Model folder whose tokenizer counts tokens, where something is measured in them; in a "
        "pipeline the base model's if empty.",
    )
    reranker: str | None = Field(
        default=None,
        title="Reranker",
        description="sentence-transformers cross-encoder for rerank_depth: a folder or a public name.",
    )
    embedding_cache: str | None = Field(
        default=None,
        title="Cache of vectors",
        description="Folder that keeps the embedder's vectors from build to build; empty: the store's own.",
    )
    dense_index: Literal["auto", "flat", "hnsw", "ivf_pq", "sq8"] = Field(
        default="auto",
        title="Dense index",
        description="Of documents; flat is exact, the others' recall is measured; auto: flat to a million.",
    )
    token_histogram: bool = Field(
        default=False,
        title="Count tokens",
        description="Say in the report how many tokens of the tokenizer the prompts have, not only how many "
        "words. Another base model then builds the records anew.",
    )
    bm25_backend: Literal["csr", "rank_bm25"] = Field(
        default="csr",
        title="BM25 backend",
        description="Sparse postings, or the rank_bm25 library (same scores, for small corpora only).",
    )
    bm25_stemmer: Stemmer = Field(
        default="none",
        title="BM25 stemmer",
        description="Snowball stemmer of documents and queries, by language; none: words as they are. "
        "Turkish also has letter case of its own.",
    )
    bm25_diacritics: Diacritics = Field(
        default="keep",
        title="BM25 diacritics",
        description="fold: é and e are one letter, so that a query without diacritics finds the word.",
    )
    backend: Literal["threads", "dask"] = Field(
        default="threads",
        title="Backend",
        description="What builds the shards of the records: threads of one process, or Dask (extra scale).",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        title="Workers",
        description="Shards built at once; empty: one a core where each is built by a process of its own "
        "(Prefect, Dask), one after the other in `jora context`.",
    )
    # The workers read and write the work folder, so they need the same paths.
    dask_address: str | None = Field(
        default=None,
        title="Dask scheduler",
        description="Address of one whose workers see the same folders; empty: workers started here.",
    )
    shard_records: int = Field(
        default=4096,
        ge=1,
        title="Records a shard",
        description="How finely the work is cut; the records are the same.",
    )

    limits: InputLimits = Field(
        default=InputLimits(),
        title="Limits",
        description="How large a packed file or a single value may become while it is read.",
    )
    allow_links_outside: bool = Field(
        default=False,
        title="Links out of a source",
        description="Follow links in the folder of a source that lead out of that folder.",
    )

    @model_serializer(mode="wrap")
    def _with_references(
        self, dump: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        """Keep `${NAME}` in paths that leave the process, such as specs and parameters of flow runs."""
        dumped = dump(self)
        return _referring(dumped) if info.mode == "json" else dumped

    @model_validator(mode="after")
    def _reranked(self) -> _ContextSettings:
        deep = [name for name, task in self.tasks.items() if task.reranks]
        # Both directions are refused: a setting without effect would be a silent mistake.
        if deep and not self.reranker:
            raise ValueError(
                f"{deep[0]}.rerank_depth is set but no reranker is: set reranker, or the depth to 0"
            )
        if self.reranker and not deep:
            raise ValueError("reranker is set but no task's rerank_depth is: set one (such as 20)")
        return self

    @model_validator(mode="after")
    def _learned_from_an_index(self) -> _ContextSettings:
        learned = [name for name, task in self.tasks.items() if task.learns_fusion]
        if learned and self.bm25_backend != "csr":
            raise ValueError(
                f"{learned[0]}.fusion learned reads the document frequencies of bm25_backend csr, but "
                f"bm25_backend is {self.bm25_backend}: set it to csr, or fusion to rrf or weighted"
            )
        return self

    @model_validator(mode="after")
    def _some_task(self) -> _ContextSettings:
        if not self.tasks:
            raise ValueError(f"no task: give at least one of {', '.join(TASKS)}")
        if self.dask_address is not None and self.backend != "dask":
            raise ValueError("dask_address is given, but backend is not dask; set backend: dask")
        return self

    @property
    def tasks(self) -> dict[str, TaskSettings]:
        """The settings of the configured tasks by task name, in the order of the records."""
        found = ((name, getattr(self, name)) for name in TASKS)
        return {name: task for name, task in found if task is not None}

    @property
    def counts_tokens(self) -> bool:
        """Whether a setting is measured in tokens. If so, the tokenizer is an input of the build."""
        tasks = self.tasks.values()
        # A budget counts words where no tokenizer is configured, so it alone does not need one.
        budgets = any(task.max_context_tokens is not None for task in tasks)
        needed = any(task.measures_tokens for task in tasks)
        return needed or self.token_histogram or (budgets and self.tokenizer is not None)

    @property
    def learns_fusion(self) -> bool:
        """Whether a task's candidates are ranked by a model fitted on the training split."""
        return any(task.learns_fusion for task in self.tasks.values())

    def of_task(self, name: str) -> Self:
        """Return the settings that decide the records of one task: without the sections of other tasks."""
        task = self.tasks[name]
        unused: dict[str, Any] = {other: None for other in TASKS if other != name}
        # Models that another task alone uses.
        if "dense" not in task.fused_legs:
            unused["embedder"] = None
        if not task.reranks:
            unused["reranker"] = None
        return self.model_copy(update=unused)

    @property
    def tokenizer_of_words(self) -> Tokenizer:
        """The tokenizer of BM25, for documents and queries."""
        return Tokenizer(self.bm25_stemmer, self.bm25_diacritics)

    def fingerprint(self) -> dict[str, Any]:
        """Return, as JSON values, the settings that can change a record."""
        # At any depth, because tasks have path fields of their own.
        found = _without(self.model_dump(mode="json"), PATH_FIELDS | EXECUTION_FIELDS)
        # The questions of a teacher are an input. Of their making, records depend on `held_out` alone.
        qa = found.get("qa")
        if qa is not None:
            made, held_out = qa.pop("generate"), qa.pop("synthetic_held_out")
            if held_out or (made is not None and made["held_out"]):
                qa["synthetic_held_out"] = True
        return found


# A type checker needs the fields written out. Both definitions must have the same ones.
if TYPE_CHECKING:

    class ContextConfig(_ContextSettings):
        """Everything that decides the records: what concerns all tasks, and a section for each task."""

        tables: TablesTask | None = None
        threads: ThreadsTask | None = None
        qa: QaTask | None = None

else:
    # A task's section comes from its row of the registry, so that a new task edits nothing here.
    ContextConfig = create_model(
        "ContextConfig",
        __base__=_ContextSettings,
        __module__=__name__,
        __doc__="Everything that decides the records: what concerns all tasks, and a section for each task.",
        **{
            name: (
                entry.settings | None,
                Field(default=None, title=entry.facts.title, description=entry.facts.description),
            )
            for name, entry in TASKS.items()
        },
    )


def _referring(value: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _referring(child)
        if isinstance(child, dict)
        else references(child)
        if name in PATH_FIELDS and isinstance(child, str)
        else child
        for name, child in value.items()
    }


def _without(value: Any, names: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, names) for k, v in value.items() if k not in names}
    return value
