"""The section ``guardrails`` of the gateway's configuration: which guardrail looks at what, and what is done about its findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from luthier.core import catalog
from luthier.core.catalog import Entry
from luthier.core.engine import Engine
from luthier.core.errors import InputError, LuthierError, NotFoundError, did_you_mean
from luthier.gateway.guardrails._contract import INPUT, OUTPUT, Action, Context, Direction, Finding

REFUSAL = "This request was stopped by the content policy of this server."
HANDED_OVER = "Your request was handed over to a person, who will answer it."


def _directions(value: Any) -> Any:
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple):
        return given
    both = [INPUT, OUTPUT] if "both" in given else given
    return tuple(dict.fromkeys(both))


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Patterns = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class Rule(BaseModel):
    """One guardrail and what is done about what it finds. Keys that are not named here are options of the guardrail itself.

    ``on``: input, output or both. ``action``: block (refuse), mask (hide it), cut (the answer ends there), retry (ask again, at most ``retries``
    times, then do as ``exhausted`` says), flag (only in the trace), hand_over (to a person). ``respond``: a block is an ``answer`` that ends
    with the reason content_filter, or an ``error`` (HTTP 400); ``auto`` is an error for what is asked and an answer for what comes back.
    ``message`` is the text of a refusal, or of the answer instead of one that is handed over. ``on_error``: what a guardrail that fails means:
    ``closed`` refuses the request, ``open`` lets it through; auto is open for flag and closed for the rest. ``models`` and ``tenants`` are shell
    patterns of the names that requests say and of whose they are.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str
    on: Annotated[tuple[Direction, ...], BeforeValidator(_directions)] | None = Field(None, min_length=1)
    action: Action | None = None
    message: str = ""
    respond: Literal["auto", "answer", "error"] = "auto"
    retries: int = Field(2, ge=1, le=5)
    exhausted: Literal["block", "flag", "hand_over"] = "block"
    on_error: Literal["auto", "closed", "open"] = "auto"
    models: Patterns = ("*",)
    tenants: Patterns = ("*",)

    @model_validator(mode="before")
    @classmethod
    def _on_is_a_word(cls, data: Any) -> Any:
        """YAML 1.1 reads the key ``on`` as true."""
        return {"on" if key is True else key: value for key, value in data.items()} if isinstance(data, dict) else data

    @property
    def options(self) -> dict[str, Any]:
        """The options of the guardrail itself."""
        return dict(self.model_extra or {})

    def holds(self, model: str, tenant: str) -> bool:
        """Whether the rule is for requests of ``tenant`` that ask ``model``."""
        return any(fnmatchcase(model, each) for each in self.models) and any(
            fnmatchcase(tenant, each) for each in self.tenants
        )


@dataclass(frozen=True)
class Guardrail:
    """A rule that is ready: its entry, the entry's config, and what the entry prepared. ``name`` is unique among the rules."""

    name: str
    rule: Rule
    entry: Entry
    config: Any
    on: tuple[Direction, ...]
    action: Action
    slow: bool
    streams: bool
    state: Any = field(default=None, repr=False)

    @property
    def roles(self) -> tuple[str, ...]:
        """Whose texts it reads on input."""
        roles: tuple[str, ...] = self.entry.optional("ROLES") or ("user",)
        return roles

    @property
    def kept(self) -> int:
        """How many characters before a cut its ``scan`` wants to see."""
        return int(self.entry.optional("KEPT") or 0)

    @property
    def closed(self) -> bool:
        """Whether a failure of the guardrail refuses the request."""
        return self.rule.on_error == "closed" or (self.rule.on_error == "auto" and self.action != "flag")

    def respond(self, direction: Direction) -> Literal["answer", "error"]:
        """How a block shows."""
        if self.rule.respond == "auto":
            return "error" if direction == INPUT else "answer"
        return self.rule.respond

    def check(self, text: str, context: Context) -> list[Finding]:
        """The findings in a whole text."""
        context.state = self.state
        found: list[Finding] = self.entry(text, self.config, context)
        return found

    def scan(self, text: str, start: int, final: bool, context: Context) -> tuple[list[Finding], int]:
        """The findings that are sure in a growing text (``_contract``)."""
        context.state = self.state
        found: tuple[list[Finding], int] = self.entry.module.scan(text, start, final, self.config, context)
        return found


class OpenModels:
    """Models that guardrails ask, opened once for them alone: a served model may be unloaded while they need it.

    A name that is not in the store is that of a ``served`` one, which stays open.
    """

    def __init__(self, served: Mapping[str, Engine], store: Any = None) -> None:
        self._served = served
        self._store = store
        self._opened: dict[str, Engine] = {}

    def engine(self, name: str) -> Engine:
        """The engine of a stored or served model. Raises NotFoundError."""
        from luthier.strategies._load import load

        if name not in self._opened:
            try:
                self._opened[name] = load(name, store=self._store)
            except NotFoundError:
                if name not in self._served:
                    raise
                return self._served[name]
        return self._opened[name]

    def close(self) -> None:
        """Close what was opened here. Safe to call twice."""
        for engine in self._opened.values():
            engine.close()
        self._opened.clear()


def open_rules(rules: Sequence[Rule], models: OpenModels) -> tuple[Guardrail, ...]:
    """The guardrails of a configuration, ready. Raises InputError that names the rule and the option, NotFoundError."""
    seen: dict[str, int] = {}
    return tuple(_open(number, rule, models, seen) for number, rule in enumerate(rules))


def _open(number: int, rule: Rule, models: OpenModels, seen: dict[str, int]) -> Guardrail:
    entry = catalog.load("guardrails", rule.name)
    where = f"guardrails.{number} ({rule.name})"
    _check_keys(where, rule, entry)
    config = entry.configure(rule.options)
    can: tuple[Direction, ...] = entry.optional("ON") or (INPUT, OUTPUT)
    on = rule.on or (entry.optional("DEFAULT_ON") or (can[0],))
    actions: tuple[Action, ...] = entry.optional("ACTIONS") or ("block", "flag", "hand_over")
    action = rule.action or actions[0]
    for name, given, allowed in (("action", (action,), actions), ("on", on, can)):
        wrong = [each for each in given if each not in allowed]
        if wrong:
            raise InputError(f"{where}: {name} must be one of {', '.join(allowed)}; got {wrong[0]!r}")
    if action in ("retry", "cut") and on != (OUTPUT,):
        raise InputError(f"{where}: {action} is for answers; set on: output")
    if rule.message and action not in ("block", "hand_over", "retry"):
        raise InputError(f"{where}: message is for block and hand_over; the action is {action}")
    prepare = entry.optional("prepare")
    try:
        state = prepare(config, models) if prepare is not None else None
    except LuthierError as error:
        error.message = f"{where}: {error.message}"
        raise
    slow, streams = entry.optional("slow"), entry.optional("streams")
    seen[rule.name] = seen.get(rule.name, 0) + 1
    return Guardrail(
        name=rule.name if seen[rule.name] == 1 else f"{rule.name}-{seen[rule.name]}",
        rule=rule,
        entry=entry,
        config=config,
        on=tuple(on),
        action=action,
        slow=bool(slow(config)) if slow is not None else False,
        streams=entry.optional("scan") is not None and (streams is None or bool(streams(config))),
        state=state,
    )


def _check_keys(where: str, rule: Rule, entry: Entry) -> None:
    """Raise InputError for a key that is neither the rule's nor an option of the guardrail."""
    options = [field.alias or name for name, field in entry.config_class.model_fields.items()]
    known = [*options, *Rule.model_fields]
    for key in rule.options:
        if key not in options:
            raise InputError(f"{where}: unknown key {key!r}. {did_you_mean(key, known)}")


def by_masks(rails: Sequence[Guardrail]) -> Iterator[Guardrail]:
    """Masks first, so that no other guardrail, no model and no trace sees what they hide; then the rest in order."""
    yield from (rail for rail in rails if rail.action == "mask")
    yield from (rail for rail in rails if rail.action != "mask")
