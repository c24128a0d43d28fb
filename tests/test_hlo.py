"""Costs read off HLO: exact counts of loops of products, convolutions by hand, collectives and memory."""

import jax
import jax.numpy as jnp
import pytest

from irl_jax import hlo, hlo_text


def program(fn, *shapes, **how):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return hlo.Program(jax.jit(fn).lower(*arguments).compile().as_text(), **how)




# ---------------------------------------------------------------- products and loops


def test_a_scan_of_products_counts_every_round():
    def fn(x, ws):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, ws)[0]

    assert program(fn, (16, 32), (7, 32, 32)).cost().flops == 7 * 2 * 16 * 32 * 32


def test_nested_scans_multiply():
    def fn(x, w):
        inner = lambda x, _: (jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, 5)[0], None)
        return jax.lax.scan(inner, x, None, 3)[0]

    assert program(fn, (16, 32), (32, 32)).cost().flops == 15 * 2 * 16 * 32 * 32


def test_the_gradient_of_a_scan_of_products():
    """Three products a round: forward, gradient of the input, gradient of the matrix; the first input has none."""

    def fn(x, ws):
        loss = lambda ws: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0].sum()
        return jax.grad(loss)(ws)

    assert program(fn, (16, 32), (7, 32, 32)).cost().flops == 3 * 7 * 2 * 16 * 32 * 32


def test_a_dynamic_loop_counts_what_it_is_told():
    def fn(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 100, lambda x: x @ w, x)

    assert program(fn, (16, 32), (32, 32)).cost().flops == 2 * 16 * 32 * 32
    assert program(fn, (16, 32), (32, 32), dynamic_trips=11).cost().flops == 11 * 2 * 16 * 32 * 32


def test_batched_products_and_both_branches():
    def fn(x, y):
        return jnp.einsum("bij,bjk->bik", x, y)

    assert program(fn, (3, 4, 5), (3, 5, 6)).cost().flops == 3 * 2 * 4 * 5 * 6

    def branches(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, lambda x: x @ w, x)

    assert program(branches, (4, 8), (8, 8)).cost().flops == 2 * 2 * 4 * 8 * 8  # the dearer


LOOP = """HloModule m

%body (p: (s32[], f32[4,8], f32[8,8])) -> (s32[], f32[4,8], f32[8,8]) {
  %p = (s32[], f32[4,8]{1,0}, f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %w = f32[8,8]{1,0} get-tuple-element(%p), index=2
  %two = s32[] constant(STEP)
  %next = s32[] add(%i, %two)
  %y = f32[4,8]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
  ROOT %t = (s32[], f32[4,8]{1,0}, f32[8,8]{1,0}) tuple(%next, %y, %w)
}

%condition (p: (s32[], f32[4,8], f32[8,8])) -> pred[] {
  %p = (s32[], f32[4,8]{1,0}, f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(9)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[4,8], w: f32[8,8]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %w = f32[8,8]{1,0} parameter(1)
  %zero = s32[] constant(START)
  %copy = s32[] copy(%zero)
  %t = (s32[], f32[4,8]{1,0}, f32[8,8]{1,0}) tuple(%copy, %x, %w)
  %loop = (s32[], f32[4,8]{1,0}, f32[8,8]{1,0}) while(%t), condition=%condition, body=%bodyNOTE
  ROOT %y = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""


@pytest.mark.parametrize(("start", "step", "note", "rounds"), [
    (0, 1, "", 9), (0, 2, "", 5), (3, 2, "", 3), (9, 1, "", 0),
    (0, 1, ', backend_config={"known_trip_count":{"n":"4"}}', 4),
])  # fmt: skip
def test_loops_by_their_counter_or_xlas_note(start, step, note, rounds):
    """TPU programs have no note, and loops that take two steps a round."""
    text = LOOP.replace("START", str(start)).replace("STEP", str(step)).replace("NOTE", note)
    assert hlo.Program(text).cost().flops == rounds * 2 * 4 * 8 * 8


def convolution(text, *operands):
    (one,) = hlo_text.parse(f"ENTRY %e (a: f32[]) -> f32[] {{\n  ROOT %c = {text}\n}}")[0]["e"]
    return hlo.product_flops(one, [hlo_text.arrays_of(operand)[0] for operand in operands])


@pytest.mark.parametrize(("text", "left", "right", "flops"), [
    # a plain product, one of a batch as TPUs write it (batch as a dilated dimension), and its transpose with a reversed window
    ("f32[6,5] convolution(%a, %b), dim_labels=bf_io->bf", "f32[6,7]", "f32[7,5]", 2 * 6 * 7 * 5),
    ("f32[4,768,8,768] convolution(%a, %b), window={size=4x1 stride=3x1 lhs_dilate=4x1}, dim_labels=0b1f_0oi1->0b1f",
     "f32[4,768,8,256]", "f32[4,768,256,1]", 2 * 4 * 768 * 8 * 768 * 256),
    ("f32[4,256,8,768] convolution(%a, %b), window={size=4x8 stride=3x1 pad=0_0x7_7 lhs_dilate=4x1 rhs_reversal=0x1}, "
     "dim_labels=0fb1_10oi->0b1f", "f32[4,768,256,1]", "f32[8,4,768,768]", 2 * 4 * 256 * 8 * 768 * 768),
    # one dimension with padding: 3 taps over 5 positions, of which 2 lie outside
    ("f32[1,5,1] convolution(%a, %b), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f", "f32[1,5,1]", "f32[3,1,1]", 2 * 13),
    ("f32[1,3,1] convolution(%a, %b), window={size=3 stride=2 pad=1_1}, dim_labels=b0f_0io->b0f", "f32[1,5,1]", "f32[3,1,1]", 2 * 7),
])  # fmt: skip
def test_convolutions_count_the_positions_that_meet(text, left, right, flops):
    assert convolution(text, left, right) == flops


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize(("text", "group"), [
    ("replica_groups={{0,2},{1,3}}, x", [0, 2]), ("replica_groups=[2,8]<=[16]", list(range(8))),
    ("replica_groups=[8,2]<=[2,8]T(1,0), x", [0, 8]), ("replica_groups=mesh['axis_0'=16] {'axis_0'}", list(range(16))),
    ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [0, 4]), ("replica_groups=mesh['a'=2,'b'=4] {'b'}, x", [0, 1, 2, 3]),
    ("replica_groups=mesh['a'=8] {'a':(1)2}", [0, 4]), ("replica_groups=mesh['a'=8] {'a':(2)4}", [0, 1, 2, 3]), ("x", []),
])  # fmt: skip
def test_groups_in_every_notation(text, group):
    assert hlo_text.replica_group(text) == group


NETWORK = """HloModule m

%part (a: f32[8]) -> f32[32] {
  %a = f32[8]{0} parameter(0)
  ROOT %g = f32[32]{0} all-gather(%a), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="0"}
}

%all-reduce-scatter.1 (a: f32[32]) -> f32[8] {
  %a = f32[32]{0} parameter(0)
  %r = f32[32]{0} all-reduce(%a), channel_id=2, replica_groups={{0,1,2,3}}, to_apply=%add
  %i = s32[] constant(0)
  ROOT %s = f32[8]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={8}
}

ENTRY %main (a: f32[8]) -> f32[32] {
  %a = f32[8]{0} parameter(0)
  %start = f32[32]{0} fusion(%a), kind=kLoop, calls=%part
  %end = f32[32]{0} fusion(%a), kind=kLoop, calls=%part
  %r = f32[32]{0} all-reduce(%end), channel_id=3, replica_groups={{0,2},{1,3}}, to_apply=%add
  %scatter = f32[8]{0} fusion(%r), kind=kCustom, calls=%all-reduce-scatter.1
  %p = (f32[8]{0}, f32[8]{0}, u32[]) collective-permute-start(%scatter), channel_id=4, source_target_pairs={{0,1},{1,0}}
  %q = f32[8]{0} collective-permute-done(%p)
  ROOT %o = f32[32]{0} copy(%r)
}
"""


def test_what_a_device_sends():
    """One collective spread over several fusions counts once; bytes are those of ring algorithms."""
    near = hlo.Program(NETWORK).cost().network
    assert near == {("all-gather", False): 3 * 32, ("all-reduce", False): 2 * 128 / 2, ("reduce-scatter", False): 128 * 3 / 4,
                    ("collective-permute", False): 32}  # fmt: skip
    far = hlo.Program(NETWORK, slice_devices=2).cost().network
    assert far[("all-reduce", True)] == 128 and far[("all-gather", True)] == 96 and far[("collective-permute", False)] == 32


LAYERS = """HloModule m

%one (a: f32[8]) -> f32[32] {
  %p = f32[8]{0} parameter(0)
  ROOT %g = f32[32]{0} all-gather(%p), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="0"}
}

%other (a: f32[8]) -> f32[32] {
  %q = f32[8]{0} parameter(0)
  ROOT %h = f32[32]{0} all-gather(%q), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="1"}
}

ENTRY %main (a: f32[8]) -> f32[32] {
  %a = f32[8]{0} parameter(0)
  %b = f32[32]{0} fusion(%a), kind=kLoop, calls=%one
  %c = f32[32]{0} fusion(%a), kind=kLoop, calls=%other
  %d = f32[32]{0} all-reduce(%b), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %e = f32[32]{0} all-reduce(%c), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%add
}
"""


def test_layers_outside_of_a_loop_share_channels_and_count_each():
    """They are copies of one function: two gathers in fusions, told apart by their chains, and two reductions outside of any."""
    assert hlo.Program(LAYERS).cost().network == {("all-gather", False): 2 * 3 * 32, ("all-reduce", False): 2 * 2 * 128 * 3 / 4}


def test_what_goes_to_other_slices_through_the_host():
    """XLA sums within each slice and hands the rest to the host, as a send."""
    sent = """%s = (f32[32]{0}, u32[], token[]) send(%r, %t), channel_id=9, is_host_transfer=true,
frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}""".replace("\n", " ")
    text = NETWORK.replace("  %q = ", f"  {sent}\n  %q = ")
    assert hlo.Program(text).cost().network[("all-reduce", True)] == 2 * 128 / 2
    gathered = hlo.between_slices('_xla_megascale_target="{0:3}x{0:15}",_xla_megascale_transfer_type="ALL_GATHER"', 10)
    assert gathered == (("all-gather", True), 30)


# ---------------------------------------------------------------- memory


MEMORY = """HloModule m

%take (stack: f32[10,64], i: s32[]) -> f32[64] {
  %stack = f32[10,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = f32[1,64]{1,0} dynamic-slice(%stack, %i, %zero), dynamic_slice_sizes={1,64}
  ROOT %flat = f32[64]{0} bitcast(%one)
}

%put (stack: f32[10,64], one: f32[1,64], i: s32[]) -> f32[10,64] {
  %stack = f32[10,64]{1,0} parameter(0)
  %one = f32[1,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %new = f32[10,64]{1,0} dynamic-update-slice(%stack, %one, %i, %zero)
}

ENTRY %main (stack: f32[10,64], i: s32[], one: f32[1,64]) -> f32[10,64] {
  %stack = f32[10,64]{1,0} parameter(0)
  %i = s32[]{:S(6)} parameter(1)
  %one = f32[1,64]{1,0:T(8,128)S(1)} parameter(2)
  %row = f32[64]{0} fusion(%stack, %i), kind=kLoop, calls=%take
  %near = f32[64]{0:T(128)S(1)} negate(%row)
  ROOT %new = f32[10,64]{1,0} fusion(%stack, %one, %i), kind=kLoop, calls=%put
}
"""


def test_memory_is_what_crosses_it():
    """A slice of a stack is read as the slice, an update in place written as the update, and what lies in cache costs nothing."""
    row = 64 * 4
    assert hlo.Program(MEMORY).cost().memory == (row + row) + row + row


def test_the_largest_array():
    assert hlo_text.largest(MEMORY)[0].dims == (10, 64)
    with pytest.raises(ValueError, match="not an HLO module"):
        hlo_text.parse("nothing")
