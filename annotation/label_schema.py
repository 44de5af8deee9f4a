"""One image, one choice: a loop's labels as Label Studio's interface, and whether another project's interface fits."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from hardloop.core.errors import BadSettings

MAX_LABELS = 200  # beyond this nobody finds a label on the screen, and Label Studio's page takes seconds to draw
MAX_LABEL_CHARS = 120
MAX_CONFIG_CHARS = 1_000_000
HOTKEYS = "123456789"

# What every task of ours carries beside its image, so that configs may show it and Data Manager tabs may sort by it.
TASK_FIELDS = ("sample_id", "rank", "reason", "selection_id", "predicted", "score")


@dataclass(frozen=True, slots=True)
class LabelSchema:
    """The labels of a loop and the names they go by in one project.

    control: name of the Choices tag. image: name of the Image tag. image_field: the key of task data it shows.
    """

    labels: tuple[str, ...]
    control: str = "label"
    image: str = "image"
    image_field: str = "image"

    def __post_init__(self) -> None:
        check_labels(self.labels)

    def result(self, label: str) -> list[dict[str, Any]]:
        """A choice of `label` the way Label Studio stores it in annotations and predictions."""
        return [
            {
                "from_name": self.control,
                "to_name": self.image,
                "type": "choices",
                "value": {"choices": [label]},
            }
        ]


def check_labels(labels: Sequence[str]) -> None:
    """Raise BadSettings unless the labels can stand on buttons: 2 to MAX_LABELS distinct, short, printable texts."""
    if not 2 <= len(labels) <= MAX_LABELS:
        raise BadSettings(f"a loop has {len(labels)} labels: between 2 and {MAX_LABELS} are needed")
    for label in labels:
        if not label or label != label.strip() or len(label) > MAX_LABEL_CHARS or not label.isprintable():
            raise BadSettings(
                f"label {label[:MAX_LABEL_CHARS]!r}: 1 to {MAX_LABEL_CHARS} printable characters are needed, "
                "without spaces at either end"
            )
        if re.search(r"\$\w", label):
            raise BadSettings(
                f"label {label!r}: Label Studio would show '$' and what follows as a field of the task; "
                "write it another way"
            )
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise BadSettings(f"label {twice!r} is given twice: labels must be distinct")


def label_config(schema: LabelSchema) -> str:
    """The project's labelling interface: why the image was picked, the image, one choice; keys 1 to 9 answer."""
    choices = "\n".join(
        f"    <Choice value={quoteattr(label)}"
        + (f" hotkey={quoteattr(HOTKEYS[position])}" if position < len(HOTKEYS) else "")
        + "/>"
        for position, label in enumerate(schema.labels)
    )
    return (
        "<View>\n"
        '  <Header value="#$rank: $reason" size="5"/>\n'
        f'  <Image name={quoteattr(schema.image)} value={quoteattr("$" + schema.image_field)} zoom="true"/>\n'
        f"  <Choices name={quoteattr(schema.control)} toName={quoteattr(schema.image)}"
        ' choice="single" required="true" requiredMessage="Pick one label, or skip." showInline="true">\n'
        f"{choices}\n"
        "  </Choices>\n"
        "</View>"
    )


def fitting_schema(config: str, labels: Sequence[str]) -> LabelSchema:
    """The schema of a project that somebody else set up, with the names its config uses.

    Raises BadSettings saying everything that does not fit, so that a person can correct it in one go.
    """
    root = _parse(config)
    images = [tag for tag in root.iter("Image") if tag.get("name")]
    controls = [tag for tag in root.iter() if tag.get("toName")]
    choices = [tag for tag in controls if tag.tag == "Choices"]
    problems: list[str] = []
    if len(images) != 1:
        problems.append(f"it has {len(images)} Image tags where one is needed")
    if len(choices) != 1:
        problems.append(f"it has {len(choices)} Choices tags where one is needed")
    if len(controls) > len(choices):
        others = sorted({tag.tag for tag in controls if tag.tag != "Choices"})
        problems.append(f"it asks for more than one choice ({', '.join(others)})")
    if len(images) == 1 and len(choices) == 1:
        problems += _misfits(images[0], choices[0], labels)
    fields = set(TASK_FIELDS) | {tag.get("value", "").removeprefix("$") for tag in images}
    shown = {name for tag in root.iter() for value in tag.attrib.values() for name in re.findall(r"\$(\w+)", value)}
    if foreign := sorted(shown - fields):
        problems.append(f"it shows task fields that our tasks do not have ({', '.join(foreign)})")
    if problems:
        raise BadSettings("the project's labelling interface does not fit the loop: " + "; ".join(problems))
    return LabelSchema(
        labels=tuple(labels),
        control=choices[0].get("name", ""),
        image=images[0].get("name", ""),
        image_field=images[0].get("value", "").removeprefix("$"),
    )


def _parse(config: str) -> ElementTree.Element:
    # Entities could blow a small text up to gigabytes, and no labelling interface needs a DOCTYPE to declare them.
    if len(config) > MAX_CONFIG_CHARS or "<!DOCTYPE" in config.upper():
        raise BadSettings("the project's labelling interface is too large or declares a DOCTYPE: expected plain tags")
    try:
        return ElementTree.fromstring(config)  # noqa: S314 (no DOCTYPE, so no entities; size limited above)
    except (ElementTree.ParseError, ValueError) as error:
        raise BadSettings(
            f"the project's labelling interface is not XML ({error}): correct it in Label Studio"
        ) from None


def _misfits(image: ElementTree.Element, choices: ElementTree.Element, labels: Sequence[str]) -> list[str]:
    problems: list[str] = []
    if not re.fullmatch(r"\$\w+", image.get("value", "")):
        problems.append(f"its Image shows {image.get('value')!r} where one field of the task, like '$image', is needed")
    if not choices.get("name") or choices.get("toName") != image.get("name"):
        problems.append("its Choices tag has no name or does not point to the Image")
    if choices.get("choice", "single") not in ("single", "single-radio"):
        problems.append(f"its Choices take {choices.get('choice')!r} where 'single' is needed")
    if any(choices.get(flag, "false") == "true" for flag in ("perRegion", "perItem", "allowNested")):
        problems.append("its Choices are per region, per item or nested")
    offered = {choice.get("alias") or choice.get("value") or "" for choice in choices.iter("Choice")}
    if absent := [label for label in labels if label not in offered]:
        problems.append(f"it does not offer {_listed(absent)}")
    return problems


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
    return ", ".join(repr(label) for label in labels[:5]) + more


def task_data(schema: LabelSchema, draft_fields: Mapping[str, Any], image_uri: str) -> dict[str, Any]:
    """The data of one task: the image under the key the config shows, and the fields of TASK_FIELDS."""
    return {schema.image_field: image_uri, **{name: draft_fields.get(name) for name in TASK_FIELDS}}
