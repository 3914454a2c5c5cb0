"""Reading compiled programs: by hand on small texts, and against programs whose cost is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxemb.aot.hlo import Buffer, Program
from jaxemb.parallel import make_mesh


def module(body: str, others: str = "", header: str = "") -> Program:
    return Program(
        f"HloModule m, is_scheduled=true{header}\n\n{others}\nENTRY %main (p: f32[4]) -> f32[4] {{\n{body}\n}}\n"
    )


def compiled(function, *shapes, **options) -> Program:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return Program(jax.jit(function, **options).lower(*arguments).compile().as_text())


# Arrays


@pytest.mark.parametrize(
    ("buffer", "plain", "padded"),
    [
        (Buffer("f32", (3, 5)), 60, 60),
        (Buffer("f32", (3, 5), (1, 0), (8, 128)), 60, 8 * 128 * 4),
        (Buffer("f32", (3, 5), (0, 1), (8, 128)), 60, 8 * 128 * 4),
        (Buffer("bf16", (64, 12, 128, 64), (2, 3, 1, 0), (8, 128)), 2 * 64 * 12 * 128 * 64, 2 * 64 * 12 * 128 * 64),
        (Buffer("bf16", (64, 12, 128, 64), (3, 2, 1, 0), (8, 128)), 2 * 64 * 12 * 128 * 64, 2 * 64 * 12 * 128 * 128),
        (Buffer("f32", (700,), (0,), (1024,)), 2800, 4096),
        (Buffer("pred", (10,)), 10, 10),
        (Buffer("s4", (10,)), 5, 5),
        (Buffer("f8e4m3fn", (10,)), 10, 10),
        (Buffer("f32", ()), 4, 4),
        (Buffer("token", ()), 0, 0),
    ],
)
def test_bytes_of_an_array(buffer, plain, padded):
    assert (buffer.nbytes, buffer.padded_nbytes) == (plain, padded)


def test_arrays_tell_their_memory_space():
    program = module(
        "  %p = f32[4]{0:T(128)} parameter(0)\n"
        "  %a = (f32[4]{0:T(128)S(1)}, /*index=1*/bf16[2,3]{1,0:T(8,128)(2,1)}) custom-call(%p)\n"
        "  ROOT %g = f32[4]{0:T(128)S(1)} get-tuple-element(%a), index=0"
    )
    outputs = program.computations["main"]["a"].outputs
    assert outputs == (Buffer("f32", (4,), (0,), (128,), False), Buffer("bf16", (2, 3), (1, 0), (8, 128), True))
    assert [str(buffer) for buffer, _ in program.buffers()] == ["bf16[2,3]"]


# Work


def test_flops_of_a_product():
    assert compiled(jnp.matmul, (30, 40), (40, 50)).flops == 2 * 30 * 40 * 50


def test_flops_of_a_batched_product():
    program = compiled(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (6, 30, 40), (6, 40, 50))
    assert program.flops == 6 * 2 * 30 * 40 * 50


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_flops_of_a_convolution_count_what_meets(padding):
    convolve = functools.partial(jax.lax.conv, window_strides=(1, 1), padding=padding)
    meetings = 8 * 8 * 9 if padding == "VALID" else (3 * 10 - 2) ** 2  # 3 per position, 2 at each of the two ends
    assert compiled(convolve, (2, 3, 10, 10), (5, 3, 3, 3)).flops == 2 * 2 * 3 * 5 * meetings


@pytest.mark.parametrize(
    ("left", "right", "out", "attributes", "flops"),
    [  # products as the TPU compiler writes them
        ("8192,768", "768,3072", "8192,3072", "dim_labels=bf_io->bf", 2 * 8192 * 768 * 3072),
        (
            "64,12,128,64",
            "64,12,128,64",
            "64,12,128,128",
            "window={size=64x12 stride=63x11 lhs_dilate=64x12}, dim_labels=01bf_01oi->01bf",
            2 * 64 * 12 * 128 * 128 * 64,
        ),
        (
            "64,12,64,128",
            "64,12,128,128",
            "64,12,128,64",
            "window={size=64x12 stride=64x12 pad=63_63x11_11 lhs_dilate=63x11 rhs_reversal=1x1}, "
            "dim_labels=01fb_01io->01bf",
            2 * 64 * 12 * 128 * 128 * 64,
        ),
        ("64,128,768", "64,128,3072", "768,3072,1", "window={size=64}, dim_labels=0fb_0io->bf0", 2 * 8192 * 768 * 3072),
    ],
)
def test_flops_of_a_product_as_a_convolution(left, right, out, attributes, flops):
    if "01fb_01io" in attributes:  # `f` of the left is the second to last axis
        left, right = "64,12,128,128", "64,12,128,64"
    program = module(
        f"  %p = bf16[{left}] parameter(0)\n  %q = bf16[{right}] parameter(1)\n"
        f"  ROOT %c = f32[{out}] convolution(%p, %q), {attributes}"
    )
    assert program.flops == program.matrix_unit_flops == flops


@pytest.mark.parametrize(("precision", "passes"), [("highest", 6), ("high", 3), ("default", 1)])
def test_exact_products_take_several_passes(precision, passes):
    body = (
        "  %p = {0}[8,16] parameter(0)\n  %q = {0}[16,32] parameter(1)\n"
        "  ROOT %c = f32[8,32] dot(%p, %q), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}, "
        f"operand_precision={{{{{precision},{precision}}}}}"
    )
    assert module(body.format("f32")).matrix_unit_flops == passes * 2 * 8 * 16 * 32
    assert module(body.format("bf16")).matrix_unit_flops == 2 * 8 * 16 * 32


def test_loops_count_as_often_as_they_run():
    def inner(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=3)[0]

    def outer(x, w):
        return jax.lax.scan(lambda x, _: (inner(x, w), None), x, None, length=5)[0]

    assert compiled(outer, (20, 30), (30, 30)).flops == 15 * 2 * 20 * 30 * 30


CONDITION = """%cond (s: (s32[], f32[4])) -> pred[] {
  %s = (s32[], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] constant(12)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}
"""
BODY = """%body (t: (s32[], f32[4])) -> (s32[], f32[4]) {
  %t = (s32[], f32[4]) parameter(0)
  %j = s32[] get-tuple-element(%t), index=0
  %x = f32[4] get-tuple-element(%t), index=1
  %y = f32[4] negate(%x)
  ROOT %r = (s32[], f32[4]) tuple(%j, %y)
}
"""


@pytest.mark.parametrize(
    ("start", "more", "runs"),
    [
        ("constant(0)", "", 12),
        ("constant(2)", "", 10),
        ("constant(0)", ', backend_config={"known_trip_count":{"n":"7"}}', 7),
        ('custom-call(), custom_call_target="who_knows"', "", 1),
    ],
)
def test_how_often_a_loop_runs(start, more, runs):
    program = module(
        f"  %p = f32[4] parameter(0)\n  %z = s32[] {start}\n  %i0 = s32[] copy(%z)\n"
        "  %w0 = (s32[], f32[4]) tuple(%i0, %p)\n"
        f"  %w = (s32[], f32[4]) while(%w0), condition=%cond, body=%body{more}\n"
        "  ROOT %g = f32[4] get-tuple-element(%w), index=1",
        CONDITION + BODY,
    )
    assert program.runs["body"] == runs


def test_the_compilers_cycles_add_up():
    line = 'backend_config={"window_config":{"estimated_cycles":"100"}}'
    program = module(
        "  %p = f32[4] parameter(0)\n  %z = s32[] constant(0)\n  %w0 = (s32[], f32[4]) tuple(%z, %p)\n"
        "  %w = (s32[], f32[4]) while(%w0), condition=%cond, body=%body\n"
        f"  %g = f32[4] get-tuple-element(%w), index=1\n  ROOT %e = f32[4] exponential(%g), {line}",
        CONDITION + BODY.replace("negate(%x)", f"negate(%x), {line}"),
    )
    assert program.cycles == 13 * 100


# Bytes


FUSED = """%fused (a: f32[12,64], i: s32[]) -> f32[64] {
  %a = f32[12,64] parameter(0)
  %i = s32[] parameter(1)
  %o = s32[] constant(0)
  %d = f32[1,64] dynamic-slice(%a, %i, %o), dynamic_slice_sizes={1,64}
  %b = f32[64] bitcast(%d)
  ROOT %n = f32[64] negate(%b)
}
%updated (a: f32[12,64], u: f32[1,64], i: s32[]) -> f32[12,64] {
  %a2 = f32[12,64] parameter(0)
  %u = f32[1,64] parameter(1)
  %i2 = s32[] parameter(2)
  %o2 = s32[] constant(0)
  ROOT %d2 = f32[12,64] dynamic-update-slice(%a2, %u, %i2, %o2)
}
"""


@pytest.mark.parametrize(
    ("line", "nbytes"),
    [
        ("%r = f32[12,64] negate(%p)", 2 * 12 * 64 * 4),
        ("%r = f32[12,64]{1,0:T(8,128)} negate(%p)", 12 * 64 * 4 + 16 * 128 * 4),  # the result is padded
        ("%r = f32[12,64]{1,0:S(1)} negate(%p)", 12 * 64 * 4),  # and here on the chip
        ("%r = f32[768] bitcast(%p)", 0),
        ("%r = f32[64] fusion(%p, %i), kind=kLoop, calls=%fused", 2 * 64 * 4 + 4),
        ("%r = f32[12,64] fusion(%p, %u, %i), kind=kLoop, calls=%updated", 2 * 64 * 4 + 4),
        ("%r = f32[12,64] dynamic-update-slice(%p, %u, %i, %i)", 2 * (64 * 4 + 4 + 4)),
        ("%r = f32[1,64] dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,64}", 2 * 64 * 4),
        ("%r = (f32[12,64]{1,0:S(1)}, f32[12,64], u32[]) copy-start(%p)", 12 * 64 * 4),
        ("%r = ((f32[12,64]), f32[3,64]{1,0:S(1)}, s32[]) slice-start(%p), slice={[0:3], [0:64]}", 3 * 64 * 4),
        ('%r = f32[12,64] custom-call(%p), custom_call_target="ConcatBitcast"', 0),
    ],
)
def test_bytes_that_an_instruction_moves(line, nbytes):
    program = module(
        "  %p = f32[12,64] parameter(0)\n  %u = f32[1,64] parameter(1)\n  %i = s32[] parameter(2)\n"
        f"  {line}\n  ROOT %t = () tuple()",
        FUSED,
    )
    assert program.hbm_bytes == nbytes


# Communication


def test_collectives_of_a_program():
    mesh = make_mesh()

    def step(x):
        total = lambda c, _: (jax.lax.psum(jnp.sin(c), "data"), None)
        return jax.lax.scan(total, x, None, length=4)[0] + jax.lax.all_gather(x, "data").sum(0)

    spec = PartitionSpec("data")
    sharded = jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    x = jax.ShapeDtypeStruct((8, 100), jnp.float32, sharding=NamedSharding(mesh, spec))
    found = {c.kind: c for c in Program(jax.jit(sharded).lower(x).compile().as_text()).collectives}
    assert set(found) == {"all-reduce", "all-gather"}
    assert found["all-reduce"].runs == 4 and found["all-gather"].runs == 1
    assert all(c.nbytes == 400 and c.groups.tolist() == [list(range(8))] for c in found.values())
    assert found["all-reduce"].sent == 4 * 400 * 2 * 7 / 8
    assert found["all-gather"].sent == 400 * 7


@pytest.mark.parametrize(
    ("attribute", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
    ],
)
def test_who_takes_part(attribute, groups):
    program = module(
        f"  %p = f32[4] parameter(0)\n  ROOT %r = f32[4] all-reduce(%p), channel_id=1, {attribute}, to_apply=%add",
        header=", num_partitions=4",
    )
    np.testing.assert_array_equal(program.collectives[0].groups, groups)


def test_asynchronous_and_fused_collectives_are_found_once():
    program = module(
        "  %p = f32[4] parameter(0)\n"
        "  %s = (f32[4], f32[8]) all-gather-start(%p), replica_groups={{0,1}}, dimensions={0}\n"
        "  %d = f32[8] all-gather-done(%s)\n"
        "  %c = f32[4] collective-permute(%p), source_target_pairs={{0,1},{1,0}}\n"
        "  ROOT %f = f32[4] fusion(%c), kind=kCustom, calls=%inside",
        "%inside (q: f32[4]) -> f32[4] {\n  %q = f32[4] parameter(0)\n"
        "  ROOT %a = f32[4] all-reduce(%q), replica_groups={{0,1}}, to_apply=%add\n}\n",
    )
    assert sorted((c.kind, c.sent) for c in program.collectives) == [
        ("all-gather", 16.0),
        ("all-reduce", 16.0),
        ("collective-permute", 16.0),
    ]
    assert next(c for c in program.collectives if c.kind == "collective-permute").groups.tolist() == [[0, 1], [1, 0]]


def test_a_text_that_is_no_program():
    with pytest.raises(ValueError, match="no HLO module: it has no ENTRY"):
        Program("module @jit_f {}")
