"""The API's requests and responses, as pydantic models with the examples of its documentation."""

from __future__ import annotations

from base64 import b64encode
from typing import Annotated, Any, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, model_validator

_TEXT = "Operating profit rose to EUR 13.1 mn from EUR 8.7 mn a year earlier."


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Lenient(BaseModel):
    """Accepts unknown fields, because clients of OpenAI's API send fields that change nothing here."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


# Tasks ----------------------------------------------------------------------------------------------


class Input(_Strict):
    """One text, with a question if the task needs one."""

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
    """A bullet of a summary and the sentences that support it."""

    text: str
    numbers: int = Field(description="How many numbers it has.")
    supported: int = Field(description="How many of them occur in the summarized text.")
    sources: list[str] = Field(description="The sentences that contain its numbers and words.")


class TaskAnswer(BaseModel):
    """An answer, or `error`. The task decides which fields are present."""

    index: int
    prediction: str | float | None = None
    probabilities: dict[str, float] | None = Field(None, description="Of each label, or level of a number.")
    interval: list[float] | None = Field(None, description="Low and high end of a number's interval.")
    unit: str | None = None
    token_probability: float | None = None
    set_probability: float | None = Field(None, description="Of exactly this set of labels.")
    bullets: list[BulletAnswer] | None = None
    prediction_id: str | None = Field(None, description="The id for feedback, if answers are stored.")
    error: str | None = None


class TaskResponse(BaseModel):
    """Answers in the order of the inputs."""

    object: Literal["list"] = "list"
    model: str
    task: str
    data: list[TaskAnswer]


class DocumentRequest(_Strict):
    """A document, as the bytes of its file, and the question or task about it."""

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
    """A passage that supports an answer."""

    document: str
    section: str = Field(description="Its titles, from the outermost; empty if it has none.")
    page: str = Field(description="The page it begins on; empty if the file has no pages.")
    text: str
    spans: list[tuple[int, int]] = Field(description="The characters of `text` that support the answer.")
    bullet: int | None = Field(None, description="Which line of a summary, from 1.")


class DocumentRead(BaseModel):
    """How much of the document the model read; all of it was searched."""

    documents: list[str]
    words: int
    of_words: int
    passages: int
    of_passages: int
    left_out: list[str]


class DocumentResponse(TaskAnswer):
    """An answer with its sources; `error` says if it is not in the document."""

    object: Literal["document_answer"] = "document_answer"
    index: int = 0
    model: str
    task: str
    unsupported: list[str] | None = Field(None, description="Its figures that are missing in what was read.")
    sources: list[DocumentSource]
    read: DocumentRead


class TaskInfo(BaseModel):
    """What a task is, and how it answers."""

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


class CalledFunction(_Lenient):
    name: str = Field(min_length=1, max_length=256)
    arguments: str = Field(description="JSON.")


class ToolCall(_Lenient):
    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(_Lenient):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = Field(None, description="Null only for an assistant's turn.")
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a {self.role} message needs content")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls belong to an assistant message")
        return self

    def plain(self) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content)


class Function(_Lenient):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Lenient):
    type: Literal["function"]
    function: Function


class FunctionName(_Lenient):
    name: str


class NamedTool(_Lenient):
    type: Literal["function"]
    function: FunctionName


class JsonSchema(_Lenient):
    name: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Lenient):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with the type json_schema, and only with it")
        return self


class StructuredOutputs(_Strict):
    """vLLM's field: one of these."""

    choice: list[str] | None = Field(None, min_length=1, max_length=10_000)
    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None


class StreamOptions(_Lenient):
    include_usage: bool | None = False


class _Writing(BaseModel):
    """Null counts as left out. `options.check` refuses unknown fields."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=2, description="0, the default: the likeliest tokens.")
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=128)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_choice: list[str] | None = Field(None, min_length=1, max_length=10_000)
    guided_regex: str | None = None

    def stops(self) -> tuple[str, ...]:
        words = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(word for word in words if word)


class ChatRequest(_Writing):
    """A chat. The model `NAME:TASK` takes the last user message as the task's text."""

    model_config = ConfigDict(
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
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None


TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class CompletionRequest(_Writing):
    """Text that continues a prompt, or several."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "smollm2-135m-instruct", "prompt": "Net sales rose", "max_tokens": 16}]
        },
    )

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]] = Field(min_length=1)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1)

    def prompts(self) -> list[str | list[int]]:
        given: Any = self.prompt
        several = isinstance(given, list) and not isinstance(given[0], int)
        return list(given) if several else [given]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    tool_calls: list[ToolCall] | None = None


class Likely(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None = None


class LikelyToken(Likely):
    top_logprobs: list[Likely]


class ChatLogprobs(BaseModel):
    content: list[LikelyToken]
    refusal: None = None


class TextLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class ChatChoice(BaseModel):
    index: int = 0
    message: AssistantMessage
    finish_reason: str
    logprobs: ChatLogprobs | None = None


class ChatResponse(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prediction_id: str | None = None
    """Not OpenAI's: the id for feedback, if the answer to a task is stored."""


class TextChoice(BaseModel):
    index: int = 0
    text: str
    finish_reason: str
    logprobs: TextLogprobs | None = None


class CompletionResponse(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    prediction_id: str | None = None
    """Not OpenAI's: the id for feedback, if the answer to a task is stored."""


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
    """State of the answer store; absent if none are stored."""

    state: Literal["ok", "down"]
    waiting: int = Field(description="Answers that wait to be stored.")
    lost: int = Field(description="Answers that could not be stored.")


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
