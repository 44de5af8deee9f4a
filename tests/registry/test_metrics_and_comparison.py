"""Metrics, comparison and plots on numbers small enough to check by hand."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import precision_recall_fscore_support

from hardloop.core.errors import BadShape
from hardloop.core.records import Evaluation
from registry import plots
from registry.comparison import compare
from registry.metrics import flat_metrics, metric_names, report, storable

LABELS = ("cat", "dog", "owl")


def five_samples() -> Evaluation:
    probs_NC = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2]])
    return Evaluation(
        ("a", "b", "c", "d", "e"), np.array([0, 0, 1, 1, 0]), probs_NC, ("audit", "audit", "audit", "audit", "mined")
    )


def test_a_report_counts_each_slice_by_itself() -> None:
    mined, audit = report(five_samples(), LABELS)
    assert (mined.name, mined.n, mined.accuracy.value) == ("mined", 1, 1.0)
    assert (audit.name, audit.n, audit.accuracy.value) == ("audit", 4, 0.75)
    np.testing.assert_array_equal(audit.confusion_CC, [[1, 1, 0], [0, 2, 0], [0, 0, 0]])
    cat, dog, owl = audit.classes
    assert (cat.support, cat.named, cat.precision, cat.recall, cat.f1) == (2, 1, 1.0, 0.5, pytest.approx(2 / 3))
    assert (dog.precision, dog.recall, dog.f1) == (pytest.approx(2 / 3), 1.0, 0.8)
    assert owl.support == 0
    assert np.isnan([owl.precision, owl.recall, owl.f1]).all()
    assert audit.macro_f1 == pytest.approx((2 / 3 + 0.8) / 2)
    assert audit.nll == pytest.approx(-np.log([0.8, 0.2, 0.6, 0.8]).mean())


def test_class_numbers_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    probs_NC, truth_N = rng.dirichlet(np.ones(5), size=300), rng.integers(5, size=300)
    evaluation = Evaluation(tuple(map(str, range(300))), truth_N, probs_NC, ("legacy",) * 300)
    (legacy,) = report(evaluation, tuple("abcde"))
    precision, recall, f1, support = precision_recall_fscore_support(truth_N, probs_NC.argmax(axis=1))
    np.testing.assert_allclose([one.precision for one in legacy.classes], precision)
    np.testing.assert_allclose([one.recall for one in legacy.classes], recall)
    np.testing.assert_allclose([one.f1 for one in legacy.classes], f1)
    assert [one.support for one in legacy.classes] == support.tolist()


def test_flat_metrics_leave_out_what_is_undefined() -> None:
    numbers = flat_metrics(report(five_samples(), LABELS))
    assert numbers["audit/accuracy"] == 0.75
    assert numbers["audit/recall/cat"] == 0.5
    assert numbers["audit/n"] == 4.0
    assert not [name for name in numbers if "owl" in name]
    assert all(np.isfinite(value) for value in numbers.values())


def test_labels_become_distinct_names_that_metric_stores_take() -> None:
    names = metric_names(["ankle boot", "größe", "猫", "犬", "a/b", "a_b", "A_B", "../x", "."])
    assert list(names.values()) == ["ankle boot", "gr__e", "_", "_-3", "a_b", "a_b-5", "A_B-6", "_x", "class"]


def test_numbers_of_training_get_the_registrys_names_for_their_labels_and_keep_all_others() -> None:
    told = {"audit/n": 1.0, "temperature": 2.0, "train/support/n": 3.0, "train/support/N": 4.0, "audit/recall/a/b": 5.0}
    assert storable(told, ("N", "n", "a/b")) == {
        "audit/n": 1.0, "temperature": 2.0, "train/support/n-1": 3.0, "train/support/N": 4.0, "audit/recall/a_b": 5.0,
    }  # fmt: skip


def test_a_report_refuses_labels_that_do_not_fit() -> None:
    with pytest.raises(BadShape, match="3 classes, the model 2 labels"):
        report(five_samples(), ("cat", "dog"))


def test_comparison_names_what_got_better_and_worse() -> None:
    before = five_samples()
    probs_NC = before.probs_NC.copy()
    probs_NC[1] = [0.9, 0.05, 0.05]  # b: wrong -> right
    probs_NC[3] = [0.6, 0.3, 0.1]  # d: right -> wrong
    result = compare(before, replace(before, probs_NC=probs_NC), LABELS)
    mined, audit = result.slices
    assert (mined.better, mined.worse) == ((), ())
    assert (audit.better, audit.worse) == (("b",), ("d",))
    assert (audit.before.value, audit.after.value, audit.difference.value) == (0.75, 0.75, 0.0)
    assert {one.label: (one.n, one.difference.value) for one in audit.classes} == {"cat": (2, 0.5), "dog": (2, -0.5)}
    np.testing.assert_array_equal(audit.moved_CC, [[1, -1, 0], [1, -1, 0], [0, 0, 0]])
    assert (result.only_before, result.only_after) == (0, 0)


def test_comparison_looks_at_common_samples_alone_and_in_any_order() -> None:
    before = five_samples()
    order = [4, 2, 0, 1]
    after = Evaluation(
        (*(before.ids[i] for i in order), "new"),
        np.array([*before.truth_N[order], 2]),
        np.vstack([before.probs_NC[order], [0.1, 0.1, 0.8]]),
        (*(before.slices[i] for i in order), "audit"),
    )
    result = compare(before, after, LABELS)
    assert [(part.name, part.n, part.difference.value) for part in result.slices] == [("mined", 1, 0), ("audit", 3, 0)]
    assert (result.only_before, result.only_after) == (1, 1)
    assert compare(before, replace(after, ids=tuple("vwxyz")), LABELS).slices == ()


def test_the_surest_changes_come_first() -> None:
    n = 4
    truth_N = np.zeros(n, dtype=np.int64)
    before = Evaluation(tuple("dcba"), truth_N, np.tile([0.4, 0.6], (n, 1)), ("legacy",) * n)
    after = replace(before, probs_NC=np.array([[0.6, 0.4], [0.9, 0.1], [0.7, 0.3], [0.6, 0.4]]))
    assert compare(before, after, ("x", "y")).slices[0].better == ("c", "b", "a", "d")
    assert compare(after, before, ("x", "y")).slices[0].worse == ("c", "b", "a", "d")


@pytest.mark.parametrize("n_classes", [2, 10, 60])
def test_plots_are_pictures_whatever_the_labels_are_called(n_classes: int) -> None:
    rng = np.random.default_rng(n_classes)
    labels = tuple(f"{'$x_{' if i % 2 else 'größe '}{i}" for i in range(n_classes))
    evaluation = Evaluation(
        tuple(map(str, range(200))),
        rng.integers(n_classes, size=200),
        rng.dirichlet(np.ones(n_classes), size=200),
        tuple(rng.choice(["mined", "audit", "legacy"], size=200).tolist()),
    )
    reports = report(evaluation, labels)
    for data in (plots.slices(reports), *(plots.confusion_matrix(one) for one in reports)):
        picture = Image.open(io.BytesIO(data))
        assert picture.format == "PNG"
        assert min(picture.size) > 200
        assert np.asarray(picture.convert("L")).std() > 5  # something was drawn
