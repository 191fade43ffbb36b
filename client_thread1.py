"""An interactive client: it sends each line that is typed and waits for the server's reply."""

import argparse
import contextlib
import os
import signal
import socket
import sys
from io import BufferedReader, TextIOWrapper

HOST, PORT = "127.0.0.1", 8000
MAX_BUFFER_SIZE = 5120  # bytes in a message, its newline not counted
TIMEOUT = 10.0  # seconds to wait for the server


def main() -> None:
    """Talk to the server. Exit with status 1 if the connection or the console fails."""
    parser = argparse.ArgumentParser(description="Send lines to server_thread1.py.")
    parser.add_argument("--host", default=HOST, help="the server's address (%(default)s)")
    parser.add_argument("--port", default=PORT, type=int, help="the server's port (%(default)s)")
    args = parser.parse_args()
    if not 0 <= args.port <= 65535:  # getaddrinfo() may take 65536 as 0.
        parser.error("argument --port: not in 0 to 65535")
    try:
        prepare_console()
        try:
            soc = socket.create_connection((args.host, args.port), TIMEOUT)
        except (OSError, UnicodeError) as error:  # A UnicodeError means that it is no host name.
            sys.exit(f"Connection Error: {error}")
        talk(soc)
    except OSError as error:  # The console failed: exchange() reports a connection that fails.
        sys.exit(f"Console Error: {error}")
    except KeyboardInterrupt:  # Ctrl-C came before the first prompt, or during the good-bye.
        sys.exit(130)  # Shells use 128 + 2, the number of SIGINT.


def prepare_console() -> None:
    """Make the standard streams ready for input(), and let other signals act like Ctrl-C."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # It is closed. Its number must not go to the connection.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r+", closefd=False))
    if sys.__stdout__ and sys.stdout is sys.__stdout__:  # A program may have set its own.
        raw = os.fdopen(1, "wb", 0, closefd=False)  # A buffer's flush at exit might fail.
        sys.stdout = TextIOWrapper(raw, sys.stdout.encoding, "backslashreplace", write_through=True)
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # What it cannot decode is sent unchanged.
    with contextlib.suppress(AttributeError, ImportError):  # Windows has no SIGHUP, no readline.
        for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
            if signal.getsignal(number) == signal.SIG_DFL:  # It is not ignored.
                signal.signal(number, signal.default_int_handler)
        import readline  # noqa: F401 - It gives input() arrow keys and a history.


def talk(soc: socket.socket) -> None:
    """Send what is typed until 'quit', Ctrl-C or Ctrl-D. Raises OSError if the console fails."""
    with soc, soc.makefile("rb") as replies:
        try:
            print("Please enter 'quit' to exit")
            message = input(" -> ").rstrip()
            while message != "quit" and message.lower() != "--quit--":  # It has no reply.
                exchange(soc, replies, message)
                message = input(" -> ").rstrip()
        except (EOFError, KeyboardInterrupt):
            print()
        finally:
            with contextlib.suppress(OSError):  # Nothing is lost if the good-bye fails.
                soc.settimeout(1)  # A server that does not close is left after a second.
                soc.sendall(b"--quit--\n")
                soc.shutdown(socket.SHUT_WR)
                soc.recv(MAX_BUFFER_SIZE)  # close() with a reply unread might undo the good-bye.


def exchange(soc: socket.socket, replies: BufferedReader, message: str) -> None:
    """Send a message and wait for its reply. Exits if the connection fails."""
    data = message.encode("utf-8", "surrogateescape")
    if len(data) > MAX_BUFFER_SIZE or "\n" in message:  # Ctrl-V Ctrl-J types a newline.
        print(f"Not sent: over {MAX_BUFFER_SIZE} bytes or more than one line")
    else:
        try:
            soc.sendall(data + b"\n")
            reply = replies.read(1)
            reason = replies.readline() if reply == b"!" else b""
        except OSError as error:
            sys.exit(f"Connection Error: {error}")
        if reason:  # What is not printable could drive the terminal, so it is spelled out.
            text = reason.decode(errors="replace").rstrip()
            print("Refused:", "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))
        elif not reply:
            sys.exit("Connection Error: the server closed the connection")
        elif reply != b"-":
            sys.exit(f"Connection Error: unexpected reply {reply!r}")


if __name__ == "__main__":
    main()
