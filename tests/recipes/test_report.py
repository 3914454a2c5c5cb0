"""The report is one page that stands alone."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxemb.recipes.report import Example, Hit, Point, Report, principal_components


@pytest.fixture(scope="module")
def page() -> str:
    before = {"ndcg@10": 0.5, "ndcg@10_se": 0.02}
    after = {"ndcg@10": 0.6, "ndcg@10_se": 0.01}
    for k in (1, 10):
        before |= {f"recall@{k}": 0.3 + k / 50, f"recall@{k}_se": 0.01}
        after |= {f"recall@{k}": 0.4 + k / 50, f"recall@{k}_se": 0.01}
    rng = np.random.default_rng(0)
    return Report(
        title="A <title>",
        summary="What was done.",
        losses=[(step, 1 / step) for step in range(1, 30)],
        validation=[(0, 0.5), (29, 0.6)],
        before=before,
        after=after,
        change={"ndcg@10": 0.1, "ndcg@10_se": 0.005},
        examples=[Example("is a < b?", [Hit("m.wrong", 0.5, False)], [Hit("m.less<than", 0.9, True)], 7, 1)],
        points=[Point(*rng.normal(size=2), f"package{i % 12}", f"f{i}\ndoes <{i}>") for i in range(50)],
        details={"seed": "0"},
        commands='jaxemb search runs/x "a & b"',
    ).html()


def test_it_asks_for_nothing_from_elsewhere(page):
    loaded = re.findall(r'(?:src|href|url\()\s*=?\s*["\']?([^"\')\s>]+)', page)
    assert all(address.startswith("#") for address in loaded)
    assert "<link" not in page and "@import" not in page


def test_texts_are_escaped(page):
    assert "A &lt;title&gt;" in page and "is a &lt; b?" in page and "m.less&lt;than" in page
    assert "a &amp; b" in page


def test_tags_are_balanced(page):
    class Balance(HTMLParser):
        open_tags: tuple[str, ...] = ()

        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "br"):
                self.open_tags += (tag,)

        def handle_endtag(self, tag):
            assert self.open_tags[-1] == tag
            self.open_tags = self.open_tags[:-1]

    parser = Balance()
    parser.feed(page)
    assert parser.open_tags == ()


def test_figures_examples_and_map_are_there(page):
    assert "0.6000 ± 0.0100" in page and "+20.0%" in page and "+0.1000 ± 0.0050" in page
    assert '<li class="right"><code>m.less&lt;than</code><span>0.90</span></li>' in page
    assert "right answer at rank 7" in page
    assert page.count("<circle ") == 50
    assert page.count("<svg") == 3


def test_only_the_largest_groups_of_the_map_have_colours_of_their_own(page):
    legend = re.search(r'<ul class="legend">(.*?)</ul>', page).group(1)
    assert legend.count("<li>") == 11 and "other" in legend


def test_principal_components_are_those_of_the_svd():
    x = np.random.default_rng(1).normal(size=(40, 6)) * np.arange(1, 7)
    got = principal_components(x, n=3)
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(got), np.abs(u[:, :3] * s[:3]), atol=1e-9)
    np.testing.assert_allclose(principal_components(x + 5.0, n=3), got, atol=1e-9)


def test_principal_components_of_groups_are_those_of_their_means():
    rng = np.random.default_rng(2)
    groups = ["a"] * 30 + ["b"] * 10 + ["c"] * 20
    means = np.array([[5.0, 0, 0, 0]] * 30 + [[-5.0, 0, 0, 0]] * 10 + [[0, 2.0, 0, 0]] * 20)
    x = means + rng.normal(size=(60, 4)) * [0.1, 0.1, 9.0, 0.1]  # most variance is within the groups
    plane = principal_components(means, n=2)
    np.testing.assert_allclose(principal_components(means, groups), plane, atol=1e-9)
    got = principal_components(x, groups)
    inside = max(got[i : i + n].std(axis=0).max() for i, n in ((0, 30), (30, 10), (40, 20)))
    assert np.ptp(got, axis=0).min() > 2.5 and inside < np.ptp(principal_components(x)[:, 0]) / 4
