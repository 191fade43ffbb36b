"""A TCP server with one thread a client.

A message is a line of UTF-8 text of at most 5120 bytes. Its reply is "-", or "!", the reason and
a newline where it is refused. The message --quit-- ends the connection.
"""

import argparse
import collections
import contextlib
import errno
import io
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

HOST, PORT = "127.0.0.1", 8000  # an arbitrary non-privileged port
MAX_BUFFER_SIZE = 5120  # bytes in a message, its line end not counted
LINGER = 1.0  # seconds to read on for after the last reply
STOP_STEPS = {socket.SHUT_RD: 2.0, socket.SHUT_RDWR: 0.5}  # what to shut, seconds to wait then
ACCEPT_POLL = 0.5  # seconds that accept() blocks for at most, so that a stop gets through
ACCEPT_PAUSE = 0.1  # seconds between two tries while accept() fails for a reason that passes
ACCEPT_QUIET = 10.0  # seconds between two lines on the console about that, at least
TRANSIENT_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}  # a shortage here
# One client's trouble (accept(2), Error handling; EOPNOTSUPP may be the listener's own, too)
TRANSIENT_ERRNOS |= {errno.EPROTO, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH}
TRANSIENT_ERRNOS |= {errno.EHOSTDOWN, errno.ENOPROTOOPT, errno.EPERM}
GIL_WAIT = 125e-6  # seconds per client until a thread that waits for the GIL asks for it
CROWD = 150  # threads; if there are more, they queue for the console
CONSOLE = threading.Lock()
CONSOLE_QUEUE: collections.deque[queue.SimpleQueue[None]] = collections.deque()

Clients = dict[socket.socket, threading.Thread]


class MessageTooLong(ValueError):
    """A message is over the limit; the text is the reason."""


def main() -> None:
    """Serve as the command line says until Ctrl-C or SIGTERM; exit status 1 if it can't listen."""
    parser = argparse.ArgumentParser(description="A TCP server with one thread a client.")
    parser.add_argument("--host", default=HOST, help="address to listen on (%(default)s)")
    parser.add_argument("--port", default=PORT, type=int, help="0 takes a free one (%(default)s)")
    args = parser.parse_args()
    if not 0 <= args.port <= 65535:
        parser.error("argument --port: not in 0 to 65535")
    if isinstance(sys.stdout, io.TextIOWrapper):  # not so in IDLE
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        listener = open_listener(args.host, args.port)
    except (OSError, UnicodeError) as error:
        sys.exit(f"Bind failed. Error : {error}")
    except KeyboardInterrupt:  # a name that takes long to look up
        sys.exit(130)  # 128 and SIGINT, as shells have it
    with contextlib.suppress(AttributeError, OSError):  # not on Linux, not permitted
        # The GIL lets one thread run at a time, and to hand it to a thread on another CPU costs
        # more than a message. The port picks the CPU, so that several copies spread out.
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpus[listener.getsockname()[1] % len(cpus)]})
    for number in (signal.SIGINT, signal.SIGTERM):
        # No KeyboardInterrupt: one that is raised amid Thread.start() leaves a client half started.
        signal.signal(number, lambda *_: stop_server(listener))
    start_server(listener)


def open_listener(host: str = HOST, port: int = PORT) -> socket.socket:
    """Return a socket that listens on a host (name or address) and a port (0: any that is free).

    Raises OSError (port in use, unknown host, no permission) and UnicodeError (not a host name).
    """
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    show("Socket created")
    with contextlib.ExitStack() as stack:
        stack.enter_context(listener)
        # Without it, no restart while old connections are in TIME_WAIT (Linux: a minute). On
        # Windows it would let a second server take a live port.
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Python runs a signal's handler in the main thread, once that is out of accept(). Without
        # a timeout nothing may get it out: on Windows (CPython issue 85609), or where the system
        # interrupts another thread for the signal.
        listener.settimeout(ACCEPT_POLL)
        listener.bind(address)
        listener.listen(socket.SOMAXCONN)
        stack.pop_all()  # it stays open, unless something was raised
    return listener


def start_server(listener: socket.socket | None = None) -> None:
    """Serve the clients of a listener, each in a thread of its own, until stop_server(listener).

    Without a listener: on 127.0.0.1, port 8000. Raises OSError where it can't listen (any more).
    """
    clients: Clients = {}
    with listener or open_listener() as listener:
        try:
            show(f"Socket now listening on {host_and_port(listener.getsockname())}")
            accept_clients(listener, clients)
        except OSError:
            if listener.fileno() != -1:  # not closed by stop_server()
                raise
        finally:
            stop_server(listener)  # it may be an error that ends it
            end_clients(clients)
    if not clients:  # one that is left may hold the console
        show("Server stopped")


def stop_server(listener: socket.socket) -> None:
    """Make start_server(listener) return; from any thread or signal handler, any number of times.

    The sign to stop is the closed listener. A threading.Event would need a lock, and the thread
    that the signal handler interrupts could be holding it.
    """
    # Before shutdown(), since that wakes the accept loop (on Linux; elsewhere ACCEPT_POLL does).
    descriptor = listener.detach()
    if descriptor != -1:
        with socket.socket(fileno=descriptor) as closing, contextlib.suppress(OSError):
            closing.shutdown(socket.SHUT_RDWR)


def accept_clients(listener: socket.socket, clients: Clients) -> None:
    """Start a client_thread for each connection, until the OSError of a closed listener.

    All else is left to that thread: to print here is to wait behind every busy client.
    """
    quiet_until = 0.0
    while True:
        try:
            connection, address = listener.accept()
        except (TimeoutError, ConnectionError):
            continue  # ACCEPT_POLL, or a client that left while it waited
        except OSError as error:
            # Named errors only are waited out, as trio does when descriptors run out. To absorb
            # any OSError, as socketserver does, spins then, and when the listener is gone.
            if error.errno not in TRANSIENT_ERRNOS:
                raise
            if time.monotonic() >= quiet_until:
                show(f"New clients have to wait. Error : {error}")
                quiet_until = time.monotonic() + ACCEPT_QUIET
            time.sleep(ACCEPT_PAUSE)  # no event tells that descriptors are free again
            continue
        name = host_and_port(address)
        arguments = (connection, name, listener, clients)
        clients[connection] = threading.Thread(target=client_thread, args=arguments, daemon=True)
        # At the usual 5 ms, thousands of threads that wait for the GIL do little but ask for it. A
        # long time for few clients, too, would make them wait that long for a slow process_input().
        # When clients leave, it goes down with the next that comes.
        sys.setswitchinterval(max(0.005, GIL_WAIT * len(clients)))
        try:
            clients[connection].start()
        except (RuntimeError, MemoryError) as error:
            del clients[connection]
            connection.close()
            show(f"Thread did not start. Error : {error}")
            show(f"Connection {name} closed")


def end_clients(clients: Clients) -> None:
    """Let each client's message in hand be answered, then end what is left, within 2.5 seconds."""
    for how, seconds in STOP_STEPS.items():
        deadline = time.monotonic() + seconds
        pairs = list(clients.items())  # a copy, since the threads delete from it
        for connection, _ in pairs:
            with contextlib.suppress(OSError):  # closed by now
                connection.shutdown(how)  # wakes a recv(), SHUT_RDWR also a sendall()
        for _, thread in pairs:
            thread.join(max(0, deadline - time.monotonic()))


def client_thread(
    connection: socket.socket, name: str, listener: socket.socket, clients: Clients
) -> None:
    """Serve one client to its end, whatever that is; then close and forget the connection."""
    show(f"Connected with {name}")
    try:
        with connection:
            # Without keepalive, a peer whose cable was pulled holds its thread for ever.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            # Else a second reply waits until the first is acknowledged (RFC 896): 40 ms.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                answer_messages(connection, name, listener)
            except MessageTooLong as error:
                refuse(connection, name, error)
            linger(connection)
    except OSError as error:
        show(f"Connection {name} failed. Error : {error}")
    finally:
        show(f"Connection {name} closed")
        del clients[connection]


def answer_messages(connection: socket.socket, name: str, listener: socket.socket) -> None:
    """Show and answer messages until --quit--, the end of the connection or of the server.

    Raises MessageTooLong, and OSError where the connection breaks.
    """
    processing = "Processing the input received from client\n"
    for message in receive_input(connection):
        if listener.fileno() == -1:  # stopped: not the message in hand, or a line cut short
            return
        try:
            text = message.decode("utf-8").rstrip()
        except UnicodeDecodeError as error:
            refuse(connection, name, error)
            continue
        if text.lower() == "--quit--":
            show(processing + "Client is requesting to quit")
            return
        show(processing + "Processed result: " + printable(process_input(text)))
        connection.sendall(b"-")


def receive_input(
    connection: socket.socket, max_buffer_size: int = MAX_BUFFER_SIZE
) -> Iterator[bytes]:
    """Yield each message of a connection, as bytes without the newline.

    Until the first newline, what one recv() brings is a message: the article's client sends none.
    Raises MessageTooLong, as soon as a message is over max_buffer_size bytes, and OSError.
    """

    def checked(message: bytes) -> bytes:
        if len(message.removesuffix(b"\r")) > max_buffer_size:
            raise MessageTooLong(f"message over {max_buffer_size} bytes")
        return message

    by_lines, rest = False, b""
    while chunk := connection.recv(max_buffer_size + len(b"\r\n")):
        by_lines = by_lines or b"\n" in chunk
        messages = [chunk]
        if by_lines:
            *messages, rest = (rest + chunk).split(b"\n")
        for message in messages:
            yield checked(message)
        checked(rest)
    if rest:
        yield rest


def process_input(input_str: str) -> str:
    """Return the result for a message's text."""
    return "Hello " + input_str.upper()


def refuse(connection: socket.socket, name: str, reason: ValueError) -> None:
    """Show and send the reason why a message is not taken."""
    show(f"Message from {name} refused. Error : {reason}")
    connection.sendall(f"!{reason}\n".encode())


def linger(connection: socket.socket) -> None:
    """Send no more, but read on for LINGER seconds at most, so that the last reply arrives.

    close() over bytes that nobody has read resets the connection (RFC 1122, 4.2.2.13).
    """
    deadline = time.monotonic() + LINGER
    with contextlib.suppress(OSError):  # the time is up, or the peer is gone
        connection.shutdown(socket.SHUT_WR)
        while (seconds := deadline - time.monotonic()) > 0:
            connection.settimeout(seconds)
            if not connection.recv(MAX_BUFFER_SIZE):
                return


def show(text: str) -> None:
    """Write text to the console as lines of their own, which no other thread's run into.

    Raises nothing: a console that is gone (or None), full or short of a letter costs no client its
    reply.
    """
    with queued() if threading.active_count() > CROWD else CONSOLE:
        try:
            sys.stdout.write(text + "\n")  # in one, as print() does not
            sys.stdout.flush()
        except (OSError, ValueError, AttributeError):
            pass  # contextlib.suppress() would add 0.2 µs to each message


@contextlib.contextmanager
def queued() -> Iterator[None]:
    """Hold the console as in `with CONSOLE`, but first come, first served.

    For a threading.Lock alone, a thread that runs overtakes those that wait. That is faster for a
    few, but of 1000 newcomers only 300 had a reply within 2 seconds; queued all have, within one.
    """
    turn: queue.SimpleQueue[None] = queue.SimpleQueue()
    CONSOLE_QUEUE.append(turn)
    if CONSOLE_QUEUE[0] is not turn:
        turn.get()
    try:
        with CONSOLE:
            yield
    finally:
        CONSOLE_QUEUE.popleft()
        with contextlib.suppress(IndexError):  # nobody waits
            CONSOLE_QUEUE[0].put(None)  # twice does no harm: its thread is the first in any case


def printable(text: str) -> str:
    """Return text with what is not printable escaped, so that it can't forge a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def host_and_port(address: tuple[str, int] | None) -> str:
    """Return an address as text, an IPv6 host in brackets (RFC 3986, 3.2.2)."""
    if address is None:  # as macOS has it of a client that left while it waited
        return "?"
    host, port = address[:2]  # IPv6 has two more
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


if __name__ == "__main__":
    main()
    # Python's own shutdown would flush the console again (a traceback and status 120, if it is
    # gone), and could wait for a thread that is stuck in writing to a paused one.
    os._exit(0)
