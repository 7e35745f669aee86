"""Saying on the local network where a coordinator answers: an address and no more, and never a reason not to run."""

import sys
from typing import Any

import pytest

from coordinator.announce import announced
from edge_node import discovery
from edge_node.discovery import Address
from export.invite import SERVICE


@pytest.mark.parametrize("host", ["art.example.org", "203.0.113.7", "0.0.0.1", "fe80::1", "localhost", "255.255.255.255"])
def test_what_is_no_address_of_a_local_network_is_not_announced(host: str, caplog: pytest.LogCaptureFixture) -> None:
    with announced(host, 7443) as is_announced:
        assert not is_announced
    assert "invites need their address" in caplog.text


def test_an_address_this_machine_does_not_have_costs_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with announced("10.254.254.254", 7443) as is_announced:
        assert not is_announced
    assert "takes no announcement" in caplog.text


def test_a_machine_without_zeroconf_is_not_announced_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf", None)

    with announced("127.0.0.1", 7443) as is_announced:
        assert not is_announced
    assert "pip install zeroconf" in caplog.text


def test_a_network_that_fails_while_it_is_told_costs_a_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from zeroconf import Error, Zeroconf  # noqa: PLC0415 - as in announce

    def fail(*_arguments: Any, **_named: Any) -> None:
        raise Error("the wire was cut")

    monkeypatch.setattr(Zeroconf, "register_service", fail)

    with announced("127.0.0.1", 7443) as is_announced:
        assert not is_announced
    assert "the wire was cut" in caplog.text


@pytest.mark.slow
def test_what_is_announced_is_heard_with_its_address_and_port_and_no_more_once_it_is_taken_back() -> None:
    """By this machine's own interface, with real packets. Another test may announce itself there, too: by another port."""
    with announced("127.0.0.1", 4433) as is_announced:
        heard = discovery.discover(3.0, ["127.0.0.1"])

    assert is_announced
    assert Address("127.0.0.1", 4433) in heard
    assert Address("127.0.0.1", 4433) not in discovery.discover(1.5, ["127.0.0.1"])


@pytest.mark.slow
def test_a_name_is_drawn_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from zeroconf import ServiceInfo, Zeroconf  # noqa: PLC0415 - as in announce

    told: list[ServiceInfo] = []
    monkeypatch.setattr(Zeroconf, "register_service", lambda _line, info, **_named: told.append(info))
    for _ in range(3):
        with announced("127.0.0.1", 4433) as is_announced:
            assert is_announced

    assert len({info.name for info in told}) == 3
    for info in told:
        digits = info.name.partition(".")[0]
        assert (info.server, info.port, info.text) == (f"{digits}.local.", 4433, discovery.TEXT)
        assert info.type == SERVICE
