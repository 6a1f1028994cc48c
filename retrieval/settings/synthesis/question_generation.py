"""The settings of questions about documents that a teacher model makes, and of the teacher."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from retrieval.settings.limits import SettingsModel, Threshold

#: fact: the short answer stands in the text. comparison: over two neighbouring chunks of a document. how_to:
#: the steps of something. unanswerable: about the text's subject, and not answered by it.
Kind = Literal["fact", "comparison", "how_to", "unanswerable"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: Settings that decide the made questions. `held_out` decides the records, beside the documents that are
#: asked about.
_DECIDING = {
    "questions_per_chunk", "kinds", "max_chunks", "held_out", "near_duplicates", "refuse_personal_data",
    "refuse_words", "seed",
}  # fmt: skip


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
#: Settings of the teacher that decide what it writes. The others say where it is and how it is asked.
DECIDING = ("kind", "model", "temperature", "max_answer_tokens", "answer_attempts")


class TeacherSettings(SettingsModel):
    """The teacher: a model behind an OpenAI-compatible endpoint, or one that runs here."""

    kind: Literal["openai", "local"] = Field(
        default="openai",
        title="Kind",
        description="openai: any server with /chat/completions (vLLM, Ollama, llama.cpp, hosted ones); "
        "local: a model folder, by this package's own generation.",
    )
    base_url: str | None = Field(
        default=None,
        title="Address",
        description="Of the server, such as http://localhost:8000/v1; only for kind openai.",
    )
    model: str | None = Field(
        default=None, title="Model", description="Name of the model at the server; only for kind openai."
    )
    model_folder: str | None = Field(
        default=None,
        title="Model folder",
        description="In Hugging Face layout, for kind local; empty: the base model of the pipeline.",
    )
    adapter_folder: str | None = Field(
        default=None, title="Adapter", description="PEFT folder over the model, for kind local."
    )
    api_key_env: str | None = Field(
        default=None,
        title="Variable of the key",
        description="Name of the environment variable that holds the server's key; empty: no key is sent.",
    )
    api_key_block: str | None = Field(
        default=None, title="Block of the key", description="Name of a Prefect Secret block with the key."
    )
    structured_output: Literal["auto", "on", "off"] = Field(
        default="auto",
        title="Structured output",
        description="Send a JSON schema: on, off, or auto: until the server refuses it.",
    )
    temperature: float = Field(
        default=0.3, ge=0, le=2, title="Temperature", description="0 takes the likeliest token."
    )
    max_answer_tokens: int = Field(
        default=1024, ge=16, title="Longest answer", description="Tokens that the teacher may write at once."
    )
    answer_attempts: int = Field(
        default=2,
        ge=1,
        title="Attempts",
        description="How often a request is made until its answer can be read.",
    )
    max_concurrency: int = Field(
        default=4, ge=1, le=256, title="Requests at once", description="How many are in flight at most."
    )
    requests_per_minute: float | None = Field(
        default=None, gt=0, title="Requests a minute", description="At most so many; empty: no limit."
    )
    timeout_seconds: float = Field(
        default=120, gt=0, title="Timeout", description="Seconds after which a request has failed."
    )
    max_retries: int = Field(
        default=6,
        ge=0,
        title="Retries",
        description="Of a request that the server refused for now (429, 5xx), or that was cut.",
    )
    retry_delay_seconds: float = Field(
        default=1.0,
        ge=0,
        title="Delay",
        description="Before the first retry; doubles each time, to a minute. A Retry-After goes before it.",
    )
    max_failures: int = Field(
        default=20,
        ge=0,
        title="Most failures",
        description="Requests that may fail for good before the stage ends; what is answered stays.",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        title="Most tokens",
        description="Budget of prompts and answers together, over all runs; empty: no limit.",
    )
    max_cost: float | None = Field(
        default=None,
        gt=0,
        title="Most cost",
        description="Budget in the currency of the prices, over all runs; empty: no limit.",
    )
    input_price: float | None = Field(
        default=None, ge=0, title="Price of prompts", description="For a million tokens."
    )
    output_price: float | None = Field(
        default=None, ge=0, title="Price of answers", description="For a million tokens."
    )

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, value: str | None) -> str | None:
        # The value is not shown: it may be the key itself, which somebody put here by mistake.
        if value is not None and (_VARIABLE.fullmatch(value) is None or value.startswith("sk_")):
            raise ValueError(
                "expected the name of an environment variable, such as OPENAI_API_KEY; the key itself stays "
                "out of the configuration"
            )
        return value

    @model_validator(mode="after")
    def _fields_of_its_kind(self) -> TeacherSettings:
        ours, others = ("base_url", "model"), ("model_folder", "adapter_folder")
        if self.kind == "openai":
            missing = next((name for name in ours if getattr(self, name) is None), None)
            if missing:
                raise ValueError(f"teacher.{missing} is needed for kind openai")
        else:
            keys = ("api_key_env", "api_key_block")
            others = (*ours, *keys, "requests_per_minute", "max_tokens", "max_cost")
        wrong = next((name for name in others if getattr(self, name) is not None), None)
        if wrong:
            raise ValueError(f"teacher.{wrong} has no effect for kind {self.kind}: leave it out")
        if self.api_key_env is not None and self.api_key_block is not None:
            raise ValueError("teacher: api_key_env and api_key_block exclude each other; give one of them")
        if self.max_cost is not None and (self.input_price is None or self.output_price is None):
            raise ValueError("teacher.max_cost needs input_price and output_price")
        return self

    def deciding(self) -> dict[str, Any]:
        """Return, as JSON values, the settings that decide what the teacher writes."""
        return self.model_dump(mode="json", include=set(DECIDING))

    def cost(self, prompt_tokens: int, answer_tokens: int) -> float | None:
        """Return the price of a number of tokens, or None without prices."""
        if self.input_price is None or self.output_price is None:
            return None
        return (prompt_tokens * self.input_price + answer_tokens * self.output_price) / 1e6


class QuestionGeneration(SettingsModel):
    """Questions of given kinds about each chunk of the documents, made by a teacher and checked."""

    questions_per_chunk: int = Field(
        default=2, ge=1, le=20, title="Questions a chunk", description="So many of each kind."
    )
    kinds: list[Kind] = Field(
        default=["fact"],
        min_length=1,
        title="Kinds",
        description="fact; how_to; comparison, over two neighbouring chunks of a document; unanswerable, "
        "about the chunk's subject and not answered by it, which needs abstain.",
    )
    max_chunks: int | None = Field(
        default=None, ge=1, title="Most chunks", description="Drawn by seed; empty: all of them."
    )
    seed: int = Field(
        default=0,
        ge=0,
        title="Seed",
        description="Draws chunks, and is sent to the teacher. Another one asks everything anew.",
    )
    held_out: bool = Field(
        default=False,
        title="Held-out questions",
        description="Whether held-out questions may be made ones too; else they are about the documents of "
        "the training split only.",
    )
    near_duplicates: Threshold = Field(
        default=0.8,
        title="Near-duplicates",
        description="Share of common words (Jaccard) from which a question repeats an earlier one; off: "
        "equal ones only.",
    )
    refuse_personal_data: bool = Field(
        default=False,
        title="Refuse personal data",
        description="Refuse questions and answers with an e-mail address, a phone, card or account number.",
    )
    refuse_words: list[str] = Field(
        default=[],
        title="Refuse words",
        description="Refuse questions and answers with one of these words, such as profanities.",
    )
    decisions: str | None = Field(
        default=None,
        title="Decisions",
        description="File in which a person accepts, edits or refuses questions (`jora questions --review`).",
    )
    teacher: TeacherSettings = Field(title="Teacher", description="The model that makes the questions.")

    @model_validator(mode="after")
    def _each_kind_once(self) -> QuestionGeneration:
        if len(set(self.kinds)) != len(self.kinds):
            raise ValueError(f"kinds names one twice: {', '.join(self.kinds)}")
        return self

    def deciding(self) -> dict[str, Any]:
        """Return, as JSON values, the settings that decide the made questions."""
        return {
            **self.model_dump(mode="json", include=_DECIDING),
            "teacher": self.teacher.deciding(),
        }
