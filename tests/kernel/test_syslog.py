"""nvoci.linux.syslog: what arrives at /dev/log, in a /dev of the test's own."""

from __future__ import annotations

import os
import socket

import pytest

from tests.kernel.namespaced import isolated, sh

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")]
ERROR, WARNING = 3 << 3 | 3, 3 << 3 | 4  # LOG_DAEMON with LOG_ERR, LOG_WARNING


def test_lines_arrive_as_they_are_and_after_dev_is_another() -> None:
    def body() -> list[str]:
        from nvoci.linux import syslog

        sh("mount -t tmpfs tmpfs /dev")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
            log.bind("/dev/log")
            log.settimeout(10)
            syslog.connect()
            sh("umount -l /dev; mount -t tmpfs tmpfs /dev")
            syslog.write('time="x" level=error msg="100%s %n"')
            syslog.write('level=warning msg="a\0b \udcff"')
            return [log.recv(4096).decode() for _ in range(2)]

    first, second = isolated(body)
    assert first.startswith(f"<{ERROR}>")
    assert first.rstrip("\0").endswith(f' nvoci[{_pid(first)}]: time="x" level=error msg="100%s %n"')
    assert second.startswith(f"<{WARNING}>")
    assert second.rstrip("\0").endswith(': level=warning msg="ab \\udcff"')


def _pid(line: str) -> int:
    return int(line.partition("nvoci[")[2].partition("]")[0])


def test_where_nobody_listens_nothing_happens() -> None:
    def body() -> bool:
        from nvoci.linux import syslog

        sh("mount -t tmpfs tmpfs /dev")
        syslog.connect()
        syslog.write("level=error msg=x")
        return not os.path.lexists("/dev/log")

    assert isolated(body)
