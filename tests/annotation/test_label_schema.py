"""The labelling interface: what we write, and what we accept of others'."""

import contextlib
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotation.label_schema import MAX_LABELS, LabelSchema, check_labels, fitting_schema, label_config, task_data
from hardloop.core.errors import BadSettings

ODD = (
    'a "quoted" one',
    "it's",
    "<b>&amp;</b>",
    "ängström €5",
    "猫",
    "5 $",
    "a$-b",
    "a=b]]>",
    "--x--",
    "{json}",
    "tail\\",
)

_texts = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=40)
_labels = st.lists(_texts.filter(lambda t: not re.search(r"\$\w", t)), min_size=2, max_size=20, unique=True)


def choices(config: str) -> list[dict[str, str]]:
    return [dict(tag.attrib) for tag in ElementTree.fromstring(config).iter("Choice")]


def test_every_label_is_written_so_that_it_reads_back_the_same() -> None:
    assert [choice["value"] for choice in choices(label_config(LabelSchema(ODD)))] == list(ODD)


@given(_labels)
def test_any_labels_survive_the_way_through_a_project(labels: list[str]) -> None:
    schema = LabelSchema(tuple(labels))
    assert [choice["value"] for choice in choices(label_config(schema))] == labels
    assert fitting_schema(label_config(schema), labels) == schema


def test_the_first_nine_labels_have_the_keys_one_to_nine_and_the_others_none() -> None:
    keys = [choice.get("hotkey") for choice in choices(label_config(LabelSchema(tuple("abcdefghijkl"))))]
    assert keys == [*"123456789", None, None, None]


def test_the_annotator_sees_rank_and_reason_above_the_image_and_picks_one() -> None:
    root = ElementTree.fromstring(label_config(LabelSchema(("a", "b"))))
    assert [tag.tag for tag in root] == ["Header", "Image", "Choices"]
    assert "$rank" in root[0].attrib["value"]
    assert "$reason" in root[0].attrib["value"]
    assert root[1].attrib["value"] == "$image"
    assert (root[2].attrib["choice"], root[2].attrib["required"], root[2].attrib["toName"]) == (
        "single",
        "true",
        "image",
    )


@pytest.mark.parametrize(
    "labels",
    [
        ("one",),
        ("a", "a"),
        ("a", ""),
        ("a", " b"),
        ("a", "line\nbreak"),
        ("a", "nul\x00"),
        ("a", "x" * 121),
        ("a", "costs $5"),
        ("a", "$image"),
        tuple(str(n) for n in range(MAX_LABELS + 1)),
    ],
)
def test_labels_that_cannot_stand_on_buttons_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(BadSettings, match="label"):
        check_labels(labels)


def test_a_result_says_the_label_under_the_names_of_the_project() -> None:
    assert LabelSchema(("a", "b"), control="answer", image="photo").result("b") == [
        {"from_name": "answer", "to_name": "photo", "type": "choices", "value": {"choices": ["b"]}}
    ]


def test_task_data_has_the_image_under_the_projects_field_and_every_field_of_ours() -> None:
    data = task_data(LabelSchema(("a", "b"), image_field="picture"), {"rank": 3, "reason": "odd"}, "s3://b/k")
    assert data == {
        "picture": "s3://b/k",
        "sample_id": None,
        "rank": 3,
        "reason": "odd",
        "selection_id": None,
        "predicted": None,
        "score": None,
    }


def foreign(image: str = 'name="i" value="$pic"', control: str = 'name="c" toName="i"', more: str = "") -> str:
    return f'<View><Image {image}/><Choices {control}><Choice value="a"/><Choice value="b"/></Choices>{more}</View>'


def test_a_project_with_other_names_and_more_labels_fits() -> None:
    aliased = (
        foreign().replace('value="b"', 'value="Bee" alias="b"').replace("</Choices>", '<Choice value="z"/></Choices>')
    )
    assert fitting_schema(aliased, ("a", "b")) == LabelSchema(("a", "b"), "c", "i", "pic")


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (foreign(control='name="c" toName="i" choice="multiple"'), "'multiple'"),
        (foreign(control='name="c" toName="other"'), "does not point to the Image"),
        (foreign(control='name="c" toName="i" perRegion="true"'), "per region"),
        (foreign(image='name="i" value="https://example.org/x.png"'), "one field of the task"),
        (foreign(image='name="i" value="$a/$b"'), "one field of the task"),
        (foreign(more='<TextArea name="t" toName="i"/>'), "TextArea"),
        (foreign(more='<Image name="j" value="$other"/>'), "2 Image tags"),
        (foreign(more='<Header value="$camera"/>'), "camera"),
        (foreign().replace('value="b"', 'value="c"'), "does not offer 'b'"),
        ("<View></View>", "0 Choices tags"),
        ("", "not XML"),
        ("<View>", "not XML"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><View/>', "DOCTYPE"),
    ],
)
def test_what_does_not_fit_is_named(config: str, complaint: str) -> None:
    with pytest.raises(BadSettings) as refusal:
        fitting_schema(config, ("a", "b"))
    assert complaint in str(refusal.value)


@given(st.text() | st.from_regex(r"<View>(<(Image|Choices|Choice)( \w+=\"[$\w]*\")*/>)*</View>", fullmatch=True))
def test_any_text_as_a_config_is_either_taken_or_refused(config: str) -> None:
    with contextlib.suppress(BadSettings):
        fitting_schema(config, ("a", "b"))
