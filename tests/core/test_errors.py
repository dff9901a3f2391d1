import pytest

from luthier.core import errors
from luthier.core.errors import LuthierError, did_you_mean, nearest


def every_error():
    return [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, LuthierError)]


@pytest.mark.parametrize("kind", every_error())
def test_each_error_has_a_message_an_exit_code_and_a_status(kind):
    error = kind("what happened", hint="luthier doctor")
    assert error.message == "what happened" and str(error) == "what happened\n  luthier doctor"
    assert 1 <= error.exit_code <= 9 and 400 <= error.http_status <= 599
    assert str(kind("alone")) == "alone" and kind("alone").hint is None


def test_bad_input_exits_with_2_and_other_troubles_have_their_own_codes():
    own = {e for e in every_error() if not issubclass(e, errors.InputError)}
    assert all(e.exit_code == 2 for e in every_error() if e not in own)
    codes = [e.exit_code for e in own]
    assert len(set(codes)) == len(codes) and 2 not in codes


def test_suggestions_are_near_or_everything():
    assert nearest("lroa", ["lora", "full", "linear_probe"]) == ["lora"]
    assert did_you_mean("lroa", ["full", "lora"]) == "Did you mean 'lora'?"
    assert did_you_mean("zzz", ["full", "lora"]) == "Allowed: full, lora."
    assert did_you_mean("zzz", []) == "None is known yet."
