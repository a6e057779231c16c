"""Where the workers of a training listen for each other."""

from pipeline.process_group import interface_of


def test_an_address_is_found_at_its_interface_and_another_hosts_at_none() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None  # of examples alone
