"""The served page: always current, for this machine, under its own name."""

import http.client
import threading

import pytest

from common.errors import InputError
from observability.report.server import CurrentReport, ReportServer


@pytest.fixture
def run():
    """What there is to show, which a test changes."""
    return {"state": 1, "made": 0}


@pytest.fixture
def server(run):
    def make() -> str:
        run["made"] += 1
        return f"<!doctype html>state {run['state']}"

    with ReportServer("127.0.0.1", 0, CurrentReport(make, lambda: run["state"])) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, path="/", method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer, content


def test_the_page_is_made_anew_when_the_run_has_written_something(server, run):
    first, content = ask(server)
    assert (first.status, content) == (200, "<!doctype html>state 1")
    assert ask(server)[1] == content
    assert run["made"] == 1
    assert ask(server, If_None_Match=first.headers["ETag"])[0].status == 304
    run["state"] = 2
    second, content = ask(server, If_None_Match=first.headers["ETag"])
    assert (second.status, content) == (200, "<!doctype html>state 2")
    assert run["made"] == 2


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost", "127.0.0.1:1", ""])
def test_another_name_gets_nothing(server, run, host):
    answer, content = ask(server, Host=host)
    assert answer.status == 403
    assert "state" not in content
    assert run["made"] == 0


def test_this_machine_s_names_are_known(server):
    for name in ("127.0.0.1", "localhost", "[::1]"):
        assert ask(server, Host=f"{name}:{server.server_port}")[0].status == 200


@pytest.mark.parametrize("path", ["/favicon.ico", "/../config.yaml", "/%2e%2e/events.jsonl", "//x", "/index.html"])
def test_there_is_one_page(server, path):
    assert ask(server, path)[0].status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_only_get_is_answered(server, run, method):
    assert ask(server, method=method)[0].status == 501
    assert run["made"] == 0


def test_a_page_brings_its_policy(server):
    headers = ask(server)[0].headers
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in headers
    assert "Python" not in headers["Server"]


def test_an_address_in_use_is_refused_in_a_sentence(server):
    with pytest.raises(InputError, match=r"cannot listen on 127\.0\.0\.1"):
        ReportServer("127.0.0.1", server.server_port, server.current)
    with pytest.raises(InputError, match="--port"):
        ReportServer("127.0.0.1", 99999, server.current)


def test_a_run_that_cannot_be_read_is_answered_with_the_reason():
    def make() -> str:
        raise InputError("the run is gone")

    with ReportServer("127.0.0.1", 0, CurrentReport(make, lambda: 1)) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        answer, content = ask(server)
        thread.join()
    assert (answer.status, content) == (503, "the run is gone\n")
