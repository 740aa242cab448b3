"""The grammar of targets, and the operator's list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay_server.errors import ConfigError
from forebay_server.jobs.webhooks.targets import MAX_LENGTH, Target, Targets, parse

HOOKS = "https://hooks.example.com"


@pytest.mark.parametrize(
    ("url", "target"),
    [
        (HOOKS, Target("https", "hooks.example.com", 443, "/", "")),
        ("HTTPS://Hooks.EXAMPLE.com/A", Target("https", "hooks.example.com", 443, "/A", "")),
        ("http://a:8080/x/?q=1&r=%2e/..", Target("http", "a", 8080, "/x/", "?q=1&r=%2e/..")),
        ("https://xn--bcher-kva.example/", Target("https", "xn--bcher-kva.example", 443, "/", "")),
        ("https://10.0.0.1", Target("https", "10.0.0.1", 443, "/", "")),
        ("https://[2001:DB8:0::1]:99/", Target("https", "2001:db8::1", 99, "/", "")),
        ("https://a.b/%20...;x=1/..a/@:~", Target("https", "a.b", 443, "/%20...;x=1/..a/@:~", "")),
    ],
)
def test_one_spelling(url, target):
    """A URL comes apart in one way: scheme and host in lower case, the port filled in, the path as it stands."""
    assert parse(url) == target


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        (HOOKS, "hooks.example.com"),
        (f"{HOOKS}:443", "hooks.example.com"),
        ("http://h:443", "h:443"),
        ("https://[::1]:80", "[::1]:80"),
        ("https://[::1]", "[::1]"),
    ],
)
def test_authority(url, authority):
    """The Host header has brackets around IPv6 and no default port."""
    assert parse(url).authority == authority


ALLOWED = [
    (HOOKS, HOOKS),
    (HOOKS, f"{HOOKS}/"),
    (HOOKS, f"{HOOKS}/any/path?and=query"),
    (HOOKS, f"{HOOKS}:443/x"),
    (f"{HOOKS}/", f"{HOOKS}/x"),
    (f"{HOOKS}/a", f"{HOOKS}/a"),
    (f"{HOOKS}/a", f"{HOOKS}/a?x"),
    (f"{HOOKS}/a", f"{HOOKS}/a/b"),
    (f"{HOOKS}/a/", f"{HOOKS}/a/b"),
    ("https://*.example.com", f"{HOOKS}/"),
    ("https://*.example.com", "https://a.b.example.com/"),
    ("http://hooks.example.com:8080", "http://HOOKS.example.com:8080/x"),
    ("https://1.1.1.1", "https://1.1.1.1/x"),
    ("https://[2606:4700:4700::1111]", "https://[2606:4700:4700:0::1111]/x"),
]


@pytest.mark.parametrize(("entry", "url"), ALLOWED)
def test_allowed(entry, url):
    """What begins as an entry does, at a path boundary, is allowed."""
    assert Targets([entry], allow_private=False).target(url) == parse(url)


NOT_ON_THE_LIST = [
    (HOOKS, "https://hooks.example.com.evil.com/"),
    (HOOKS, "https://evilhooks.example.com/"),
    (HOOKS, "https://evil-hooks.example.com/"),
    (HOOKS, "https://sub.hooks.example.com/"),
    (HOOKS, "https://example.com/"),
    (HOOKS, "http://hooks.example.com/"),
    (HOOKS, "http://hooks.example.com:443/"),
    (HOOKS, "https://hooks.example.com:8443/"),
    (HOOKS, "https://evil.com/https://hooks.example.com/"),
    (HOOKS, "https://evil.com/?https://hooks.example.com/"),
    (f"{HOOKS}/a", f"{HOOKS}/"),
    (f"{HOOKS}/a", f"{HOOKS}/ab"),
    (f"{HOOKS}/a", f"{HOOKS}/A"),
    (f"{HOOKS}/a", f"{HOOKS}/%61"),
    (f"{HOOKS}/a", f"{HOOKS}//a"),
    (f"{HOOKS}/a", f"{HOOKS}/?/a"),
    (f"{HOOKS}/a/", f"{HOOKS}/a"),
    ("https://*.example.com", "https://example.com/"),
    ("https://*.example.com", "https://evilexample.com/"),
    ("https://*.example.com", "https://a.example.com.evil.com/"),
    ("https://1.1.1.1", "https://1.1.1.2/"),
]


@pytest.mark.parametrize(("entry", "url"), NOT_ON_THE_LIST)
def test_not_on_the_list(entry, url):
    """A look-alike of an entry is another target."""
    with pytest.raises(ValueError, match="is not among the targets that the operator allows"):
        Targets([entry], allow_private=True).target(url)


NO_TARGETS = [
    # schemes
    *("", "hooks.example.com", "//hooks.example.com/", "/path", "https:hooks.example.com", "https:/hooks.example.com"),
    *("ftp://hooks.example.com/", "gopher://127.0.0.1:6379/_x", "file:///etc/passwd", "file://localhost/etc/passwd"),
    *("unix:///run/docker.sock", "unix:/run/docker.sock", "http+unix://%2Frun%2Fdocker.sock/", "dict://127.0.0.1/"),
    *("data:text/plain,x", "javascript:alert(1)//https://hooks.example.com", "ldap://127.0.0.1/", "ws://127.0.0.1/"),
    *("jar:https://hooks.example.com!/", "https+x://hooks.example.com/"),
    # user information
    *("https://hooks.example.com@evil.com/", "https://user:secret@hooks.example.com/", "https://@hooks.example.com/"),
    *("https://hooks.example.com:443@evil.com/", "https://hooks.example.com%40evil.com/"),
    # characters that parsers disagree about
    *(
        "https://hooks.example.com\\@evil.com/",
        "https:\\\\hooks.example.com\\",
        "https://hooks.example.com\\.evil.com/",
    ),
    *("https://hooks.example.com/\tx", "https://hooks.example.com/\nx", "https://hooks.exam\nple.com/", " " + HOOKS),
    *(HOOKS + " ", HOOKS + "\n", HOOKS + "/\r\nX: y", HOOKS + "/\x00", HOOKS + "/a b", HOOKS + "/<x>", HOOKS + "/%zz"),
    # fragments
    *(f"{HOOKS}#x", f"{HOOKS}/#@evil.com", "https://evil.com#@hooks.example.com/"),
    # hosts
    *("https://", "https:///path", "https://:443/", "https://?x", "https://./", "https://../", "https://a..b/"),
    *("https://hooks.example.com./", "https://.hooks.example.com/", "https://-a.example.com/", "https://a_b.example/"),
    *("https://%68ooks.example.com/", "https://%31%32%37.0.0.1/", "https://hooks.example.com%00.evil.com/"),
    *(f"https://{'a' * 64}.example.com/", f"https://{'a.' * 127}aa/", "https://*.example.com/", "https://*/"),
    # Unicode: full width digits, ideographic dots, letters that look like others
    *(
        "https://\uff11\uff12\uff17.0.0.1/",
        "https://127。0。0。1/",
        "https://①②⑦.0.0.1/",
        "https://hooks\u2024example.com/",
    ),
    *("https://hooĸs.example.com/", "https://bücher.example/", "https://hooks.example.com/ü", "https://ⓔvil.com/"),
    # ports
    *(
        f"{HOOKS}:/",
        f"{HOOKS}:0/",
        f"{HOOKS}:0443/",
        f"{HOOKS}:65536/",
        f"{HOOKS}:-1/",
        f"{HOOKS}:443:80/",
        f"{HOOKS}:x/",
    ),
    # addresses in other forms
    *(
        "http://127.1/",
        "http://127.0.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.0.0.1/",
        "http://0/",
    ),
    *("http://017700000001/", "http://0177.0.0.1/", "http://127.0.0.01/", "http://127.0.0.256/", "http://1.2.3.4.5/"),
    *("http://127.0.0.0x1/", "http://127.0.0.1./", "http://0x/", "http://a.0x7f/", "http://a.1/"),
    *("http://[::1/", "http://::1/", "http://[]/", "http://[::1%25lo]/", "http://[fe80::1%eth0]/", "http://[::1]evil/"),
    *("http://[127.0.0.1]/", "http://[::ffff:0177.0.0.1]/", "http://[v1.x]/", "http://[::1].evil.com/"),
    # paths that climb, openly or not
    *(
        f"{HOOKS}/a/../b",
        f"{HOOKS}/..",
        f"{HOOKS}/a/.",
        f"{HOOKS}/a/%2e%2e/b",
        f"{HOOKS}/a/.%2E/b",
        f"{HOOKS}/a%2f..%2fb",
    ),
    *(f"{HOOKS}/a/..%5cb", f"{HOOKS}/a/..;/b", f"{HOOKS}/a/..;x=1/b", f"{HOOKS}/a/%252e%252e/b", f"{HOOKS}/a%00"),
    # length
    f"{HOOKS}/{'a' * MAX_LENGTH}",
]


@pytest.mark.parametrize("url", NO_TARGETS)
def test_no_targets(url):
    """What is outside of the grammar is refused, before any list is asked."""
    with pytest.raises(ValueError):
        parse(url)


def test_addresses_must_be_public():
    """An address on the list is a target only if it is public, or private ones are allowed."""
    guarded, open_ = (Targets(["https://10.0.0.1"], allow_private=private) for private in (False, True))

    with pytest.raises(ValueError, match="is an address that is not public"):
        guarded.target("https://10.0.0.1/x")
    assert open_.target("https://10.0.0.1/x").host == "10.0.0.1"


def test_an_empty_list_allows_nothing():
    """Webhooks are off unless the operator says where to."""
    targets = Targets([], allow_private=True)

    assert not targets
    with pytest.raises(ValueError, match="this server sends no webhooks"):
        targets.target(HOOKS)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("hooks.example.com", "must have the form"),
        ("*", "must have the form"),
        ("https://*", "must have the form"),
        ("https://*.", "must have the form"),
        ("https://a.*.com", "must have the form"),
        ("https://*.*.com", "must have the form"),
        ("ftp://hooks.example.com", "must begin with https:// or http://"),
        ("https://hooks.example.com?x", "must not have a query"),
        ("https://hooks.example.com/?", "must not have a query"),
        ("https://*.10.0.0.1", "has a star before an address"),
        ("https://127.1", "no IPv4 address in its usual form"),
    ],
)
def test_wrong_entries(entry, sentence):
    """An entry that is none ends the start with a sentence that names it."""
    with pytest.raises(ConfigError, match=sentence) as caught:
        Targets([entry], allow_private=False)
    assert str(caught.value).startswith(f"jobs.webhooks.allow: {entry!r} ")


@given(st.text(st.sampled_from("htps:/.@#?%2eEfF\\[]:0127xX;*a-_ \t\n。\uff11"), max_size=40))
def test_what_is_parsed_has_no_second_meaning(tail):
    """Whatever parses, is spelled the same by its parts, and has no character that parsers disagree about."""
    try:
        target = parse(f"https://{tail}")
    except ValueError:
        return
    again = parse(f"{target.origin}{target.path}{target.query}")
    assert again == target
    assert not set(target.host) - set("abcdefghijklmnopqrstuvwxyz0123456789.-:")
    assert not {"@", "\\", "#"} & set(target.authority)
