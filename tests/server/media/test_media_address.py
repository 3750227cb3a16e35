from ipaddress import ip_address

import pytest

from server.media import MediaConfig, MediaError
from server.media.address import check_addresses, host_of, may_connect, parse_url

REFUSED = """
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.254 127.0.0.1 127.255.0.1
    169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.9 192.0.2.1 192.88.99.1
    192.168.1.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255
    240.0.0.1 255.255.255.255 168.63.129.16 100.100.100.200
    :: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254
    ::ffff:0:127.0.0.1 fe80::1 fe80::1%eth0 febf::1 fec0::1 fc00::1 fd00::1 fd00:ec2::254 ff02::1
    ff0e::1 2001::1 2001:db8::1 2002:7f00:1:: 2002:a00:1:: 2002:808:808:: 3fff::1 5f00::1 100::1
    64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b:1::8.8.8.8 4000::1
"""
ALLOWED = """
    1.1.1.1 8.8.8.8 93.184.216.34 172.15.255.255 172.32.0.1 100.63.255.255 100.128.0.1
    192.0.1.1 223.255.255.255 2606:4700:4700::1111 2a00:1450:4001::1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8
"""
NEVER = """
    0.0.0.0 169.254.169.254 224.0.0.1 255.255.255.255 168.63.129.16 100.100.100.200 :: fe80::1
    ff02::1 fd00:ec2::254 ::ffff:169.254.169.254 64:ff9b::169.254.169.254 64:ff9b::10.0.0.1
"""


@pytest.mark.parametrize("text", REFUSED.split())
def test_address_that_is_not_public_is_refused(text: str) -> None:
    assert not may_connect(ip_address(text))


@pytest.mark.parametrize("text", ALLOWED.split())
def test_public_address_is_allowed(text: str) -> None:
    assert may_connect(ip_address(text))


@pytest.mark.parametrize("text", ["10.0.0.1", "127.0.0.1", "::1", "fd00::1", "192.168.1.1"])
def test_private_address_is_allowed_where_the_operator_says_so(text: str) -> None:
    assert may_connect(ip_address(text), allow_private=True)


@pytest.mark.parametrize("text", NEVER.split())
def test_metadata_and_special_addresses_stay_refused_then(text: str) -> None:
    assert not may_connect(ip_address(text), allow_private=True)


def test_one_private_address_refuses_the_whole_name() -> None:
    good, bad = ip_address("8.8.8.8"), ip_address("10.0.0.1")
    assert check_addresses([good], MediaConfig()) == [good]
    with pytest.raises(MediaError, match="public addresses only") as refused:
        check_addresses([good, bad], MediaConfig())
    assert refused.value.code == "invalid_image_url"
    assert "10.0.0.1" not in refused.value.message


@pytest.mark.parametrize(
    "url",
    [
        "",
        "image.png",
        "/etc/passwd",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "ftp://example.com/a.png",
        "gopher://example.com",
        "javascript:alert(1)",
        "//example.com/a.png",
        "http:example.com",
        "http:///a.png",
        "http://",
        "https://user@example.com/a.png",
        "https://user:password@example.com/a.png",
        "https://:@example.com/a.png",
        "https://example.com\\@evil.com/a.png",
        "https://example.com/a b.png",
        "https://example.com/\r\nHost: evil",
        "https://example.com/\x00",
        "https://example.com/\u202e",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://127.0.0.1.1/",
        "http://1.2.3.4.0x",
        "http://[::1",
        "http://[fe80::1%25eth0]/",
        "http://[::1]extra/",
        "http://a..b/",
        "http://-/",
        "http://ex%61mple.com/",
        "http://" + "a" * 254 + "/",
        "http://example.com:0/",
        "http://example.com:22/",
        "http://example.com:99999/",
        "http://example.com:port/",
        "https://example.com/" + "a" * 9000,
    ],
)
def test_url_we_would_not_follow_is_refused(url: str) -> None:
    with pytest.raises(MediaError) as refused:
        parse_url(url, MediaConfig())
    assert refused.value.code == "invalid_image_url"
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://example.com/a.png?x=1&y=%20#part", "example.com"),
        ("HTTPS://EXAMPLE.com./", "example.com"),
        ("http://example.com:8080/", "example.com"),
        ("http://1.2.3.4/", "1.2.3.4"),
        ("http://[2606:4700::1]:443/", "2606:4700::1"),
        ("https://bücher.example/", "xn--bcher-kva.example"),
        ("https://my_bucket.s3.amazonaws.com/k", "my_bucket.s3.amazonaws.com"),
        ("https://3com.com1/", "3com.com1"),
    ],
)
def test_ordinary_url_is_accepted_without_its_fragment(url: str, host: str) -> None:
    parsed = parse_url(url, MediaConfig())
    assert host_of(parsed) == host
    assert not parsed.fragment


def test_any_port_is_allowed_with_private_addresses() -> None:
    assert parse_url("http://minio:9000/", MediaConfig(allow_private=True)).port == 9000


def test_only_listed_hosts_pass_an_allow_list() -> None:
    config = MediaConfig(allowed_hosts=("cdn.example.com", "*.Images.example."))
    for url in (
        "https://CDN.example.com/",
        "https://cdn.example.com./",
        "https://a.images.example",
    ):
        parse_url(url, config)
    for host in ("example.com", "evilcdn.example.com", "images.example", "a.images.example.evil"):
        with pytest.raises(MediaError, match="listed"):
            parse_url(f"https://{host}/", config)
