"""Which URLs and which network addresses an image may be fetched from. Pure functions.

Knows nothing about connections; `fetch` asks here before every one it makes.
"""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import httpx

from server.media.config import MediaConfig
from server.media.media_error import MediaError

Address = IPv4Address | IPv6Address
Networks = tuple[IPv4Network | IPv6Network, ...]

MAX_URL_CHARS = 8192
PORTS = {"http": 80, "https": 443}


def _networks(*names: str) -> Networks:
    return tuple(IPv4Network(n) if "." in n else IPv6Network(n) for n in names)


# Refused whatever the operator allows: "this host", link-local (cloud metadata lives there),
# multicast, reserved, and metadata services that live elsewhere (Azure, Alibaba, AWS over IPv6).
NEVER = _networks(
    "0.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "168.63.129.16/32",
    "100.100.100.200/32",
    "::/128",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
    "fd00:ec2::254/128",
)

# Special-purpose registries of IANA (RFC 6890 and later), spelled out: `is_global` differs between
# Python versions. What embeds another address (6to4, Teredo, local NAT64) is refused as a whole.
NOT_PUBLIC = _networks(
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
)
GLOBAL_UNICAST = IPv6Network("2000::/3")
NAT64 = IPv6Network("64:ff9b::/96")

NUMERIC_LABEL = re.compile(r"(\d+|0x[0-9a-f]*)\Z", re.IGNORECASE)
HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?\Z")


def parse_url(text: str, config: MediaConfig) -> httpx.URL:
    """The URL, if it is one we would follow; raises `MediaError`. Look-ups come later."""
    if len(text) > MAX_URL_CHARS:
        raise _invalid(f"A URL may have {MAX_URL_CHARS} characters. Send a data: URL.")
    if not text.isprintable() or any(char in text for char in ' \\"<>^`{|}'):
        raise _invalid("The URL has characters that must be percent-encoded.")
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise _invalid("The URL cannot be parsed. Check its syntax.") from error
    if url.scheme not in PORTS:
        raise _invalid("A URL must start with https://, http:// or data:.")
    if url.userinfo:
        raise _invalid("The URL must not hold a user name or password.")
    _check_host(url, config)
    _check_port(url, config)
    return url.copy_with(fragment=None)


def host_of(url: httpx.URL) -> str:
    """The host in lower-case ASCII, without the root's dot."""
    return url.raw_host.decode("ascii").lower().removesuffix(".")


def literal_address(host: str) -> Address | None:
    """The address a host is written as, or None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def _check_host(url: httpx.URL, config: MediaConfig) -> None:
    host = host_of(url)
    if "%" in host:
        raise _invalid("The host of a URL must not hold a % sign or a network zone.")
    if literal_address(host) is None:
        if NUMERIC_LABEL.match(host.rpartition(".")[2]):
            # 2130706433, 0x7f.1, 0177.0.0.1: C libraries read these as addresses.
            raise _invalid("Write the IP address of a URL as four decimal numbers.")
        if len(host) > 253 or ".." in host or not HOST.match(host):
            raise _invalid("The URL has no valid host name.")
    if config.allowed_hosts is not None and not host_matches(host, config.allowed_hosts):
        raise _invalid("This server downloads only from hosts its operator has listed.")


def _check_port(url: httpx.URL, config: MediaConfig) -> None:
    port = url.port if url.port is not None else PORTS[url.scheme]
    if not 0 < port < 65536 or not (config.allow_private or port in config.allowed_ports):
        ports = ", ".join(map(str, sorted(config.allowed_ports)))
        raise _invalid(f"The port of a URL must be one of {ports}.")


def host_matches(host: str, allowed: tuple[str, ...]) -> bool:
    """Whether a host is one of `allowed`: names, or `*.name` for everything below a name."""
    for entry in allowed:
        entry = entry.lower().removesuffix(".")
        if host == entry or (entry.startswith("*.") and host.endswith(entry[1:])):
            return True
    return False


def check_addresses(addresses: list[Address], config: MediaConfig) -> list[Address]:
    """The addresses as they may be connected to; raises `MediaError` if any one is refused.

    One bad address refuses the name: a name with a public and a private address is an attack.
    """
    plain = [unwrap(address) for address in addresses]
    if not all(may_connect(address, allow_private=config.allow_private) for address in plain):
        raise _invalid(
            "The host of a URL must have public addresses only. Send the content as a data: URL."
        )
    return plain


def may_connect(address: Address, *, allow_private: bool = False) -> bool:
    """Whether an image may be fetched from this address."""
    address = unwrap(address)
    if any(address in network for network in NEVER):
        return False
    if isinstance(address, IPv6Address) and address in NAT64:
        return may_connect(IPv4Address(int(address) & 0xFFFFFFFF), allow_private=False)
    if allow_private:
        return True
    if any(address in network for network in NOT_PUBLIC):
        return False
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return False
    return address.is_global


def unwrap(address: Address) -> Address:
    """The IPv4 address inside `::ffff:a.b.c.d`; others as they are."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _invalid(message: str) -> MediaError:
    return MediaError("invalid_image_url", message)
