"""The server's document: what it says of bodies, answers and statuses is so, whatever is sent.

schemathesis invents requests that keep to the document, and others that do not.
"""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from alpage import LLM
from alpage.serve.http import make_app
from tiny_llama import make_tiny_llama
from tiny_server import service_of

NUM_EXAMPLES = 40
PLAIN = {
    "prompt": "Hello",
    "input": "Hello",
    "tokens": [70, 80],
    "messages": [{"role": "user", "content": "Hello"}],
}
# The document says forms; ranges, and what fields mean together, are said by refusals.
UNSAID = ["positive_data_acceptance"]
BODIES = {
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
}


@pytest.fixture(scope="module")
def operations(tmp_path_factory):
    """All routes of the document, by their paths."""
    path = tmp_path_factory.mktemp("llama")
    make_tiny_llama(path, max_position_embeddings=64)
    llm = LLM(path, kv_memory="1MiB", dtype="float32", device="cpu", max_num_seqs=4)
    with service_of(llm) as service:
        document = schemathesis.openapi.from_asgi("/openapi.json", make_app(service))
        found = [result.ok() for result in document.get_all_operations()]
        yield {operation.path: operation for operation in found}
    assert not llm.engine.has_unfinished


def statuses_of(operation, mode, *, change=lambda _draw, _case: None):
    """Send what is made up; return the statuses of answers, all of which are as described."""
    unsaid = schemathesis.checks.CHECKS.get_by_names(UNSAID)
    found = []

    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
    def run(case, data):
        change(data.draw, case)
        response = case.call()
        case.validate_response(response, excluded_checks=unsaid)
        found.append(response.status_code)

    run()
    return found


def fewer_fields(draw, case):
    """Leave so much out of a body that it may be one that can be answered."""
    if isinstance(case.body, dict):
        needed = case.operation.body[0].raw_schema.get("required", ["prompt"])
        others = sorted(case.body.keys() - {*needed, "model"})
        kept = draw(st.lists(st.sampled_from(others), max_size=2)) if others else ()
        body = {name: case.body[name] for name in kept}
        is_plain = draw(st.booleans())
        given = {} if is_plain else case.body
        case.body = body | {name: given.get(name, PLAIN[name]) for name in needed}


def test_document_has_all_bodies(operations):
    assert {path for path, operation in operations.items() if operation.body} == BODIES


@pytest.mark.parametrize("path", sorted(BODIES))
def test_bodies_of_the_form_are_answered_or_refused(operations, path):
    statuses = statuses_of(operations[path], GenerationMode.POSITIVE, change=fewer_fields)
    assert 200 in statuses


@pytest.mark.parametrize("path", sorted(BODIES))
def test_bodies_of_no_form_are_refused(operations, path):
    statuses = statuses_of(operations[path], GenerationMode.NEGATIVE)
    assert set(statuses) <= {400}


def test_what_needs_no_body_is_as_described(operations):
    for path in operations.keys() - BODIES:
        (first, *_) = statuses_of(operations[path], GenerationMode.POSITIVE)
        assert first == (404 if "{" in path else 200)
