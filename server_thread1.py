"""A TCP server with one thread per client. It answers a line with "-", or with "!" and a reason."""

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator

HOST, PORT = "127.0.0.1", 8000  # an arbitrary non-privileged port
MAX_BUFFER_SIZE = 5120  # bytes in a message, its line end not counted
ACCEPT_TIMEOUT = 0.25  # seconds between two looks at whether the listener is closed
STOP_TIMEOUT = 2.0  # seconds that a stop gives to the messages being worked on
LINGER = 1.0  # seconds that a client has to close its end after its last message
CONSOLE_LOCK = threading.Lock()  # The thread that holds it may write to the console.
# Control characters, line ends, bidi embeddings, overrides and isolates can forge or reorder text.
CONTROLS = [*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
ESCAPES = {control: ascii(chr(control))[1:-1] for control in CONTROLS}  # [1:-1] cuts off quotes.
Clients = dict[socket.socket, threading.Thread]  # A single step on a dict needs no lock.


def main() -> None:
    """Serve until Ctrl-C or SIGTERM. Exit with status 1 if the address cannot be used."""
    parser = argparse.ArgumentParser(description="A TCP server with one thread per client.")
    parser.add_argument("--host", default=HOST, help="address to listen on (%(default)s)")
    parser.add_argument("--port", default=PORT, type=int, help="0 takes a free one (%(default)s)")
    args = parser.parse_args()
    if not 0 <= args.port <= 65535:
        parser.error("argument --port: not in 0 to 65535")
    try:
        listener = open_listener(args.host, args.port)
    except (OSError, ValueError) as error:
        sys.exit(f"Bind failed. Error : {error}")
    if sys.__stdout__ and sys.stdout is sys.__stdout__:  # IDLE or a program may set its own.
        with contextlib.suppress(AttributeError, OSError):  # Windows may lack set_blocking().
            os.set_blocking(1, True)  # A slow console is waited for.
            sys.stdout.flush()  # It is replaced now: -u loses cut writes, and ASCII lacks letters.
        sys.stdout = os.fdopen(1, "w", -1, sys.stdout.encoding, "backslashreplace", closefd=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # A shell script's & ignores SIGINT.
            signal.signal(number, lambda *_: listener.close())  # This is the order to stop.
    server = threading.Thread(target=start_server, args=(listener,), daemon=True)
    server.start()  # The main thread handles signals, so it must never wait for the console.
    while listener.fileno() != -1:  # It is -1 once the listener is closed.
        server.join(ACCEPT_TIMEOUT)
    server.join(STOP_TIMEOUT + 0.6)  # A stop may also wait 0.25 for accept() and 0.2 at its end.
    # Threads bear their function's name. Python's own exit deals with those of a process_input.
    if any(t.name.endswith(("(start_server)", "(client_thread)")) for t in threading.enumerate()):
        os._exit(0)  # Python's own exit could wait for the console, as these threads may do.
    try:
        print(end="", flush=True)  # show() leaves in the buffer what it could not write.
    except (OSError, ValueError):  # A closed stream raises a ValueError.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python's exit could fail, too (status 120).


def open_listener(host: str = HOST, port: int = PORT) -> socket.socket:
    """Return a listening socket (SO_REUSEADDR on POSIX). Host "" is all of IPv4, port 0 any free
    one. Raises OSError (port in use, unknown host, no permission), ValueError (not a host name)."""
    found = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)
    family, _, _, _, address = min(found)  # min() takes IPv4, since AF_INET is below AF_INET6.
    listener = socket.create_server(address, family=family, backlog=socket.SOMAXCONN)
    listener.settimeout(ACCEPT_TIMEOUT)  # Without it, accept() would sleep on after close().
    return listener


def start_server(listener: socket.socket | None = None) -> None:
    """Serve the clients of a listener, or of 127.0.0.1:8000, until the listener is closed."""
    clients: Clients = {}
    switch_interval, last_error = sys.getswitchinterval(), ""
    with listener or open_listener() as listener:
        endpoint = "[{}]:{}" if listener.family == socket.AF_INET6 else "{}:{}"  # RFC 3986, 3.2.2
        with contextlib.suppress(OSError):  # Ctrl-C may have closed the listener by now.
            name = endpoint.format(*listener.getsockname())
            show(f"Socket created\nSocket now listening on {name}")
        while True:
            # Threads that wait for the GIL wake up once per interval: allow 8000 wake-ups a second.
            sys.setswitchinterval(max(switch_interval, len(clients) / 8000))
            try:
                connection, address = listener.accept()
            except (TimeoutError, ConnectionError):
                continue  # Nobody came, or somebody who left at once.
            except OSError as error:
                if listener.fileno() == -1:
                    break  # The order to stop has come.
                if str(error) != last_error:
                    show(f"New clients have to wait. Error : {error}")
                last_error = str(error)
                time.sleep(ACCEPT_TIMEOUT)  # Trying again at once would keep a CPU busy.
                continue
            last_error, name = "", endpoint.format(*(address or ("?", "?")))  # macOS may give None.
            args = (connection, name, clients)  # No exit of Python waits for a daemon thread.
            clients[connection] = threading.Thread(target=client_thread, args=args, daemon=True)
            try:
                clients[connection].start()
            except (RuntimeError, MemoryError) as error:
                del clients[connection]
                connection.close()
                show(f"Thread did not start. Error : {error}\nConnection {name} closed")
    sys.setswitchinterval(switch_interval)
    stop_clients(clients)


def stop_clients(clients: Clients) -> None:
    """End all clients: wait for the messages being worked on, then cut off what is left."""
    remaining = clients.copy()
    clients.clear()  # A thread that finds this empty takes no more messages.
    for how, seconds in ((socket.SHUT_RD, STOP_TIMEOUT), (socket.SHUT_RDWR, 0.2)):
        for connection in remaining:
            with contextlib.suppress(OSError):  # It is closed or reset by now.
                connection.shutdown(how)  # SHUT_RD wakes up recv(), and SHUT_RDWR also sendall().
        deadline = time.monotonic() + seconds
        for thread in remaining.values():
            thread.join(max(0, deadline - time.monotonic()))
    show("Server stopped")


def client_thread(connection: socket.socket, name: str, clients: Clients) -> None:
    """Serve one client to its end, whatever that is, and close the connection."""
    show(f"Connected with {name}")
    try:
        with connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # It finds dead peers.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # It sends at once.
            answer_messages(connection, name, clients)
            deadline = time.monotonic() + LINGER  # close() with bytes unread resets the connection.
            with contextlib.suppress(OSError, ValueError):  # The time is up, or the client is gone.
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(LINGER)
                while connection.recv(MAX_BUFFER_SIZE):  # A reset may cost the reply that was sent.
                    connection.settimeout(deadline - time.monotonic())  # A time below 0 raises.
    except OSError as error:
        show(f"Connection {name} failed. Error : {str(error).translate(ESCAPES)}")
    finally:
        show(f"Connection {name} closed")
        clients.pop(connection, None)


def answer_messages(connection: socket.socket, name: str, clients: Clients) -> None:
    """Show and answer a client's messages. A ValueError refuses one; its text is the reason."""
    lines = receive_input(connection)  # Each turn of the loop runs it up to its next yield.
    for line in lines:
        if not clients:  # A stop has emptied it and ended recv(): this may be only part of a line.
            return
        try:
            if len(line.removesuffix(b"\r")) > MAX_BUFFER_SIZE:  # It may have ended with CR LF.
                lines.close()  # It ends the loop's generator: more of the message may follow.
                raise ValueError(f"message over {MAX_BUFFER_SIZE} bytes")
            text = line.decode().rstrip()  # Bytes that are not UTF-8 raise a ValueError.
            if text.lower() == "--quit--":
                show("Processing the input received from client\nClient is requesting to quit")
                return
            result = process_input(text)
            shown = result if result.isprintable() else result.translate(ESCAPES)  # It saves time.
            show("Processing the input received from client\nProcessed result: " + shown)
            reply = b"-"
        except ValueError as error:
            reason = str(error).translate(ESCAPES)
            show(f"Message from {name} refused. Error : {reason}")
            reply = f"!{reason}\n".encode(errors="backslashreplace")
        try:
            connection.sendall(reply)
        except OSError:
            continue  # The client has left, but what was received is served.


def receive_input(connection: socket.socket) -> Generator[bytes, None, None]:
    """Yield each line without its LF. Before the first LF, what one recv() brings is a line."""
    rest, by_lines, buffer = b"", False, bytearray(MAX_BUFFER_SIZE + len(b"\r\n"))
    while size := connection.recv_into(buffer):  # 0 is the end. recv() would take more memory.
        lines = (rest + buffer[:size]).split(b"\n")
        rest = lines.pop()  # It is what follows the last LF.
        yield from lines
        by_lines = by_lines or bool(lines)  # The article's client sends no newlines.
        if not by_lines or len(rest) >= len(buffer):  # 5122 bytes are too many even with a CR.
            yield rest
            rest = b""
    if rest:
        yield rest


def process_input(input_str: str) -> str:
    """Return the text to show for a message, or refuse it by a ValueError. Put your work here."""
    return "Hello " + input_str.upper()


def show(text: str) -> None:
    """Write text to the console as lines of their own; a console that fails raises nothing."""
    with CONSOLE_LOCK:
        try:
            sys.stdout.write(text + "\n")  # print() may write it in two parts.
            sys.stdout.flush()
        except (OSError, ValueError, AttributeError):
            pass  # The console is full, closed or None.


if __name__ == "__main__":
    main()
