"""Free ports on loopback. One found free may be taken a moment later: who starts a server on it checks who answers."""

import random
import socket
import threading
from collections.abc import Iterable

from hardloop.core.errors import Unavailable

# Under the range from which Linux (32768) and macOS (49152) take ports for outgoing connections, with room for +10000.
_LOW, _HIGH = 10_240, 22_400
_handed_out: set[int] = set()
_mutex = threading.Lock()


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now, on loopback and on all interfaces."""
    for address in ("127.0.0.1", "0.0.0.0"):  # noqa: S104 - asked about, closed at once, never listened on
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # Servers set this as well: without it a port whose last connections are winding down looks taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


def free_ports(count: int, offsets: Iterable[int] = (0,), wanted: Iterable[int] = ()) -> list[int]:
    """`count` ports that are free together with port + offset for each offset; never the same twice in this process.

    wanted: the ports of the last run, taken again where they are still free, so that addresses stay valid.
    """
    steps = tuple(offsets)
    found: list[int] = []
    candidates = list(wanted)[:count] + random.sample(range(_LOW, _HIGH), 2_000)  # unforeseeable ports are not needed
    with _mutex:
        for port in candidates:
            block = {port + step for step in steps}
            if block & _handed_out or any(p > 65_535 or not is_free(p) for p in block):
                continue
            _handed_out.update(block)
            found.append(port)
            if len(found) == count:
                return found
    raise Unavailable(f"asked for {count} free ports on loopback, found {len(found)}: stop programs that hold them")


def give_back(ports: Iterable[int], offsets: Iterable[int] = (0,)) -> None:
    """Let the ports be handed out again, once nothing of ours listens on them."""
    with _mutex:
        _handed_out.difference_update(port + step for port in ports for step in offsets)
