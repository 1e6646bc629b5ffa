"""What `bigr sweep` reads from its words, and its table."""

from __future__ import annotations

import pytest

from bigr_jax.errors import UserError
from bigr_jax.lab import sweep


def test_combinations_are_the_product_in_the_order_given(tiny):
    words = ["method.noise=0.1,0.2", "method.poison='','a,b'", "seed=3,1"]
    found = sweep.parse(words, tiny())
    assert found.seeds == (3, 1)
    assert list(found.combinations.values()) == [
        {"method.noise": noise, "method.poison": poison}
        for noise in ("0.1", "0.2")
        for poison in ("", "a,b")
    ]
    assert next(iter(found.combinations)) == "method.noise=0.1, method.poison="


def test_without_seeds_the_config_has_its_own_and_seeds_alone_are_one_arm(tiny):
    assert sweep.parse(["method.at=1"], tiny({"seed": "5"})).seeds == (5,)
    assert sweep.parse(["seed=0,1"], tiny()) == ({"unchanged": {}}, (0, 1))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a", ["a"]),
        ("1, 2", ["1", "2"]),
        ("(1, 2),(3,)", ["(1, 2)", "(3,)"]),
        ("('a,b', 'c'),[1,(2,3)]", ["('a,b', 'c')", "[1,(2,3)]"]),
        ("'a,b',\"c'd\"", ["a,b", "c'd"]),
        ("''", [""]),
    ],
)
def test_commas_within_brackets_and_quotes_do_not_split(text, values):
    assert sweep.split("key", text) == values


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to compare; name settings and values: "),
        (["method.noise"], "'method.noise' is no list of values; legal: KEY=VALUE,VALUE"),
        (["method.noise="], "method.noise= has an empty value"),
        (["method.noise=1,,2"], "method.noise=1,,2 has an empty value"),
        (["method.poison=(a,b"], "method.poison=(a,b lacks a closing )"),
        (["method.poison='a,b"], "method.poison='a,b lacks a closing '"),
        (["method.nois=1,2"], "config.method.nois is not a key (did you mean 'noise'?)"),
        (["method.noise=1,x"], "config.method.noise: 'x' given, float expected"),
        (["seed=0,x"], "config.seed: 'x' given, int expected"),
        (["method=1"], "config.method is a section"),
        (["method.at=1", "method.at=2"], "method.at is given twice"),
        (["method.noise=0.5,0.50"], "method.noise: 0.5 and 0.50 are the same value"),
    ],
)
def test_mistakes(tiny, words, message):
    with pytest.raises(UserError) as caught:
        sweep.parse(words, tiny())
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_the_table_has_means_spreads_and_the_best():
    values = {("a", "loss"): [1.0, 3.0], ("b", "loss"): [1.5, 1.5], ("a", "right"): [0.5, 0.5],
              ("b", "right"): [0.25, None]}  # fmt: skip
    records = [
        {"arm": arm, "metric": metric, "seed": seed, "value": value}
        for (arm, metric), pair in values.items()
        for seed, value in enumerate(pair)
    ]
    found = {"arms": {"a": {"k": "1"}, "b": {"k": "long"}}, "records": records}
    assert sweep.table(found).splitlines() == [
        "k     loss ↓     right ↑",
        "----  ---------  ----------",
        "1     2 ± 1.4    0.5 ± 0 *",
        "long  1.5 ± 0 *  not finite",
    ]


def test_a_column_without_a_difference_has_no_best():
    records = [{"arm": arm, "metric": "x", "seed": 0, "value": 1.0} for arm in "ab"]
    found = {"arms": {"a": {"k": "1"}, "b": {"k": "2"}}, "records": records}
    assert "*" not in sweep.table(found)
