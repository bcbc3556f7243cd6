"""What is found by tracing, and the one line that each bad name gets."""

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name as name

from mechdiff.core.errors import ConfigError
from mechdiff.models.traced.liveness import reaching
from mechdiff.models.traced.programs import TAGGING, names
from mechdiff.models.traced.sites import discover, numbered


def rows_of(*shape):
    return lambda rows: (jax.ShapeDtypeStruct((rows, *shape), jnp.float32),)


def sites_of(fn, *shape, unit_axes=()):
    return discover(fn, rows_of(*shape), dict(unit_axes))[0]


def test_lists_sites_in_order_of_execution_with_their_shapes():
    def fn(x):
        h = name(x.reshape(-1, 4, 6), "tokens.mlp")
        h = jax.lax.scan(lambda h, _: (name(h, "block*.head@1"), None), h, None, length=2)[0]
        return name(h, "last")

    first, second, third = sites_of(fn, 24)
    assert (first.names, first.gate_count, first.turns, first.path) == (("tokens.mlp",), 6, (), ())
    assert (second.names, second.gate_count) == (("block0.head", "block1.head"), 4)
    assert (second.turns, second.path, second.unit_axis) == ((2,), ("scan",), -2)
    assert third.names == ("last",)


def test_axis_of_units_by_suffix_by_argument_or_last():
    fn = lambda x: name(name(name(x, "a@1"), "b.mlp"), "c")
    assert [site.gate_count for site in sites_of(fn, 5, 6, 7, unit_axes={"b.*": -2})] == [5, 6, 7]


def test_rows_are_told_from_an_axis_of_the_same_length():
    (site,) = sites_of(lambda x: name(x.transpose(1, 0, 2), "a"), 8, 3)  # traced at 8 rows
    assert (site.row_axis, site.shape) == (1, (8, 8, 3))


@pytest.mark.parametrize(
    ("tag", "turns", "expected"),
    [
        ("a", (), ("a",)),
        ("a", (2,), ("turn0.a", "turn1.a")),
        ("b*.a", (2, 2), ("turn0.b0.a", "turn0.b1.a", "turn1.b0.a", "turn1.b1.a")),
        ("g*.b*.a", (1, 2), ("g0.b0.a", "g0.b1.a")),
    ],
)
def test_numbers_turns(tag, turns, expected):
    assert numbered(tag, turns) == expected


def while_inside(x):
    return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, name(c[1], "a")), (0, x))[1]


def in_condition(x):
    return jax.lax.while_loop(lambda c: jnp.sum(name(c, "a")) < 3, lambda c: c + 1, x)


def two_shapes(x):
    branches = (lambda x: name(x[:, :2], "a").sum(1), lambda x: name(x, "a").sum(1))
    return jax.lax.cond(x.sum() > 0, *branches, x)[:, None] * x


def dead_in_scan(x):
    def turn(carry, _):
        name(carry[1], "a")
        return (2 * carry[0], carry[1] + 1), None

    return jax.lax.scan(turn, (x, x), None, length=2)[0][0]


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: x, r"no value .* has a name; .*`h = checkpoint_name\(h, \"block0.mlp\"\)`"),
        (lambda x: name(name(x, "a") + 1, "a"), "site 'a' is named twice; give every value a name"),
        (lambda x: sum(name((x, x), "a")), "site 'a' is named twice"),
        (lambda x: (name(x, "a"), x)[1], "does not depend on site 'a': use what checkpoint_name returns"),
        (dead_in_scan, "does not depend on site 'a'"),
        (while_inside, r"site 'a' stands in a while loop, whose number of turns is not known.*use lax.scan"),
        (in_condition, "site 'a' stands in a while loop"),
        (two_shapes, r"'a' has shape \(8, 6\) in one branch and \(8, 2\) in another; give them two names"),
        (lambda x: x + name(jnp.ones(6), "a"), "'a' has no axis of rows"),
        (lambda x: name(x.reshape(-1, 3), "a").reshape(x.shape), r"\(16, 3\) at 8 rows .* rows are folded"),
        (lambda x: jax.lax.map(lambda row: name(row, "a"), x), "stands in a scan over the rows"),
        (lambda x: name(jnp.int32(x), "a") * x, "'a' holds int32; name floating-point"),
        (lambda x: name(x.sum(1), "a")[:, None] * x, "'a' is one number per row"),
        (lambda x: name(x, "a@3"), r"axis 3 of site 'a' can't hold its units.*choose 1 to 1, or -1 to -1"),
        (lambda x: name(x, "a@0"), "axis 0 of site 'a' can't hold its units"),
        (lambda x: name(x, "a*.mlp"), "has 1 '\\*' and stands in 0 scans"),
    ],
)
def test_bad_names_get_one_line(fn, message):
    with pytest.raises(ConfigError, match=message) as error:
        sites_of(fn, 6)
    assert "\n" not in str(error.value)


def test_a_name_in_every_branch_is_one_site():
    fn = lambda x: jax.lax.cond(x.sum() > 0, lambda x: name(x, "a"), lambda x: name(2 * x, "a"), x)
    assert [site.names for site in sites_of(fn, 6)] == [("a",)]


def test_a_name_beside_a_while_is_a_site():
    def fn(x):
        h = jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, 2 * c[1]), (0, name(x, "before")))[1]
        return name(h, "after")

    assert [site.names for site in sites_of(fn, 6)] == [("before",), ("after",)]


def test_axes_for_sites_that_are_not_there_name_the_closest():
    with pytest.raises(ConfigError, match=r"unknown site of unit_axes 'block0\.mpl'; closest: block0\.mlp"):
        sites_of(lambda x: name(x, "block0.mlp"), 6, unit_axes={"block0.mpl": 1})


def test_dependence_goes_through_the_carry_of_a_scan_turn_after_turn():
    def fn(x):
        def turn(carry, _):
            return (carry[1], carry[2], name(2 * carry[0], "a")), name(carry[0], "forgotten")

        return jax.lax.scan(turn, (x, x, x), None, length=5)[0][0]

    assert reaching(jax.make_jaxpr(fn)(1.0)) == ([True], {"a"})


def test_dependence_knows_which_operand_a_branch_reads():
    def fn(x, y):
        y = name(y, "unread")
        return jax.lax.cond(x > 0, lambda x, y: name(x, "read"), lambda x, y: -x, x, y)

    assert reaching(jax.make_jaxpr(fn)(1.0, 1.0)) == ([True, False], {"read"})


def test_other_primitives_that_tag_can_be_added(monkeypatch):
    program = jax.make_jaxpr(lambda x: jax.lax.reduce_precision(2 * x, 8, 23))(1.0)
    assert not names(program)
    monkeypatch.setitem(TAGGING, "reduce_precision", lambda params: f"bits{params['exponent_bits']}")
    assert names(program) == {"bits8"}


def test_names_under_the_flag_remat3():
    jax.config.update("jax_remat3", True)
    try:
        (site,) = sites_of(jax.checkpoint(lambda x: jnp.sin(name(x, "a.mlp"))), 6)
    finally:
        jax.config.update("jax_remat3", False)
    assert site.names == ("a.mlp",)
