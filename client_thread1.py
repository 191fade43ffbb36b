"""An interactive client: sends each line that is typed and waits for its reply."""

import argparse
import contextlib
import io
import os
import select
import signal
import socket
import sys
from typing import BinaryIO

with contextlib.suppress(ImportError):  # neither is on Windows
    import fcntl
    import readline  # noqa: F401 - gives input() arrow keys and a history

HOST, PORT = "127.0.0.1", 8000
MAX_BUFFER_SIZE = 5120  # bytes in a message, its newline not counted
TIMEOUT = 10.0  # seconds to wait for the server
GOODBYE = 1.0  # seconds to wait for the server to end the connection
CLOSED = "the server closed the connection"


def main() -> None:
    """Talk as the command line says; exit status 1 where the server is not there or goes away."""
    parser = argparse.ArgumentParser(description="Send lines to server_thread1.py.")
    parser.add_argument("--host", default=HOST, help="the server's address (%(default)s)")
    parser.add_argument("--port", default=PORT, type=int, help="the server's port (%(default)s)")
    args = parser.parse_args()
    if not 0 <= args.port <= 65535:
        parser.error("argument --port: not in 0 to 65535")
    if isinstance(sys.stdin, io.TextIOWrapper):  # not so in IDLE
        sys.stdin.reconfigure(errors="surrogateescape")  # for send() to judge
    try:
        with socket.create_connection((args.host, args.port), TIMEOUT) as soc:
            talk(soc)
    except (OSError, UnicodeError) as error:  # UnicodeError: not a host name
        sys.exit(f"Connection Error: {error}")
    except KeyboardInterrupt:  # before the prompt, or once more
        sys.exit(130)  # 128 and SIGINT, as shells have it


def talk(soc: socket.socket) -> None:
    """Send what is typed until 'quit', the end of the input or Ctrl-C. Raises OSError."""
    print("Please enter 'quit' to exit")
    try:
        with soc.makefile("rb") as replies:
            while (line := ask(soc).rstrip()) != "quit" and line.lower() != "--quit--":
                for message in line.split("\n"):  # readline takes one, by Ctrl-V Ctrl-J
                    send(soc, replies, message)
    except (EOFError, KeyboardInterrupt):
        print()
    soc.sendall(b"--quit--\n")
    soc.shutdown(socket.SHUT_WR)
    soc.settimeout(GOODBYE)
    with contextlib.suppress(OSError):  # close() before the last reply could undo the quit
        soc.recv(MAX_BUFFER_SIZE)


def ask(soc: socket.socket) -> str:
    """Return the line typed at the prompt. Raises EOFError, and OSError once the server is gone.

    The kernel sends SIGIO when the server closes (fcntl(2), O_ASYNC), and what its handler raises
    ends input() and restores the terminal: a thread that watches could do neither.
    """
    if hasattr(signal, "SIGIO"):  # on Windows a server that is gone shows with the next line
        signal.signal(signal.SIGIO, lambda *_: check(soc))
        fcntl.fcntl(soc, fcntl.F_SETOWN, os.getpid())
        # F_SETFL sets all flags, and a socket with a timeout has O_NONBLOCK.
        fcntl.fcntl(soc, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    check(soc)
    try:
        return input(" -> ")
    except OSError:
        print()
        raise
    finally:
        if hasattr(signal, "SIGIO"):  # a reply sends it, too, and by default it ends the process
            signal.signal(signal.SIGIO, signal.SIG_IGN)


def check(soc: socket.socket) -> None:
    """Raise ConnectionError if the server has closed the connection."""
    if select.select([soc], [], [], 0)[0] and not soc.recv(1, socket.MSG_PEEK):
        raise ConnectionError(CLOSED)


def send(soc: socket.socket, replies: BinaryIO, line: str) -> None:
    """Send a line and wait for its reply, or say why not. Raises OSError."""
    try:
        message = line.encode("utf-8", "surrogateescape")
        message.decode("utf-8")
        if len(message) > MAX_BUFFER_SIZE:
            raise ValueError(f"message over {MAX_BUFFER_SIZE} bytes")
    except ValueError as error:
        print(f"Not sent: {error}")
        return
    soc.sendall(message + b"\n")
    reply = replies.read(1)
    if reply == b"!":
        # ascii() spells out what could drive the terminal.
        print("Refused:", ascii(replies.readline(MAX_BUFFER_SIZE).decode().rstrip())[1:-1])
    elif reply != b"-":
        raise ConnectionError(f"no reply but {reply!r}" if reply else CLOSED)


if __name__ == "__main__":
    main()
