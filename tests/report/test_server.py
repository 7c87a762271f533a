"""The served page: two addresses, on the loopback interface, to those who name it."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.report.server import LivePage, ReportServer


@contextmanager
def serving(page: LivePage) -> Iterator[ReportServer]:
    with ReportServer(page, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: ReportServer, path: str = "/", host: str | None = None, method: str = "GET") -> tuple[int, dict[str, str], str]:  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    if host != "":
        connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read().decode()


def page(text: str = "page") -> LivePage:
    return LivePage(lambda: "7", lambda version: f"{text} of {version}")


def test_the_page_and_its_version_are_answered() -> None:
    with serving(page()) as server:
        code, headers, text = ask(server)
        assert (code, text) == (200, "page of 7") and headers["Content-Type"] == "text/html; charset=utf-8"
        assert headers["X-Frame-Options"] == "DENY" and headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"  # fmt: skip
        code, _, text = ask(server, "/version")
        assert code == 200 and json.loads(text) == {"version": "7"}
        assert ask(server, host=f"localhost:{server.server_port}")[0] == 200


@pytest.mark.parametrize("path", ["/report.html", "/../../etc/passwd", "//etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/version/", "/?x", "*", "http://127.0.0.1/"])  # fmt: skip
def test_no_other_path_is_anything(path: str) -> None:
    with serving(page()) as server:
        code, _, text = ask(server, path)
        assert code == 404 and "page of 7" not in text and "root:" not in text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "localhost.evil.example:{port}"])  # fmt: skip
def test_a_request_to_another_name_gets_nothing(host: str) -> None:
    with serving(page()) as server:
        for path in ("/", "/version"):
            code, _, text = ask(server, path, host.format(port=server.server_port))
            assert code == 403 and "of 7" not in text and '"7"' not in text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_sent(method: str) -> None:
    with serving(page()) as server:
        assert ask(server, method=method)[0] == 501


def test_it_listens_on_the_loopback_interface_alone() -> None:
    with serving(page()) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"


def test_a_taken_port_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CompeteError, match=f"--port {port} cannot be used: .*give another"):
            ReportServer(page(), port)


def test_a_page_is_made_when_its_files_have_changed() -> None:
    files, made = ["1"], []
    live = LivePage(lambda: files[0], lambda version: made.append(version) or f"page {version}")
    assert live.now() == live.now() == ("1", "page 1")
    files[0] = "2"
    time.sleep(0.01)
    assert live.now() == ("2", "page 2") and made == ["1", "2"]


def test_a_page_that_takes_long_rests() -> None:
    files = ["1"]

    def make(version: str) -> str:
        time.sleep(0.2)
        return version

    live = LivePage(lambda: files[0], make)
    live.now()
    files[0] = "2"
    assert live.now() == ("1", "1")
    time.sleep(0.9)
    assert live.now() == ("2", "2")


def test_a_page_that_cannot_be_made_is_an_answer_of_text() -> None:
    def fail(version: str) -> str:
        raise CompeteError("<b>gone</b>")

    with serving(LivePage(lambda: "1", fail)) as server:
        code, headers, text = ask(server)
        assert code == 500 and "gone" in text and headers["Content-Type"].startswith("text/plain")
