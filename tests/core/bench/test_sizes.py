"""The table of sizes: counted, and the one that the README shows."""

from pathlib import Path

from seed_core.bench import sizes

README = Path(__file__).parents[3] / "README.md"


def test_the_table_of_the_readme_is_the_one_that_is_counted():
    assert "\n".join(sizes.table()) in README.read_text(encoding="utf-8")
