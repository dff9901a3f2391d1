from __future__ import annotations

import threading
from pathlib import Path

import pytest

from luthier.core.config import read_yaml
from luthier.core.errors import ConflictError, InputError, NotFoundError, StoreError
from luthier.core.task import PromptTemplate
from luthier.data.prompts import (
    SHIPPED,
    add_prompt,
    in_language,
    is_chinese,
    list_prompts,
    load_prompt,
    resolve_prompt,
    save_prompt,
)

MINE = {"about": "Mine.", "instruction": "Sort into {labels}.", "input": "Mail: {input}"}


def write(place: Path, text: str) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, encoding="utf-8")
    return place


def test_every_shipped_template_can_be_used_and_has_a_chinese_sister(home: Path) -> None:
    shipped = [prompt for prompt in list_prompts() if prompt.source == "shipped"]
    names = {prompt.name for prompt in shipped}
    assert len(shipped) == len(list(SHIPPED.iterdir())) >= 18
    for prompt in shipped:
        assert prompt.language == ("zh" if prompt.name.endswith("_zh") else "en"), prompt.name
        template = prompt.template or PromptTemplate()
        asked = prompt.text + template.instruction + template.input
        assert any("\u4e00" <= c <= "\u9fff" for c in asked) == (prompt.language == "zh")
        assert prompt.about.endswith(".")
        if prompt.language == "zh":
            sister = load_prompt(f"{prompt.name.removesuffix('_zh')}@{prompt.version}")
            assert sister.placeholders == prompt.placeholders
            assert sister.name in names


def test_a_version_is_kept_and_the_newest_is_the_one_without_a_number(home: Path) -> None:
    first = save_prompt("mine", MINE)
    second = save_prompt("mine", {**MINE, "instruction": "Which of {labels}?"})
    assert (first.label, second.label) == ("mine@1", "mine@2")
    assert load_prompt("mine") == second
    assert load_prompt("mine@1") == first
    assert first.digest != second.digest
    assert Path(first.source).parent == home / "prompts"
    assert [p.label for p in list_prompts() if p.source != "shipped"] == ["mine@1", "mine@2"]


def test_the_same_text_again_is_no_new_version(home: Path) -> None:
    assert save_prompt("mine", MINE) == save_prompt("mine", MINE)
    assert save_prompt("mine", {**MINE, "about": "Better said."}).version == 2
    assert load_prompt("mine@1").digest == load_prompt("mine@2").digest, "about asks nothing"


def test_two_writers_get_two_versions(home: Path) -> None:
    made: list[str] = []
    ready = threading.Barrier(8)

    def add(number: int) -> None:
        ready.wait()
        made.append(save_prompt("mine", {**MINE, "about": f"By writer {number}."}).label)

    threads = [threading.Thread(target=add, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == sorted(f"mine@{i}" for i in range(1, 9))
    assert {load_prompt(label).about for label in made} == {f"By writer {i}." for i in range(8)}
    assert not [p.name for p in (home / "prompts").iterdir() if p.name.startswith(".")]


def test_a_file_is_added_and_comes_back_as_it_was(home: Path, tmp_path: Path) -> None:
    text = "about: Two lines.\nlanguage: zh\ntext: |\n  一 {name}\n  {json: 1}\nplaceholders: [name]\n"
    kept = add_prompt(write(tmp_path / "two-lines@7.yaml", text))
    assert (kept.label, kept.text, kept.language) == ("two-lines@1", "一 {name}\n{json: 1}\n", "zh")
    assert read_yaml(kept.source).values == read_yaml(tmp_path / "two-lines@7.yaml").values
    assert add_prompt(tmp_path / "two-lines@7.yaml", "other").label == "other@1"


def test_only_placeholders_are_replaced_and_all_at_once(home: Path) -> None:
    prompt = save_prompt("pair", {"about": "x", "text": '{a} then {b} {"k": 1} {}', "placeholders": ["a", "b"]})
    assert prompt.fill(a="{b}", b="{a}") == '{b} then {a} {"k": 1} {}'
    with pytest.raises(InputError, match="needs a value for b"):
        prompt.fill(a="1")
    with pytest.raises(InputError, match="no placeholder 'bb'"):
        prompt.fill(a="1", b="2", bb="3")
    with pytest.raises(InputError, match="a prompt for a task is needed"):
        prompt.template_for(("x",))
    with pytest.raises(InputError, match="a piece of text is needed"):
        load_prompt("classify").fill()


def test_a_task_prompt_says_where_it_came_from(home: Path) -> None:
    kept = save_prompt("mine", MINE)
    template = resolve_prompt({"template": "mine@1", "labels": ["a", "b"]})
    assert template == PromptTemplate("Sort into {labels}.", "Mail: {input}", ("a", "b"))
    assert template.source == f"mine@1 sha256:{kept.digest}"
    again = PromptTemplate.from_dict(template.as_dict())
    assert again.source == template.source
    assert again.digest == PromptTemplate("Sort into {labels}.", "Mail: {input}", ("a", "b")).digest
    assert resolve_prompt(template.as_dict()) == template, "a resolved prompt needs no catalogue"
    assert "source" not in PromptTemplate().as_dict()


def test_a_template_with_placeholders_of_its_own(home: Path) -> None:
    values = {"role": "a clerk", "task": "Sort {labels}.", "labels_described": "", "output": "one word"}
    template = resolve_prompt({"template": "instruction", "values": values, "labels": ["a"]})
    assert template.messages("x")[0].content == "You are a clerk.\n\nTask: Sort a.\n\nOutput: one word"
    asked = resolve_prompt({"template": "classify_question", "labels": ["a", "b"]}).messages("{labels}?")
    assert asked[-1].content.startswith("{labels}?\n\nWhich of these fits the text best: a, b?")
    with pytest.raises(InputError, match="needs a value for labels_described, output, role, task"):
        resolve_prompt({"template": "instruction"})


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"instructions": "x"}, "Did you mean 'instruction'"),
        ({"input": "no place"}, r"must contain \{input\}"),
        ({"template": "classify", "input": "{input}"}, "template and prompt.input exclude each other"),
        ({"values": {"a": "b"}}, "none is named"),
        ({"template": "clasify"}, "Did you mean 'classify'"),
        ({"template": "classify@9"}, "has no version '9'; it has 1"),
        ({"template": "classify@"}, "has no version ''"),
        ({"template": "step_by_step"}, "is a piece of text"),
    ],
)
def test_prompts_that_cannot_be_used(home: Path, prompt: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_prompt(prompt)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("about: x\n", "bad.yaml: input: input .or text. is required"),
        ("input: '{input}'\n", "bad.yaml: about is required"),
        ("about: x\ninput: hello\n", r"bad.yaml: input: must contain \{input\}.*\(bad.yaml:2\)"),
        ("about: x\ninput: '{input}'\ntext: y\n", "input and text exclude each other"),
        ("about: x\ntext: y\ninstruction: z\n", "instruction: belongs to a prompt of a task"),
        (
            "about: x\ninput: '{input}'\ninstruction: 'Of {lables}'\n",
            r"bad.yaml: instruction: \{lables\}.*Did you mean 'labels'",
        ),
        ("about: x\ntext: hi\nplaceholders: [name]\n", r"placeholders: \{name\} does not occur in the text"),
        ("about: x\ninput: '{input}'\nplaceholders: [input]\n", "placeholders: 'input' cannot be one"),
        ("about: x\ntext: y\nlabel: z\n", "unknown key 'label' .bad.yaml:3."),
        ("about: x\ntext: y\nlanguage: English\n", "language: .*got 'English'"),
        ("about: [x\n", "not valid YAML"),
        ("- about\n", "expected 'key: value' lines"),
    ],
)
def test_a_bad_file_is_refused_by_file_and_key(home: Path, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        add_prompt(write(tmp_path / "bad.yaml", text))
    assert not (home / "prompts").exists()


def test_names_that_cannot_be_given(home: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lower-case letters"):
        save_prompt("My Prompt", MINE)
    with pytest.raises(ConflictError, match="comes with Luthier"):
        save_prompt("classify", MINE)
    with pytest.raises(InputError, match="no such file"):
        add_prompt(tmp_path / "nothing.yaml")


def test_a_broken_file_of_the_users_hides_no_other(home: Path) -> None:
    save_prompt("mine", MINE)
    write(home / "prompts" / "broken@1.yaml", "about: x\n")
    write(home / "prompts" / "stray.yaml", "about: x\n")
    with pytest.raises(InputError, match=r"broken@1\.yaml: input"):
        list_prompts()
    problems: list[str] = []
    assert "mine@1" in [p.label for p in list_prompts(problems=problems)]
    assert len(problems) == 2
    assert "broken@1.yaml" in problems[0]
    assert "stray.yaml" in problems[1]
    assert load_prompt("mine").version == 1
    with pytest.raises(InputError, match="broken@1"):
        load_prompt("broken")
    with pytest.raises(NotFoundError, match="'stray'"):
        load_prompt("stray")


def test_a_users_file_goes_before_a_shipped_one_of_its_name(home: Path) -> None:
    write(home / "prompts" / "classify@3.yaml", "about: x\ninput: 'mine {input}'\n")
    assert load_prompt("classify").version == 3
    with pytest.raises(NotFoundError):
        load_prompt("classify@1")


def test_a_folder_that_cannot_be_written(home: Path) -> None:
    home.mkdir(parents=True)
    write(home / "prompts", "a file where the folder should be")
    with pytest.raises(StoreError, match="prompts"):
        save_prompt("mine", MINE)


@pytest.mark.parametrize(
    ("text", "chinese"),
    [
        ("我的包裹还没有到,请帮我查一下。", True),
        ("用 Python 写一个 hello world 程序", True),
        ("What does 你好 mean in the sentence above?", False),
        ("これは日本語の文章です。漢字もあります。", False),
        ("The parcel is late.", False),
        ("", False),
        ("12 + 30 = ?", False),
    ],
)
def test_chinese_is_told_from_the_rest(home: Path, text: str, chinese: bool) -> None:
    assert is_chinese(text) is chinese
    assert in_language("step_by_step", text).name == ("step_by_step_zh" if chinese else "step_by_step")
    assert in_language("step_by_step@1", text).version == 1


def test_a_template_without_a_chinese_sister_serves_both(home: Path) -> None:
    save_prompt("mine", MINE)
    assert in_language("mine", "我的包裹还没有到").name == "mine"
