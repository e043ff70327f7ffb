"""Reads the settings of `fintune live`: YAML in, a validated `LiveConfig` out. No models, no network."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fintune.errors import ConfigError
from fintune.live.web import Network, RefusedAddressError, check_url


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def _networks(values: list[str]) -> list[str]:
    for value in values:
        ipaddress.ip_network(value)  # its ValueError explains the problem
    return values


def _web_address(value: str) -> str:
    try:
        check_url(value)
    except RefusedAddressError as error:
        raise ValueError(str(error).rstrip(".")) from None
    return value


class FeedConfig(_Section):
    """An RSS or Atom feed."""

    url: str
    symbol: str | None = None
    """The stock of all its items; None reads `$AAPL` and `(NYSE: IBM)` in the titles."""

    _url = field_validator("url")(_web_address)


class ProviderConfig(_Section):
    """Your own provider: `Class(**options)` has `name` and `poll` (see `live/items.py`)."""

    type: str = Field(pattern=r"^[\w.]+:\w+$")
    """`package.module:Class`."""
    options: dict[str, Any] = {}


class RuleConfig(_Section):
    """A condition for an alert."""

    task: str
    label: str | None = None
    """For a classification: the label, with a probability of at least `probability`."""
    probability: float = Field(0.9, ge=0, le=1)
    move: float | None = Field(None, gt=0)
    """For a number: its least absolute value, in the task's unit."""

    @model_validator(mode="after")
    def _one_kind(self) -> RuleConfig:
        if (self.label is None) == (self.move is None):
            raise ValueError("a rule has either a label (and a probability) or a move")
        return self


class AlertConfig(_Section):
    """Where alerts go. The environment holds the secret that signs them: FINTUNE_WEBHOOK_SECRET."""

    webhook: str | None = None
    rules: list[RuleConfig] = [
        RuleConfig(task="headline", label="bearish"),
        RuleConfig(task="headline", label="bullish"),
        RuleConfig(task="sentiment", label="negative"),
        RuleConfig(task="sentiment", label="positive"),
        RuleConfig(task="regression", move=2.0),
    ]
    allow_networks: list[str] = []
    """Private networks that the webhook may be in, such as 10.0.0.0/8."""
    max_per_round: int = Field(20, gt=0)
    """The most alerts per round; the rest waits for the next."""

    _hook = field_validator("webhook")(lambda value: value and _web_address(value))
    _nets = field_validator("allow_networks")(_networks)


class LiveConfig(_Section):
    """All settings of a live run."""

    feeds: list[FeedConfig] = []
    yahoo_news: list[str] = []
    """Symbols with news from Yahoo Finance, through yfinance."""
    providers: list[ProviderConfig] = []
    tasks: list[str] = Field(["headline", "sentiment"], min_length=1)
    text: Literal["title", "title_and_summary"] = "title"
    """The part of an item that the model reads."""
    output: str = "output/live"
    interval: float = Field(300, ge=5)
    """The fewest seconds between two polls of a source; a source may ask for more."""
    near_duplicate: float = Field(0.8, ge=0.3, le=1)
    """Titles at least this similar are one piece of news (see docs/data.md, near duplicates)."""
    max_bytes: int = Field(1_000_000, gt=0)
    timeout: float = Field(20, gt=0)
    """The most seconds for one response, redirects included."""
    allow_networks: list[str] = []
    """Private networks that feeds may be in, such as 127.0.0.0/8 for a feed on this machine."""
    proxy: str | None = None
    """A proxy for feeds and webhook; it then decides which networks are reachable."""
    alerts: AlertConfig = AlertConfig()

    _nets = field_validator("allow_networks")(_networks)

    @field_validator("feeds", mode="before")
    @classmethod
    def _plain_addresses(cls, value: Any) -> Any:
        if isinstance(value, list):
            return [{"url": feed} if isinstance(feed, str) else feed for feed in value]
        return value

    @model_validator(mode="after")
    def _each_once(self) -> LiveConfig:
        urls = [feed.url for feed in self.feeds]
        if twice := {url for url in urls if urls.count(url) > 1}:
            raise ValueError(f"feeds has {sorted(twice)[0]} twice: leave one out")
        return self


def networks(texts: list[str]) -> list[Network]:
    """Parse the networks of an `allow_networks` list."""
    return [ipaddress.ip_network(text) for text in texts]


def load_live_config(path: str | Path | None, changes: dict[str, Any]) -> LiveConfig:
    """The YAML file (None is an empty one) with `changes` applied, by key, such as `alerts.webhook`.

    Raises:
        ConfigError: the file cannot be read, a value is wrong, or there is nothing to poll.
    """
    raw: Any = {}
    where = str(path) if path else "the command line"
    if path:
        try:
            raw = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise ConfigError(f"There is no file {path}: give --config a YAML file.") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from None
        if not isinstance(raw, dict):
            raise ConfigError(f"{path} holds no settings: write keys such as `feeds:`.")
    for key, value in changes.items():
        section, _, inner = key.rpartition(".")
        target = raw.setdefault(section, {}) if section else raw
        if isinstance(target, dict):
            target[inner] = value
    try:
        config = LiveConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(item, where) for item in error.errors())) from None
    if not (config.feeds or config.yahoo_news or config.providers):
        raise ConfigError(
            "There is nothing to poll: give --feed URL, or feeds: in a YAML file with --config."
        )
    return config


def _sentence(item: Any, where: str) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{key} is not a known key: see configs/live.yaml for the known keys (in {where})"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{f'{key}: ' if key else ''}{message} (in {where})"
    return f"{key} {message.replace('Input should', 'must')}, got {item['input']!r} (in {where})"
