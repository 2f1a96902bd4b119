"""Who called whom, out of the kernel's tables."""

from __future__ import annotations

from tests.support.connections import Connection, parse

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def test_the_end_that_listens_was_called() -> None:
    """10.251.1.5 listens on 29500; one came in, one went out, one stays inside, one is only half-open."""
    table = HEAD + (
        "   0: 0501FB0A:733C 00000000:0000 0A 0 0 0 0 0\n"
        "   1: 0501FB0A:733C 0702FB0A:C001 01 0 0 0 0 0\n"
        "   2: 0501FB0A:C002 0100FA0A:192B 01 0 0 0 0 0\n"
        "   3: 0100007F:C003 0100007F:C004 01 0 0 0 0 0\n"
        "   4: 0501FB0A:C005 0100FA0A:192B 02 0 0 0 0 0\n"
    )
    assert parse(table) == {
        Connection("10.251.2.7", "10.251.1.5", 29500),
        Connection("10.251.1.5", "10.250.0.1", 6443),
    }


def test_version_4_in_the_table_of_version_6() -> None:
    """A socket that listens on :: takes connections of both."""
    mapped = "0000000000000000FFFF0000"
    table = HEAD + (
        f"   0: {'0' * 32}:1D13 {'0' * 32}:0000 0A 0 0\n   1: {mapped}0501FB0A:1D13 {mapped}0702FB0A:C001 01 0 0\n"
    )
    assert parse(table) == {Connection("10.251.2.7", "10.251.1.5", 7443)}
