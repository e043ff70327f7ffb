"""What the API takes and gives, as pydantic models with the examples that its documentation shows."""

from __future__ import annotations

from base64 import b64encode
from typing import Any, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field

_TEXT = "Operating profit rose to EUR 13.1 mn from EUR 8.7 mn a year earlier."


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Lenient(BaseModel):
    """Clients of OpenAI's API send fields of their own, which change nothing here."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


# Tasks ----------------------------------------------------------------------------------------------


class Input(_Strict):
    """One text, with a question where the task asks for one."""

    text: str
    question: str | None = None


class TaskRequest(_Strict):
    """One text, or several as `inputs`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"text": _TEXT},
                {"inputs": [{"text": _TEXT}, {"text": "Sales fell 4 %."}], "truncate": True},
                {"text": "Revenue was $5.2 billion.", "question": "What was revenue?"},
            ]
        },
    )

    text: str | None = None
    question: str | None = None
    inputs: list[Input] | None = Field(None, min_length=1)
    model: str | None = Field(None, description="An adapter, or the base; the server's default without it.")
    truncate: bool = Field(False, description="Shorten a text that does not fit, instead of an error.")


class BulletAnswer(BaseModel):
    """A bullet of a summary and the sentences it comes from."""

    text: str
    numbers: int = Field(description="How many numbers it has.")
    supported: int = Field(description="How many of them stand in the text that was summarized.")
    sources: list[str] = Field(description="The sentences that its numbers and words stand in.")


class TaskAnswer(BaseModel):
    """An answer, or `error`. Which of the fields there are depends on the task."""

    index: int
    prediction: str | float | None = None
    probabilities: dict[str, float] | None = Field(None, description="Of each label, or level of a number.")
    interval: list[float] | None = Field(None, description="Low and high end of a number's interval.")
    unit: str | None = None
    token_probability: float | None = None
    set_probability: float | None = Field(None, description="Of exactly this set of labels.")
    bullets: list[BulletAnswer] | None = None
    prediction_id: str | None = Field(None, description="To send feedback with, where answers are kept.")
    error: str | None = None


class TaskResponse(BaseModel):
    """Answers in the order of the inputs."""

    object: Literal["list"] = "list"
    model: str
    task: str
    data: list[TaskAnswer]


class DocumentRequest(_Strict):
    """A document, as the bytes of its file, and what is asked of it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "name": "release.html",
                    "content": b64encode(f"<h1>Results</h1><p>{_TEXT}</p>".encode()).decode(),
                    "question": "What was the operating profit?",
                }
            ]
        },
    )

    name: str = Field(min_length=1, max_length=200, description="The file's name, for the citation.")
    content: Base64Bytes = Field(description="The file in base64: HTML, inline XBRL, PDF, Markdown, text.")
    question: str | None = None
    model: str | None = Field(None, description="An adapter, or the base; the server's default without it.")


class DocumentSource(BaseModel):
    """A passage that an answer comes from."""

    document: str
    section: str = Field(description="Its titles, from the outermost; empty where there are none.")
    page: str = Field(description="The page it begins on; empty where the file has none.")
    text: str
    spans: list[tuple[int, int]] = Field(description="The characters of `text` that the answer comes from.")
    bullet: int | None = Field(None, description="Which line of a summary, from 1.")


class DocumentRead(BaseModel):
    """How much of the document stood before the model; all of it was searched."""

    documents: list[str]
    words: int
    of_words: int
    passages: int
    of_passages: int
    left_out: list[str]


class DocumentResponse(TaskAnswer):
    """An answer with its sources; `error` says so where it is not in the document."""

    object: Literal["document_answer"] = "document_answer"
    index: int = 0
    model: str
    task: str
    unsupported: list[str] | None = Field(None, description="Its figures that what was read lacks.")
    sources: list[DocumentSource]
    read: DocumentRead


class TaskInfo(BaseModel):
    """What a task is and what it answers with."""

    id: str
    object: Literal["task"] = "task"
    type: str
    instruction: str
    labels: list[str] | None = None
    unit: str | None = None
    needs_question: bool = False


class TaskList(BaseModel):
    object: Literal["list"] = "list"
    model: str
    data: list[TaskInfo]


# OpenAI's -------------------------------------------------------------------------------------------


class Part(_Lenient):
    type: Literal["text"]
    text: str


class Message(_Lenient):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def plain(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(_Lenient):
    include_usage: bool = False


class _Writing(_Lenient):
    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2, description="0, the default, takes the likeliest tokens.")
    top_p: float = Field(1.0, gt=0, le=1)
    n: Literal[1] | None = None
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    def stops(self) -> tuple[str, ...]:
        words = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(word for word in words if word)


class ChatRequest(_Writing):
    """A chat. The model `NAME:TASK` takes the last user message as the task's text."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [
                {
                    "model": "smollm2-135m-instruct",
                    "messages": [{"role": "user", "content": "What is a bond?"}],
                    "max_tokens": 64,
                },
                {"model": "model:sentiment", "messages": [{"role": "user", "content": _TEXT}]},
            ]
        },
    )

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[Any] | None = Field(None, max_length=0, description="Not supported.")
    response_format: dict[str, Any] | None = Field(None, description="Only `text` is supported.")


class CompletionRequest(_Writing):
    """Text that goes on from a prompt."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [{"model": "smollm2-135m-instruct", "prompt": "Net sales rose", "max_tokens": 16}]
        },
    )

    prompt: str = Field(min_length=1)


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    index: int = 0
    message: AssistantMessage
    finish_reason: str
    logprobs: None = None


class ChatResponse(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prediction_id: str | None = None
    """Not OpenAI's: for feedback, where the answer to a task is kept."""


class TextChoice(BaseModel):
    index: int = 0
    text: str
    finish_reason: str
    logprobs: None = None


class CompletionResponse(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    prediction_id: str | None = None
    """Not OpenAI's: for feedback, where the answer to a task is kept."""


class ModelInfo(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "fintune"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelInfo]


class AdapterInfo(BaseModel):
    id: str
    object: Literal["adapter"] = "adapter"
    loaded: bool


class AdapterList(BaseModel):
    object: Literal["list"] = "list"
    data: list[AdapterInfo]


class StoreState(BaseModel):
    """How keeping answers goes; where none are kept there is none."""

    state: Literal["ok", "down"]
    waiting: int = Field(description="Answers that wait to be kept.")
    lost: int = Field(description="Answers that were not kept, and will not be.")


class Health(BaseModel):
    status: Literal["ok"]
    store: StoreState | None = None


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """OpenAI's error shape."""

    error: ErrorDetail
