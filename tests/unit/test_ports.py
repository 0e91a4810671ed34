"""A port that was given to one is given to no other, and its server can listen on it."""

import socket
import sys

import pytest

from deploy.local.ports import LOOPBACK, free_port, free_ports, is_free


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a port can only be looked at, not held")
def test_a_port_that_is_given_is_nobody_elses_and_a_server_can_have_it() -> None:
    port = free_port()
    with socket.create_server((LOOPBACK, port)):  # with SO_REUSEADDR, as servers do
        assert not is_free(port)
    with pytest.raises(OSError, match="no free port"):
        free_port(among=range(port, port + 1))


def test_ports_differ() -> None:
    assert len(set(free_ports(20))) == 20
