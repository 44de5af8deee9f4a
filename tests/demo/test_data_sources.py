"""Every form of data the demo takes, and every way in which a stranger's files are wrong."""

import gzip
import io
import json
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hardloop.core.errors import BadData, BadSettings
from hardloop.core.images import decode, encode_png
from hardloop.service.demo.data import load


def quiet(what: str, done: int, total: int) -> None:
    """A Progress that says nothing."""


def picture(number: int) -> bytes:
    """A PNG of 12 x 10 random pixels, different for every number."""
    return encode_png(np.random.default_rng(number).integers(0, 256, (10, 12, 3), dtype=np.uint8))


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def idx_images(pixels: np.ndarray) -> bytes:
    return gzip.compress(struct.pack(">4I", 0x803, *pixels.shape) + pixels.tobytes())


def idx_labels(labels: list[int]) -> bytes:
    return gzip.compress(struct.pack(">2I", 0x801, len(labels)) + bytes(labels))


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 5), dtype=np.uint8)


def summary(data):
    return [(item.name, item.label, item.split) for item in data.items]


CLASSES = {"cat/1.png": picture(1), "cat/deep/2.PNG": picture(2), "dog/3.png": picture(3)}


def test_the_bundled_digits_come_readable_and_without_loss():
    data = load(None, quiet)
    assert (data.name, data.labels, len(data.items)) == ("digits", tuple("0123456789"), 1797)
    image = np.asarray(decode(data.items[0].image))[..., 0]
    assert image.shape == (32, 32)
    from sklearn.datasets import load_digits

    np.testing.assert_array_equal(image[::4, ::4], np.rint(load_digits().images[0] * 255 / 16))
    np.testing.assert_array_equal(image[3::4, 1::4], image[::4, ::4])


def test_class_folders_take_their_name_as_label_however_deep_the_image_lies(tmp_path):
    data = load(put(tmp_path / "pets", CLASSES), quiet)
    assert (data.name, data.labels, data.notes) == ("pets", ("cat", "dog"), ())
    assert summary(data) == [("cat/1.png", "cat", None), ("cat/deep/2.PNG", "cat", None), ("dog/3.png", "dog", None)]
    assert data.items[0].image == picture(1)


def test_split_folders_above_the_classes_become_splits(tmp_path):
    files = {"train/cat/1.png": picture(1), "validation/dog/2.png": picture(2), "Test/cat/3.png": picture(3)}
    data = load(put(tmp_path, files), quiet)
    assert sorted(summary(data)) == [
        ("Test/cat/3.png", "cat", "test"),
        ("train/cat/1.png", "cat", "train"),
        ("validation/dog/2.png", "dog", "val"),
    ]


def test_a_class_may_be_called_train_but_splits_and_classes_may_not_be_mixed(tmp_path):
    vehicles = put(tmp_path / "a", {"bus/1.png": picture(1), "train/2.png": picture(2)})
    assert load(vehicles, quiet).labels == ("bus", "train")
    mixed = {"train/cat/1.png": picture(1), "test/cat/2.png": picture(2), "dog/3.png": picture(3)}
    with pytest.raises(BadData, match="split folders test, train beside dog"):
        load(put(tmp_path / "b", mixed), quiet)


PETS = ("cat/1.png", "dog/2.png")


@pytest.mark.parametrize(
    ("files", "splits", "others"),
    [
        ([f"{top}/{pet}" for top in ("train", "unlabeled") for pet in PETS], "train", "unlabeled"),
        ([*(f"train/{pet}" for pet in PETS), "test1/1.png", "test1/2.png"], "train", "test1"),
        ([f"{top}/{pet}" for top in ("Training-2024", "extra") for pet in PETS], "Training-2024", "extra"),
        (["trainset/cat/1.png", "trainset/dog/2.png", "testset/eel/3.png", "testset/fox/4.png"], "testset, train", ""),
    ],
    ids=["unlabelled", "flat", "look-alike", "other classes"],
)
def test_split_folders_beside_anything_else_are_refused_and_named(tmp_path, files, splits, others):
    """Taking the top folders as classes would train the wrong task without a word."""
    data = {name: picture(number) for number, name in enumerate(files)}
    with pytest.raises(BadData, match=rf"split folders? {splits}.*{others}.*train, val and test") as caught:
        load(put(tmp_path / "pets", data), quiet)
    assert "pets has" in str(caught.value)


def test_folders_that_can_only_be_splits_are_read_as_such_and_the_notes_say_so(tmp_path):
    files = {f"{top}/{pet}": picture(n) for n, (top, pet) in enumerate((t, p) for t in LIKE_SPLITS for p in PETS)}
    data = load(put(tmp_path, files), quiet)
    assert data.labels == ("cat", "dog")
    assert {item.name.split("/")[0]: item.split for item in data.items} == LIKE_SPLITS
    assert data.notes == ("Read as splits: Train_Set as train, test-2 as test, validset as val.",)


LIKE_SPLITS = {"Train_Set": "train", "validset": "val", "test-2": "test"}


def test_a_class_whose_name_begins_like_a_split_stays_a_class(tmp_path):
    files = {"trainers/red/1.png": picture(1), "valley boots/tall/2.png": picture(2), "devices/3.png": picture(3)}
    assert load(put(tmp_path, files), quiet).labels == ("devices", "trainers", "valley boots")


COMPOSED, DECOMPOSED = "Caf\u00e9", "Cafe\u0301"  # one word to a reader, two strings: Linux writes one, macOS the other


def test_one_class_written_in_two_unicode_forms_is_one_class(tmp_path):
    files = {f"train/{COMPOSED}/1.png": picture(1), f"test/{DECOMPOSED}/2.png": picture(2)}
    assert load(put(tmp_path, files | {"train/bar/3.png": picture(3)}), quiet).labels == (COMPOSED, "bar")


@pytest.mark.parametrize(("on_disk", "in_csv"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_a_labels_csv_may_name_its_files_in_another_unicode_form(tmp_path, on_disk, in_csv):
    text = f"file,label\n{in_csv}.png,{DECOMPOSED}\nb.png,bar\n"
    files = {"labels.csv": text.encode(), f"{on_disk}.png": picture(1), "b.png": picture(2)}
    data = load(put(tmp_path, files), quiet)
    assert (data.labels, data.notes) == ((COMPOSED, "bar"), ())


def test_hidden_files_are_passed_over_and_other_files_are_named(tmp_path):
    clutter = {".git/x.png": b"no", "cat/.DS_Store": b"", "cat/Thumbs.db": b"", "__MACOSX/cat/1.png": b"no"}
    other = {"cat/readme.txt": b"hello", "stray.png": picture(9)}
    data = load(put(tmp_path, CLASSES | clutter | other), quiet)
    assert len(data.items) == 3
    assert data.notes == (
        "1 image(s) outside any class folder were left out: stray.png.",
        "1 file(s) that are not images were left out: cat/readme.txt.",
    )


@pytest.mark.parametrize("wrapper", ["", "my pets/", "a/b/c/"])
def test_a_zip_of_class_folders_is_read_like_the_folder(tmp_path, wrapper):
    path = zipped(tmp_path / "pets.zip", {wrapper + name: data for name, data in CLASSES.items()})
    data = load(path, quiet)
    assert (data.name, data.labels) == ("pets", ("cat", "dog"))
    assert [item.image for item in data.items] == [picture(1), picture(2), picture(3)]
    assert load(tmp_path, quiet) == data, "the folder that holds the zip is as good as the zip"


def csv_files(text: str, encoding: str = "utf-8") -> dict[str, bytes]:
    return {"labels.csv": text.encode(encoding)} | {f"images/{i}.png": picture(i) for i in (1, 2, 3)}


GOOD = 'file,label,split\nimages/1.png,T-shirt/top,train\nimages/2.png," hat, red ",test\nimages/3.png,hat,\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_labels_csv_names_files_labels_and_splits(tmp_path, encoding):
    expected = [
        ("images/1.png", "T-shirt/top", "train"),
        ("images/2.png", "hat, red", "test"),
        ("images/3.png", "hat", None),
    ]
    assert summary(load(zipped(tmp_path / "c.zip", csv_files(GOOD, encoding)), quiet)) == expected
    assert summary(load(put(tmp_path / "c", csv_files(GOOD, encoding)), quiet)) == expected


def test_images_that_the_csv_does_not_name_are_counted(tmp_path):
    data = load(put(tmp_path, csv_files("Label,File\na,images/1.png\nb,./images/2.png\n")), quiet)
    assert data.notes == ("1 image(s) that labels.csv does not name were left out: images/3.png.",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,label\nimages/1.png,a\n", "has the columns name, label.*look at file"),
        ("file;label\nimages/1.png;a\n", "expected `file` and `label` once each"),
        ("file,label,label\nimages/1.png,a,b\n", "look at label"),
        ("", "has the columns .none."),
        ("file,label\n", "has a header but no rows"),
        ("file,label\nimages/9.png,a\n", "line 2 names 'images/9.png', which is not there"),
        ("file,label\nimages/1.png,a\nimages/2.png, \n", "line 3 has an empty label"),
        ("file,label\nimages/1.png\n", "line 2 has an empty label"),
        ("file,label,split\nimages/1.png,a,holdout\n", "has the split 'holdout': expected train, val, test"),
        ("file,label\nimages/1.png,a\nimages/1.png,b\n", "names 'images/1.png' on lines 2 and 3"),
        ("file,label\n../secret.png,a\n", "names '../secret.png', which is not there"),
        (f"file,label\nimages/1.png,{'x' * 101}\n", "expected at most 100 printable characters"),
        ("file,label\nimages/1.png,a\0b\n", "labels.csv"),
    ],
)
def test_a_wrong_labels_csv_is_refused_with_its_line(tmp_path, text, said):
    with pytest.raises(BadData, match=said):
        load(put(tmp_path, csv_files(text)), quiet)


def test_a_csv_in_another_encoding_is_refused(tmp_path):
    with pytest.raises(BadData, match=r"is not UTF-8 \(byte 27\): save it as UTF-8"):
        load(put(tmp_path, csv_files("file,label\nimages/1.png,caf\xe9\n", "latin-1")), quiet)


@pytest.mark.parametrize(
    ("name", "said"),
    [("../cat/1.png", "climbs out"), ("/cat/1.png", "climbs out"), ("C:/cat/1.png", "climbs out")],
)
def test_paths_that_climb_out_of_an_archive_are_refused(tmp_path, name, said):
    with pytest.raises(BadData, match=said):
        load(zipped(tmp_path / "x.zip", CLASSES | {name: picture(7)}), quiet)


def test_a_name_twice_in_an_archive_is_refused(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/1.png", picture(1))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("cat/1.png", picture(2))
    with pytest.raises(BadData, match=r"holds 'cat/1\.png' twice"):
        load(path, quiet)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    bomb = {"cat/1.png": bytes(30_000_000), "dog/2.png": picture(2)}
    with pytest.raises(BadData, match="looks like a zip bomb"):
        load(zipped(tmp_path / "x.zip", bomb), quiet)


def test_a_member_that_lies_about_its_size_is_refused(tmp_path):
    """Both headers are patched to declare fewer bytes than the member unpacks to."""
    path = zipped(tmp_path / "x.zip", CLASSES)
    size, raw = len(picture(1)), bytearray(path.read_bytes())
    real, less = struct.pack("<I", size), struct.pack("<I", size - 50)
    assert raw.count(real) >= 2
    path.write_bytes(bytes(raw).replace(real, less))
    with pytest.raises(BadData, match=r"damaged|cannot be decoded|not a zip"):
        load(path, quiet)


def test_an_encrypted_archive_is_refused(tmp_path):
    path = zipped(tmp_path / "x.zip", CLASSES)
    raw = bytearray(path.read_bytes())
    at = raw.find(b"PK\x01\x02")
    raw[at + 8] |= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(BadData, match=r"is encrypted \('cat/1\.png'\)"):
        load(path, quiet)


def test_a_damaged_member_is_named(tmp_path):
    path = zipped(tmp_path / "x.zip", CLASSES, zipfile.ZIP_STORED)
    raw = path.read_bytes()
    at = raw.find(picture(2)) + 60
    path.write_bytes(raw[:at] + bytes([raw[at] ^ 255]) + raw[at + 1 :])
    with pytest.raises(BadData, match=r"damaged at 'cat/deep/2\.PNG'"):
        load(path, quiet)


@pytest.mark.parametrize("content", [b"", b"not a zip at all", b"PK\x03\x04cut"])
def test_a_file_that_is_no_zip_is_refused(tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(BadData, match="is not a zip archive"):
        load(tmp_path / "x.zip", quiet)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty .zero bytes."), (b"hello", "is not an image"), (picture(5)[:80], "cannot be decoded")],
    ids=["zero bytes", "no image", "cut off"],
)
def test_an_unreadable_image_is_named_and_so_is_what_to_do(tmp_path, content, said):
    with pytest.raises(BadData, match=rf"cat/broken\.png {said}.*\. Remove or replace"):
        load(put(tmp_path, CLASSES | {"cat/broken.png": content}), quiet)


def test_a_huge_image_is_refused_on_its_header(tmp_path):
    header = bytearray(picture(1))
    header[16:24] = struct.pack(">2I", 30_000, 30_000)
    header[29:33] = struct.pack(">I", zlib.crc32(bytes(header[12:29])))
    with pytest.raises(BadData, match=r"cat/huge\.png .*more than the 64,000,000 pixels"):
        load(put(tmp_path, CLASSES | {"cat/huge.png": bytes(header)}), quiet)


def test_many_unreadable_images_are_told_at_once(tmp_path):
    with pytest.raises(BadData, match="and 2 more such files"):
        load(put(tmp_path, CLASSES | {f"cat/b{i}.png": b"x" for i in range(5)}), quiet)


def test_one_class_is_refused_with_its_name(tmp_path):
    with pytest.raises(BadData, match=r"all 2 images of pets have one label \(cat\)"):
        load(put(tmp_path / "pets", {"cat/1.png": picture(1), "cat/2.png": picture(2)}), quiet)


def test_exact_copies_count_once_and_the_test_split_keeps_its_own(tmp_path):
    files = {"train/cat/1.png": picture(1), "train/cat/2.png": picture(2), "train/dog/3.png": picture(3)}
    data = load(put(tmp_path, files | {"test/cat/9.png": picture(1)}), quiet)
    assert ("test/cat/9.png", "cat", "test") in summary(data)
    assert len(data.items) == 3
    assert data.notes == ("1 exact copy of other images were left out.",)


def test_copies_with_different_labels_are_both_left_out_and_named(tmp_path):
    data = load(put(tmp_path, CLASSES | {"dog/copy.png": picture(1)}), quiet)
    assert [item.name for item in data.items] == ["cat/deep/2.PNG", "dog/3.png"]
    assert data.notes == (
        "The same image has different labels, so none of its copies is used: cat/1.png (cat) and dog/copy.png (dog).",
    )


def test_classes_that_differ_in_case_alone_are_pointed_out(tmp_path):
    data = load(put(tmp_path, CLASSES | {"Cat/9.png": picture(9)}), quiet)
    assert "The classes Cat, cat differ in letter case alone; they are kept apart." in data.notes


def test_idx_pairs_are_read_with_their_splits_and_class_names(tmp_path):
    train, test = pixels(4), pixels(2, seed=1)
    files = {
        "train-images-idx3-ubyte.gz": idx_images(train),
        "train-labels-idx1-ubyte.gz": idx_labels([2, 0, 1, 2]),
        "t10k-images-idx3-ubyte.gz": idx_images(test),
        "t10k-labels-idx1-ubyte.gz": idx_labels([0, 1]),
        "MANIFEST.json": json.dumps({"classes": ["T-shirt/top", "Bag", "Coat", "unused"]}).encode(),
    }
    data = load(put(tmp_path, files), quiet)
    assert data.labels == ("T-shirt/top", "Bag", "Coat")
    assert [(i.label, i.split) for i in data.items] == [
        ("T-shirt/top", "test"),
        ("Bag", "test"),
        ("Coat", "train"),
        ("T-shirt/top", "train"),
        ("Bag", "train"),
        ("Coat", "train"),
    ]
    np.testing.assert_array_equal(np.asarray(decode(data.items[2].image))[..., 1], train[0])


def test_one_idx_file_is_all_the_data_and_its_labels_are_numbers(tmp_path):
    files = {"t10k-images-idx3-ubyte.gz": idx_images(pixels(3)), "t10k-labels-idx1-ubyte.gz": idx_labels([9, 10, 9])}
    data = load(put(tmp_path, files) / "t10k-images-idx3-ubyte.gz", quiet)
    assert data.labels == ("9", "10")
    assert {item.split for item in data.items} == {None}


def test_unpacked_idx_files_are_read_too(tmp_path):
    files = {"train-images-idx3-ubyte": idx_images(pixels(2)), "train-labels-idx1-ubyte": idx_labels([0, 1])}
    assert len(load(put(tmp_path, {k: gzip.decompress(v) for k, v in files.items()}), quiet).items) == 2


def idx_pair(prefix: str, labels: list[int], seed: int = 0) -> dict[str, bytes]:
    return {
        f"{prefix}images-idx3-ubyte.gz": idx_images(pixels(len(labels), seed)),
        f"{prefix}labels-idx1-ubyte.gz": idx_labels(labels),
    }


@pytest.mark.parametrize("name", ["emnist-letters-", "emnist_letters.", ""])
def test_the_last_word_before_images_says_the_split(tmp_path, name):
    files = idx_pair(f"{name}train-", [0, 1]) | idx_pair(f"{name}test-", [1], seed=1)
    splits = Counter(item.split for item in load(put(tmp_path, files), quiet).items)
    assert splits == {"train": 2, "test": 1}


def test_several_idx_data_sets_in_one_folder_are_not_mixed(tmp_path):
    """Label 1 is a one in one of them and an A in the other."""
    files = idx_pair("emnist-letters-train-", [1, 2]) | idx_pair("emnist-letters-test-", [1], 1)
    files |= idx_pair("emnist-digits-train-", [1, 0], 2)
    with pytest.raises(BadData, match=r"holds 2 data sets: emnist-digits-train-\S+, emnist-letters-test-\S+; give one"):
        load(put(tmp_path, files), quiet)
    one = load(tmp_path / "emnist-digits-train-images-idx3-ubyte.gz", quiet)
    assert [item.label for item in one.items] == ["1", "0"]


IMAGES = idx_images(pixels(3))


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (IMAGES, None, "has no labels file: expected train-labels-idx1-ubyte.gz beside it"),
        (IMAGES, idx_labels([0, 1]), "holds 3 images but .* 2 labels"),
        (IMAGES[:-30], idx_labels([0, 1, 0]), "is not a complete gzip file"),
        (IMAGES[:-5] + b"\0" + IMAGES[-4:], idx_labels([0, 1, 0]), "is not a complete gzip file"),
        (b"plain text", idx_labels([0, 1, 0]), "is not a complete gzip file"),
        (gzip.compress(b"\0\0\x08"), idx_labels([0]), "ends inside its 16-byte IDX header"),
        (idx_labels([0, 1, 0] * 9), idx_labels([0]), "starts with 0x00000801.*with 0x00000803"),
        (gzip.compress(struct.pack(">4I", 0x803, 3, 6, 5) + bytes(89)), idx_labels([0]), "holds 89 bytes .* 90"),
        (gzip.compress(struct.pack(">4I", 0x803, 3, 6, 5) + bytes(91)), idx_labels([0]), "holds more than 90"),
        (gzip.compress(struct.pack(">4I", 0x803, 0, 6, 5)), idx_labels([]), "declares 0 x 6 x 5 values"),
        (gzip.compress(struct.pack(">4I", 0x803, 2**32 - 1, 999, 999)), idx_labels([0]), "and at most 2,147,483,648"),
        (IMAGES, idx_images(pixels(3)), "starts with 0x00000803.*with 0x00000801"),
    ],
    ids=[
        *("no labels", "counts", "cut off", "checksum", "no gzip", "header"),
        *("magic", "short", "long", "none", "lie", "swap"),
    ],
)
def test_a_wrong_idx_file_is_refused_by_name(tmp_path, images, labels, said):
    files = {"train-images-idx3-ubyte.gz": images} | ({"train-labels-idx1-ubyte.gz": labels} if labels else {})
    with pytest.raises(BadData, match=said) as caught:
        load(put(tmp_path, files), quiet)
    assert "-idx" in str(caught.value)


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (b"{", "is not JSON"),
        (b'{"classes": ["a"]}', "holds label 1, but MANIFEST.json beside it lists 1 classes"),
        (b'{"classes": ["a", "a"]}', "names a class twice"),
        (b'{"classes": "ab"}', "must be a list of names"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path, manifest, said):
    pair = {"train-images-idx3-ubyte.gz": idx_images(pixels(2)), "train-labels-idx1-ubyte.gz": idx_labels([0, 1])}
    with pytest.raises(BadData, match=said):
        load(put(tmp_path, pair | {"MANIFEST.json": manifest}), quiet)


@pytest.mark.parametrize(
    ("files", "name", "said"),
    [
        ({}, "none", "does not exist"),
        ({"x.txt": b""}, "x.txt", "is none of: a folder"),
        ({"x.txt": b""}, ".", "holds no image: expected one subfolder of images per class"),
        ({"1.png": b"x", "2.png": b"x"}, ".", r"holds images directly in it \(1.png, 2.png\)"),
        ({"a.zip": b"", "b.zip": b""}, ".", "holds 2 zip archives: give one of them"),
    ],
)
def test_a_path_without_data_is_refused_with_what_is_there(tmp_path, files, name, said):
    with pytest.raises(BadData, match=said):
        load(put(tmp_path, files) / name, quiet)


def test_a_cut_keeps_proportions_reads_only_what_it_keeps_and_follows_its_seed(tmp_path):
    files = {f"train/cat/{i}.png": picture(i) for i in range(40)}
    files |= {f"train/dog/{i}.png": picture(100 + i) for i in range(20)}
    files |= {f"test/cat/{i}.png": picture(200 + i) for i in range(20)}
    root = put(tmp_path, files)
    seen: list[tuple[int, int]] = []
    data = load(root, lambda what, done, total: seen.append((done, total)), limit=20, seed=3)
    assert Counter((i.split, i.label) for i in data.items) == {
        ("train", "cat"): 10,
        ("train", "dog"): 5,
        ("test", "cat"): 5,
    }
    assert seen[-1] == (20, 20)
    assert load(root, quiet, limit=20, seed=3) == data
    assert load(root, quiet, limit=20, seed=4) != data
    assert load(root, quiet, limit=80) == load(root, quiet)


def test_a_cut_of_one_image_is_refused():
    with pytest.raises(BadSettings, match="a cut of 1 images"):
        load(None, quiet, limit=1)


def test_clothing10_loads_with_its_splits(shared_data):
    data = load(shared_data / "clothing10", quiet)
    assert Counter(i.split for i in data.items) == {"train": 3068, "val": 341, "test": 372}
    assert (len(data.labels), data.notes) == (10, ())


def test_a_cut_of_fashion_mnist_has_the_classes_of_its_manifest(shared_data):
    data = load(shared_data / "fashion-mnist", quiet, limit=700)
    assert data.labels[0] == "T-shirt/top"
    assert Counter(i.split for i in data.items) == {"train": 600, "test": 100}
    assert set(Counter(i.label for i in data.items).values()) == {70}
    assert io.BytesIO(data.items[0].image).read(4) == b"\x89PNG"
