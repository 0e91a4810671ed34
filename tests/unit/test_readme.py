"""The generated parts of the README are what the code says now."""

from deploy.readme import README, parts, rewritten
from service.settings import rows


def test_the_readme_is_up_to_date() -> None:
    """If not: `python -m deploy.readme`."""
    text = README.read_text("utf-8")
    assert all(f"<!-- {name} -->" in text for name in parts())
    assert rewritten(text) == text


def test_every_setting_is_in_the_readme() -> None:
    text = README.read_text("utf-8")
    assert all(f"`{row.name}`" in text for row in rows())
