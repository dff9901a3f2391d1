"""What a server is to serve: models that were named to it, and the sections ``models`` and ``routes`` of its configuration, brought together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from luthier.core.engine import Engine
from luthier.core.errors import InputError
from luthier.gateway.config import GatewayConfig
from luthier.gateway.targets.registry import ModelConfig, Registry, Source, Target
from luthier.gateway.targets.routes import check_routes, classifiers_of
from luthier.gateway.targets.served import Price

_OPENS = {
    "model",
    "engine",
    "options",
    "replicas",
}  # what decides which engines are opened; the rest are settings of open ones


@dataclass(frozen=True)
class Change:
    """A new state of a registry that is ready but not visible: ``targets`` to show, names to ``drop``, and those of the targets that were
    ``opened`` for it."""

    targets: tuple[Target, ...]
    drop: tuple[str, ...] = ()
    opened: tuple[Target, ...] = ()


@dataclass(frozen=True)
class Stock:
    """What was named to the server itself, and stays whatever the file says: models by name, engines that are open already, prices."""

    named: Mapping[str, ModelConfig] = field(default_factory=dict)
    held: Mapping[str, Sequence[Engine]] = field(default_factory=dict)
    prices: Mapping[str, Price] = field(default_factory=dict)

    def check(self, config: GatewayConfig) -> dict[str, ModelConfig]:
        """Every model that is to be served, with its settings; hidden ones too.

        Raises InputError for routes to nowhere, names that are used twice, and settings that do not go together.
        """
        for name in self.held:
            wrong = sorted(_OPENS & config.models[name].model_fields_set) if name in config.models else []
            if wrong:
                raise InputError(
                    f"models.{name}: {', '.join(wrong)} cannot be said of an engine that was given open; only its settings can"
                )
        wanted = {name: _overlaid(given, config.models.get(name)) for name, given in self.named.items()}
        wanted |= {name: self._priced(name, said) for name, said in config.models.items() if name not in wanted}
        aliases: dict[str, str] = {}
        for name, said in wanted.items():
            for alias in said.aliases:
                if alias in wanted or alias in aliases:
                    raise InputError(f"models.{name}: the alias {alias!r} is the name of another model, or its alias")
                aliases[alias] = name
        check_routes(config.routes, [*wanted, *aliases])
        return wanted | classifiers_of(config.routes, [*wanted, *aliases])

    def _priced(self, name: str, said: ModelConfig) -> ModelConfig:
        if name not in self.prices or "price" in said.model_fields_set:
            return said
        return said.model_copy(update={"price": self.prices[name]})

    def hidden(self, config: GatewayConfig) -> set[str]:
        """Those of them that only routes may ask."""
        return self.check(config).keys() - self.named.keys() - config.models.keys()

    def open(self, registry: Registry, config: GatewayConfig) -> None:
        """Load and show everything, where no event loop runs yet. Raises LuthierError; what was loaded is then closed with the registry."""
        wanted, hidden = self.check(config), self.hidden(config)
        for name, said in wanted.items():
            if name in self.held:
                registry.show([registry.hold(name, self.held[name], said)])
            else:
                source: Source = "given" if name in self.named else "file"
                registry.show([registry.open(name, said, source, hidden=name in hidden)])

    async def prepare(self, registry: Registry, config: GatewayConfig) -> Change:
        """What has to change for ``config``, with the models loaded that are new in it.

        Models that were loaded on request stay, unless the file now has their name. Raises LuthierError, and then nothing is left open.
        """
        wanted, hidden = self.check(config), self.hidden(config)
        present = {target.name: target for target in registry.targets()}
        new: dict[str, ModelConfig] = {}
        kept: list[Target] = []
        for name, said in wanted.items():
            known = present.get(name)
            same = (
                known is not None
                and known.hidden == (name in hidden)
                and known.config.engines(name) == said.engines(name)
            )
            if known is None or not (same or name in self.held):
                new[name] = said
            elif known.config != said:
                kept.append(registry.with_settings(known, said))
        opened = await registry.load_all(new, hidden)
        gone = [name for name, target in present.items() if target.source == "file" and name not in wanted]
        return Change((*kept, *opened), tuple(gone), tuple(opened))


def _overlaid(given: ModelConfig, said: ModelConfig | None) -> ModelConfig:
    """What the file says of a model that was named to the server, over what was named with it."""
    if said is None:
        return given
    return said.model_copy(
        update={name: getattr(given, name) for name in given.model_fields_set if name not in said.model_fields_set}
    )
