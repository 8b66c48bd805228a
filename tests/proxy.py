"""A link that a test holds up and cuts."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress

from apex_zmq.net.links import LINKS

EXPERIENCE_KERNEL_BYTES = LINKS["experience"].kernel_bytes or 0


class Proxy:
    """The way of TCP connections to an address, with the buffers of experience, which can be held up and cut."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream.removeprefix("tcp://").split(":")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, EXPERIENCE_KERNEL_BYTES)
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.open = threading.Event()
        self.open.set()
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                down, _ = self._listener.accept()
                up = socket.socket()
                up.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, EXPERIENCE_KERNEL_BYTES)
                try:
                    up.connect((self._upstream[0], int(self._upstream[1])))
                except ConnectionRefusedError:  # not up yet: its peer will try again
                    down.close()
                    up.close()
                    continue
                self._ends += [down, up]
                for source, sink in ((down, up), (up, down)):
                    self._threads.append(threading.Thread(target=self._pump, args=(source, sink), daemon=True))
                    self._threads[-1].start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.open.wait()
                sink.sendall(data)

    def cut(self) -> None:
        """Reset both connections; what is on the way is lost."""
        for end in self._ends:
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()
        self.open.set()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()
