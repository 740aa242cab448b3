"""The table of metrics is what the code says."""

from tools import metrics_page


def test_the_table_is_up_to_date():
    """`make docs` would change nothing."""
    page = metrics_page.PAGE.read_text()
    assert metrics_page.with_table(page) == page
