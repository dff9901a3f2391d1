"""The API's description: what it says is true, and no request that it allows or forbids makes the server fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import positive_data_acceptance

from luthier.gateway.api.chat import ChatRequest
from luthier.gateway.api.rerank import RerankRequest
from luthier.gateway.serve import running
from luthier.store.database import open_store

load_all_checks()
EXAMPLES = 10
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from luthier.engines._target import EngineTarget
    from luthier.engines.fake import Config
    from luthier.engines.fake import open as open_fake

    engine = open_fake(EngineTarget("fake"), Config())
    with running({"fake": engine}, store=open_store(tmp_path_factory.mktemp("openapi"))) as url:
        yield url.removesuffix("/v1")


@pytest.fixture(scope="module")
def described(root: str) -> Any:
    return httpx.get(f"{root}/openapi.json").json()


def operations(described: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def body_schema(described: Any, path: str) -> Any:
    return described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]


def test_every_field_of_a_request_is_described(described: Any) -> None:
    assert set(body_schema(described, "/v1/chat/completions")["properties"]) == set(ChatRequest.model_fields)


def test_what_may_be_left_out_may_be_null(described: Any) -> None:
    for path, body in {"/v1/chat/completions": ChatRequest, "/v1/rerank": RerankRequest}.items():
        schema = body_schema(described, path)
        for name, field in schema["properties"].items():
            validator = jsonschema.Draft202012Validator(field)
            assert validator.is_valid(None) is not body.model_fields[name].is_required(), name


def test_every_schema_is_one_and_every_route_says_its_answers_and_errors(described: Any) -> None:
    seen = 0
    for path, method, operation in operations(described):
        assert operation["description"], (path, method)
        assert "422" not in operation["responses"]
        assert operation["responses"]["default"]["content"]["application/json"]["schema"]
        assert operation["responses"]["200"]["content"], (path, method)
        if path != "/health":
            assert {"key": []} in operation["security"]
        for media in operation.get("requestBody", {}).get("content", {}).values():
            jsonschema.Draft202012Validator.check_schema(media["schema"])
            seen += 1
        for response in operation["responses"].values():
            for media in response["content"].values():
                jsonschema.Draft202012Validator.check_schema(media["schema"])
    assert seen >= 6
    assert described["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert "$defs" not in str(described)


def test_what_the_description_allows_is_read_and_what_it_forbids_is_refused(described: Any) -> None:
    schema = body_schema(described, "/v1/chat/completions")
    user = {"role": "user", "content": "x"}
    for messages, good in [
        ([user], True),
        ([{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "x"}]}], True),
        ([{"role": "robot", "content": "x"}, user], False),
        ([{"role": "system", "content": "x"}], False),
        ([user, {"role": "assistant"}], False),
    ]:
        body = {"model": "m", "messages": messages}
        assert jsonschema.Draft202012Validator(schema).is_valid(body) is good
        try:
            ChatRequest.model_validate(body)
            read = True
        except ValueError:
            read = False
        assert read is good


def only_known_models(described: Any) -> Any:
    """The description with the model's name as the only one: requests then get to the engine."""
    for _, _, operation in operations(described):
        for media in operation.get("requestBody", {}).get("content", {}).values():
            if "model" in media["schema"].get("properties", {}):
                media["schema"]["properties"]["model"] = {"const": "fake"}
    return described


@pytest.mark.parametrize("mode", schemathesis.GenerationMode)
def test_no_request_makes_the_server_fail(root: str, mode: schemathesis.GenerationMode) -> None:
    """Every operation, with bodies and parameters that fit its description and with ones that do not.

    ``positive_data_acceptance`` is left out: some of what a schema cannot say is refused, too (a tool's answer without the call).
    """
    described = only_known_models(httpx.get(f"{root}/openapi.json").json())
    schema = schemathesis.openapi.from_dict(described)
    asked: dict[int, int] = {}
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(operation.as_strategy(generation_mode=mode))
        def run(case: schemathesis.Case) -> None:
            answer = case.call(base_url=root, timeout=30)
            asked[answer.status_code] = asked.get(answer.status_code, 0) + 1
            case.validate_response(answer, excluded_checks=[positive_data_acceptance])
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

        try:
            run()
        except Unsatisfiable:  # nothing can be wrong with an operation that takes nothing
            assert mode is schemathesis.GenerationMode.NEGATIVE
            assert not operation.body
    assert not any(status >= 500 for status in asked)
    assert asked.get(200 if mode is schemathesis.GenerationMode.POSITIVE else 400)


def test_methods_that_a_path_does_not_have(root: str, described: Any) -> None:
    with httpx.Client(base_url=root, headers={"content-type": "application/json"}) as client:
        for path, methods in described["paths"].items():
            known = {method.upper() for method in methods} | ({"HEAD"} if "get" in methods else set())
            for method in sorted(set(METHODS) - known):
                answer = client.request(method, path.replace("{", "").replace("}", ""), content=b"{}")
                assert answer.status_code in (404, 405), (method, path, answer.status_code)
