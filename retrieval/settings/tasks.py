"""The settings of each task: tables, threads, questions over documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from retrieval.settings.answer_style import DocumentStyle, Style
from retrieval.settings.choices import OneOf
from retrieval.settings.columns import (
    DocumentColumns,
    QuestionColumns,
    TableColumns,
    TableQuestionColumns,
    ThreadColumns,
)
from retrieval.settings.document_layouts import DocumentLayoutName, TableFormatName
from retrieval.settings.legs import DOCUMENT_LEGS, LEGS
from retrieval.settings.limits import SettingsModel
from retrieval.settings.synthesis.question_generation import QuestionGeneration
from retrieval.settings.thread_formats import ThreadFormatName

LegName = Annotated[str, OneOf(tuple(LEGS))]
DocumentLegName = Annotated[str, OneOf(DOCUMENT_LEGS)]
Fusion = Literal["rrf", "weighted"]
ThreadFusion = Literal["rrf", "weighted", "learned"]
Weights = dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]


#: Systems without a model that answer thread records. The first three need no ranking. The others are the
#: first of a column of `rankings.parquet`: two rules, then rankings, which exist if the configuration has the
#: leg, the reranker or the learned fusion.
BASELINES = (
    "random",
    "opening_post",
    "previous_post",
    "previous_other_author",
    "addressed_then_previous",
    "bm25",
    "dense",
    "fused",
    "reranked",
    "learned",
)


#: Scores of reply links as sets, and of the conversations that they make.
LINK_SCORES = ("link_precision", "link_recall", "link_f1")
CONVERSATION_SCORES = (
    "one_minus_vi",
    "adjusted_rand_index",
    "one_to_one",
    "shen_f1",
    "exact_precision",
    "exact_recall",
    "exact_f1",
)
#: Scores of questions with supporting facts; of single records only if every record has some.
HOTPOTQA_SCORES = (
    "hotpotqa_exact_match",
    "hotpotqa_f1",
    "supporting_fact_exact_match",
    "supporting_fact_f1",
    "joint_exact_match",
    "joint_f1",
)
_DIRECTIONALITY = ("target@1", "reply@1", "joint", "p(reply|target)", "p(reply|not target)")


@dataclass(frozen=True)
class TaskFacts:
    """Facts about a task that the form, the evaluation and the report use.

    Attributes:
        title: the section's title in the form.
        description: the section's description in the form.
        records: plural noun for its records, for the report.
        contexts: plural noun for the items of its contexts, for the report.
        answers: form of the answers in an evaluation. "choice" is one of the record's choices (or as
            `evaluate.mode` sets it), "text" is written freely.
        ranked: whether its records have rows in `rankings.parquet`, which measure its retriever.
        measures: measures of its answers that have a value for each record. A gate can compare two systems
            by them.
        pooled_measures: measures of all records together, of which a gate can only bound the value. Some are
            there only if the records have what they count.
        baselines: systems without a model that can be among its scores.
        unique_context_ids: whether ids in `context_ids` are unique in the corpus, not only in one context.
    """

    title: str
    description: str
    records: str
    contexts: str
    measures: tuple[str, ...]
    pooled_measures: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    answers: Literal["choice", "text"] = "text"
    ranked: bool = True
    unique_context_ids: bool = True


class TaskSettings(SettingsModel):
    """The settings that all tasks have. Each task has a subclass with `facts`."""

    facts: ClassVar[TaskFacts]

    max_records: int | None = Field(
        default=None,
        ge=1,
        title="Most training records",
        description="Keeps whole contexts, chosen by seed; empty: all.",
    )
    max_test_records: int | None = Field(
        default=None,
        ge=1,
        title="Most test records",
        description="Spread over all contexts by seed; empty: all.",
    )
    max_context_tokens: int | None = Field(
        default=None,
        ge=8,
        title="Most context tokens",
        description="Longer contexts lose the least wanted texts, then sentences, but in training never what "
        "holds the answer; a window of posts loses its oldest; a table that alone is longer is dropped and "
        "counted. Tokens of the tokenizer, if one is given, else words; empty: no limit.",
    )
    distractor_ranks: list[int] | None = Field(
        default=None,
        min_length=2,
        max_length=2,
        title="Ranks of distractors",
        description="[lowest, highest]: training distractors are drawn by seed from these ranks of the "
        "retriever, counted from 1 among what may stand there; empty: the best ones.",
    )

    @model_validator(mode="after")
    def _ranks_ascend(self) -> TaskSettings:
        if (
            self.distractor_ranks is not None
            and not 1 <= self.distractor_ranks[0] <= self.distractor_ranks[1]
        ):
            raise ValueError("distractor_ranks must be [lowest, highest], from 1 and ascending")
        return self

    @property
    def ranks(self) -> tuple[int, int] | None:
        """The range of ranks that distractors are drawn from, or None for the best ranks."""
        return (self.distractor_ranks[0], self.distractor_ranks[1]) if self.distractor_ranks else None

    @property
    def fused_legs(self) -> tuple[str, ...]:
        """Names of the legs of the retriever; empty for a task that retrieves without legs."""
        # By name, because not every task has the field; a subclass without it needs no code.
        return tuple(getattr(self, "legs", ()))

    @property
    def learns_fusion(self) -> bool:
        """Whether a model fitted on the training split ranks the candidates."""
        return getattr(self, "fusion", None) == "learned"

    @property
    def reranks(self) -> bool:
        """Whether a cross-encoder reranks the retrieved candidates."""
        return bool(getattr(self, "rerank_depth", 0))

    @property
    def measures_tokens(self) -> bool:
        """Whether a setting of the task needs the tokenizer, independent of the other settings."""
        return getattr(self, "chunk_tokens", None) is not None


_FUSION = "rrf: by the legs' ranks; weighted: by their scores, normalised per question."
_THREAD_FUSION = (
    f"{_FUSION[:-1]}; learned: by a small model that is fitted on the reply links of the training split."
)
_RRF_K = "k of reciprocal rank fusion; small favours first ranks."
_RERANK_DEPTH = "How many of the fused ranking the reranker reads and orders anew; 0: none."
_WEIGHTS = "Weight of a leg in the fusion, such as {bm25: 0.35}; a leg that is not named has 1."


class _Styled(TaskSettings):
    answer_style: Style = Field(
        default="direct",
        title="Answer style",
        description="What is taught: the answer alone (direct), the sentence that holds it and then the "
        "answer (quote), or what answer_template makes (template).",
    )
    answer_template: str | None = Field(
        default=None,
        title="Answer template",
        description="Jinja text of the taught answer for the style template; it may use question, answer, "
        "answers, context, oracles, quote, oracle_in_context.",
    )

    @model_validator(mode="after")
    def _template_with_its_style(self) -> _Styled:
        if (self.answer_style == "template") != (self.answer_template is not None):
            raise ValueError("answer_style template and answer_template go together: give both or neither")
        return self


class TablesTask(_Styled):
    """Questions over tables (phase 1 of the paper)."""

    facts = TaskFacts(
        title="Tables",
        description="Table questions, if wanted.",
        records="questions on tables",
        contexts="tables",
        measures=("denotation_accuracy",),
        ranked=False,
    )

    source: str = Field(
        title="Tables",
        description="Folder in WikiTableQuestions' layout, one of its .tsv files, or a .jsonl, .json or "
        ".parquet file of questions with their tables; with question_columns tables of any kind.",
    )
    columns: TableColumns | None = Field(
        default=None,
        title="Columns of the tables",
        description="Which columns of the source are cells, header, id and title, where rows hold tables.",
    )
    questions: str | None = Field(
        default=None,
        title="Questions",
        description="File, folder or glob of questions that name their tables; empty: in the source's rows.",
    )
    question_columns: TableQuestionColumns | None = Field(
        default=None,
        title="Columns of the questions",
        description="Which columns of the questions are question, answers, table_id and id.",
    )
    test_source: str | None = Field(
        default=None,
        title="Test tables",
        description="A second .tsv or folder that is the test split; empty: by seed.",
    )
    format: TableFormatName = Field(
        default="auto",
        title="Format",
        description="Layout of the source: wikitables, or rows that bring their table along; auto: by the "
        "ending of the file.",
    )
    n_contexts: int = Field(
        default=1, ge=1, title="Tables a prompt", description="1 is the right table alone."
    )
    oracle_share: float = Field(
        default=1.0,
        ge=0,
        le=1,
        title="Oracle share",
        description="Share of training tables whose prompt holds the right one; for two or more tables.",
    )
    abstain: bool = Field(
        default=False,
        title="Abstain",
        description="Where the prompt lacks the right table, teach (and accept) a fixed sentence that says "
        "so.",
    )
    max_rows: int | None = Field(
        default=None,
        ge=1,
        title="Most rows",
        description="Longer tables are dropped and counted; empty: no limit.",
    )

    @property
    def is_mapped(self) -> bool:
        """Whether mappings of columns say what the files hold."""
        return self.question_columns is not None

    @model_validator(mode="after")
    def _whole_mappings(self) -> TablesTask:
        asked = self.question_columns
        if asked is None:
            for name, given in (("columns", self.columns), ("questions", self.questions)):
                if given is not None:
                    raise ValueError(
                        f"{name} needs question_columns: say which columns are question and answers"
                    )
            if self.format == "columns":
                raise ValueError("format columns needs question_columns (and columns or questions)")
            return self
        if self.format not in ("auto", "columns"):
            raise ValueError(
                f"question_columns describe files of any format, but format is {self.format}: leave one of "
                "them out"
            )
        if self.questions is None:
            if self.columns is None:
                raise ValueError(
                    "question_columns needs columns, which say where the tables are in the rows of the "
                    "source, or questions, a file of questions that name the tables of the source"
                )
            if asked.table_id is not None:
                raise ValueError(
                    "question_columns.table_id names tables of another file, but questions is not given: "
                    "leave one of them out"
                )
            return self
        if asked.table_id is None:
            raise ValueError("question_columns.table_id is needed: the column that names the table")
        if self.columns is not None and self.columns.id is None:
            raise ValueError("columns.id is needed: the questions name the tables by it")
        if self.test_source is not None:
            raise ValueError(
                "test_source goes with questions in the source's own rows: leave it out, and the split is "
                "by seed"
            )
        return self


class ThreadsTask(TaskSettings):
    """Which earlier post does a comment reply to (phase 2 of the paper)."""

    facts = TaskFacts(
        title="Threads",
        description="Reply questions, if wanted.",
        records="comments in threads",
        contexts="posts",
        measures=("reply@1", "target@1", "joint", "normalised_reply@1", "normalised_target@1"),
        pooled_measures=(
            *_DIRECTIONALITY[3:],
            "invalid_answers",
            "expected_calibration_error",
            *LINK_SCORES,
            *CONVERSATION_SCORES,
            *(f"generated.{name}" for name in (*_DIRECTIONALITY, "invalid_answers")),
        ),
        baselines=BASELINES,
        answers="choice",
        unique_context_ids=False,
    )

    source: str = Field(title="Threads", description="File, folder or glob of threads.")
    test_source: str | None = Field(
        default=None,
        title="Test threads",
        description="File, folder or glob that is the test split; empty: train/dev folders, else by seed.",
    )
    format: ThreadFormatName = Field(
        default="auto",
        title="Format",
        description="Layout of the source; auto: told by file names and first fields.",
    )
    columns: ThreadColumns | None = Field(
        default=None,
        title="Columns",
        description="Which columns of the source are id, text, parent, author, time and thread, in a corpus "
        "of any format.",
    )
    # A context is on one side of the split. Without blocks, a whole channel would be.
    block: int | None = Field(
        default=None,
        ge=2,
        title="Block of a long conversation",
        description="Longer conversations are cut into contexts of at most so many messages; empty: 500 in "
        "chats, whose channels never end, and no cut elsewhere.",
    )
    n_contexts: int = Field(
        default=10,
        ge=1,
        title="Posts a prompt",
        description="How many posts it holds: so many retrieved ones, or in a window at most so many.",
    )
    contexts: Literal["retrieved", "window"] = Field(
        default="retrieved",
        title="Posts are chosen",
        description="retrieved: what the retriever ranks first; window: the posts directly before the "
        "comment, so that the comments of a thread share contexts, which training computes once.",
    )
    numbering: Literal["time", "rank"] = Field(
        default="time",
        title="Posts are numbered",
        description="The posts of a prompt stand in the order of time. Their numbers follow it, or are the "
        "retriever's ranks among them (rank), so that the model sees what the retriever thinks.",
    )
    direction: Literal["direct", "channel"] = Field(
        default="direct",
        title="Direction",
        description="direct: the prompt holds the posts and the comment, and the answer names a post. "
        "channel: the prompt holds one post and the answer is the comment; the post after which the comment "
        "is likeliest is the named one.",
    )
    oracle_share: float = Field(
        default=1.0,
        ge=0,
        le=1,
        title="Oracle share",
        description="Share of training comments whose prompt holds what they answer; below 1 only with "
        "abstain.",
    )
    abstain: bool = Field(
        default=False,
        title="Abstain",
        description="Where the prompt lacks the post that is answered, teach (and accept) a fixed sentence "
        "that says so.",
    )
    starts: bool = Field(
        default=False,
        title="Ask starts",
        description="Records of messages that start a conversation too, whose answer is the fixed sentence; "
        "only with abstain.",
    )
    window: int = Field(
        default=100, ge=1, title="Window", description="How many posts before the comment are candidates."
    )
    legs: list[LegName] = Field(
        default=["bm25", "dense", "recency", "opening"],
        min_length=1,
        title="Retriever legs",
        description=f"Rankings that are fused: {', '.join(LEGS)}.",
    )
    fusion: ThreadFusion = Field(default="rrf", title="Fusion", description=_THREAD_FUSION)
    # 5, not the 60 of the paper: see `retrieval.search.fusion`.
    rrf_k: int = Field(default=5, ge=0, title="Fusion constant", description=_RRF_K)
    weights: Weights = Field(default_factory=dict, title="Weights", description=_WEIGHTS)
    rerank_depth: int = Field(default=0, ge=0, title="Rerank depth", description=_RERANK_DEPTH)
    split: Literal["context", "time"] = Field(
        default="context",
        title="Split",
        description="What decides the test split, where no test source does: a hash of the context, or time: "
        "the newest contexts.",
    )
    missing_parents: Literal["auto", "error", "drop"] = Field(
        default="auto",
        title="Links to missing posts",
        description="A link to a post that is not there: refuse it, or drop and count it; auto: drop in "
        "exports of chats and forums, which always lack some, and error in published corpora (4chan, "
        "ConvoKit, IRC).",
    )

    @model_validator(mode="after")
    def _columns_of_their_format(self) -> ThreadsTask:
        if self.format == "columns" and self.columns is None:
            raise ValueError("format columns needs columns: say which column is id, text and parent")
        if self.columns is not None and self.format not in ("auto", "columns"):
            raise ValueError(
                f"columns describe a corpus of any format, but format is {self.format}: leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _known_weights(self) -> ThreadsTask:
        _check_weights(self.weights, self.legs)
        return self

    @model_validator(mode="after")
    def _no_answer_without_a_post(self) -> ThreadsTask:
        if self.oracle_share < 1 and not self.abstain:
            raise ValueError(
                "oracle_share below 1 needs abstain: a comment without its post has no other answer"
            )
        if self.starts and not self.abstain:
            raise ValueError("starts needs abstain: a message that starts a conversation has no other answer")
        return self

    @model_validator(mode="after")
    def _channel_names_a_post(self) -> ThreadsTask:
        if self.direction == "channel" and self.abstain:
            raise ValueError(
                "direction: channel scores a comment after each post, and abstain has no post: leave it out, "
                "or set direction to direct"
            )
        return self

    @model_validator(mode="after")
    def _window_as_it_stands(self) -> ThreadsTask:
        if self.contexts != "window":
            return self
        for name, given in (
            ("oracle_share below 1", self.oracle_share < 1),
            ("distractor_ranks", self.distractor_ranks is not None),
            ("numbering: rank", self.numbering == "rank"),
        ):
            if given:
                raise ValueError(
                    f"contexts: window takes the posts as they stand, so {name} can do nothing: "
                    "leave it out, or set contexts to retrieved"
                )
        if self.window < self.n_contexts:
            raise ValueError(
                f"contexts: window needs a window of at least n_contexts, got {self.window} and "
                f"{self.n_contexts}: raise window, or lower n_contexts"
            )
        return self


class QaTask(_Styled):
    """Questions over documents."""

    facts = TaskFacts(
        title="Documents",
        description="Document questions, if wanted.",
        records="questions on documents",
        contexts="documents",
        measures=("exact_match", "f1", *HOTPOTQA_SCORES),
        pooled_measures=(
            "has_answer_exact_match",
            "has_answer_f1",
            "no_answer_accuracy",
            "character_exact_match",
            "character_f1",
            "quotation_verbatim",
            "quotation_precision",
        ),
    )

    source: str = Field(
        title="Documents",
        description="File, folder or glob of .jsonl, .json, .parquet, .txt, .md or .pdf.",
    )
    questions: str | None = Field(
        default=None,
        title="Questions",
        description="File, folder or glob of .jsonl, .json or .parquet; empty: in the documents' files, as "
        "in SQuAD and HotpotQA.",
    )
    generate: QuestionGeneration | None = Field(
        default=None,
        title="Make questions",
        description="Let a teacher model make questions about the documents (stage make-questions).",
    )
    synthetic_questions: str | None = Field(
        default=None,
        title="Made questions",
        description="A questions.parquet that the stage make-questions wrote, without a teacher; not beside "
        "generate.",
    )
    synthetic_held_out: bool = Field(
        default=False,
        title="Made held-out questions",
        description="Whether questions of synthetic_questions may be held out; else those about held-out "
        "documents are dropped and counted.",
    )
    columns: DocumentColumns | None = Field(
        default=None,
        title="Columns of the documents",
        description="Which columns of the source are id, text, title and time, in a table of any format.",
    )
    question_columns: QuestionColumns | None = Field(
        default=None,
        title="Columns of the questions",
        description="Which columns of the questions are id, question, answers and document_id.",
    )
    format: DocumentLayoutName = Field(
        default="auto", title="Format", description="Layout of rows; auto: told by their fields."
    )
    answer_style: DocumentStyle = Field(
        default="direct",
        title="Answer style",
        description="What is taught: the answer alone (direct), the sentence that holds it and then the "
        "answer (quote), what answer_template makes (template), or the reasoned answer of a made question "
        "(reasoned), else as quote.",
    )
    split: Literal["context", "time"] = Field(
        default="context",
        title="Split",
        description="What decides the test split, where no test source does: a hash of the context, or time: "
        "the newest contexts.",
    )
    n_contexts: int = Field(
        default=3, ge=1, title="Documents a prompt", description="How many documents it holds."
    )
    # Below 1: RAFT leaves the right document out of some prompts, so that the model also learns the answers
    # themselves.
    oracle_share: float = Field(
        default=0.8,
        ge=0,
        le=1,
        title="Oracle share",
        description="Share of training records whose prompt holds the right document (P of the RAFT paper).",
    )
    chunk_tokens: int | None = Field(
        default=None,
        ge=8,
        title="Chunk length",
        description="Longer documents are cut at sentence borders into chunks of at most so many tokens of "
        "the tokenizer; empty: whole documents.",
    )
    chunk_overlap: int = Field(
        default=0,
        ge=0,
        title="Chunk overlap",
        description="Tokens that neighbouring chunks share at most: the whole sentences that fit.",
    )
    abstain: bool = Field(
        default=False,
        title="Abstain",
        description="Where the prompt lacks a right document, teach (and accept) a fixed sentence that says "
        "so.",
    )
    share_contexts: int = Field(
        default=1,
        ge=1,
        title="Questions a context",
        description="Up to so many training questions that follow one another share one retrieved context "
        "(all their right documents, and distractors), so that training computes it once; 1: each its own.",
    )
    legs: list[DocumentLegName] = Field(
        default=["bm25", "dense"],
        min_length=1,
        title="Retriever legs",
        description=f"Rankings that are fused: {', '.join(DOCUMENT_LEGS)}.",
    )
    fusion: Fusion = Field(default="rrf", title="Fusion", description=_FUSION)
    rrf_k: int = Field(default=5, ge=0, title="Fusion constant", description=_RRF_K)
    weights: Weights = Field(default_factory=dict, title="Weights", description=_WEIGHTS)
    rerank_depth: int = Field(default=0, ge=0, title="Rerank depth", description=_RERANK_DEPTH)

    @model_validator(mode="after")
    def _known_weights(self) -> QaTask:
        _check_weights(self.weights, self.legs)
        return self

    @model_validator(mode="after")
    def _columns_of_their_files(self) -> QaTask:
        if self.columns is not None and self.questions is None and not self.has_made_questions:
            raise ValueError("columns needs questions: give the questions in a file of their own")
        if self.question_columns is not None and self.questions is None:
            raise ValueError("question_columns needs questions: give the file that has these columns")
        return self

    @model_validator(mode="after")
    def _made_questions_have_an_effect(self) -> QaTask:
        if self.generate is not None and self.synthetic_questions is not None:
            raise ValueError("generate and synthetic_questions exclude each other; give one of them")
        if self.generate is not None and "unanswerable" in self.generate.kinds and not self.abstain:
            raise ValueError(
                "generate.kinds has unanswerable, whose answer is that of abstain: set abstain, or leave "
                "the kind out"
            )
        if self.synthetic_held_out and self.synthetic_questions is None:
            raise ValueError(
                "synthetic_held_out goes with synthetic_questions; beside generate it is generate.held_out"
            )
        return self

    @property
    def quotes_first(self) -> bool:
        """Whether an answer begins with a quotation."""
        return self.answer_style in ("quote", "reasoned")

    @property
    def has_made_questions(self) -> bool:
        """Whether a teacher's questions are among the questions, made in this pipeline or before."""
        return self.generate is not None or self.synthetic_questions is not None

    @property
    def may_hold_out_made_questions(self) -> bool:
        """Whether made questions may be in the held-out split."""
        return self.synthetic_held_out or (self.generate is not None and self.generate.held_out)

    @model_validator(mode="after")
    def _overlap_below_chunk(self) -> QaTask:
        if self.chunk_overlap and (self.chunk_tokens is None or self.chunk_overlap >= self.chunk_tokens):
            raise ValueError("chunk_overlap must be below chunk_tokens")
        return self


def _check_weights(weights: Mapping[str, float], legs: Sequence[str]) -> None:
    """Raise ValueError if a weight names a leg that is not fused, or if all weights are zero."""
    for leg in weights:
        if leg not in legs:
            raise ValueError(f"weights has {leg!r}, which is not one of the legs ({', '.join(legs)})")
    # All scores would be 0, and the fused ranking the order of the candidates.
    if all(weights.get(leg, 1.0) == 0 for leg in legs):
        raise ValueError("weights are all zero: give some leg a weight above zero")
