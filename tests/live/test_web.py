"""Requests to foreign addresses: private networks are refused on every hop, size and time are bounded."""

import contextlib
import gzip
import ipaddress
import socket
import threading
import time
from dataclasses import replace

import pytest
from feed_server import Reply
from hypothesis import given
from hypothesis import strategies as st

from fintune.live.web import Limits, RefusedAddressError, WebError, ask, is_public, resolve, session

QUICK = Limits(seconds=1.0, pause_seconds=1.0, max_bytes=10_000, redirects=3)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",  # where clouds keep credentials
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",  # NAT64 of 127.0.0.1
        "2002:7f00:1::",  # 6to4 of 127.0.0.1
        "::127.0.0.1",  # IPv4-compatible
        "::ffff:0:127.0.0.1",  # SIIT
        "::ffff:0:8.8.8.8",  # of whatever: no host is there
        "64:ff9b:1::7f00:1",  # NAT64 of a network's own
        "64:ff9b:1:7f00:0:100::",
        "2001:0:7f00:1::",  # Teredo
        "2606:4700::5efe:127.0.0.1",  # ISATAP
        "2606:4700::200:5efe:10.0.0.1",
        "2001:db8::1",
        "3fff::1",
        "5f00::1",
        "100::1",
        "4000::1",  # not given out
        "192.88.99.1",
        "192.0.0.9",
        "240.0.0.1",
    ],
)
def test_private_addresses_are_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "2606:4700:4700::1111",
        "2a00:1450:4001::200e",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2002:808:808::1",
    ],
)
def test_addresses_of_the_internet_are_public(address):
    assert is_public(ipaddress.ip_address(address))


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_within_ipv6_is_judged_as_itself(address):
    assert is_public(ipaddress.IPv6Address(f"::ffff:{address}")) == is_public(address)
    assert is_public(ipaddress.IPv6Address((0x64FF9B << 96) | int(address))) == is_public(address)
    assert is_public(ipaddress.IPv6Address((0x2002 << 112) | (int(address) << 80) | 1)) == is_public(address)
    assert not is_public(ipaddress.IPv6Address(int(address)))
    assert not is_public(ipaddress.IPv6Address((0xFFFF << 32) | int(address) | 1 << 48))


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "::1"]
)
def test_every_spelling_of_this_machine_is_refused(host):
    try:
        found = resolve(host, 80)
    except (RefusedAddressError, OSError):
        return
    pytest.fail(f"{host} became {found}")


def test_a_private_server_is_not_even_connected_to(server):
    server.routes["/"] = Reply(b"secret")
    with pytest.raises(RefusedAddressError, match=r"127\.0\.0\.1.*--allow_network"):
        ask(session(), "GET", server.url + "/")
    assert server.seen == []


def test_a_redirect_to_a_private_address_is_refused(server, web):
    inner = "http://169.254.169.254/latest/meta-data/"
    server.routes["/feed"] = Reply(status=302, headers={"Location": inner})
    with pytest.raises(RefusedAddressError, match=r"169\.254\.169\.254"):
        ask(web, "GET", server.url + "/feed", limits=QUICK)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "gopher://127.0.0.1/", "ftp://127.0.0.1/x"])
def test_a_redirect_out_of_the_web_is_refused(server, web, target):
    server.routes["/feed"] = Reply(status=301, headers={"Location": target})
    with pytest.raises(RefusedAddressError, match="not a web address"):
        ask(web, "GET", server.url + "/feed", limits=QUICK)


def test_a_name_that_changes_its_address_after_the_check_gains_nothing(server, monkeypatch):
    """The address is looked up once a connection, and the connection goes to what was looked up."""
    answers = iter(["8.8.8.8", "127.0.0.1"])
    asked, connected = [], []

    def changing(host, port, **_):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    def connect(address, *_, **__):
        connected.append(address[0])
        raise OSError("no route")

    monkeypatch.setattr(socket, "getaddrinfo", changing)
    monkeypatch.setattr("fintune.live.web.create_connection", connect)
    with pytest.raises(WebError):
        ask(session(), "GET", f"http://rebinding.example:{server.port}/", limits=QUICK)
    assert (asked, connected) == (["rebinding.example"], ["8.8.8.8"])


@pytest.mark.parametrize("url", ["ftp://a.example/", "http:///x", "javascript:alert(1)", "/etc/passwd", ""])
def test_what_is_no_web_address_is_refused(web, url):
    with pytest.raises(RefusedAddressError, match="not a web address"):
        ask(web, "GET", url)


def test_redirects_that_never_end_are_given_up(server, web):
    server.routes["/feed"] = Reply(status=302, headers={"Location": "/feed"})
    with pytest.raises(WebError, match="more than 3 redirects"):
        ask(web, "GET", server.url + "/feed", limits=QUICK)


def test_what_a_redirect_says_beside_its_target_is_not_read(server, web):
    sent = []

    def endless():
        while True:
            sent.append(1)
            yield b"x" * 2**20

    server.routes["/feed"] = lambda *_: Reply(endless(), status=302, headers={"Location": "/there"})
    server.routes["/there"] = Reply(b"news")
    answer = ask(web, "GET", server.url + "/feed", limits=replace(QUICK, seconds=10))
    assert (answer.body, answer.url) == (b"news", server.url + "/there")
    assert len(sent) < 20


def test_a_thread_that_waits_for_headers_ends_with_the_deadline(web):
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip():
            connection, _ = listener.accept()
            with contextlib.suppress(OSError), connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                while True:
                    connection.sendall(b"X")
                    time.sleep(0.1)

        dripping = threading.Thread(target=drip, daemon=True)
        dripping.start()
        with pytest.raises(WebError, match="within 1 seconds"):
            ask(web, "GET", f"http://127.0.0.1:{listener.getsockname()[1]}/", limits=QUICK)
        dripping.join(5)
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(threading.enumerate()) - before


def test_an_answer_too_large_is_cut_short_by_its_length_or_by_its_pieces(server, web):
    sent = []

    def endless():
        while True:
            sent.append(1)
            yield b"x" * 1000

    server.routes["/declared"] = Reply(b"x" * 10_001)
    server.routes["/endless"] = lambda *_: Reply(endless())
    for path in ("/declared", "/endless"):
        with pytest.raises(WebError, match="10,00"):
            ask(web, "GET", server.url + path, limits=replace(QUICK, seconds=10))
    assert len(sent) < 50_000


def test_a_compressed_bomb_counts_by_what_it_becomes(server, web):
    server.routes["/bomb"] = Reply(gzip.compress(b"0" * 50_000_000), headers={"Content-Encoding": "gzip"})
    limits = Limits(seconds=5, max_bytes=200_000)
    with pytest.raises(WebError, match="more than 200,000 bytes"):
        ask(web, "GET", server.url + "/bomb", limits=limits)


def test_a_compressed_answer_is_read_whole(server, web):
    text = b"".join(b"line %d\n" % i for i in range(20_000))
    server.routes["/zipped"] = Reply(gzip.compress(text), headers={"Content-Encoding": "gzip"})
    assert ask(web, "GET", server.url + "/zipped").body == text


def test_a_server_that_drips_is_left_in_limited_time(server, web):
    def drip():
        while True:
            yield b"x"
            time.sleep(0.05)

    server.routes["/drip"] = lambda *_: Reply(drip())
    start = time.monotonic()
    with pytest.raises(WebError, match="within 1 seconds"):
        ask(web, "GET", server.url + "/drip", limits=QUICK)
    assert time.monotonic() - start < 2


def test_an_answer_that_breaks_off_is_no_answer(server, web):
    server.routes["/cut"] = Reply(b"half", headers={"Content-Length": "8"})
    with pytest.raises(WebError):
        ask(web, "GET", server.url + "/cut", limits=QUICK)


def test_proxies_of_the_environment_are_not_asked(server, web, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server.routes["/"] = Reply(b"direct")
    assert ask(web, "GET", server.url + "/").body == b"direct"
