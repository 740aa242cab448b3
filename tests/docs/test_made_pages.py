"""What `make docs` makes of the code is what the code says."""

from tools import metrics_page, modules_page


def test_the_table_of_metrics_is_up_to_date():
    """`make docs` would change nothing."""
    page = metrics_page.PAGE.read_text()
    assert metrics_page.with_table(page) == page


def test_the_list_of_modules_is_up_to_date():
    """`make docs` would change nothing, and every module has a sentence."""
    assert modules_page.page() == modules_page.PAGE.read_text()
    assert not [name for _, modules in modules_page.sections() for name, sentence in modules if not sentence]
