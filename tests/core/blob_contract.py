"""What every blob store must do, as one class of tests; `test_blobs.py` runs it against each real store."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from secrets import token_bytes

import pytest

from hardloop.core.errors import BadInput, BlobMissing, HardloopError
from hardloop.core.ports import BlobStore

THREADS = 16

BAD_KEYS = [
    *("", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\\b", "a\nb", "a\x00b", "a\x7fb", "a\ud800b"),
    *("x" * 256, "é" * 128, "/".join(["y" * 200] * 6)),
]

ODD_KEYS = [
    *("images/ünïcödé/日本語/🎯.png", "a b/c d", "plus+and&equals=", "question?hash#percent%41", "semi;colon:comma,"),
    *("quote'\"<>", "star*(paren)[bracket]{brace}", "tilde~`^|@!$", "x" * 255, "/".join(["y" * 200] * 5)),
]


class BlobStoreContract:
    """Subclasses give the fixture `store` (an empty store) and say whether it creates once under races."""

    creates_once = True

    def test_what_was_put_comes_back(self, store: BlobStore) -> None:
        store.put("a/b.bin", b"\x00\xff some bytes")
        assert store.get("a/b.bin") == b"\x00\xff some bytes"
        assert store.exists("a/b.bin")

    def test_an_empty_object_is_an_object(self, store: BlobStore) -> None:
        store.put("empty", b"")
        assert store.get("empty") == b""
        assert store.exists("empty")
        assert list(store.keys("")) == ["empty"]

    def test_put_replaces_what_was_there(self, store: BlobStore) -> None:
        store.put("a", b"a long first value")
        store.put("a", b"short")
        assert store.get("a") == b"short"

    def test_put_new_takes_a_free_key_and_leaves_a_taken_one_alone(self, store: BlobStore) -> None:
        assert store.put_new("a/b", b"first") is True
        assert store.put_new("a/b", b"second") is False
        assert store.get("a/b") == b"first"
        assert list(store.keys("a/")) == ["a/b"]

    def test_put_new_takes_a_key_again_after_it_was_deleted(self, store: BlobStore) -> None:
        store.put_new("a", b"1")
        store.delete("a")
        assert store.put_new("a", b"2") is True
        assert store.get("a") == b"2"

    def test_nothing_is_there_before_it_was_put_nor_after_it_was_deleted(self, store: BlobStore) -> None:
        for _ in range(2):
            assert not store.exists("gone/for/good")
            with pytest.raises(BlobMissing, match="gone/for/good"):
                store.get("gone/for/good")
            store.delete("gone/for/good")
            assert list(store.keys("")) == []
            store.put("gone/for/good", b"1")
            store.delete("gone/for/good")

    def test_a_folder_of_keys_is_not_a_key(self, store: BlobStore) -> None:
        store.put("folder/key", b"1")
        assert not store.exists("folder")
        with pytest.raises(BlobMissing):
            store.get("folder")

    def test_a_key_beneath_another_key_is_refused_or_kept_but_never_costs_the_other(self, store: BlobStore) -> None:
        store.put("a", b"first")
        for put in (store.put, store.put_new):
            try:
                put("a/b", b"second")
            except HardloopError:
                assert list(store.keys("")) == ["a"]
            else:
                assert store.get("a/b") == b"second"
            assert store.get("a") == b"first"

    def test_get_refuses_more_than_it_was_told_to_accept(self, store: BlobStore) -> None:
        store.put("ten", b"0123456789")
        assert store.get("ten", max_bytes=10) == b"0123456789"
        with pytest.raises(BadInput, match="9 bytes"):
            store.get("ten", max_bytes=9)
        assert store.get("ten") == b"0123456789"

    @pytest.mark.parametrize("key", BAD_KEYS, ids=lambda k: ascii(k[:12]))
    def test_keys_that_servers_disagree_about_are_refused_by_every_call(self, store: BlobStore, key: str) -> None:
        calls: list[Callable[[], object]] = [
            lambda: store.put(key, b"1"),
            lambda: store.put_new(key, b"1"),
            lambda: store.get(key),
            lambda: store.exists(key),
            lambda: store.delete(key),
            lambda: store.uri(key),
        ]
        for call in calls:
            with pytest.raises(BadInput, match="key"):
                call()
        assert list(store.keys("")) == []

    @pytest.mark.parametrize("key", ODD_KEYS, ids=lambda k: ascii(k[:12]))
    def test_odd_but_lawful_keys_work_in_every_call(self, store: BlobStore, key: str) -> None:
        store.put("bystander", b"0")
        assert store.put_new(key, b"1") is True
        assert store.put_new(key, b"2") is False
        store.put(key, b"3")
        assert (store.get(key), store.exists(key)) == (b"3", True)
        assert list(store.keys(key)) == [key]
        assert sorted(store.keys("")) == sorted([key, "bystander"])
        store.delete(key)
        assert not store.exists(key)
        assert list(store.keys("")) == ["bystander"]

    def test_listing_is_in_byte_order_and_starts_after_a_key(self, store: BlobStore) -> None:
        names = ["B", "a", "a!", "a-1", "a.png", "a1", "b", "ﷰ", "🎯", "é"]
        for name in names:
            store.put(f"log/{name}", name.encode())
        store.put("log-2/other", b"")
        store.put("lo", b"")
        ordered = [f"log/{name}" for name in sorted(names, key=str.encode)]
        assert list(store.keys("log/")) == ordered
        for position, key in enumerate(ordered):
            assert list(store.keys("log/", key)) == ordered[position + 1 :]
        assert list(store.keys("log/", "log/a0")) == [k for k in ordered if k.encode() > b"log/a0"]
        assert list(store.keys("log/a", "log/a!")) == ["log/a-1", "log/a.png", "log/a1"]

    def test_a_start_outside_the_prefix_means_all_or_nothing(self, store: BlobStore) -> None:
        store.put("log/1", b"")
        store.put("log/2", b"")
        for before in ("a", "log", "log.", "log/"):
            assert list(store.keys("log/", before)) == ["log/1", "log/2"]
        for after in ("log0", "m", "z/1"):
            assert list(store.keys("log/", after)) == []

    def test_a_prefix_lists_all_folders_beneath_it_and_nothing_else(self, store: BlobStore) -> None:
        kept = ["p/1", "p/q/2", "p/q/r/3", "p/qq/4"]
        for key in [*kept, "p2/5", "o/6"]:
            store.put(key, b"")
        assert sorted(store.keys("p/")) == kept
        assert sorted(store.keys("p/q")) == ["p/q/2", "p/q/r/3", "p/qq/4"]
        assert list(store.keys("nothing/")) == []

    def test_listing_goes_on_past_a_thousand_keys(self, store: BlobStore) -> None:
        keys = [f"many/{number:05d}" for number in range(1_205)]
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda key: store.put(key, b""), keys))
        assert list(store.keys("many/")) == keys
        assert list(store.keys("many/", "many/00100")) == keys[101:]

    def test_what_appears_later_is_found_after_the_last_key_seen(self, store: BlobStore) -> None:
        store.put("log/20260101-a", b"")
        last = list(store.keys("log/"))[-1]
        assert list(store.keys("log/", last)) == []
        store.put("log/20260102-a", b"")
        assert list(store.keys("log/", last)) == ["log/20260102-a"]

    def test_sixteen_racing_writers_of_one_new_key_have_one_winner(self, store: BlobStore) -> None:
        store.put_new("warm-up", b"")
        for attempt in range(5):
            barrier = threading.Barrier(THREADS)

            def race(writer: int, key: str = f"race/{attempt}", barrier: threading.Barrier = barrier) -> bool:
                barrier.wait()
                return store.put_new(key, bytes([writer]) * 1000)

            with ThreadPoolExecutor(THREADS) as pool:
                won = [writer for writer, free in enumerate(pool.map(race, range(THREADS))) if free]
            assert won
            stored = store.get(f"race/{attempt}")
            assert stored in [bytes([writer]) * 1000 for writer in won]
            if self.creates_once:
                assert len(won) == 1

    def test_readers_see_the_old_or_the_new_value_whole(self, store: BlobStore) -> None:
        values = [bytes([number]) * 300_000 for number in range(4)]
        store.put("shared", values[0])
        done = threading.Event()

        def write(value: bytes) -> None:
            for _ in range(5):
                store.put("shared", value)

        def read() -> set[bytes]:
            seen = set()
            while not done.is_set():
                seen.add(store.get("shared"))
            return seen

        with ThreadPoolExecutor(THREADS) as pool:
            readers = [pool.submit(read) for _ in range(4)]
            for writer in [pool.submit(write, value) for value in values]:
                writer.result()
            done.set()
            assert set().union(*(reader.result() for reader in readers)) <= set(values)
        assert store.get("shared") in values

    def test_sixty_megabytes_come_back_unchanged(self, store: BlobStore) -> None:
        data = token_bytes(1_000_003) * 60  # not a multiple of any part size
        store.put("big/put", data)
        assert store.get("big/put") == data
        assert store.put_new("big/new", data[::-1]) is True
        assert store.get("big/new") == data[::-1]
        with pytest.raises(BadInput):
            store.get("big/put", max_bytes=len(data) - 1)

    def test_the_address_names_the_key(self, store: BlobStore) -> None:
        assert store.uri("a/b.png").endswith("/a/b.png")
        assert "://" in store.uri("a/b.png")
