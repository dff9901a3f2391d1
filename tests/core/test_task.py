from hypothesis import given
from hypothesis import strategies as st

from luthier.core.dataset import Dataset, Example, Splits
from luthier.core.message import Message, user
from luthier.core.task import PromptTemplate, Task


def dataset(name, *texts):
    return Dataset(name, "labelled", tuple(Example(text, user(text), target=text[:1]) for text in texts))


SPLITS = Splits(dataset("train", "a1", "b1"), dataset("validation", "a2"), dataset("test", "b2"))


def test_a_template_makes_system_shots_and_question():
    template = PromptTemplate("One of: {labels}.", "Ticket: {input}", ("refund", "delivery"))
    assert template.messages("late", [("lost", "delivery")]) == (
        Message("system", "One of: refund, delivery."),
        Message("user", "Ticket: lost"),
        Message("assistant", "delivery"),
        Message("user", "Ticket: late"),
    )
    assert PromptTemplate().messages("x") == user("x")


@given(st.text())
def test_braces_in_data_are_only_text(text):
    template = PromptTemplate("Labels {labels}", "{input}", ("a",))
    assert template.messages(text)[-1].content == text
    assert template.messages("{labels} {input} {0}")[-1].content == "{labels} {input} {0}"


def test_prompts_of_a_task_share_their_beginning():
    template = PromptTemplate("Do it.", "{input}")
    shots = [("x", "y")]
    assert template.messages("one", shots)[:-1] == template.messages("two", shots)[:-1]


def test_a_template_survives_its_plain_form_and_its_digest_is_its_content():
    template = PromptTemplate("i", "q {input}", ("b", "a"))
    again = PromptTemplate.from_dict(template.as_dict())
    assert again == template and again.digest == template.digest
    assert PromptTemplate.from_dict({}) == PromptTemplate()
    changed = [
        PromptTemplate("j", "q {input}", ("b", "a")),
        PromptTemplate("i", "{input}", ("b", "a")),
        PromptTemplate("i", "q {input}", ("a", "b")),
    ]
    assert len({template.digest, *(each.digest for each in changed)}) == 4


def test_a_task_digest_changes_with_everything_that_decides_a_score_and_nothing_else():
    def made(**changes):
        values = {
            "name": "t",
            "kind": "classify",
            "splits": SPLITS,
            "prompt": PromptTemplate("i"),
            "scorers": (("accuracy", {}),),
        }
        return Task(**values | changes)

    base = made()
    assert made(name="other").digest == base.digest
    other_splits = Splits(SPLITS.train, SPLITS.validation, dataset("test", "b3"))
    for changes in (
        {"kind": "generate"},
        {"splits": other_splits},
        {"prompt": PromptTemplate("j")},
        {"scorers": (("exact", {}),)},
        {"max_new_tokens": 5},
    ):
        assert made(**changes).digest != base.digest, changes
    assert base.examples("test")[0].text == "b2" and base.labels == ()


def test_datasets_know_labels_counts_and_a_digest_of_content_in_order():
    data = dataset("d", "b1", "a1", "b2")
    assert data.labels == ("a", "b") and data.label_counts() == {"b": 2, "a": 1} and len(data) == 3
    assert data.digest != dataset("d", "a1", "b1", "b2").digest and data.digest == dataset("e", "b1", "a1", "b2").digest
    assert Dataset("q", "question", data.examples).labels == ()
