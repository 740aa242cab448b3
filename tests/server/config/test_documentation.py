"""Every setting is documented, and the committed page is current."""

from pathlib import Path

import msgspec
import pytest

from forebay_server.config import documentation
from forebay_server.config.load import explain, load


def test_every_setting_has_a_text_under_it():
    """Who adds a setting says what it is for, in a sentence."""
    bare = [setting.path for setting in documentation.settings() if not setting.documentation.endswith(".")]

    assert bare == []


def test_settings_are_those_of_the_tree():
    """None is forgotten, and each has its variable, its unit and its default."""
    by_path = {setting.path: setting for setting in documentation.settings()}
    models = {found.path.replace("models.0.", "models.N.") for found in explain(*load(models=["m"]))}

    unset = ("server.operator.", "server.probe.", "tenants.", "models.N.inputs.")
    assert models - {"server.public.tls", *(path.rstrip(".") for path in unset)} == {
        path.replace(".NAME", "") for path in by_path if not path.startswith(unset) and ".tls." not in path
    }
    assert by_path["models.N.batching.max_delay_ms"][1:5] == (
        "FOREBAY_MODELS__N__BATCHING__MAX_DELAY_MS",
        "number >= 0",
        "ms",
        0.0,
    )
    assert by_path["server.public.address"].default == "127.0.0.1:8500"
    assert by_path["server.operator.address"].default is msgspec.NODEFAULT
    assert by_path["models.N.engine.options.NAME"].allowed == "true | false, number or text"


def test_the_committed_page_is_current():
    """`make docs` writes it."""
    page = Path(__file__).parents[3] / "docs" / "configuration.md"

    assert page.read_text() == documentation.markdown()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("postgresql://user:secret@host:5432/db", '"postgresql://user:***@host:5432/db"'),
        ("postgresql://user:se%40cret@/db?host=/run&port=5", '"postgresql://user:***@/db?host=/run&port=5"'),
        ("postgresql://host/db?password=secret&port=5", '"postgresql://host/db?password=***&port=5"'),
        ("postgresql://user@host:5432/db", '"postgresql://user@host:5432/db"'),
        ("https://host:443/path", '"https://host:443/path"'),
        ("jobs.db", '"jobs.db"'),
    ],
)
def test_passwords_are_not_shown(value, text):
    """Of a URL, everything else is."""
    assert documentation.shown(value) == text
