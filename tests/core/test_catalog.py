import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

import luthier
from luthier.core import catalog
from luthier.core.catalog import FUNCTIONS, EntryConfig, load, names, summary
from luthier.core.errors import InputError, MissingExtraError, NotFoundError

ENTRY = '''"""Adds things up. Second sentence."""
from luthier.core.catalog import EntryConfig
class Config(EntryConfig):
    rank: int = 8
    name_of: str = "x"
def build(model, config):
    return (model, config.rank)
SERVING = {"torch": "swap"}
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A package with entries of its own, announced through entry points as a third party would."""
    package = tmp_path / "other_party"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "adder.py").write_text(ENTRY)
    (package / "lacking.py").write_text('"""Needs something."""\nimport a_package_that_is_not_there\n')
    (package / "wrong.py").write_text('"""Imports what Luthier has not."""\nimport luthier.no_such_module\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [EntryPoint(n, f"other_party.{n}", "luthier.methods") for n in ("adder", "lacking", "wrong")]
    monkeypatch.setattr(catalog, "entry_points", lambda group: points if group == "luthier.methods" else [])
    catalog._locations.cache_clear()
    yield
    catalog._locations.cache_clear()


def test_entries_are_the_file_names_of_the_folder():
    for catalogue in FUNCTIONS:
        elsewhere = {
            "optimizers": "training/optimizers",
            "guardrails": "gateway/guardrails",
            "routes": "gateway/routing",
        } | {each: f"knowledge/{each}" for each in ("parsers", "chunkers", "indexes", "retrievers", "answers")}
        place = Path(luthier.__file__).parent / elsewhere.get(catalogue, catalogue)
        found = tuple(sorted(p.stem for p in place.glob("*.py") if not p.stem.startswith("_")))
        assert names(catalogue) == found and found


def test_listing_imports_no_entry():
    code = (
        "import sys; from luthier.core.catalog import FUNCTIONS, _locations, names, summary\n"
        "said = [summary(c, n) for c in FUNCTIONS for n in names(c)]\n"
        "entries = [m for c in FUNCTIONS for m in _locations(c).values()]\n"
        "print([m for m in (*entries, 'torch') if m in sys.modules], len(said))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] ")


def test_other_packages_add_entries(own):
    assert "adder" in names("methods") and "adder" not in names("scorers")
    entry = load("methods", "adder")
    assert entry("m", entry.configure({"rank": 4})) == ("m", 4)
    assert entry.optional("SERVING") == {"torch": "swap"} and entry.optional("MISSING") is None
    assert summary("methods", "adder") == "Adds things up. Second sentence."
    assert issubclass(entry.config_class, EntryConfig) and isinstance(entry.module, ModuleType)


def test_options_are_checked_and_the_near_key_is_suggested(own):
    entry = load("methods", "adder")
    assert entry.configure().rank == 8
    with pytest.raises(InputError, match=r"method adder: unknown key 'rnak'. Did you mean 'rank'"):
        entry.configure({"rnak": 4})
    with pytest.raises(InputError, match=r"method adder: rank: .*got 'four'"):
        entry.configure({"rank": "four"})
    with pytest.raises(Exception, match="frozen"):
        entry.configure().rank = 3


def test_an_unknown_entry_suggests_near_ones(own):
    with pytest.raises(NotFoundError, match=r"method 'ader' is not known. Did you mean 'adder'"):
        load("methods", "ader")


def test_a_missing_package_is_named_with_its_install_command(own):
    with pytest.raises(MissingExtraError, match="'lacking' needs the package 'a_package_that_is_not_there'") as raised:
        load("methods", "lacking")
    assert raised.value.hint == "pip install a_package_that_is_not_there"


def test_a_mistake_in_luthier_itself_is_not_dressed_up_as_a_missing_package(own):
    with pytest.raises(ModuleNotFoundError, match=r"luthier\.no_such_module"):
        load("methods", "wrong")
